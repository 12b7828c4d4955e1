import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax import cli
from deeplab_jax.data.classes import colormap
from deeplab_jax.data.images import write_png_indices

_spec = importlib.util.spec_from_file_location("planted", Path(__file__).with_name("planted.py"))
planted = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(planted)

RECIPE = Path(__file__).parents[2] / "configs" / "camvid_r50_os16.py"


@pytest.fixture
def doctor(capsys, tmp_path):
    """Returns doctor(*argv) -> (exit code, output, errors, findings or None)."""

    def call(*argv):
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        with pytest.raises(SystemExit) as end:
            cli.main(["doctor", *map(str, argv), "--json", str(report)])
        found = json.loads(report.read_text()) if report.exists() else None
        return end.value.code, *capsys.readouterr(), found

    return call


def kinds(report, severity):
    return {f["kind"] for f in report["findings"] if f["severity"] == severity}


def items(report, kind):
    return [item for f in report["findings"] if f["kind"] == kind for item in f["items"]]


def is_found(report, fault, name):
    severity, kind = planted.FAULTS[fault]
    return any(
        (finding["severity"], finding["kind"]) == (severity, kind)
        and (kind == "foreign-files" or any(name in item for item in finding["items"]))
        for finding in report["findings"]
    )


def snapshot(root):
    return {path: path.stat() for path in root.rglob("*")}


def test_clean_folder_is_described_and_left_alone(make_tree, doctor):
    root = make_tree("folder")
    before = snapshot(root)
    code, out, err, report = doctor("--data", root)
    assert (code, err) == (0, "")
    assert "0 errors, 0 warnings, 0 notes" in out
    assert "images   train 12, val 4" in out
    assert "images/s" in out
    assert max(map(len, out.splitlines()[3:])) <= 88  # the last line names speeds
    assert report["splits"] == {"train": 12, "val": 4}
    assert report["sizes"]["smallest"] == [65, 97]
    assert [c["masks"] for c in report["classes"]] == [{"train": 12, "val": 4}] * 4
    share = sum(c["pixel_share"] for c in report["classes"]) + report["ignored_share"]
    assert share == pytest.approx(1)
    assert snapshot(root) == before


@pytest.mark.parametrize("is_described", [False, True])
def test_every_fault_is_found_at_once(make_tree, doctor, is_described):
    root = make_tree("folder", num_train=60)
    # Classes of different frequency, in blocks that keep inner pixels when planted with faults.
    rng = np.random.default_rng(0)
    for path in root.rglob("*.png"):
        height, width = np.array(Image.open(path)).shape
        blocks = rng.choice(4, (7, 7), p=(0.55, 0.03, 0.3, 0.12)).astype(np.uint8)
        label = blocks.repeat(14, 0).repeat(14, 1)[:height, :width]
        label[5:12, 20:31] = 255
        Image.fromarray(label).save(path)
    names = [f"{2 * i:03d}" for i in range(len(planted.FAULTS))]
    used = planted.plant(root, names)
    recipe = ["--config", RECIPE, f"--config.data.root={root}", "--config.model.num_classes=4",
              "--config.data.class_names="]  # fmt: skip
    code, out, err, report = doctor(*(recipe if is_described else ["--data", root]))
    assert code == 3
    assert err.startswith(f"error: {root}: ")
    assert err.count("\n") == 1
    assert [fault for fault, name in used.items() if not is_found(report, fault, name)] == []
    # Worst first.
    order = [line.split()[0] for line in out.splitlines() if line[:1] in "EWN" and line.strip()]
    assert order == sorted(order, key=["ERROR", "WARNING", "NOTE"].index)


def test_groups_are_capped_in_print_and_not_in_json(make_tree, doctor):
    root = make_tree("folder")
    for path in (root / "labels/train").iterdir():
        path.unlink()
    code, out, _, report = doctor("--data", root)
    assert code == 3
    assert "ERROR    12 masks are missing" in out
    assert "... and 7 more, see --json" in out
    assert len(items(report, "no-mask")) == 12


def test_masks_one_too_high_for_a_recipe_name_the_field(make_tree, doctor):
    root = make_tree("folder")
    for path in root.rglob("*.png"):
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label < 255, label + 1, 255).astype(np.uint8)).save(path)
    options = [f"--config.data.root={root}", "--config.model.num_classes=4"]
    code, out, _, report = doctor("--config", RECIPE, *options, "--config.data.class_names=")
    assert code == 3
    assert len(items(report, "unknown-value")) == 16
    assert "config.data.reduce_zero_label=true" in out
    code, _, _, report = doctor("--data", root)
    assert (code, kinds(report, "warning")) == (0, {"shifted"})


