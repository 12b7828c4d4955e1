"""Rows, verdicts and the JSON file of the table; the weights say nothing, see `evaluated`."""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from convert import keymap
from convert.pth import write_pth
from convert.source import abstract_variables
from deeplab_jax.config import PUBLISHED_MIOU, get_config
from deeplab_jax.config.recipe import apply_overrides, load_recipe
from deeplab_jax.evaluation import evaluator
from deeplab_jax.evaluation.evaluator import EvalResult

VOC_WEIGHTS = "deeplabv3plus_resnet50os16_voc_train.pth"


@pytest.fixture(scope="module")
def tensors(small):
    """State dicts of the small network, by number of classes."""

    def make(classes):
        overrides = [*small, f"--config.model.num_classes={classes}"]
        config = apply_overrides(get_config("folder"), overrides).model
        shapes = keymap.to_shapes(abstract_variables(config), config.depth)
        return {
            key: np.asarray(1) if key.endswith(keymap.COUNTER) else np.ones(shape, np.float32)
            for key, shape in shapes.items()
        }

    return {classes: make(classes) for classes in (19, 21)}


@pytest.fixture
def evaluated(monkeypatch):
    """Replaces the evaluator by one that finds no mistake.

    Its `names` are the data sets that were evaluated; its `faults`, the errors raised instead, by
    output stride.
    """
    evaluated = SimpleNamespace(names=[], faults={})

    class Perfect:
        def __init__(self, model, dataset, resize_base):
            self.dataset, self.model = dataset, model

        def __call__(self, variables, on_image):
            if self.model.output_stride in evaluated.faults:
                raise evaluated.faults[self.model.output_stride]
            evaluated.names.append(self.dataset.name)
            for index in range(len(self.dataset)):
                self.dataset.read(index)
                on_image()
            confusion = np.eye(self.model.num_classes, dtype=np.int64)
            return EvalResult(confusion, self.dataset.class_names, len(self.dataset))

    monkeypatch.setattr(evaluator, "Evaluator", Perfect)
    for key in PUBLISHED_MIOU:
        monkeypatch.setitem(PUBLISHED_MIOU, key, 100.0)
    return evaluated


class Site:
    """Data, weights, and the command run on them."""

    def __init__(self, data, weights, crosscheck, small, tensors):
        self.data, self.weights, self.tensors = data, weights, tensors
        self.crosscheck, self.small = crosscheck, small
        self.json = weights / "crosscheck.json"

    def put(self, name, classes=21, changed=0.0):
        tensors = self.tensors[classes]
        bias = {"decoder.3.bias": tensors["decoder.3.bias"] + np.float32(changed)}
        write_pth(self.weights / f"deeplabv3plus_{name}_train.pth", {"model": tensors | bias})

    def entry(self, name, overrides=None):
        rows = json.loads(self.json.read_text())["rows"]
        return rows[" ".join([name, *(self.small if overrides is None else overrides)])]

    def call(self, *argv):
        return self.crosscheck("--data", self.data, "--weights", self.weights, *argv)

    def run(self, *rows):
        code, out, err = self.call("--rows", *rows, *self.small)
        lines = [line.split(maxsplit=5) for line in out.splitlines()]
        return code, {line[0]: line[-1] for line in lines if line[0] in rows}, err


@pytest.fixture
def site(make_tree, tmp_path, crosscheck, crosscheck_table, small, tensors, evaluated, monkeypatch):
    """VOC's data, and weights of one row of it."""
    weights = tmp_path / "zoo"
    weights.mkdir()
    # One answer in a test, though somebody may be editing the sources.
    digest = functools.cache(crosscheck_table.digest_sources)
    monkeypatch.setattr(crosscheck_table, "digest_sources", digest)
    site = Site(make_tree("voc", num_train=1, num_val=2), weights, crosscheck, small, tensors)
    site.put("resnet50os16_voc")
    return site


def test_a_row_that_passes_is_enough(site):
    rows = ("voc_r50_os16", "voc_r101_os16", "cityscapes_r50_os8")
    site.put("resnet50os8_cityscapes", 19)
    code, verdicts, _ = site.run(*rows)
    assert code == 0
    weights = site.weights / "deeplabv3plus_resnet101os16_voc_train.pth"
    assert verdicts == {
        "voc_r50_os16": "pass",
        "voc_r101_os16": f"not run: missing {weights}",
        "cityscapes_r50_os8": f"not run: missing {site.data}/CityScapes/leftImg8bit/val",
    }
    assert {name: site.entry(name)["verdict"] for name in rows} == verdicts


