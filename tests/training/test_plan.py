import pytest

from deeplab_jax.config import get_config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.errors import DataError
from deeplab_jax.training.plan import LeftOut, make_plan


def test_plan_says_what_is_due_when(tiny_config):
    plan = make_plan(tiny_config, 16)
    assert [s for s in range(1, 15) if plan.is_eval_due(s)] == [8, 14]
    assert [s for s in range(1, 15) if plan.is_save_due(s)] == [3, 6, 8, 9, 12, 14]
    assert [plan.evaluations_from(s) for s in (1, 8, 9, 14)] == [2, 2, 1, 1]


def test_plan_saves_once_an_epoch_by_default(tiny_config):
    changes = ["checkpoint.every_steps=0", "train.steps=0", "train.epochs=3"]
    changed = apply_overrides(tiny_config, [f"--config.{change}" for change in changes])
    plan = make_plan(changed, 18)
    assert (plan.total, plan.steps_per_epoch, plan.save_every) == (12, 4, 4)


def test_too_few_images_for_a_batch_are_refused(tiny_config):
    with pytest.raises(DataError, match="3 images do not fill one batch of 4"):
        make_plan(tiny_config, 3)


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
