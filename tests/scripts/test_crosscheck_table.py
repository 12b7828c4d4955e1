import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from convert import keymap
from convert.pth import write_pth
from convert.source import abstract_variables
from deeplab_jax import cli
from deeplab_jax.config import PUBLISHED_MIOU, get_config
from deeplab_jax.config.recipe import apply_overrides, load_recipe
from deeplab_jax.evaluation import evaluator
from deeplab_jax.evaluation.evaluator import EvalResult
from deeplab_jax.inference.protocol import TABLE

_PATH = Path(__file__).parents[2] / "scripts" / "crosscheck_table.py"
_SPEC = importlib.util.spec_from_file_location("crosscheck_table", _PATH)
crosscheck_table = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(crosscheck_table)

SMALL = [
    "--config.model.depth=18",
    "--config.model.width=4",
    "--config.model.head_channels=32",
    "--config.model.low_level_channels=8",
    "--config.model.aux_channels=7",
]
VOC_WEIGHTS = "deeplabv3plus_resnet50os16_voc.pth"
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@pytest.fixture
def call(capsys):
    """Returns call(*argv) -> (exit code, standard output, standard error)."""

    def call(*argv):
        with pytest.raises(SystemExit) as end:
            cli.run(crosscheck_table.main, [str(argument) for argument in argv])
        return end.value.code, *capsys.readouterr()

    return call


def entry(path, name, overrides=SMALL):
    return json.loads(path.read_text())["rows"][" ".join([name, *overrides])]


# Figures, against PyTorch and an evaluator written from the specification's section 7.


def images_and_masks(root, dataset):
    if dataset == "voc":
        images = root.glob("VOCdevkit/VOC2012/JPEGImages/val_*.jpg")
        return [(p, p.parents[1] / "SegmentationClass" / f"{p.stem}.png") for p in images]
    if dataset == "ade20k":
        top = root / "ADE20k" / "ADEChallengeData2016"
        images = top.glob("images/validation/*.jpg")
        return [(p, top / "annotations" / "validation" / f"{p.stem}.png") for p in images]
    top = root / "CityScapes"
    images = top.glob("leftImg8bit/val/*/*_leftImg8bit.png")
    suffix = "gtFine_labelIds.png"
    return [
        (p, top / "gtFine" / "val" / p.parent.name / p.name.replace("leftImg8bit.png", suffix))
        for p in images
    ]


def truth(raw, dataset):
    """Returns classes, 255 where none counts."""
    if dataset == "voc":
        return raw
    classes = np.full(256, 255)
    values = np.arange(1, 151) if dataset == "ade20k" else np.array(CITYSCAPES_IDS)
    classes[values] = np.arange(len(values))
    return classes[raw]


def make_network(torch_reference, model, image):
    """Returns a network whose logits on the image spread around 0 for every class."""
    torch, nn = torch_reference.torch, torch_reference.nn
    torch.manual_seed(0)
    net = torch_reference.network(model).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.8, 1.25)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0, 0.1)
        logits, classifier = net(image)[0], net.decoder[3]
        # Quartiles: the rows beside the padding are far off, and would set mean and deviation.
        low, middle, high = logits[0].flatten(1).quantile(torch.tensor([0.25, 0.5, 0.75]), 1)
        scale = (high - low).mean()
        classifier.weight /= scale
        classifier.bias.sub_(middle).div_(scale)
    return net


def network_input(torch_reference, image, base):
    """Returns float32 (1, 3, h, w) of an image as OpenCV reads it."""
    height, width = image.shape[:2]
    scale = min(max(base) / max(height, width), min(base) / min(height, width))
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    x = torch_reference.torch.tensor((resized[..., ::-1].astype(np.float32) - mean) / std)
    return x.permute(2, 0, 1)[None]


def make_void(path, where, value):
    stored = Image.open(path)
    raw = np.array(stored)
    raw[where] = value
    changed = Image.fromarray(raw)
    if stored.mode == "P":
        changed.putpalette(stored.getpalette())
    changed.save(path)
    return raw


