import json
import shutil

import pytest

from deeplab_jax.account import reproduce
from deeplab_jax.account.reproduce import Compared, differences, first_losses, render
from deeplab_jax.config import to_json
from deeplab_jax.data import open_dataset
from deeplab_jax.errors import ConfigError

CHANGES = """
name = "tiny"
train.steps = 6
eval.every_epochs = 2
loss.class_weighting = "inverse"
checkpoint.every_steps = 3
log.every_steps = 4
"""
HERE = {
    "code": "0.2 (a)",
    "devices": {"platform": "cpu", "kind": "cpu", "count": 4, "processes": 1},
    "processor": {"model": "x", "cores": 2},
    "packages": {"jax": "0.10.2", "pillow": "11"},
    "variables": {},
}


def loss(step, value):
    return json.dumps({"event": "loss", "step": step, "loss": value})


@pytest.fixture
def stopped_run(write_log):
    """A run whose steps 1, 2 and 4 are logged, step 2 after a second start."""
    entries = [("start", 101, 0, (1, 0, 0, 0, 0, 0), 100), loss(1, 2.5)]
    entries += [("start", 201, 1, (1, 0, 0, 0, 0, 0), 200), loss(2, 2.25)]
    workdir = write_log([*entries, '{"event": "train", "step": 4, "loss": 1.5, "lr": 0.1}'])
    starts = [{"began": 100.0, "step": 0}, {"began": 200.0, "step": 1}]
    (workdir / "env.json").write_text(json.dumps({"starts": starts}))
    return workdir


def test_losses_end_at_the_first_gap_and_know_their_start(stopped_run):
    found = first_losses(stopped_run, 20)
    assert [(x.loss, x.entry["began"]) for x in found] == [(2.5, 100), (2.25, 200)]
    assert len(first_losses(stopped_run, 1)) == 1


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("env.json", None, "is not there: the run is of an older version"),
        ("env.json", '{"starts": []}', "is not what a run writes"),
        ("env.json", "{", "cannot be read"),
        ("log.jsonl", None, "there is no log of a run"),
        ("log.jsonl", loss(1, 2.5), "does not hold the loss of step 1 and the start"),
        ("log.jsonl", loss(9, 2.5), "does not hold the loss of step 1 and the start"),
    ],
)
def test_run_that_does_not_tell_its_first_steps_is_refused(stopped_run, name, content, told):
    (stopped_run / name).unlink()
    if content is not None:
        (stopped_run / name).write_text(content)
    with pytest.raises(ConfigError, match=told):
        first_losses(stopped_run, 20)


def test_what_may_change_the_last_bits_is_told():
    other = {
        "code": "0.2 (b)",
        "devices": HERE["devices"] | {"count": 1},
        "packages": {"jax": "0.11", "pillow": "12"},
        "variables": {"XLA_FLAGS": "--x", "JAX_LOG_COMPILES": "1"},
    }
    assert differences(HERE, HERE) == []
    assert differences(other, HERE) == [
        "code: 0.2 (b) in the run, 0.2 (a) here",
        "devices count: 1 in the run, 4 here",
        "processor model: none in the run, x here",
        "processor cores: none in the run, 2 here",
        "packages jax: 0.11 in the run, 0.10.2 here",
        "variables XLA_FLAGS: --x in the run, none here",
    ]


