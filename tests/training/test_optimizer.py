import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax.config import get_config
from deeplab_jax.training.optimizer import build_optimizer, joint_norm, poly_schedule


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_schedule_by_hand():
    schedule = poly_schedule(0.01, 1e-4, 0.9, 100)
    assert float(schedule(0)) == 0.01
    assert float(schedule(50)) == pytest.approx(0.0099 * 0.5**0.9 + 1e-4, rel=1e-12)
    assert float(schedule(99)) > 1e-4


def test_schedule_equals_the_references(measure):
    np.testing.assert_allclose(*measure.schedule()["rates"], rtol=1e-12)


def test_update_by_hand():
    # d = g + wd p;  v = 0.9 v + d, first v = d;  p = p - lr v: the rate multiplies last.
    optimizer, schedule = build_optimizer(get_config("voc").train, 10)
    params = {"kernel": jnp.array([2.0]), "scale": jnp.array([1.0])}
    state = optimizer.init(params)
    expected, velocity = {k: float(v[0]) for k, v in params.items()}, {}
    for step, gradient in enumerate([0.5, -0.25, 1.0]):
        grads = jax.tree.map(lambda p, g=gradient: jnp.full_like(p, g), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name in expected:
            decayed = gradient + 5e-4 * expected[name]  # norms are decayed too
            velocity[name] = 0.9 * velocity[name] + decayed if step else decayed
            expected[name] -= float(schedule(step)) * velocity[name]
            assert float(params[name][0]) == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.parametrize("shapes", [[(3,), (200, 200), (), (2, 5), (40000,)], [(3,)], [(200, 200)]])
def test_joint_norm_is_the_norm_of_all(shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    tree = {str(n): jax.random.normal(keys[n], shape) for n, shape in enumerate(shapes)}
    assert joint_norm(tree) == pytest.approx(float(optax.global_norm(tree)), rel=1e-13)
    # A single value that is not finite is seen, wherever it is.
    for name, leaf in tree.items():
        assert not jnp.isfinite(joint_norm(tree | {name: leaf.at[(-1,) * leaf.ndim].set(jnp.nan)}))
