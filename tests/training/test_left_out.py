from deeplab_jax.config import get_config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.training.bad_steps import LeftOut


def left_out(*changes, steps=(), losses=()):
    train = apply_overrides(get_config("folder", 18, 16), [f"--config.train.{c}" for c in changes])
    return LeftOut(train.train, steps, losses)


def test_batches_are_left_out_on_request_and_not_beyond_the_limit():
    rollback = "on_nonfinite=rollback", "max_rollbacks=2"
    assert not left_out().may_grow
    assert [left_out(*rollback, steps=steps).may_grow for steps in ((), (7,), (7, 5))] == [
        True, True, False
    ]  # fmt: skip


def test_spike_is_a_loss_far_above_the_median_of_those_before():
    guard = left_out("spike_factor=3", losses=[1.0, 9.0, 2.0, 1.5])
    assert guard.usual_loss(99.0) is None  # too few to tell
    guard.finished_step(1.0)
    assert guard.usual_loss(4.5) is None
    assert guard.usual_loss(4.6) == 1.5
    for k in range(200):
        guard.finished_step(float(k))
    assert list(guard.losses) == [*range(100, 200)]


def test_no_loss_is_kept_where_spikes_are_not_looked_for():
    guard = left_out(losses=[1.0] * 9)
    guard.finished_step(1.0)
    assert guard.usual_loss(1e9) is None
    assert not guard.losses
