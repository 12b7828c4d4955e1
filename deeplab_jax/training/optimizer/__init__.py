"""What becomes of a gradient: optimiser and schedule by name, and the average of the weights."""

from deeplab_jax.training.optimizer.average import Average, begin_average, next_average
from deeplab_jax.training.optimizer.build import build_optimizer, joint_norm
from deeplab_jax.training.optimizer.schedule import (
    build_schedule,
    describe_schedule,
    poly_schedule,
)

__all__ = [
    "Average",
    "begin_average",
    "build_optimizer",
    "build_schedule",
    "describe_schedule",
    "joint_norm",
    "next_average",
    "poly_schedule",
]
