import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial

import pytest

from deeplab_jax import cli
from deeplab_jax.demo import folder, shapes
from deeplab_jax.errors import Interrupted

TREE = {"images", "labels", "classes.json", ".deeplab_demo"}
WRITTEN = (  # by earlier demos, and by verbs that were given their folders
    "data/images/train/0159.jpg",
    "data/labels/val/0031.png",
    "run/log.jsonl",
    "run/env.json",
    "run/.lock",
    "run/.config.json.123.tmp",
    "run/bad_samples.txt",
    "run/checkpoints/400/params/manifest.ocdbt",
    "run/checkpoints/500.orbax-checkpoint-tmp/params/d/1",
    "predictions/0000_overlay.jpg",
    "predictions/0000.json",
)


@pytest.fixture
def stages(monkeypatch):
    """Stands in for the verbs that a demo runs; holds their words, and what to raise in one.

    Few images are drawn.
    """
    seen, dispatch = {}, cli.dispatch
    monkeypatch.setattr(shapes, "draw", partial(shapes.draw, train=5, val=5))

    def stand_in(argv):
        if argv[0] == "demo":
            return dispatch(argv)
        seen[argv[0]] = argv
        if argv[0] in raised:
            raise raised[argv[0]]
        if argv[0] == "evaluate":
            scores = {"mean_iou": 0.5, "best_constant_mean_iou": 0.125, "iou": [1, 0, None]}
            os.makedirs(argv[-1], exist_ok=True)
            with open(f"{argv[-1]}/evaluation.json", "w") as file:
                json.dump(scores, file)

    raised = seen["raised"] = {}
    monkeypatch.setattr(cli, "dispatch", stand_in)
    return seen


