"""Compares all terms of the loss, and their gradient, on a mesh with one device, in float64.

    python tests/training/losses/on_devices.py DATAxSPATIAL ...

Prints a JSON line for each way: "mesh", and "error", the largest relative to the largest value.
"""

import json
import os
import sys

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_X64"] = "1"
    os.environ["NPROC"] = "64"  # XLA's threads: enough for its collectives on few cores
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np

from deeplab_jax.config import freeze, get_config
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.training.losses import build_loss, weights_of

CLASSES, BATCH = 3, 8


def recipe(**terms):
    """Returns a configuration with these fields of `loss`."""
    config = get_config("folder", 18, 16)
    config.model.num_classes, config.train.batch_size, config.train.loss_groups = CLASSES, BATCH, 2
    for name, value in terms.items():
        setattr(config.loss, name, value)
    return freeze(config)


def drawn():
    """Returns both heads' logits, and labels."""
    rng = np.random.default_rng(0)
    heads = [rng.standard_normal((BATCH, side, 4, CLASSES)) for side in (16, 8)]
    labels = rng.integers(0, CLASSES, (BATCH, 32, 8)).astype(np.int32)
    labels[0, :20] = 255
    return (*heads, labels)


def value_and_gradient(data, spatial):
    """Returns the loss and the gradient of both heads' logits."""
    config = recipe(
        dice=1.0, focal=1.0, lovasz=1.0, label_smoothing=0.1, ohem_threshold=0.4, ohem_min_kept=40,
        class_weights=(1.0, 2.0, 0.5),
    )  # fmt: skip
    mesh = mesh_lib.make_mesh(BATCH, jax.devices()[: data * spatial], spatial=spatial)
    layout = mesh_lib.batch_sharding(mesh, has_rows=True)
    compute = build_loss(config, mesh_lib.platform(mesh))

    def loss(logits, aux_logits, labels):
        return compute(logits, aux_logits, labels, weights_of(labels, config))["loss"]

    placed = [jax.device_put(array, layout) for array in drawn()]
    return jax.device_get(jax.jit(jax.value_and_grad(loss, (0, 1)))(*placed))


def error(got, expected):
    """Returns the largest difference relative to the largest value, over value and gradients."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def main():
    expected = value_and_gradient(1, 1)
    for way in sys.argv[1:]:
        got = value_and_gradient(*map(int, way.split("x")))
        print(json.dumps({"mesh": way, "error": error(got, expected)}), flush=True)


if __name__ == "__main__":
    main()
