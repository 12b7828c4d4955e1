"""A run that averages its weights, freezes, warms up and clips: over a stop, and its scores."""

import json
import os
import signal

import pytest

from deeplab_jax import checkpoint
from deeplab_jax.checkpoint import description
from deeplab_jax.training import loop

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


@pytest.mark.process("trains twice and evaluates; weights and average are in the first tier")
def test_stopped_run_ends_with_the_same_average_and_both_weights_have_scores(
    call, tiny, tmp_path, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert call(*tiny, *FLAGS, "--workdir", whole).code == 0
    write = loop.JsonLog.write

    def write_then_signal(log, event, at, values):
        write(log, event, at, values)
        if (event, at) == ("train", 2):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.JsonLog, "write", write_then_signal)
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
    for weights, key in (("ema", "mean_iou"), ("raw", "mean_iou_raw")):
        got = call("evaluate", "--checkpoint", whole, "--weights", weights)
        assert got.code == 0
        assert f"step 6, {weights} weights, " in got.out
        evaluation = json.loads((whole / "evaluation.json").read_text())
        assert evaluation["weights"] == weights
        assert evaluation["mean_iou"] == pytest.approx(last[key], abs=1e-6)
    got = call(*tiny, *FLAGS, "--workdir", whole, "--config.train.ema_half_life=3")
    assert got.code == 2
    assert "train.ema_half_life: 2.0 -> 3.0" in got.err
