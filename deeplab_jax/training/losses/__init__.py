"""The training loss: plain cross entropy, as in the table, or the terms of `config.loss`."""

from deeplab_jax.training.losses.build import UserLoss, build_loss, check_unused, weights_of
from deeplab_jax.training.losses.plain import row_weights, segmentation_loss

__all__ = [
    "UserLoss",
    "build_loss",
    "check_unused",
    "row_weights",
    "segmentation_loss",
    "weights_of",
]
