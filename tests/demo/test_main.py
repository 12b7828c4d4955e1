import fcntl
import json
import os
import re
import subprocess
import sys
from functools import partial

import pytest

from deeplab_jax import cli
from deeplab_jax.demo import shapes
from deeplab_jax.errors import Interrupted

TREE = {"images", "labels", "classes.json"}


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
            scores = {"mean_iou": 0.5, "best_constant_mean_iou": 0.125}
            os.makedirs(argv[-1])
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
    assert "mean IoU: 0.5000\nbest constant prediction (one class everywhere): 0.1250\n" in out
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
    old = tmp_path / "runs" / "demo" / "run" / "old.txt"
    old.write_text("of the last run")
    assert demo()[0] == 0
    assert not old.exists()


@pytest.mark.parametrize("path", ["thesis.txt", "run/thesis.txt", "data/images/train/0000.jpg"])
def test_users_folder_is_refused_and_left_as_it_is(demo, stages, tmp_path, path):
    file = tmp_path / "mine" / path
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    code, _, err = demo("--output", "mine")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: mine: holds {path.split('/')[0]}, which no demo made - name ano")
    assert [p for p in (tmp_path / "mine").rglob("*") if p.is_file()] == [file]


def test_what_a_user_adds_to_a_demo_is_kept(demo, stages, tmp_path):
    demo("--draw-only")
    output = tmp_path / "runs" / "demo"
    (output / "run").mkdir()  # by `deeplab train --workdir`
    assert "holds run, which no demo made" in demo()[2]
    (output / "run").rmdir()
    (output / "data").rename(tmp_path / "elsewhere")
    (output / "data").symlink_to(tmp_path / "elsewhere")
    assert "holds data, which no demo made" in demo("--draw-only")[2]
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == TREE


def test_two_demos_in_one_folder_are_refused(demo, stages, tmp_path):
    demo("--draw-only")
    with (tmp_path / "runs" / "demo" / ".deeplab_demo").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "error: runs/demo: another demo runs here - wait" in demo("--draw-only")[2]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--output", "file"], "error: file: is a file, not a folder - name another --output"),
        (["--draw-only", "--config.seed=1"], "--config.seed=1: changes the training"),
        (["--draw"], "did you mean --draw-only?"),
    ],
)
def test_wrong_arguments_are_one_line(demo, stages, tmp_path, argv, text):
    (tmp_path / "file").write_text("")
    code, out, err = demo(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
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
    assert f"validation mean IoU: {score:.4f}\n" in got.stdout
