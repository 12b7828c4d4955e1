import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import cli
from deeplab_jax.utils import progress


def snapshot(root):
    stats = {path: path.stat() for path in root.rglob("*")}
    return {path: (s.st_mtime_ns, s.st_ctime_ns, s.st_size) for path, s in stats.items()}


def test_clean_folder_is_described_and_left_alone(make_tree, doctor):
    root = make_tree("folder")
    before = snapshot(root)
    code, out, err, report = doctor("--data", root)
    assert (code, err) == (0, "")
    assert "0 errors, 0 warnings, 0 notes" in out
    assert "images   train 12, val 4" in out
    assert "images/s" in out
    assert max(map(len, out.splitlines()[3:-2])) <= 88  # the last two name speeds and a command
    assert report["splits"] == {"train": 12, "val": 4}
    assert report["sizes"]["smallest"] == [65, 97]
    assert [c["masks"] for c in report["classes"]] == [{"train": 12, "val": 4}] * 4
    share = sum(c["pixel_share"] for c in report["classes"]) + report["ignored_share"]
    assert share == pytest.approx(1)
    assert snapshot(root) == before


def test_progress_is_told_on_standard_error(make_tree, doctor, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0)
    code, out, err, _ = doctor("--data", make_tree("folder"))
    assert code == 0
    assert re.fullmatch(r"(\d+/16 images read, \d+ images/s\n){16}", err)
    assert "images read" not in out


def test_groups_are_capped_in_print_and_not_in_json(make_tree, doctor):
    root = make_tree("folder")
    for path in (root / "labels/train").iterdir():
        path.unlink()
    code, out, _, report = doctor("--data", root)
    assert code == 3
    assert "ERROR    12 masks are missing" in out
    assert "... and 7 more, see --json" in out
    found = {finding["kind"]: finding["items"] for finding in report["findings"]}
    assert len(found["no-mask"]) == 12


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


@pytest.mark.slow("trains a full network; what is proposed is checked in test_propose.py")
def test_voc_layout_trains_by_its_proposal(make_tree, tmp_path, monkeypatch):
    root, recipe, workdir = make_tree("voc"), tmp_path / "mine.py", tmp_path / "run"
    monkeypatch.chdir(root.parent)
    run("doctor", "--data", root.name, "--write-config", recipe)
    monkeypatch.chdir(tmp_path)  # the recipe works from anywhere
    run("train", "--config", recipe, "--workdir", workdir, *(f"--config.{c}" for c in TINY))
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    log = [entry for entry in log if entry["event"] != "time"]
    assert [entry["event"] for entry in log] == ["train", "train", "eval", "end"]


@pytest.mark.slow("compiles a network twice more")
def test_public_camvid_trains_by_its_proposal(shared, tmp_path):
    as_camvid(tmp_path / "camvid", shared)
    recipe, workdir = tmp_path / "mine.py", tmp_path / "run"
    run("doctor", "--data", tmp_path / "camvid", "--write-config", recipe)
    assert "ignore_values = (11,)" in recipe.read_text()
    run("train", "--config", recipe, "--workdir", workdir, *(f"--config.{c}" for c in TINY))
    run("evaluate", "--checkpoint", workdir)