def test_class_that_a_split_lacks_is_named(make_tree, doctor):
    root = make_tree("folder")
    for path in (root / "labels/train").iterdir():
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label == 2, 1, label)).save(path)
    code, _, _, report = doctor("--data", root)
    assert (code, items(report, "absent-class")) == (0, ["2: class_2"])


def test_fewer_images_than_a_batch(make_tree, doctor):
    root = make_tree("folder", num_train=3)
    code, _, _, report = doctor("--data", root)
    assert (code, kinds(report, "warning")) == (0, {"few-images"})
    options = [f"--config.data.root={root}", "--config.model.num_classes=4"]
    code, _, _, report = doctor("--config", RECIPE, *options, "--config.data.class_names=")
    assert (code, kinds(report, "error")) == (3, {"few-images"})


def test_palettes_that_disagree_are_named(make_tree, doctor):
    root = make_tree("folder")
    for path in root.rglob("*.png"):
        label = np.array(Image.open(path))
        colors = colormap(256)[::-1] if path.stem == "003" else colormap(256)
        write_png_indices(path, label, colors)
    code, _, _, report = doctor("--data", root)
    assert (code, kinds(report, "note")) == (0, {"palette"})
    assert {item.split(":")[0] for item in items(report, "palette-differs")} == {
        "labels/train/003.png", "labels/val/003.png"
    }  # fmt: skip


def test_pipes_are_told_and_not_waited_for(make_tree, doctor):
    root = make_tree("folder", num_train=10)
    (root / "classes.json").write_text('["a", "b", "c", "d"]')
    for name in ("images/train/001.jpg", "labels/train/000.png"):
        (root / name).unlink()
        os.mkfifo(root / name)
    code, _, _, report = doctor("--data", root)
    assert code == 3
    assert "images/train/001.jpg: is a pipe" in items(report, "unreadable-image")[0]
    assert "labels/train/000.png: is a pipe" in items(report, "unreadable-mask")[0]


def test_palette_masks_among_grey_ones_are_named(make_tree, doctor):
    root = make_tree("folder")
    path = root / "labels/train/003.png"
    write_png_indices(path, np.array(Image.open(path)), colormap(256))
    code, _, _, report = doctor("--data", root)
    assert (code, kinds(report, "warning")) == (0, {"mixed-masks"})
    assert items(report, "mixed-masks") == ["labels/train/003.png"]


def test_grey_stored_as_colours_is_called_so(make_tree, doctor):
    root = make_tree("folder")
    path = root / "labels/train/003.png"
    Image.open(path).convert("RGB").save(path)
    code, _, _, report = doctor("--data", root)
    assert (code, kinds(report, "error")) == (3, {"color-mask"})
    assert "grey stored as RGB, values 0..3, 255" in items(report, "color-mask")[0]


def test_masks_turned_by_exif_are_named(make_tree, doctor):
    root = make_tree("folder")
    for name, tag in (("002", 6), ("004", 3)):  # on its side, upside down
        exif = Image.Exif()
        exif[0x0112] = tag
        path = root / f"labels/train/{name}.png"
        Image.open(path).save(path, exif=exif)
    code, _, _, report = doctor("--data", root)
    assert code == 3
    found = {f["severity"]: f["items"] for f in report["findings"] if f["kind"] == "exif"}
    assert found == {
        "error": ["labels/train/002.png: EXIF orientation 6"],
        "warning": ["labels/train/004.png: EXIF orientation 3"],
    }
    assert not items(report, "size")


def test_copied_masks_are_named(make_tree, doctor):
    root = make_tree("folder")
    labels = root / "labels/train"
    for name in ("006", "008"):
        (root / f"images/train/{name}.jpg").unlink()
        shutil.copy(labels / "004.png", root / f"images/train/{name}.png")
    shutil.copy(labels / "004.png", labels / "006.png")
    shutil.copy(labels / "001.png", labels / "003.png")
    *_, report = doctor("--data", root)
    assert items(report, "image-as-mask") == ["labels/train/006.png"]
    assert items(report, "same-mask") == ["labels/train/001.png = labels/train/003.png"]


def test_name_that_is_not_utf8_can_be_printed(make_tree):
    root = make_tree("folder").resolve()
    odd = root / "images" / "train" / os.fsdecode(b"caf\xe9.jpg")
    shutil.copy(root / "images/train/000.jpg", odd)
    root = root.rename(root.with_name(os.fsdecode(b"d\xe9")))
    command = [sys.executable, "-m", "deeplab_jax.doctor", "--data", root]
    env = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    got = subprocess.run(command, env=env, capture_output=True, text=True)
    assert got.returncode == 3, got.stderr
    assert "caf\\udce9.jpg has no mask" in got.stdout