def test_nothing_that_could_run_is_no_success(site):
    code, verdicts, _ = site.run("ade20k_r50_os8")
    assert code == 1
    weights = site.weights / "deeplabv3plus_resnet50os8_ade20k_train.pth"
    data = site.data / "ADE20k/ADEChallengeData2016/images/validation"
    assert verdicts == {"ade20k_r50_os8": f"not run: missing {weights}, {data}"}


def test_all_rows_are_checked_by_default(site):
    code, out, _ = site.call(*site.small)
    assert code == 0
    assert len(json.loads(site.json.read_text())["rows"]) == 12
    assert out.count("not run: missing ") == 11


def test_broken_weights_and_images_leave_the_other_rows_alone(site, evaluated, make_tree):
    (site.weights / "deeplabv3plus_resnet50os8_voc_train.pth").write_bytes(b"no weights")
    cityscapes = make_tree("cityscapes", num_train=0, num_val=2) / "CityScapes"
    cityscapes.rename(site.data / "CityScapes")
    site.put("resnet50os8_cityscapes", 19)
    image = min(site.data.glob("CityScapes/leftImg8bit/val/*/*.png"))
    sound = image.read_bytes()
    image.write_bytes(sound[:200])
    rows = ("voc_r50_os8", "cityscapes_r50_os8", "voc_r50_os16")
    code, verdicts, _ = site.run(*rows)
    assert code == 1
    weights = site.weights / "deeplabv3plus_resnet50os8_voc_train.pth"
    assert verdicts["voc_r50_os8"].startswith(f"error: {weights}: ")
    assert verdicts["cityscapes_r50_os8"].startswith(f"error: {image}: ")
    assert verdicts["voc_r50_os16"] == "pass"

    image.write_bytes(sound)  # failures are tried again, what is finished is not
    site.put("resnet50os8_voc")
    evaluated.names.clear()
    assert site.run(*rows)[:2] == (0, dict.fromkeys(rows, "pass"))
    assert evaluated.names == ["voc", "cityscapes"]


def test_weights_that_do_not_fit_show_where(site, tensors):
    odd = {key: value for key, value in tensors[21].items() if key != "decoder.3.bias"}
    write_pth(site.weights / VOC_WEIGHTS, odd)
    code, verdicts, err = site.run("voc_r50_os16")
    assert code == 1
    assert "does not fit configs/voc_r50_os16.py" in verdicts["voc_r50_os16"]
    assert "decoder.3.bias" in err


def test_a_backbone_is_no_row(site, tensors):
    prefix = "backbone_net."
    backbone = {
        key.removeprefix(prefix): value
        for key, value in tensors[21].items()
        if key.startswith(prefix)
    }
    write_pth(site.weights / VOC_WEIGHTS, backbone)
    code, verdicts, _ = site.run("voc_r50_os16")
    assert code == 1
    assert "is an ImageNet classifier (" in verdicts["voc_r50_os16"]


def test_masks_without_a_valid_pixel_give_no_figure(site, monkeypatch):
    def nothing(self, variables, on_image):
        return EvalResult(np.zeros((21, 21), np.int64), self.dataset.class_names, 2)

    monkeypatch.setattr(evaluator.Evaluator, "__call__", nothing)
    code, verdicts, _ = site.run("voc_r50_os16")
    assert code == 1
    assert "no mask has a pixel that counts" in verdicts["voc_r50_os16"]


def test_a_bug_is_told_in_full_and_leaves_the_other_rows_alone(site, evaluated):
    site.put("resnet50os8_voc")
    evaluated.faults[8] = TypeError("first line\nsecond line")
    code, verdicts, err = site.run("voc_r50_os8", "voc_r50_os16")
    assert code == 1
    assert verdicts == {"voc_r50_os8": "error: TypeError: first line", "voc_r50_os16": "pass"}
    assert "Traceback" in err


