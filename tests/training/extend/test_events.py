"""Stopping early, and what callbacks see."""

import re

import pytest

from deeplab_jax import config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.errors import ConfigError
from deeplab_jax.training.extend.events import Watch, early_stop


def changed(config, *changes):
    return apply_overrides(config, [f"--config.{change}" for change in changes])


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