def network_and_iou(torch_reference, model, root, dataset, base):
    """Returns a network and its IoU by class; makes void what is too close to call in float32."""
    samples = [(cv2.imread(str(i)), mask) for i, mask in sorted(images_and_masks(root, dataset))]
    inputs = [network_input(torch_reference, image, base) for image, _ in samples]
    net = make_network(torch_reference, model, inputs[0])
    classes = model.num_classes
    confusion = np.zeros((classes, classes), np.int64)
    for x, (image, mask) in zip(inputs, samples, strict=True):
        with torch_reference.torch.no_grad():
            logits = net(x)[0]
        size = image.shape[:2]
        resize = torch_reference.F.interpolate
        logits = resize(logits, size, mode="bilinear", align_corners=False)[0]
        first, second = logits.topk(2, 0).values.numpy()
        raw = make_void(mask, first - second < 0.01, 255 if dataset == "voc" else 0)
        label, prediction = truth(raw, dataset), logits.argmax(0).numpy()
        is_valid = label != 255
        cells = label[is_valid].astype(np.int64) * classes + prediction[is_valid]
        confusion += np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    assert np.count_nonzero(confusion.sum(0)) >= 5
    assert confusion.sum() > 0.8 * sum(image[..., 0].size for image, _ in samples)
    hit = np.diag(confusion)
    with np.errstate(invalid="ignore"):
        return net, hit / (confusion.sum(0) + confusion.sum(1) - hit)


@pytest.mark.parametrize(
    ("key", "depth", "base", "images"),  # few, for each shape compiles
    [
        (("voc", 50, 16), 50, (2048, 512), 1),
        (("ade20k", 101, 8), 18, (2048, 512), 2),
        (("cityscapes", 50, 16), 18, (2048, 1024), 1),
    ],
)
def test_figures_are_those_of_pytorch(
    torch_reference, make_tree, call, tmp_path, monkeypatch, key, depth, base, images
):
    dataset, row_depth, stride = key
    overrides = [*SMALL, f"--config.model.depth={depth}"]
    config = apply_overrides(get_config(*key), overrides)
    root = make_tree(dataset, num_train=0, num_val=images)
    net, iou = network_and_iou(torch_reference, config.model, root, dataset, base)
    name = f"deeplabv3plus_resnet{row_depth}os{stride}_{dataset}.pth"
    torch_reference.torch.save({"model": net.state_dict(), "epoch": 60}, tmp_path / name)
    expected = 100 * np.nanmean(iou)

    row = f"{dataset}_r{row_depth}_os{stride}"
    for offset, verdict in ((0.04, "pass"), (-0.04, "pass"), (0.06, "fail"), (-0.06, "fail")):
        monkeypatch.setitem(PUBLISHED_MIOU, key, expected + offset)
        argv = ("--data", root, "--weights", tmp_path, "--rows", row, *overrides)
        code, out, _ = call(*argv)
        assert code == (0 if verdict == "pass" else 1)
        line = next(line for line in out.splitlines() if line.startswith(row))
        assert line.split()[1:4] == [
            f"{expected + offset:.2f}",
            f"{expected:.2f}",
            f"{-offset:+.3f}",
        ]
        assert line.endswith(verdict)
    got = entry(tmp_path / "crosscheck.json", row, overrides)
    measurement = got["measurement"]
    assert got["ours"] == pytest.approx(expected, abs=1e-6)
    assert measurement["mean_iou"] == pytest.approx(expected / 100, abs=1e-8)
    theirs = [np.nan if value is None else value for value in measurement["iou"]]
    np.testing.assert_allclose(theirs, iou, atol=1e-8)
    assert (measurement["num_images"], measurement["protocol"]) == (images, str(TABLE))
    assert got["overrides"] == overrides


# All else, with weights that say nothing and an evaluator that finds no mistake.


@pytest.fixture(scope="module")
def tensors():
    """Returns tensors(classes): a state dict of the small network."""

    def make(classes):
        config = apply_overrides(get_config("folder"), SMALL).model
        config.num_classes = classes
        shapes = keymap.to_shapes(abstract_variables(config), config.depth)
        return {
            key: np.asarray(1) if key.endswith(keymap.COUNTER) else np.ones(shape, np.float32)
            for key, shape in shapes.items()
        }

    return {classes: make(classes) for classes in (19, 21)}


