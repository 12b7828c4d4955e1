import pytest

from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.errors import DataError
from deeplab_jax.training.plan import make_plan


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
