"""The network: a dilated ResNet under ASPP and a decoder."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from deeplab_jax.errors import ConfigError
from deeplab_jax.models.deeplabv3plus import DeepLabV3Plus, Output
from deeplab_jax.models.layers import ComputePolicy, fold_batch_norm

if TYPE_CHECKING:
    from deeplab_jax.config import ModelConfig

__all__ = [
    "ComputePolicy",
    "DeepLabV3Plus",
    "Output",
    "build_model",
    "fold_batch_norm",
    "init_variables",
]


def build_model(model: "ModelConfig", platform: str | None = None) -> DeepLabV3Plus:
    """Builds the network that `config.model` describes.

    Args:
      model: `config.model`.
      platform: as in `ComputePolicy`; JAX's default backend if None.

    Raises:
      ConfigError: float64 is asked for and JAX is not in 64-bit mode.
    """
    if model.dtype == "float64" and jnp.zeros((), float).dtype != jnp.float64:
        what = "float64 needs JAX in 64-bit mode"
        raise ConfigError("config.model.dtype", what, "set JAX_ENABLE_X64=1")
    policy = ComputePolicy(
        jnp.dtype(model.dtype), platform or jax.default_backend(), model.freeze_batch_norm
    )
    return DeepLabV3Plus(
        num_classes=model.num_classes,
        depth=model.depth,
        output_stride=model.output_stride,
        atrous_rates=model.atrous_rates,
        policy=policy,
        width=model.width,
        stem=model.stem,
        multi_grid=model.multi_grid,
        remat=model.remat,
        head_channels=model.head_channels,
        low_level_channels=model.low_level_channels,
        aux_channels=model.aux_channels,
        dropout_rate=model.dropout_rate,
    )


def init_variables(model: DeepLabV3Plus, seed: int) -> dict[str, Any]:
    """Returns new {"params", "batch_stats"} drawn from `seed`; call it under `jit`."""
    image = jnp.zeros((1, 32, 32, 3))  # any size: no parameter depends on it
    return dict(model.init(jax.random.key(seed), image))