def test_links_and_names_that_cannot_be_hide_nothing_else(make_tree, doctor):
    root = make_tree("folder")
    for name in ("000.png", "001.png"):
        cv2.imwrite(str(root / "images/train" / name), np.zeros((65, 97, 3), np.uint8))
    (root / "labels/train/loop").symlink_to(root / "labels/train")
    shutil.copy(root / "images/train/003.jpg", root / "images/train/004.jpg")
    code, _, _, report = doctor("--data", root)
    assert code == 3
    found = items(report, "files")
    assert sum("has the same name as" in item for item in found) == 2
    assert sum("is a link to a folder it lies in" in item for item in found) == 1
    assert len(items(report, "duplicate")) == 1


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        ([], "wants one of --data and --config"),
        (["--data", "x", "--config", "y"], "wants one of --data and --config"),
        (["--data", "x", "--config.seed=1"], "use --config"),
        (["--config", "x", "--write-config", "y.py"], "use it with --data"),
        (["--data", "x", "--val-fraction", "2"], "must be between 0 and 1"),
        (["--data", "x", "--seed", "-1"], "must not be negative"),
        (["--config", RECIPE, "--config.data.source=tfds"], "config.data.source"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(doctor, argv, advice):
    code, out, err, _ = doctor(*argv)
    assert (code, out) == (2, "")
    assert advice in err


def test_json_that_cannot_be_written_is_refused_before_the_work(make_tree, tmp_path, capsys):
    root, path = make_tree("folder"), tmp_path / "missing" / "report.json"
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--data", str(root), "--json", str(path)])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (5, "")
    assert "choose another --json, or create its folder" in err


def test_neither_help_nor_a_run_imports_jax(make_tree):
    code = f"""
import sys
from deeplab_jax import cli
try:
    cli.main(["doctor", "--data", {str(make_tree("folder"))!r}])
except SystemExit as end:
    assert end.code == 0
assert not {{"jax", "flax", "grain", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


TINY = (
    "train.steps=2", "train.batch_size=4", "data.crop_size=64,64", "model.depth=18",
    "model.width=8", "model.head_channels=16", "model.aux_channels=8", "log.every_steps=1",
    "model.atrous_rates=1,2,3", "eval.resize_base=64,64", "eval.every_epochs=1000",
)  # fmt: skip


def run(verb, *argv):
    with pytest.raises(SystemExit) as end:
        cli.main([verb, *map(str, argv)])
    assert end.value.code == 0


def as_camvid(root, shared):
    """Lays 14 frames out as CamVid is public: PNGs, 11 is void."""
    for split, count in (("train", 12), ("val", 2)):
        for image in sorted((shared / "data/camvid/images" / split).iterdir())[:count]:
            label = np.array(Image.open(shared / f"data/camvid/labels/{split}/{image.stem}.png"))
            label = np.where(label == 255, 11, label).astype(np.uint8)
            for folder, picture in ((split, Image.open(image)), (f"{split}annot", label)):
                path = root / folder / f"{image.stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                (Image.fromarray(label) if picture is label else picture).save(path)


@pytest.mark.process("trains; what is proposed is checked in test_propose.py")
def test_voc_layout_trains_by_its_proposal(make_tree, tmp_path, monkeypatch):
    root, recipe, workdir = make_tree("voc"), tmp_path / "mine.py", tmp_path / "run"
    monkeypatch.chdir(root.parent)
    run("doctor", "--data", root.name, "--write-config", recipe)
    monkeypatch.chdir(tmp_path)  # the recipe works from anywhere
    run("train", "--config", recipe, "--workdir", workdir, *(f"--config.{c}" for c in TINY))
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in log] == ["train", "train", "eval", "end"]


@pytest.mark.slow("compiles a network twice more")
def test_public_camvid_trains_by_its_proposal(shared, tmp_path):
    as_camvid(tmp_path / "camvid", shared)
    recipe, workdir = tmp_path / "mine.py", tmp_path / "run"
    run("doctor", "--data", tmp_path / "camvid", "--write-config", recipe)
    assert "ignore_values = (11,)" in recipe.read_text()
    run("train", "--config", recipe, "--workdir", workdir, *(f"--config.{c}" for c in TINY))
    run("evaluate", "--checkpoint", workdir)


def test_planted_faults_in_camvid_are_found_and_the_clean_copy_has_none(shared, tmp_path, doctor):
    root = tmp_path / "camvid"
    shutil.copytree(shared / "data" / "camvid", root)
    code, _, _, report = doctor("--data", root)
    assert (code, report["findings"]) == (0, [])
    assert [len(report["classes"]), *report["splits"].values()] == [11, 367, 101]
    print(report["speed"])
    names = sorted(path.stem for path in (root / "images/train").iterdir())
    used = planted.plant(root, names[5::16][: len(planted.FAULTS)])
    code, _, _, report = doctor("--data", root)
    assert code == 3
    assert [fault for fault, name in used.items() if not is_found(report, fault, name)] == []
