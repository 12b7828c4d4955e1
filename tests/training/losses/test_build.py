import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import on_devices
import pytest
from on_devices import drawn, recipe

from deeplab_jax.errors import ConfigError
from deeplab_jax.training.losses import build_loss, segmentation_loss, weights_of
from deeplab_jax.training.losses.class_weights import resolved


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def losses(config, platform="cpu", **options):
    arrays = [*map(jnp.asarray, drawn())]
    return build_loss(config, platform, **options)(*arrays, weights_of(arrays[-1], config))


def test_terms_of_plain_cross_entropy_are_the_table_s_loss():
    config = recipe(class_weights=(2, 2, 2))  # takes the way of the terms
    arrays = [*map(jnp.asarray, drawn())]
    weights = weights_of(arrays[-1], recipe())
    expected = segmentation_loss(*arrays, weights=weights, platform="cpu")
    got = losses(config)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12)


def test_parts_of_a_batch_sum_to_the_whole():
    config = recipe(focal=1.0, label_smoothing=0.1, class_weights=(1.0, 2.0, 0.0))
    arrays = [*map(jnp.asarray, drawn())]
    weights = weights_of(arrays[-1], config)
    compute = build_loss(config, "cpu")
    parts = [compute(*(x[k::2] for x in (*arrays, weights)))["loss"] for k in range(2)]
    np.testing.assert_allclose(sum(parts), compute(*arrays, weights)["loss"], rtol=1e-12)


def test_four_devices_agree_with_one():
    expected = on_devices.value_and_gradient(1, 1)
    assert on_devices.error(on_devices.value_and_gradient(2, 2), expected) < 1e-12


@pytest.mark.process("compiles for eight virtual devices")
def test_two_to_eight_devices_agree_with_one():
    ways = ["2x1", "1x2", "4x1", "8x1", "2x4", "1x8"]
    argv = [sys.executable, Path(on_devices.__file__), *ways]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = {line["mesh"]: line["error"] for line in map(json.loads, done.stdout.splitlines())}
    assert [*errors] == ways
    assert max(errors.values()) < 1e-12, errors


def test_a_loss_of_ones_own_gets_logits_at_the_labels_size():
    def own(logits, aux_logits, labels, weights):
        assert logits.shape == aux_logits.shape == (*labels.shape, 3)
        return jnp.sum(weights[:, None, None] * (labels != 255))

    got = losses(recipe(), loss=own)
    assert got.keys() == {"loss"}
    assert float(got["loss"]) == pytest.approx(1)  # the mean of ones over valid pixels


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (lambda *args: args[0], r"own: returned float64 of shape \(8, 32, 8, 3\)"),
        (lambda *args: 3, "own: returned int.* - return a scalar"),
    ],
)
def test_a_loss_of_ones_own_that_is_no_scalar_is_refused(value, what):
    def own(*args):
        return value(*args)

    with pytest.raises(ConfigError, match=what):
        losses(recipe(), loss=own)


def test_what_would_not_act_is_refused():
    with pytest.raises(ConfigError, match=r"config.loss: .* drop the fields of config.loss"):
        losses(recipe(dice=1.0), loss=lambda *args: jnp.zeros(()))
    config = dataclasses.replace(recipe(), train=dataclasses.replace(recipe().train, aux_weight=0))
    with pytest.raises(ConfigError, match=r"config.train.aux_weight: is 0 times .* leave it at"):
        losses(config, loss=lambda *args: jnp.zeros(()))
    config = recipe(class_weighting="inverse")
    with pytest.raises(ConfigError, match=r"--config\.loss\.class_weights=W0"):
        losses(config)
    assert resolved(config).loss.class_weights == (1, 1, 1)