def test_finished_rows_are_kept(site, evaluated):
    site.put("resnet50os8_voc")
    site.run("voc_r50_os16")
    before = site.entry("voc_r50_os16")
    site.run("voc_r50_os8")
    assert site.entry("voc_r50_os16") == before
    rows = ("voc_r50_os16", "voc_r50_os8")
    code, verdicts, err = site.run(*rows)
    assert (code, verdicts) == (0, dict.fromkeys(rows, "pass"))
    assert err.count(": as measured at ") == 2
    assert site.entry("voc_r50_os16") == before
    assert evaluated.names == ["voc", "voc"]


def test_a_measurement_outlives_weights_that_are_away(site, evaluated):
    site.run("voc_r50_os16")
    path = site.weights / VOC_WEIGHTS
    path.rename(site.weights / "away.pth")
    code, verdicts, _ = site.run("voc_r50_os16")
    assert (code, verdicts) == (1, {"voc_r50_os16": f"not run: missing {path}"})
    assert site.entry("voc_r50_os16")["ours"] is None
    (site.weights / "away.pth").rename(path)
    assert site.run("voc_r50_os16")[:2] == (0, {"voc_r50_os16": "pass"})
    assert evaluated.names == ["voc"]


def change_weights(site, *_):
    path = site.weights / VOC_WEIGHTS
    stat = path.stat()
    site.put("resnet50os16_voc", changed=1)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


def change_image(site, *_):
    os.utime(min(site.data.glob("VOCdevkit/VOC2012/JPEGImages/val_*")), ns=(0, 1))


def change_mask(site, *_):
    path = min(site.data.glob("VOCdevkit/VOC2012/SegmentationClass/val_*"))
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def change_list(site, *_):
    path = site.data / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    path.write_text(path.read_text().splitlines()[0])


def change_recipe(site, monkeypatch, crosscheck_table):
    configs = site.weights / "configs"
    configs.mkdir()
    recipe = (crosscheck_table.CONFIGS / "voc_r50_os16.py").read_text()
    (configs / "voc_r50_os16.py").write_text(recipe + "# changed\n")
    monkeypatch.setattr(crosscheck_table, "CONFIGS", configs)


def change_package(site, monkeypatch, crosscheck_table):
    crosscheck_table.digest_sources.cache_clear()
    find = importlib.util.find_spec
    other = importlib.util.spec_from_file_location("convert", site.weights / "__init__.py")
    monkeypatch.setattr(
        crosscheck_table.importlib.util,
        "find_spec",
        lambda name: other if name == "convert" else find(name),
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (change_weights, "weights"),
        (change_image, "data"),
        (change_mask, "data"),
        (change_list, "data"),
        (change_recipe, "code"),
        (change_package, "code"),
    ],
)
def test_whatever_changed_is_measured_again(
    site, evaluated, monkeypatch, crosscheck_table, change, what
):
    site.run("voc_r50_os16")
    change(site, monkeypatch, crosscheck_table)
    code, verdicts, err = site.run("voc_r50_os16")
    assert (code, verdicts) == (0, {"voc_r50_os16": "pass"})
    assert evaluated.names == ["voc", "voc"]
    assert re.search(rf"changed since .*: {what}\n", err)
    assert len(json.loads(site.json.read_text())["rows"]) == 1


def test_trials_do_not_take_the_place_of_the_tables_rows(site, evaluated):
    other = [*site.small, "--config.eval.resize_base=97,65"]
    site.run("voc_r50_os16")
    code, out, _ = site.call("--rows", "voc_r50_os16", *other)
    assert code == 0
    assert f"not the table's network or protocol, but with {' '.join(other)}:" in out
    assert site.entry("voc_r50_os16", other)["overrides"] == other
    assert site.entry("voc_r50_os16")["overrides"] == site.small
    assert evaluated.names == ["voc", "voc"]


def test_an_interrupted_table_is_whole_and_goes_on(site, evaluated):
    site.put("resnet50os8_voc")
    evaluated.faults[16] = KeyboardInterrupt()
    rows = ("voc_r50_os8", "voc_r50_os16")
    code, _, err = site.run(*rows)
    assert (code, err.splitlines()[-1]) == (130, "interrupted")
    assert len(json.loads(site.json.read_text())["rows"]) == 1
    evaluated.faults.clear()
    assert site.run(*rows)[:2] == (0, dict.fromkeys(rows, "pass"))
    assert evaluated.names == ["voc", "voc"]
    assert [path.name for path in site.weights.iterdir() if path.suffix == ".tmp"] == []


