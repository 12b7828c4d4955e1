import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.config import get_config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.state import initial_state, not_finite, with_average, without_step


@pytest.fixture(params=["sgd", "adamw"])
def state(request):
    """A state of two arrays after three steps, with AdamW also their average."""
    changes = [f"--config.train.optimizer={request.param}"]
    changes += ["--config.train.ema_half_life=2"] if request.param == "adamw" else []
    train = apply_overrides(get_config("folder", 18, 16), changes).train
    optimizer, _ = build_optimizer(train, 10)
    ones = jnp.ones(3)
    variables = {"params": {"a": {"kernel": ones}, "b": ones}, "batch_stats": {"norm": ones}}
    state = with_average(initial_state(variables, optimizer), train)
    for _ in range(3):
        _, opt_state = optimizer.update(state["params"], state["opt_state"], state["params"])
        state |= {"step": state["step"] + 1, "opt_state": opt_state}
    return state


def test_step_that_is_left_out_moves_the_counters_alone(state):
    after = without_step(state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    pairs = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after), strict=True)
    moved = {jax.tree_util.keystr(path): int(new) for (path, old), new in pairs
             if not np.array_equal(old, new)}  # fmt: skip
    assert sorted(moved.values()) == [4, 4]  # of the steps and of the schedule
    assert {leaf.dtype for leaf in (state["step"], after["step"])} == {np.dtype("int32")}


def test_arrays_that_are_not_finite_are_named_parameters_first(state):
    assert not_finite(state) == []
    bad = jnp.array([0, jnp.inf, 0])
    state["batch_stats"]["norm"] = bad
    assert not_finite(state) == ["batch_stats/norm"]
    state["params"]["a"]["kernel"] = bad * 0
    assert not_finite(state) == ["params/a/kernel", "batch_stats/norm"]
    state["params"]["a"]["kernel"] = jnp.full(3, 1e30)  # squares overflow first
    assert not_finite(state) == ["params/a/kernel", "batch_stats/norm"]