@pytest.fixture
def demo(call, tmp_path, monkeypatch):
    """Returns demo(*argv) -> Outcome of the command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *argv: call(command=lambda _: cli.run(cli.dispatch, ["demo", *argv]))


def test_every_stage_shows_its_command_and_the_end_what_to_type(demo, stages):
    code, out, err = demo("--config.seed=1")
    assert (code, err) == (0, "")
    titles = re.findall(r"^== (\w.*) \(\d+ s\)$", out, re.M)
    assert titles == ["Drawing shapes", "Training", "Evaluating", "Predicting", "Done"]
    root = "--config quickstart --config.data.root=runs/demo/data"
    train = f"train {root} --workdir runs/demo/run --config.seed=1"
    assert stages["train"] == train.split()
    assert f"\ndeeplab {train}\n" in out
    assert "mean IoU: 50.00 % over 2 of 3 classes\nbest constant prediction" in out
    assert "(one class everywhere): 12.50 %\n" in out
    assert "results: runs/demo/run/report.html" in out
    assert "next: deeplab doctor --data DIR --write-config mine.py" in out


@pytest.mark.parametrize(
    ("verb", "error", "code", "text"),
    [
        ("train", Interrupted("train", "saved at 3", "repeat", 143), 143, "demo: saved at 3 - go"),
        ("train", KeyboardInterrupt(), 130, "demo: stopped while training - go on with deeplab t"),
        ("predict", KeyboardInterrupt(), 130, "while predicting - go on with deeplab predict "),
    ],
)
def test_stopping_tells_how_to_go_on(demo, stages, verb, error, code, text):
    stages["raised"][verb] = error
    got, _, err = demo("--output", "a b")
    assert (got, err.count("\n")) == (code, 1)
    assert text in err
    assert " '--config.data.root=a b/data' " in err or " --checkpoint 'a b/run' " in err
    assert err.endswith(", or start afresh with deeplab demo --output 'a b'\n")


def test_drawing_alone_leaves_a_run_as_it_is(demo, stages, tmp_path):
    demo()
    kept = tmp_path / "runs" / "demo" / "run" / "evaluation.json"
    (tmp_path / "runs" / "demo" / "data" / "images" / "val" / "0002.jpg").unlink()
    before = kept.stat()
    code, out, err = demo("--draw-only")
    assert (code, err) == (0, "")
    train = "train --config quickstart --config.data.root=runs/demo/data"
    assert out.endswith(f"results: runs/demo/data\nnext: deeplab {train}\n")
    assert {path.name for path in (tmp_path / "runs" / "demo" / "data").iterdir()} == TREE
    assert len(list((tmp_path / "runs" / "demo" / "data" / "images" / "val").iterdir())) == 5
    assert kept.stat() == before


def test_repeated_demo_starts_afresh(demo, stages, tmp_path):
    demo()
    output = tmp_path / "runs" / "demo"
    old = [output / path for path in WRITTEN]
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of the last demo")
    assert demo()[0] == 0
    assert [path for path in old if path.exists()] == []
    assert (output / "data" / "classes.json").is_file()


@pytest.mark.parametrize("path", ["run/thesis.txt", "data/images/train/0000.jpg"])
def test_users_folder_is_refused_and_left_as_it_is(demo, stages, tmp_path, path):
    file = tmp_path / "mine" / path
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    code, _, err = demo("--output", "mine")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: mine: holds {path.split('/')[0]}, which no demo made - name ano")
    assert [p for p in (tmp_path / "mine").rglob("*") if p.is_file()] == [file]


def test_what_a_user_adds_to_a_demo_is_kept(demo, stages, tmp_path):
    demo()
    output = tmp_path / "runs" / "demo"
    for path in ("data/images/train/0160.jpg", "run/thesis.txt", "run/checkpoints/notes.txt"):
        (output / path).parent.mkdir(exist_ok=True)
        (output / path).write_text("precious")
        before = sorted(output.rglob("*"))
        code, _, err = demo()
        assert (code, err.count("\n")) == (2, 1)
        assert f"error: runs/demo: holds {path}, which no demo made - name another --output" in err
        assert sorted(output.rglob("*")) == before
        (output / path).unlink()
    (output / "notes.txt").write_text("beside the parts")
    assert demo()[0] == 0
    assert (output / "notes.txt").is_file()
    for name in ("data", "data/images/train"):
        (output / name).rename(tmp_path / "elsewhere")
        (output / name).symlink_to(tmp_path / "elsewhere")
        assert f"holds {name}, which no demo made" in demo("--draw-only")[2]
        (output / name).unlink()
        (tmp_path / "elsewhere").rename(output / name)
    assert len(list((output / "data" / "images" / "train").iterdir())) == 5


def test_data_set_in_the_place_of_a_drawn_one_is_kept(demo, stages, tmp_path):
    demo("--output", ".", "--draw-only")
    (tmp_path / "data").rename(tmp_path / "drawn")
    mine = tmp_path / "data" / "images" / "train" / "0000.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    assert "error: .: holds data, which no demo made" in demo("--output", ".")[2]
    assert mine.read_text() == "precious"


def test_part_that_is_a_file_is_told(demo, stages, tmp_path):
    demo()
    predictions = tmp_path / "runs" / "demo" / "predictions"
    shutil.rmtree(predictions)
    predictions.write_text("precious")
    code, _, err = demo()
    text = "runs/demo/predictions: is a file, not a folder - choose another --output"
    assert (code, err) == (5, f"error: {text}\n")


@pytest.mark.parametrize("argv", [[], ["--draw-only"]])
def test_training_that_runs_is_left_alone(demo, stages, tmp_path, argv):
    demo()
    output = tmp_path / "runs" / "demo"
    with (output / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = sorted(output.rglob("*"))
        code, _, err = demo(*argv)
        assert (code, err.count("\n")) == (2, 1)
        assert "error: runs/demo/run: a training runs here - wait for its end, or name ano" in err
        assert sorted(output.rglob("*")) == before
    assert demo(*argv)[0] == 0


def test_two_demos_in_one_folder_are_refused(demo, stages, tmp_path):
    demo("--draw-only")
    other = os.open(tmp_path / "runs" / "demo", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert "error: runs/demo: another demo runs here - wait" in demo("--draw-only")[2]
    os.close(other)
    assert demo("--draw-only")[0] == 0


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--output", "file"], "error: file: is a file, not a folder - choose another --output"),
        (["--draw-only", "--config.seed=1"], "--config.seed=1: changes the training"),
        (["--draw"], "did you mean --draw-only?"),
    ],
)
def test_wrong_arguments_are_one_line(demo, stages, tmp_path, argv, text):
    (tmp_path / "file").write_text("")
    code, out, err = demo(*argv)
    assert (code, out, err.count("\n")) == (5 if "--output" in argv else 2, "", 1)
    assert text in err


@pytest.mark.process("trains, evaluates and predicts in a process of its own")
def test_demo_from_drawing_to_report(repository, tmp_path, compile_quickly):
    small = ("train.steps=2", "model.width=8", "model.head_channels=16", "model.aux_channels=8")
    got = subprocess.run(
        [sys.executable, "-m", "deeplab_jax", "demo", *(f"--config.{text}" for text in small)],
        cwd=tmp_path,
        env=compile_quickly | {"XLA_FLAGS": "", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert (got.returncode, got.stderr) == (0, "")
    output = tmp_path / "runs" / "demo"
    assert len(list((output / "predictions").glob("*_overlay.jpg"))) == 32
    assert (output / "run" / "report.html").is_file()
    score = json.loads((output / "run" / "evaluation.json").read_text())["mean_iou"]
    assert f"validation mean IoU: {100 * score:.2f} %\n" in got.stdout
    with folder.claimed(output, folder.PARTS):  # nothing that the verbs wrote is foreign
        assert [path.name for path in (output / "run").iterdir()] == [".deeplab_demo"]
