"""What a caller in Python brings: data, loss, transform, callbacks; and stopping early."""

import json
import re
import signal
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import deeplab_jax
from deeplab_jax import checkpoint, config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.data.sources.given import open_given
from deeplab_jax.errors import ConfigError, DataError, Interrupted
from deeplab_jax.training import loop
from deeplab_jax.training.extend.events import Watch, early_stop
from deeplab_jax.training.extend.given import Given


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(compile_quickly):
    """Every module here trains."""


@pytest.fixture
def example(load_script):
    return load_script("own_training", "docs/examples")


@pytest.fixture
def tiny_discs(narrow_config):
    """A narrow network for the example's data: 4 steps an epoch, evaluated after each."""
    return narrow_config(
        "model.num_classes=2", "model.atrous_rates=1,2,3", "data.crop_size=32,32",
        "data.resize_base=64,64", "data.num_workers=0", "train.batch_size=16", "train.epochs=3",
        "eval.every_epochs=1", "log.every_steps=1",
    )  # fmt: skip


def changed(config, *changes):
    return apply_overrides(config, [f"--config.{change}" for change in changes])


def lines_of(workdir, event):
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    clock = ("images_per_second", "data_wait")
    return [
        {key: line[key] for key in line if key not in clock}
        for line in lines
        if line["event"] == event
    ]


# The data set of a caller's own


def data(**changes):
    """Returns two samples of three classes; `changes` are members."""
    image, label = np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 2, np.int64)
    members = {"ids": ["a", "b"], "class_names": ["x", "y", "z"], "read": lambda i: (image, label)}
    members |= changes
    names = [name for name, value in members.items() if value is None]
    members = {name: value for name, value in members.items() if name not in names}
    kind = type("Mine", (), {"__len__": lambda self: 2})
    mine = kind()
    vars(mine).update(members)
    return mine


