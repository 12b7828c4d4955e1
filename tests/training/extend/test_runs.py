"""Whole runs with data, loss, transform and callbacks of a caller's own, and with an early stop."""

import importlib.util
import json
import signal

import pytest

import deeplab_jax
from deeplab_jax import checkpoint
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.errors import ConfigError, Interrupted
from deeplab_jax.training import loop
from deeplab_jax.training.validation import Scores


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
def test_example_is_short_and_runs(example, tiny_discs, tmp_path, repository, call):
    text = (repository / "docs" / "examples" / "own_training.py").read_text()
    assert len([*filter(str.strip, text.splitlines())]) <= 46
    got = example.main(tiny_discs, tmp_path)
    assert got["class_names"] == ["ground", "disc"]
    code, _, err = call("train", "--config", tmp_path, "--workdir", tmp_path)
    assert code == 2
    assert "started from Python with train_data=Discs, val_data=Discs, loss=focal, callb" in err
    assert err.count("\n") == 1


@pytest.mark.slow("trains twice, with extras; the decision to stop is in test_events.py")
def test_early_stop_best_class_and_curves_survive_a_kill(tiny_config, tmp_path, monkeypatch):
    """A run whose evaluations get worse ends after its patience, and draws each point once."""
    has_board = importlib.util.find_spec("tensorboard") is not None
    values = {4: 0.9, 8: 0.5, 12: 0.4}
    inner = loop.Validation.evaluate

    def scored(self, step, *args):
        metrics, summary = inner(self, step, *args)
        return Scores(metrics | {"iou/class_1": values[step]}, summary)

    monkeypatch.setattr(loop.Validation, "evaluate", scored)
    c = changed(
        tiny_config, "checkpoint.best=iou/class_1", "train.early_stop=2", "eval.every_epochs=1",
        "checkpoint.keep=1", f"log.tensorboard={has_board}",
    )  # fmt: skip

    def kill(event):
        if event.kind == "evaluation" and event.step == 8:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        loop.train(c, tmp_path, callbacks=[kill])
    result = loop.train(c, tmp_path)
    assert result["step"] == 12
    assert result["stopped"].startswith("no better iou/class_1 since step 4, ")
    assert checkpoint.finished(tmp_path) == [4, 12]  # the best is kept beside the latest
    assert checkpoint.find_step(tmp_path, "best") == 4
    assert [step for step, _ in checkpoint.read_info(tmp_path).evaluations] == [4, 8, 12]
    evaluated, table = lines_of(tmp_path, "eval"), (tmp_path / "metrics.csv").read_text()
    assert [line["step"] for line in evaluated] == [4, 8, 12]
    assert [row.split(",")[0] for row in table.split()[1:]] == [str(k) for k in range(1, 13)]
    if has_board:
        board = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
        events = board.EventAccumulator(
            f"{tmp_path}/tensorboard", {"tensors": 0, "images": 0}, purge_orphaned_data=False
        )
        events.Reload()
        assert [e.step for e in events.Tensors("train/loss")] == [*range(1, 13)]
        assert [e.step for e in events.Tensors("val/iou/class_1")] == [4, 8, 12]
        assert len(events.Tags()["images"]) == 2  # of two validation images


def test_best_class_that_is_not_there_is_one_line(tiny_config, tmp_path):
    c = changed(tiny_config, "checkpoint.best=iou/clas_1")
    with pytest.raises(ConfigError, match=r"no class 'clas_1' among .*did you mean iou/class_1\?"):
        loop.train(c, tmp_path)
