"""A run that averages its weights, freezes, warms up and clips: over a stop, and its scores."""

import json
import os
import signal
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import pytest

import deeplab_jax
from deeplab_jax import checkpoint
from deeplab_jax.checkpoint import description
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.training import loop
from deeplab_jax.training.optimizer import next_average
from deeplab_jax.utils.trees import divide

FLAGS = [
    f"--config.{change}"
    for change in (
        "train.steps=6", "eval.every_epochs=1", "train.optimizer=adamw", "train.lr=0.001",
        "train.schedule=cosine", "train.warmup_steps=2", "train.clip_norm=1",
        "train.decay_norms=false", "train.head_lr_factor=5", "train.ema_half_life=2",
        "train.freeze=backbone.stem,backbone.layer1", "eval.both_weights=true",
        "init.backbone=none",
    )
]  # fmt: skip


def evaluations(workdir):
    lines = map(json.loads, (workdir / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == "eval"]


def make_small_step(config, total_steps, mesh, loss):
    """Returns a step that computes no network: parameters and statistics grow by a tenth."""

    def step(state, *batch):
        new = state | {
            name: jax.tree.map(lambda leaf: 1.1 * leaf, state[name])
            for name in ("params", "batch_stats")
        }
        learning = [divide(new[name], config.train.freeze)[0] for name in ("params", "batch_stats")]
        average = next_average(state["ema"], *learning, config.train.ema_half_life)
        names = ("loss", "loss_main", "loss_aux", "lr", "grad_norm")
        metrics = dict.fromkeys(names, jnp.float32(1)) | {"is_finite": jnp.bool_(True)}
        return new | {"step": state["step"] + 1, "ema": average}, metrics

    whole = mesh_lib.replicated(mesh)
    return jax.jit(step, out_shardings=(whole, whole), donate_argnums=0)


@pytest.fixture
def signal_after(monkeypatch):
    """Returns signal_after(step): a block in which the run stops once that step is logged."""

    @contextmanager
    def signal_after(step):
        write = loop.JsonLog.write

        def write_then_signal(log, event, at, values):
            write(log, event, at, values)
            if (event, at) == ("train", step):
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(loop.JsonLog, "write", write_then_signal)
            yield

    return signal_after


@pytest.mark.parametrize(
    "is_whole",
    [
        pytest.param(False, marks=pytest.mark.slow("trains twice and evaluates")),
        pytest.param(True, marks=pytest.mark.slow("compiles a step for four devices")),
    ],
)
def test_stopped_run_ends_with_the_same_average_and_both_weights_have_scores(
    call, tiny, tmp_path, monkeypatch, signal_after, capsys, is_whole
):
    if not is_whole:
        monkeypatch.setattr(loop, "make_train_step", make_small_step)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert call(*tiny, *FLAGS, "--workdir", whole).code == 0
    with signal_after(2):
        assert call(*tiny, *FLAGS, "--workdir", stopped).code == 143
    assert 2 <= checkpoint.latest_step(stopped) < 6
    assert call(*tiny, *FLAGS, "--workdir", stopped).code == 0
    saved = [description.read(path, 6) for path in (whole, stopped)]
    assert saved[0].arrays == saved[1].arrays  # checksums of all items
    assert "ema/count" in saved[0].arrays
    assert evaluations(whole) == evaluations(stopped)
    last = evaluations(whole)[-1]
    assert saved[0].info.metrics["mean_iou"] == last["mean_iou"]
    assert saved[0].info.metrics["mean_iou_raw"] == last["mean_iou_raw"]
    evaluation = deeplab_jax.evaluate(whole, weights="raw")
    assert evaluation["weights"] == "raw"
    assert evaluation["mean_iou"] == pytest.approx(last["mean_iou_raw"], abs=1e-6)
    assert "step 6, raw weights, " in capsys.readouterr().out
    got = call(*tiny, *FLAGS, "--workdir", whole, "--config.train.ema_half_life=3")
    assert got.code == 2
    assert "train.ema_half_life: 2.0 -> 3.0" in got.err
