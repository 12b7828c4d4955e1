"""Learning rates over the steps of a run: poly (spec section 5), cosine, constant or in steps."""

import jax.numpy as jnp
import optax

from deeplab_jax.config import TrainConfig


def build_schedule(train: TrainConfig, total_steps: int) -> optax.Schedule:
    """Returns step -> learning rate; the first step is 0, the last `total_steps` - 1.

    With W = `warmup_steps`, T = `total_steps` and s a step, the rate is

      s < W       lr (s + 1) / (W + 1)
      poly        (lr - min_lr) (1 - (s - W) / (T - W))^poly_power + min_lr
      cosine      (lr - min_lr) (1 + cos(pi (s - W) / (T - W))) / 2 + min_lr
      constant    lr
      step        lr step_factor^(number of finished epochs of `step_epochs`)

    The last step stays above `min_lr`. An epoch of "step" has T / `epochs` steps, from step 0 on.
    """
    warmup, lr = train.warmup_steps, train.lr
    length = max(1, total_steps - warmup)
    schedule: optax.Schedule
    if train.schedule == "poly":
        schedule = poly_schedule(lr, train.min_lr, train.poly_power, length)
    elif train.schedule == "cosine":
        schedule = _of_float(optax.cosine_decay_schedule(lr, length, train.min_lr / lr))
    elif train.schedule == "constant":
        schedule = _of_float(optax.constant_schedule(lr))
    else:
        ends = [epoch * total_steps // train.epochs for epoch in train.step_epochs]
        factors = {end - warmup: train.step_factor for end in ends}
        schedule = _of_float(optax.piecewise_constant_schedule(lr, factors))
    if not warmup:
        return schedule

    def warmed(step: optax.ScalarOrSchedule) -> jnp.ndarray:
        number = jnp.asarray(step, float)
        rising = lr * (number + 1) / (warmup + 1)
        return jnp.where(number < warmup, rising, schedule(jnp.maximum(number - warmup, 0)))

    return warmed


def poly_schedule(lr: float, min_lr: float, power: float, total_steps: int) -> optax.Schedule:
    """Returns step -> (lr - min_lr) * (1 - step / total_steps)^power + min_lr.

    The first step (0) uses exactly `lr`; the last (total_steps - 1) stays above `min_lr`.
    """
    return _of_float(optax.polynomial_schedule(lr, min_lr, power, total_steps))


def _of_float(schedule: optax.Schedule) -> optax.Schedule:
    """As a float, the step has the precision that JAX runs in; int32 would give float32."""
    return lambda step: schedule(jnp.asarray(step, float))


def describe_schedule(train: TrainConfig) -> str:
    """Returns the schedule in words, such as "poly 0.9 after 500 steps of warm-up"."""
    text = train.schedule
    if text == "poly":
        text += f" {train.poly_power}"
    if text == "step":
        text += f", x {train.step_factor:g} after epochs {', '.join(map(str, train.step_epochs))}"
    if train.warmup_steps:
        text += f" after {train.warmup_steps} steps of warm-up"
    if train.head_lr_factor != 1:
        text += f"; x {train.head_lr_factor:g} outside the backbone"
    return text