def test_losses_are_judged_by_what_is_promised():
    same = [Compared(1, 2.0, 2.0, 1e-5), Compared(3, 2.0, 2.0, None)]
    assert render(same, ["x"]) == ["differs: x", "2 of 2 losses equal"]
    exact = [Compared(1, 2.0, 2.0, 0.0), Compared(2, 2.0, 2.0 + 4e-16, 0.0)]
    assert render(exact, [])[-1] == "1 of 2 losses equal"
    assert render(exact, [])[0].startswith("step 2: loss 2.0 in the run, 2.0000000000000004 here")
    rounded = [
        Compared(step, 2.0, 2.0 + 1e-4, reproduce.tolerance("float32", step)) for step in (1, 2, 3)
    ]
    assert [pair.is_judged for pair in rounded] == [True, True, False]
    lines = render(rounded, ["devices count: 1 in the run, 4 here"])
    assert lines[3:5] == [
        "differs: devices count: 1 in the run, 4 here",
        "1 of 2 losses equal to rounding",
    ]
    assert lines[5].startswith("1 later ones are not judged")
    assert [reproduce.tolerance("float64", step) for step in (1, 10, 11)] == [1e-12, 1e-9, None]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "holds no run (config.json is missing)"),
        (["--steps", "0"], "--steps: must be a whole number from 1 on, got '0'"),
        (["--config.train.lr=1"], "is not what the run was trained with"),
    ],
)
def test_verb_refuses_in_one_line(call, tmp_path, argv, told):
    code, out, err = call("reproduce", tmp_path, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


@pytest.mark.parametrize(
    ("facts", "code", "told"),
    [
        ({"data": {"training": "9 images (x)"}}, 3, "the run trained on 9 images (x), and the"),
        ({"init": "step 3 (x)"}, 4, "the run began with weights step 3 (x), and there are now no"),
        ({"transforms": {"own:f": "1"}}, 2, "the transform own:f of source 1, and it is now no"),
        ({"folder": "/elsewhere"}, 3, "--config.data.root=DIR; the run began in the folder /else"),
    ],
)
def test_other_data_or_weights_than_the_run_had_are_refused(
    call, stopped_run, make_tree, narrow_config, facts, code, told
):
    root = make_tree("folder", num_train=4, num_val=1)
    config = narrow_config(
        "model.num_classes=4", f"data.root={root}", "train.steps=6", "train.batch_size=4",
        "data.crop_size=64,64", "init.backbone=none",
    )  # fmt: skip
    (stopped_run / "config.json").write_text(to_json(config))
    data = {"training": open_dataset(config.data, 4, "train").fingerprint()}
    starts = [{"began": 100.0, "data": data, "init": None, **facts}]
    (stopped_run / "env.json").write_text(json.dumps({"starts": starts}))
    if "folder" in facts:
        shutil.rmtree(root)
    got = call("reproduce", stopped_run)
    assert (got.code, got.err.count("\n")) == (code, 1)
    assert told in got.err


@pytest.mark.process("trains, and repeats the run's steps several times")
def test_steps_of_a_continued_run_repeat_bit_for_bit(
    call, make_tree, tiny_recipe, tmp_path, compile_quickly, monkeypatch
):
    root, workdir = make_tree("folder", num_train=16, num_val=2), tmp_path / "run"
    (root / "tiny.py").write_text(tiny_recipe(CHANGES))
    command = ["train", "--config", f"{root}/tiny.py", f"--config.data.root={root}"]
    assert call(*command, "--workdir", workdir).code == 0
    lines = [json.loads(line) for line in (workdir / "log.jsonl").open()]
    log = [x for x in lines if x["event"] != "time"]
    events = [(x["event"], x["step"]) for x in log]
    assert events == [
        ("loss", 1), ("loss", 2), ("loss", 3), ("train", 4), ("loss", 5), ("train", 6),
        ("eval", 6), ("end", 6),
    ]  # fmt: skip
    saves = [(x["at"], x["step"]) for x in lines if x["event"] == "time" and x["at"] != "run"]
    assert saves == [("start", 0), ("saved", 3), ("saved", 6), ("stop", 6)]
    shutil.rmtree(workdir / "checkpoints" / "6")  # as if killed before it was complete
    assert call(*command, "--workdir", workdir).code == 0
    starts = json.loads((workdir / "env.json").read_text())["starts"]
    assert [entry["step"] for entry in starts] == [0, 3]
    assert starts[0]["data"]["training"].startswith("16 images (")
    assert starts[0]["devices"]["count"] == 4
    code, out, err = call("goodput", workdir)
    assert (code, err) == (0, "")
    assert "lost work" in out
    assert "3 steps computed again" in out

    monkeypatch.setattr(reproduce, "with_counts", None)  # class weights are those of the run
    files = {path: path.stat().st_mtime for path in workdir.rglob("*")}
    code, out, err = call("reproduce", workdir)
    assert (code, err) == (0, "")
    assert "6 of 6 losses equal\nthe log holds the losses of the first 6 steps alone\n" in out
    assert {path: path.stat().st_mtime for path in workdir.rglob("*")} == files

    text, loss = (workdir / "log.jsonl").read_text(), log[events.index(("loss", 2))]["loss"]
    (workdir / "log.jsonl").write_text(text.replace(json.dumps(loss), json.dumps(loss + 1e-6)))
    code, out, err = call("reproduce", workdir, "--steps", 3)
    assert code == 6
    assert "2 of 3 losses equal" in out
    assert f"error: {workdir}: step 2: loss " in err

    assert "compare the content of the data with the run's" in err
