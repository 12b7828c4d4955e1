"""Class weights from the labels, through a run that is continued."""

import dataclasses

import numpy as np
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.data.images import read_label, write_png
from deeplab_jax.evaluation.label_counts import count_all
from deeplab_jax.training.losses.class_weights import compute
from deeplab_jax.training.setup import claim, describe, gather
from deeplab_jax.training.workdir import Start


def test_a_run_computes_its_class_weights_once(tiny_config, tmp_path):
    loss = dataclasses.replace(tiny_config.loss, class_weighting="inverse")
    config = dataclasses.replace(tiny_config, loss=loss)
    with claim(gather(config, tmp_path)) as setup:
        weights = compute("inverse", count_all(setup.dataset, tmp_path))
        assert setup.class_weights == setup.info.class_weights == weights
        assert setup.step_config.loss.class_weights == weights
        assert not setup.notes
        assert f", class weights {min(weights):.3g} (" in describe(setup)
        info = setup.info
    for known, num_notes in ((weights, 0), ((1.0, 2.0, 3.0, 4.0), 1)):
        saved = dataclasses.replace(info, class_weights=known)
        begun = dataclasses.replace(gather(config, tmp_path), begin=Start(None, saved))
        with claim(begun) as setup:
            assert setup.class_weights == known
            assert len(setup.notes) == num_notes
    assert "masks of split train have changed" in setup.notes[0]


@pytest.mark.slow("trains twice; that weights are kept is shown above without training")
def test_a_continued_run_keeps_its_weights_and_ends_with_the_same_bits(
    call, tiny, tmp_path, make_tree
):
    root, workdir = make_tree("folder", num_train=16, num_val=2), tmp_path / "run"
    flags = [
        f"--config.data.root={root}",
        "--config.train.steps=4",
        "--config.checkpoint.every_steps=2",
        "--config.loss.dice=1",
        "--config.loss.class_weighting=median_frequency",
    ]

    def run(*more):
        outcome = call(*tiny, *flags, "--workdir", workdir, *more)
        assert outcome.code == 0, outcome.err
        (end,) = (line for line in outcome.out.splitlines() if line.startswith("parameters "))
        return outcome.out, end, checkpoint.read_info(workdir, 4).class_weights

    _, end, weights = run()
    assert len(weights) == 4
    mask = root / "labels/train/000.png"  # of a sample of the first two steps
    write_png(mask, np.zeros_like(read_label(mask)))
    out, *rest = run("--step", "2")
    assert "masks of split train have changed" in out
    assert rest == [end, weights]