@pytest.fixture
def evaluated(monkeypatch):
    """Replaces the evaluator; returns the list of data sets that it was called for."""
    names = []

    class Perfect:
        def __init__(self, model, dataset, resize_base):
            self.dataset, self.num_classes = dataset, model.num_classes

        def __call__(self, variables, indices=None, should_stop=None):
            names.append(self.dataset.name)
            for index in range(len(self.dataset)):
                should_stop()
                self.dataset.read(index)
            confusion = np.eye(self.num_classes, dtype=np.int64)
            return EvalResult(confusion, self.dataset.class_names, len(self.dataset))

    monkeypatch.setattr("deeplab_jax.evaluation.evaluator.Evaluator", Perfect)
    for key in PUBLISHED_MIOU:
        monkeypatch.setitem(PUBLISHED_MIOU, key, 100.0)
    return names


class Site:
    """Data, weights, and the command run on them."""

    def __init__(self, data, weights, call, tensors):
        self.data, self.weights, self.call, self.tensors = data, weights, call, tensors
        self.json = weights / "crosscheck.json"

    def put(self, name, classes=21, changed=0.0):
        tensors = self.tensors[classes]
        bias = {"decoder.3.bias": tensors["decoder.3.bias"] + np.float32(changed)}
        write_pth(self.weights / f"deeplabv3plus_{name}.pth", {"model": tensors | bias})

    def run(self, *rows, overrides=SMALL):
        argv = ["--data", self.data, "--weights", self.weights, "--rows", *rows]
        code, out, err = self.call(*argv, *overrides)
        lines = [line.split(maxsplit=5) for line in out.splitlines()]
        return code, {line[0]: line[-1] for line in lines if line[0] in rows}, err


@pytest.fixture
def site(make_tree, tmp_path, call, tensors, evaluated, monkeypatch):
    """VOC's data, and weights of one row of it."""
    weights = tmp_path / "zoo"
    weights.mkdir()
    # One answer in a test, though somebody may be editing the sources.
    monkeypatch.setattr(crosscheck_table, "_code", functools.cache(crosscheck_table._code))
    site = Site(make_tree("voc", num_train=1, num_val=2), weights, call, tensors)
    site.put("resnet50os16_voc")
    return site


def test_a_row_that_passes_is_enough(site):
    rows = ("voc_r50_os16", "voc_r101_os16", "cityscapes_r50_os8")
    site.put("resnet50os8_cityscapes", 19)
    code, verdicts, _ = site.run(*rows)
    assert code == 0
    weights = site.weights / "deeplabv3plus_resnet101os16_voc.pth"
    assert verdicts == {
        "voc_r50_os16": "pass",
        "voc_r101_os16": f"not run: missing {weights}",
        "cityscapes_r50_os8": f"not run: missing {site.data}/CityScapes/leftImg8bit/val",
    }
    assert {name: entry(site.json, name)["verdict"] for name in rows} == verdicts


def test_nothing_that_could_run_is_no_success(site):
    code, verdicts, _ = site.run("ade20k_r50_os8")
    assert code == 1
    weights = site.weights / "deeplabv3plus_resnet50os8_ade20k.pth"
    data = site.data / "ADE20k/ADEChallengeData2016/images/validation"
    assert verdicts == {"ade20k_r50_os8": f"not run: missing {weights}, {data}"}


def test_all_rows_are_checked_by_default(site, call):
    code, out, _ = call("--data", site.data, "--weights", site.weights, *SMALL)
    assert code == 0
    assert len(json.loads(site.json.read_text())["rows"]) == 12
    assert out.count("not run: missing ") == 11


def test_broken_weights_and_images_leave_the_other_rows_alone(site, evaluated, make_tree):
    (site.weights / "deeplabv3plus_resnet50os8_voc.pth").write_bytes(b"no weights")
    cityscapes = make_tree("cityscapes", num_train=0, num_val=2) / "CityScapes"
    cityscapes.rename(site.data / "CityScapes")
    site.put("resnet50os8_cityscapes", 19)
    image = min(site.data.glob("CityScapes/leftImg8bit/val/*/*.png"))
    sound = image.read_bytes()
    image.write_bytes(sound[:200])
    rows = ("voc_r50_os8", "cityscapes_r50_os8", "voc_r50_os16")
    code, verdicts, _ = site.run(*rows)
    assert code == 1
    weights = site.weights / "deeplabv3plus_resnet50os8_voc.pth"
    assert verdicts["voc_r50_os8"].startswith(f"error: {weights}: ")
    assert verdicts["cityscapes_r50_os8"].startswith(f"error: {image}: ")
    assert verdicts["voc_r50_os16"] == "pass"

    image.write_bytes(sound)  # failures are tried again, what is finished is not
    site.put("resnet50os8_voc")
    evaluated.clear()
    assert site.run(*rows)[:2] == (0, dict.fromkeys(rows, "pass"))
    assert evaluated == ["voc", "cityscapes"]


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
    def nothing(self, variables, indices=None, should_stop=None):
        return EvalResult(np.zeros((21, 21), np.int64), self.dataset.class_names, 2)

    monkeypatch.setattr(evaluator.Evaluator, "__call__", nothing)
    code, verdicts, _ = site.run("voc_r50_os16")
    assert code == 1
    assert "no mask has a pixel that counts" in verdicts["voc_r50_os16"]