def test_data_of_ones_own_is_read_as_a_split_is():
    label = np.full((4, 6), 255, np.int32)
    label[0] = 2
    mine = open_given(data(read=lambda i: (np.full((4, 6, 3), i, np.uint8), label)), "d", 3, "val")
    image, classes = mine.read(1)
    assert (len(mine), mine.ids, mine.class_names) == (2, ("a", "b"), ("x", "y", "z"))
    assert (image == 1).all()
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, label)
    assert mine.palette.shape == (3, 3)
    marked = open_given(data(fingerprint=lambda: "2"), "d", 3, "val")
    assert marked.fingerprint() != mine.fingerprint() == open_given(data(), "d", 3, "").fingerprint()


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"ids": None}, TypeError, "`train_data` must have .*; Mine has no `ids`"),
        ({"ids": ["a"]}, ValueError, "must be one for each of 2 samples, got 1"),
        ({"ids": ["a", "a"]}, ValueError, "must differ; given twice: a"),
        ({"class_names": ["x"]}, ConfigError, "num_classes: is 3, and `train_data` has 1 .* = 1"),
        ({"palette": [[0, 0, 0]]}, ValueError, r"must be uint8 \(3, 3\), got \(1, 3\)"),
        ({"read": lambda i: 7}, DataError, r"train_data.read\(0\) of 'a': does not return an image"),
        ({"read": lambda i: (np.zeros((4, 6, 3)), 0)}, DataError, r"image float64 \(4, 6, 3\) - "),
        ({"read": lambda i: (np.zeros((4, 6), np.uint8), 0)}, DataError, r"uint8 \(4, 6\)"),
        ({"read": lambda i: (np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6)))},
         DataError, r"label float64 \(4, 6\) - return whole numbers"),
        ({"read": lambda i: (np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 300))},
         DataError, "a label with values 300 to 300"),
        ({"read": lambda i: (np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 3))},
         DataError, r"the label of train_data.read\(0\) of 'a': has values 3; accepted are 0\.\.2, 255"),
        ({"read": lambda i: (np.zeros((4, 6, 3), np.uint8), np.full((6, 4), 2))},
         DataError, "is 6 x 4 pixels"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_is_told(changes, error, text):
    with pytest.raises(error, match=text):
        open_given(data(**changes), "train_data", 3, "train").read(0)


# Names of what was given


def test_names_of_what_was_given_are_compared():
    def other(*args):
        pass

    def mine(*args):
        return "one"

    given = Given(data(), None, mine)
    assert given.names.keys() == {"train_data", "loss"}
    assert given.names["train_data"] == "Mine"
    assert given.check("runs/a", given.names) == []
    saved = given.names | {"loss": "mine 0123"}
    assert given.check("runs/a", saved) == ["loss mine has changed since the run was saved"]
    with pytest.raises(ConfigError, match="trained with loss=mine, and now with loss=other - call"):
        Given(data(), None, other).check("runs/a", given.names)
    with pytest.raises(ConfigError, match="with train_data=Mine, and now with no train_data of"):
        Given(None, None, mine).check("runs/a", given.names)
    assert len(given.limits()) == 2
    assert "known by its ids" in given.limits()[0]
    assert Given(data(fingerprint=lambda: "1")).limits() == []
    with pytest.raises(TypeError, match="`transform` must be a function, got int"):
        Given(transform=3)


# Stopping early


def history(*scores, name="mean_iou"):
    return tuple((10 * (k + 1), {name: score}) for k, score in enumerate(scores))


@pytest.mark.parametrize(
    ("scores", "best", "patience", "since"),
    [
        ((0.1, 0.2, 0.3), "mean_iou", 1, None),
        ((0.3, 0.2), "mean_iou", 1, 10),
        ((0.3, 0.2), "mean_iou", 2, None),
        ((0.3, 0.2, 0.3), "mean_iou", 2, 10),  # equal is not better
        ((0.3, 0.2, 0.4, 0.1), "mean_iou", 2, None),
        ((0.3, 0.4, 0.5), "loss", 2, 10),
        ((0.5, 0.4, 0.3), "loss", 1, None),
        ((0.3, 0.2), "mean_iou", 0, None),
        ((float("nan"), float("nan")), "iou/x", 2, 0),
        ((), "mean_iou", 1, None),
    ],
)
def test_run_without_a_better_score_for_its_patience_ends(scores, best, patience, since):
    changes = f"train.early_stop={patience}", "eval.every_epochs=1", f"checkpoint.best={best}"
    c = changed(config.get_config("folder"), *changes if patience else changes[1:])
    got = early_stop(history(*scores, name=best), c, 10)
    assert bool(got) == (since is not None)
    assert f"since step {since}, " in got if since else "no better iou/x yet" in got or not got


def test_callbacks_see_each_event_and_may_ask_to_stop():
    seen, answers = [], iter([None, False, "", True])

    def ask(event):
        seen.append(event)
        return next(answers, None)

    watch = Watch(config.freeze(config.get_config("folder")), 40, 10, [ask])
    assert watch.is_epoch_told(10)
    assert not watch.is_epoch_told(11)
    watch.epoch_ended(10, {"loss": 1.0})
    watch.evaluated(10, {"mean_iou": 0.5}, {"mean_iou": 0.5, "iou": [0.5]})
    watch.epoch_ended(20, {})
    assert watch.stopped == ""
    watch.epoch_ended(30, {})
    assert watch.stopped.endswith("ask asked to stop")
    said = []
    watch.ended(30, None, said.append)
    assert said == [f"stopped at step 30 of 40: {watch.stopped}"]
    kinds = ["epoch", "evaluation", "epoch", "epoch", "stop"]
    assert [event.kind for event in seen] == kinds
    assert seen[1].values["iou"] == [0.5]
    assert seen[2].evaluations == ((10, {"mean_iou": 0.5}),)
    assert (seen[0].epoch, seen[-1].reason) == (1, watch.stopped)
    watch.go_back(9)
    assert watch.evaluations == ()
    with pytest.raises(TypeError, match="must return None, True or a text, got int"):
        Watch(config.freeze(config.get_config("folder")), 4, 1, [lambda e: 3]).epoch_ended(1, {})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("train.early_stop=2", "must be 0, or at least config.eval.every_epochs (10)"),
        ("checkpoint.best=miou", "must be mean_iou, loss, boundary_iou, or iou/CLASS"),
        ("log.wandb=a b", "must be a name of at most 128 letters"),
        ("train.patience=3", "there is no such field - did you mean config.train.early_stop?"),
    ],
)
def test_wrong_field_is_one_line(change, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        changed(config.get_config("folder"), change)


# Whole runs


@pytest.mark.process("trains three times and evaluates")
def test_example_runs_stops_and_goes_on_as_if_never_killed(example, tiny_discs, tmp_path, capsys):
    """Events, the stop and the parameters of a killed run are those of a run without a kill."""
    events = []

    def watch(event):
        events.append((event.kind, event.step, event.evaluations, event.reason))
        if event.kind == "evaluation" and len(event.evaluations) == 2:
            return "two evaluations"

    def halve(image, label, rng):
        return (image // 2 if rng.random() < 0.5 else image), label

    own = {
        "train_data": example.Discs(64, seed=0), "val_data": example.Discs(4, seed=1),
        "loss": example.focal, "transform": halve, "callbacks": [watch],
    }  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = deeplab_jax.train(tiny_discs, whole, **own)
    assert (result["step"], result["stopped"]) == (8, "two evaluations")
    kinds = ["epoch", "evaluation", "epoch", "evaluation", "stop"]
    assert [event[0] for event in events] == kinds
    assert [len(event[2]) for event in events] == [0, 1, 1, 2, 2]
    out = capsys.readouterr().out
    assert "loss: focal is known by its own text" in out
    assert "train_data: Discs is known by its ids" in out
    assert "stopped at step 8 of 12: two evaluations" in out
    assert {path.name for path in whole.iterdir()} >= {"metrics.csv", "log.jsonl"}

    first, events = events, []

    def stop_at_six(event):
        if event.kind == "epoch" and event.step == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        deeplab_jax.train(tiny_discs, cut, **own | {"callbacks": [watch, stop_at_six]})
    assert events[-1][0] == "stop"
    assert "SIGTERM" in events[-1][3]
    with pytest.raises(ConfigError, match="trained with loss=focal, and now with no loss of the"):
        deeplab_jax.train(tiny_discs, cut, **own | {"loss": None})
    events.clear()
    again = deeplab_jax.train(tiny_discs, cut, **own)
    assert again == result
    assert events[-3:] == first[-3:]
    assert lines_of(cut, "train") == lines_of(whole, "train")
    assert lines_of(cut, "eval") == lines_of(whole, "eval")

    capsys.readouterr()
    assert deeplab_jax.train(tiny_discs, whole, **own) == result
    assert "where it stopped (two evaluations); --step latest goes on" in capsys.readouterr().out
    on = deeplab_jax.train(tiny_discs, whole, step="latest", **own | {"callbacks": ()})
    assert on["step"] == 12
    assert "stopped" not in on

    with pytest.raises(ConfigError, match=r"evaluated on `val_data` that a Python program gave"):
        deeplab_jax.evaluate(whole)
    scores = deeplab_jax.evaluate(whole, val_data=own["val_data"])
    assert scores["mean_iou"] == lines_of(whole, "eval")[-1]["mean_iou"]
    assert scores["dataset"] == "Discs"


@pytest.mark.process("trains")
def test_example_is_short_and_runs(example, tiny_discs, tmp_path, repository):
    text = (repository / "docs" / "examples" / "own_training.py").read_text()
    assert len(re.findall(r"^\s*\S", text, re.M)) <= 44
    got = example.main(changed(tiny_discs, "train.epochs=1"), tmp_path)
    assert got["class_names"] == ["ground", "disc"]


@pytest.mark.process("trains twice")
def test_early_stop_and_best_class_survive_a_kill(tiny_config, tmp_path, monkeypatch):
    """A run whose every evaluation is worse ends after its patience, killed or not."""
    values = {8: 0.9, 16: 0.5, 24: 0.4, 32: 0.95}
    inner = loop.Validation.evaluate

    def scored(self, step, *args):
        metrics, summary = inner(self, step, *args)
        return loop_scores(metrics | {"iou/class_1": values[step]}, summary)

    loop_scores = SimpleNamespace  # replaced below
    from deeplab_jax.training.validation import Scores as loop_scores

    monkeypatch.setattr(loop.Validation, "evaluate", scored)
    c = changed(
        tiny_config, "checkpoint.best=iou/class_1", "train.early_stop=3", "train.steps=40",
        "checkpoint.keep=1",
    )  # fmt: skip

    def kill(event):
        if event.kind == "evaluation" and event.step == 16:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        loop.train(c, tmp_path, callbacks=[kill])
    result = loop.train(c, tmp_path)
    assert result["step"] == 24
    assert result["stopped"].startswith("no better iou/class_1 since step 8, ")
    assert checkpoint.finished(tmp_path) == [8, 24]  # the best is kept beside the latest
    assert checkpoint.find_step(tmp_path, "best") == 8
    info = checkpoint.read_info(tmp_path)
    assert [step for step, _ in info.evaluations] == [8, 16, 24]
    assert len(lines_of(tmp_path, "eval")) == 3


def test_best_class_that_is_not_there_is_one_line(tiny_config, tmp_path):
    c = changed(tiny_config, "checkpoint.best=iou/clas_1")
    with pytest.raises(ConfigError, match=r"no class 'clas_1' among .*did you mean iou/class_1\?"):
        loop.train(c, tmp_path)


def test_loss_of_ones_own_takes_the_recipes_place(narrow_config):
    import jax

    from deeplab_jax.distributed.mesh import mesh_of
    from deeplab_jax.training.step import make_train_step

    shapes = []

    def mine(logits, aux_logits, labels, weights):
        shapes.extend(x.shape for x in (logits, aux_logits, labels, weights))
        return jnp.sum(logits) + jnp.sum(aux_logits)

    c = narrow_config("data.crop_size=32,32", "train.batch_size=4")
    from deeplab_jax.training.state import abstract_state

    step = make_train_step(c, 10, mesh_of(c, jax.devices()[:1]), loss=mine)
    batch = [
        jax.ShapeDtypeStruct(*x)
        for x in (((4, 32, 32, 3), np.uint8), ((4, 32, 32), np.uint8), ((4, 4), np.int32))
    ]
    _, metrics = step.eval_shape(abstract_state(c), *batch)
    assert shapes[:4] == [(4, 32, 32, 5), (4, 32, 32, 5), (4, 32, 32), (4,)]
    assert {"loss", "lr", "grad_norm"} < metrics.keys()