def test_progress_is_told(crosscheck_table, site, monkeypatch):
    monkeypatch.setattr(crosscheck_table, "TELL_SECONDS", 0.0)
    _, _, err = site.run("voc_r50_os16")
    assert "voc_r50_os16: 1/2 images, 0:00:0" in err
    assert "voc_r50_os16: pass with 100.00 %\n" in err


def test_without_overrides_nothing_is_said_of_them(site):
    _, out, _ = site.call("--rows", "voc_r50_os8")
    assert out.splitlines()[0].split() == [
        *("row", "published", "ours", "difference", "seconds", "verdict")
    ]
    assert site.entry("voc_r50_os8", [])["overrides"] == []


def test_weights_that_cannot_be_written_to_leave_the_file_here(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != site.weights)
    site.call("--rows", "voc_r50_os8")
    assert (tmp_path / "crosscheck.json").is_file()
    assert not site.json.exists()


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["--rows", "voc_r50os16"], "'voc_r50os16' is no row of the table - did you mean voc_r50_"),
        (["--rows", "camvid"], "use some of voc_r50_os8, "),
        (["--row", "voc_r50_os16"], "did you mean --rows?"),
        (["--config.model.widht=4"], "did you mean config.model.width?"),
        (["--config.data.source=cache"], "rows are measured on files"),
        (["--config.model.width=3"], "must be an even number"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_wrong_command_line_is_told_in_one_line(crosscheck, tmp_path, argv, advice):
    code, out, err = crosscheck("--data", tmp_path, "--weights", tmp_path, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert advice in err
    assert list(tmp_path.iterdir()) == []


_WHOLE = {"fingerprint": {}, "date": "today", "mean_iou": 0.5, "seconds": 3.0}


@pytest.mark.parametrize(
    "text",
    [
        '{"thesis": 1}',
        "[]",
        '{"rows": {"a": {}}}',
        '{"rows": {"a": {"verdict": "pass"}}}',
        '{"rows": {"a": {"verdict": "pass", "measurement": 3}}}',
        *(
            json.dumps({"rows": {"a": {"verdict": "pass", "measurement": measurement}}})
            for key in _WHOLE
            for measurement in (_WHOLE | {key: []}, {k: _WHOLE[k] for k in _WHOLE if k != key})
        ),
        "precious",
        "",
    ],
)
def test_a_file_of_something_else_is_left_alone(crosscheck, tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(text)
    code, out, err = crosscheck("--data", tmp_path, "--weights", tmp_path, "--json", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "was not written by this script" in err
    assert path.read_text() == text


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(crosscheck, tmp_path):
    path = tmp_path / "nowhere" / "table.json"
    code, out, err = crosscheck("--data", tmp_path, "--weights", tmp_path, "--json", path)
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert f"error: {path}: there is no folder {path.parent}" in err


def test_missing_weights_folder_is_told_and_nothing_is_left(crosscheck, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = crosscheck("--data", tmp_path, "--weights", "nowhere")
    assert (code, out) == (2, "")
    assert err == (
        "error: --weights: there is no folder nowhere - name the folder of the .pth files\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_every_row_has_its_recipe(crosscheck_table):
    for key in PUBLISHED_MIOU:
        row = crosscheck_table.Row(*key)
        config = load_recipe(str(crosscheck_table.CONFIGS / f"{row.name}.py"))
        assert (config.data.dataset, config.model.depth, config.model.output_stride) == key


def test_the_script_runs_from_anywhere(crosscheck_table, tmp_path):
    argv = ["--data", "data", "--weights", "zoo", "--rows", "voc_r50_os16"]
    (tmp_path / "zoo").mkdir()
    got = subprocess.run(
        [sys.executable, crosscheck_table.__file__, *argv],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert got.returncode == 1
    assert "not run: missing zoo/deeplabv3plus_resnet50os16_voc_train.pth, data\n" in got.stdout
    assert got.stdout.endswith("numbers: zoo/crosscheck.json\n")