def test_a_bug_is_told_in_full_and_leaves_the_other_rows_alone(site, monkeypatch):
    site.put("resnet50os8_voc")
    evaluate = crosscheck_table._evaluate

    def buggy(row, *args):
        if row.output_stride == 8:
            raise TypeError("first line\nsecond line")
        return evaluate(row, *args)

    monkeypatch.setattr(crosscheck_table, "_evaluate", buggy)
    code, verdicts, err = site.run("voc_r50_os8", "voc_r50_os16")
    assert code == 1
    assert verdicts == {"voc_r50_os8": "error: TypeError: first line", "voc_r50_os16": "pass"}
    assert "Traceback" in err


def test_finished_rows_are_kept(site, evaluated):
    site.put("resnet50os8_voc")
    site.run("voc_r50_os16")
    before = entry(site.json, "voc_r50_os16")
    site.run("voc_r50_os8")
    assert entry(site.json, "voc_r50_os16") == before
    rows = ("voc_r50_os16", "voc_r50_os8")
    code, verdicts, err = site.run(*rows)
    assert (code, verdicts) == (0, dict.fromkeys(rows, "pass"))
    assert err.count(": as measured at ") == 2
    assert entry(site.json, "voc_r50_os16") == before
    assert evaluated == ["voc", "voc"]


def test_a_measurement_outlives_weights_that_are_away(site, evaluated):
    site.run("voc_r50_os16")
    path = site.weights / VOC_WEIGHTS
    path.rename(site.weights / "away.pth")
    code, verdicts, _ = site.run("voc_r50_os16")
    assert (code, verdicts) == (1, {"voc_r50_os16": f"not run: missing {path}"})
    assert entry(site.json, "voc_r50_os16")["ours"] is None
    (site.weights / "away.pth").rename(path)
    assert site.run("voc_r50_os16")[:2] == (0, {"voc_r50_os16": "pass"})
    assert evaluated == ["voc"]


def change_weights(site, monkeypatch):
    path = site.weights / VOC_WEIGHTS
    stat = path.stat()
    site.put("resnet50os16_voc", changed=1)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


def change_image(site, monkeypatch):
    os.utime(min(site.data.glob("VOCdevkit/VOC2012/JPEGImages/val_*")), ns=(0, 1))


def change_mask(site, monkeypatch):
    path = min(site.data.glob("VOCdevkit/VOC2012/SegmentationClass/val_*"))
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def change_list(site, monkeypatch):
    path = site.data / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    path.write_text(path.read_text().splitlines()[0])


def change_recipe(site, monkeypatch):
    configs = site.weights / "configs"
    configs.mkdir()
    recipe = (crosscheck_table.CONFIGS / "voc_r50_os16.py").read_text()
    (configs / "voc_r50_os16.py").write_text(recipe + "# changed\n")
    monkeypatch.setattr(crosscheck_table, "CONFIGS", configs)


def change_package(site, monkeypatch):
    crosscheck_table._code.cache_clear()
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
def test_whatever_changed_is_measured_again(site, evaluated, monkeypatch, change, what):
    site.run("voc_r50_os16")
    change(site, monkeypatch)
    code, verdicts, err = site.run("voc_r50_os16")
    assert (code, verdicts) == (0, {"voc_r50_os16": "pass"})
    assert evaluated == ["voc", "voc"]
    assert re.search(rf"changed since .*: {what}\n", err)
    assert len(json.loads(site.json.read_text())["rows"]) == 1


