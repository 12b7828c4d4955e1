"""What learns, what is frozen, and the average, over steps of a narrow network in float64."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.models import build_model
from deeplab_jax.training.state import (
    abstract_state,
    eval_variables,
    raw_variables,
    restore_state,
)
from deeplab_jax.training.step import make_update
from deeplab_jax.utils.trees import by_path, divide, merged

TOTAL = 10
FROZEN = "backbone.stem", "backbone.layer1", "aspp"
CHANGES = (
    "train.optimizer=adamw", "train.lr=0.01", "train.weight_decay=0.1", "train.decay_norms=false",
    "train.schedule=cosine", "train.warmup_steps=2", "train.clip_norm=0.5",
    "train.head_lr_factor=3", "train.ema_half_life=2", f"train.freeze={','.join(FROZEN)}",
)  # fmt: skip


@pytest.fixture
def narrow(narrow_config, compile_quickly):
    """Returns narrow(*changes) -> Config with everything on, two groups of two images."""
    fields = "model.dtype=float64", "model.dropout_rate=0", "train.batch_size=4"
    return functools.partial(narrow_config, *fields, "train.loss_groups=2", *CHANGES)


def _batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (4, 32, 32)).astype(np.int32)
    labels[0, :20] = 255  # groups and parts count differently
    return rng.standard_normal((4, 32, 32, 3)), labels


@pytest.fixture
def steps(draw_variables):
    """Returns steps(c, count, num_devices=1, workdir=None) -> states before and after, metrics.

    With `workdir`, every state is saved there and restored before the next step.
    """

    def steps(c, count, num_devices=1, workdir=None):
        mesh = mesh_lib.mesh_of(c, jax.devices()[:num_devices])
        whole, rows = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh)
        variables = draw_variables(build_model(c.model), spread=0.5)
        average = {name: divide(tree, c.train.freeze)[0] for name, tree in variables.items()}
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_state(c))
        state = zeros | variables | {"ema": zeros["ema"] | average}
        update = make_update(build_model(c.model, mesh_lib.platform(mesh)), c, TOTAL)
        update = jax.jit(update, in_shardings=(whole, rows, rows), out_shardings=(whole, whole))
        states = [state]
        for step in range(1, count + 1):
            state, metrics = update(state, *_batch())
            states.append(jax.device_get(state))
            if workdir:
                items = {name: item for name, item in state.items() if name != "step"}
                info = checkpoint.Info(kind="run", config=c)
                checkpoint.save_once(workdir / str(step), items, replace(info, step=step))
                state = restore_state(workdir / str(step), step, c, mesh)
        return states, jax.device_get(metrics)

    return steps


def test_what_is_frozen_stays_bit_for_bit_and_the_average_follows_the_rest(narrow, steps, tmp_path):
    jax.config.update("jax_enable_x64", True)  # Orbax reads in other threads
    try:
        c = narrow()
        states, metrics = steps(c, 3)
        saved, _ = steps(c, 3, workdir=tmp_path)
        structure = jax.tree.structure(abstract_state(c))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert jax.tree.structure(states[-1]) == structure
    jax.tree.map(np.testing.assert_array_equal, saved[-1], states[-1])  # over saves and restores
    assert metrics["is_finite"]
    assert metrics["lr"] == pytest.approx(0.01)  # after two steps of warm-up
    first, last = (raw_variables(states[k]) for k in (0, -1))
    for name in first:
        (learning, frozen), (new, still) = (divide(v[name], FROZEN) for v in (first, last))
        assert {*frozen} == {"backbone", "aspp"}
        assert {*frozen["backbone"]} == {"stem", "layer1_0", "layer1_1"}
        jax.tree.map(np.testing.assert_array_equal, frozen, still)
        moved = jax.tree.map(lambda a, b: (a != b).any(), learning, new)
        assert all(jax.tree.leaves(moved)), moved
        assert merged(new, still).keys() == last[name].keys()
        # The average, by its recursion without bias correction.
        kept = [by_path(divide(state[name], FROZEN)[0]) for state in states[1:]]
        for path, own in by_path(states[-1]["ema"][name]).items():
            decay = 0.5**0.5
            total = sum(decay ** (2 - k) * (1 - decay) * kept[k][path] for k in range(3))
            np.testing.assert_allclose(own, total / (1 - decay**3), rtol=1e-9, atol=1e-12)
    # Evaluation sees the average, and what is frozen.
    seen = eval_variables(states[-1])
    assert jax.tree.structure(seen) == jax.tree.structure(last)
    jax.tree.map(np.testing.assert_array_equal, divide(seen["params"], FROZEN)[0],
                 states[-1]["ema"]["params"])  # fmt: skip
    # The optimiser has no state of what is frozen.
    moments = by_path({"opt_state": states[-1]["opt_state"]})
    assert not [path for path in moments if "stem" in path or "/aspp/" in path]
    assert [path for path in moments if "layer2_0" in path]


@pytest.mark.slow("compiles two programs; one step is in the first tier")
def test_parts_of_a_batch_on_two_devices_equal_the_whole_on_one(narrow, steps):
    with jax.enable_x64(True):
        still = "model.freeze_batch_norm=true"
        states, _ = steps(narrow(still), 2)
        others, _ = steps(narrow(still, "train.gradient_accumulation=2"), 2, num_devices=2)
    pairs = zip(by_path(states[-1]).items(), by_path(others[-1]).values(), strict=True)
    for (path, own), theirs in pairs:
        np.testing.assert_allclose(theirs, own, rtol=1e-8, atol=1e-11, err_msg=path)
