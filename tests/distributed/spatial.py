"""Trains three steps on eight virtual devices, split in several ways, and on one.

    python tests/distributed/spatial.py DEPTH OUTPUT_STRIDE HEIGHT DATAxSPATIAL ...

Prints a JSON line for each way: "errors", relative to one device, of the loss, the gradient and
the running statistics at each step, and "collectives" of the compiled step. Float64, dropout on.
"""

import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["NPROC"] = "64"  # XLA's threads: enough for its collectives on few cores
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
import optax

from deeplab_jax.config import get_config
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.dry_run.compiled import read_collectives
from deeplab_jax.models import build_model
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.state import init_state
from deeplab_jax.training.step import make_update

BATCH, WIDTH, CLASSES, STEPS = 8, 32, 5, 3


def narrow_config(depth, output_stride):
    c = get_config("folder", depth, output_stride)
    c.model.num_classes, c.model.dtype, c.model.dropout_rate = CLASSES, "float64", 0.5
    c.model.width, c.model.head_channels = 8, 16
    c.model.low_level_channels, c.model.aux_channels = 8, 8
    c.train.batch_size, c.train.loss_groups = BATCH, 4
    return c


def start(c):
    """Returns the state before the first step, on the host."""
    model, (optimizer, _) = build_model(c.model), build_optimizer(c.train, STEPS)
    return jax.device_get(jax.jit(lambda: init_state(model, optimizer, c.seed))())


def run(c, state, height, data, spatial):
    """Returns (loss, gradient, statistics) of each step from a state, and the collectives."""
    mesh = mesh_lib.make_mesh(BATCH, jax.devices()[: data * spatial], spatial=spatial)
    model = build_model(c.model, mesh_lib.platform(mesh))
    whole, rows = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh, has_rows=True)
    state = jax.device_put(state, whole)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, height, WIDTH, 3))
    labels = rng.integers(0, CLASSES, (BATCH, height, WIDTH)).astype(np.int32)
    labels[1, : height // 3] = 255  # groups of the loss count differently
    batch = mesh_lib.put_batch((images, labels), mesh, BATCH)
    update = jax.jit(
        make_update(model, c, STEPS), in_shardings=(whole, rows, rows), out_shardings=whole
    )
    compiled = update.lower(state, *batch).compile()
    records, velocity = [], jax.tree.map(np.zeros_like, jax.device_get(state["params"]))
    for _ in range(STEPS):
        before = jax.device_get(state["params"])
        state, metrics = compiled(state, *batch)
        trace = jax.device_get(optax.tree_utils.tree_get(state["opt_state"], "trace"))
        grads = jax.tree.map(
            lambda new, old, p: new - c.train.momentum * old - c.train.weight_decay * p,
            trace,
            velocity,
            before,
        )
        velocity = trace
        records.append((metrics["loss"], grads, jax.device_get(state["batch_stats"])))
    return records, read_collectives(compiled.as_text())


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def error(got, expected):
    got, expected = flat(got), flat(expected)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def main():
    depth, output_stride, height = map(int, sys.argv[1:4])
    c = narrow_config(depth, output_stride)
    state = start(c)
    expected, _ = run(c, state, height, 1, 1)
    for way in sys.argv[4:]:
        got, collectives = run(c, state, height, *map(int, way.split("x")))
        errors = [
            [error(*pair) for pair in zip(*step, strict=True)]
            for step in zip(got, expected, strict=True)
        ]
        print(json.dumps({"mesh": way, "errors": errors, "collectives": collectives}), flush=True)


if __name__ == "__main__":
    main()