def test_trials_do_not_take_the_place_of_the_tables_rows(site, evaluated):
    other = [*SMALL, "--config.eval.resize_base=97,65"]
    site.run("voc_r50_os16")
    code, out, _ = site.call(
        *("--data", site.data, "--weights", site.weights, "--rows", "voc_r50_os16", *other)
    )
    assert code == 0
    assert f"not the table's network or protocol, but with {' '.join(other)}:" in out
    assert entry(site.json, "voc_r50_os16", other)["overrides"] == other
    assert entry(site.json, "voc_r50_os16")["overrides"] == SMALL
    assert evaluated == ["voc", "voc"]


def test_an_interrupted_table_is_whole_and_goes_on(site, evaluated, monkeypatch):
    site.put("resnet50os8_voc")
    evaluate = crosscheck_table._evaluate

    def stop(row, *args):
        if row.output_stride == 16:
            raise KeyboardInterrupt
        return evaluate(row, *args)

    monkeypatch.setattr(crosscheck_table, "_evaluate", stop)
    rows = ("voc_r50_os8", "voc_r50_os16")
    code, _, err = site.run(*rows)
    assert (code, err.splitlines()[-1]) == (130, "interrupted")
    assert len(json.loads(site.json.read_text())["rows"]) == 1
    monkeypatch.setattr(crosscheck_table, "_evaluate", evaluate)
    assert site.run(*rows)[:2] == (0, dict.fromkeys(rows, "pass"))
    assert evaluated == ["voc", "voc"]
    assert [path.name for path in site.weights.iterdir() if path.suffix == ".tmp"] == []


def test_progress_is_told(site, monkeypatch):
    monkeypatch.setattr(crosscheck_table, "_TELL_SECONDS", 0.0)
    _, _, err = site.run("voc_r50_os16")
    assert "voc_r50_os16: 1/2 images, 0:00:0" in err
    assert "voc_r50_os16: pass with 100.00 %\n" in err


def test_without_overrides_nothing_is_said_of_them(site, call):
    _, out, _ = call("--data", site.data, "--weights", site.weights, "--rows", "voc_r50_os8")
    assert out.splitlines()[0].split() == [
        *("row", "published", "ours", "difference", "seconds", "verdict")
    ]
    assert entry(site.json, "voc_r50_os8", [])["overrides"] == []


def test_weights_that_cannot_be_written_to_leave_the_file_here(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != site.weights)
    site.call("--data", site.data, "--weights", site.weights, "--rows", "voc_r50_os8")
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
def test_wrong_command_line_is_told_in_one_line(call, tmp_path, argv, advice):
    code, out, err = call("--data", tmp_path, "--weights", tmp_path, *argv)
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
def test_a_file_of_something_else_is_left_alone(call, tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(text)
    code, out, err = call("--data", tmp_path, "--weights", tmp_path, "--json", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "was not written by this script" in err
    assert path.read_text() == text


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(call, tmp_path):
    path = tmp_path / "nowhere" / "table.json"
    code, out, err = call("--data", tmp_path, "--weights", tmp_path, "--json", path)
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert f"error: {path}: there is no folder {path.parent}" in err


def test_missing_weights_folder_is_told_and_nothing_is_left(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("--data", tmp_path, "--weights", "nowhere")
    assert (code, out) == (2, "")
    assert err == (
        "error: --weights: there is no folder nowhere - name the folder of the .pth files\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_every_row_has_its_recipe():
    for key in PUBLISHED_MIOU:
        row = crosscheck_table.Row(*key)
        config = load_recipe(str(crosscheck_table.CONFIGS / f"{row.name}.py"))
        assert (config.data.dataset, config.model.depth, config.model.output_stride) == key


def test_the_script_runs_from_anywhere(tmp_path):
    argv = ["--data", "data", "--weights", "zoo", "--rows", "voc_r50_os16"]
    (tmp_path / "zoo").mkdir()
    got = subprocess.run(
        [sys.executable, str(_PATH), *argv], cwd=tmp_path, capture_output=True, text=True
    )
    assert got.returncode == 1
    assert "not run: missing zoo/deeplabv3plus_resnet50os16_voc.pth, data/VOC" in got.stdout
    assert got.stdout.endswith("numbers: zoo/crosscheck.json\n")
