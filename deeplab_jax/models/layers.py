"""Convolutions with batch norm and activation, and the classifier.

Padding is symmetric and explicit: "SAME" shifts a strided convolution by one pixel against
PyTorch. Initial values are PyTorch's defaults. Kernels are HWIO, pictures NHWC.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from deeplab_jax.models import ops
from deeplab_jax.models.ops import ValidSize

BN_MOMENTUM = 0.1  # share of the new value, PyTorch's convention


class ComputePolicy(NamedTuple):
    """Dtype, platform and norm mode of a network, chosen once when it is built.

    Attributes:
      dtype: type of the activations: float32, bfloat16 or float64.
      platform: "cpu", "cpu_mesh", "gpu" or "tpu", for operations with more than one form.
      freeze_batch_norm: normalise with the running statistics in training too.
      is_folded: the variables are those of `fold_batch_norm`.
    """

    dtype: DTypeLike = jnp.float32
    platform: str = "cpu"
    freeze_batch_norm: bool = False
    is_folded: bool = False

    @property
    def precision(self) -> lax.Precision:
        """Matmul and convolution precision: HIGHEST (no TF32), but DEFAULT for bfloat16."""
        is_low = self.dtype == jnp.bfloat16
        return lax.Precision.DEFAULT if is_low else lax.Precision.HIGHEST

    @property
    def wide_dtype(self) -> jnp.dtype:
        """Type of parameters, statistics and logits: float64 where `dtype` is, else float32."""
        return jnp.promote_types(self.dtype, jnp.float32)


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Draws from U(-b, b), b = 1 / sqrt(fan in): PyTorch's default for convolutions."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's statistics: the running variance is the unbiased one.

    Under `jit` the batch is the global one: batch norm is synchronised over all devices.
    """

    policy: ComputePolicy
    in_blocks: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, is_train: bool) -> jax.Array:
        """Returns `x` (B, H, W, C) normalised per channel, scaled and shifted.

        With `in_blocks`, which is for training, `x` is as of `ops.to_blocks(x, 2)`.

        Raises:
          ValueError: training sees one value per channel, which has no variance.
        """
        dtype, shape = self.policy.wide_dtype, (x.shape[-1] // (4 if self.in_blocks else 1),)
        if self.policy.is_folded:
            bias = self.param("bias", nn.initializers.zeros, shape, dtype)
            # cuDNN and cuBLAS add a bias, and apply ReLU, in the dtype of the result alone.
            dtype = x.dtype if self.policy.platform == "gpu" else dtype
            return (x.astype(dtype) + ops.per_channel(bias).astype(dtype)).astype(x.dtype)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        if not is_train or self.policy.freeze_batch_norm:
            return ops.affine(x, mean.value, var.value, scale, bias)
        centre = lax.stop_gradient(mean.value)
        y, batch_mean, batch_var = ops.normalize(x, scale, bias, centre, self.policy.platform)
        if not self.is_initializing():
            count = x.size // scale.size
            if count == 1:
                name = "/".join(self.path)
                raise ValueError(
                    f"Batch norm {name} needs more than one value per channel in training, got"
                    f" shape {x.shape}; use a larger batch."
                )
            unbiased = batch_var * (count / (count - 1))
            for running, batch in ((mean, batch_mean), (var, unbiased)):
                new = (1 - BN_MOMENTUM) * running.value + BN_MOMENTUM * batch
                running.value = lax.stop_gradient(new)
        return y


def fold_batch_norm(variables: Any) -> dict[str, Any]:
    """Returns the variables of the network with `ComputePolicy.is_folded`, as NumPy arrays.

    With running statistics a norm is y = a x + b per channel: a multiplies the kernel before it, b
    is the norm's bias. Computed in float64, returned in the dtypes of the parameters.

    Args:
      variables: {"params", "batch_stats"}; arrays of any layout this host holds whole.
    """
    return {"params": _fold(*(jax.device_get(variables[k]) for k in ("params", "batch_stats")))}


def _fold(params: Any, stats: Any) -> Any:
    if not isinstance(params, Mapping):
        return np.array(params)  # a copy: a view would keep training from donating its state
    if "norm" not in params:
        return {key: _fold(value, stats.get(key, {})) for key, value in params.items()}
    norm, kernel = params["norm"], params["conv"]["kernel"]
    wide = {k: np.asarray(v, np.float64) for k, v in (norm | stats["norm"]).items()}
    factor = wide["scale"] / np.sqrt(wide["var"] + ops.BN_EPSILON)
    bias = (wide["bias"] - wide["mean"] * factor).astype(kernel.dtype)
    return {"conv": {"kernel": (kernel * factor).astype(kernel.dtype)}, "norm": {"bias": bias}}


class Conv(nn.Module):
    """Convolution without bias: 1x1, 3x3, or depthwise 3x3."""

    features: int
    kernel_size: int
    policy: ComputePolicy
    stride: int = 1
    dilation: int = 1
    is_depthwise: bool = False
    in_blocks: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, valid_size: ValidSize = None, constant: jax.Array | None = None
    ) -> jax.Array:
        """Returns (B, ceil(H / stride), ceil(W / stride), features).

        A kernel sees zeros outside the `valid_size` of `x`. `constant` (B, 1, 1, channels) holds
        more channels of `x`, behind the others, each the same all over the picture (3x3, stride 1).
        With `in_blocks`, which is for 3x3, `x` is as of `ops.to_blocks(x, 2 * stride)`, and the
        result in blocks of 2x2.
        """
        inputs = 1 if self.is_depthwise else x.shape[-1]
        inputs += 0 if constant is None else constant.shape[-1]
        if self.in_blocks:
            inputs //= (2 * self.stride) ** 2
        shape = (self.kernel_size, self.kernel_size, inputs, self.features)
        kernel = self.param("kernel", uniform_fan_in, shape, self.policy.wide_dtype)
        kernel = kernel.astype(self.policy.dtype)
        if self.in_blocks:
            return ops.conv3x3_blocks(x, kernel, self.stride, self.policy.precision)
        if self.kernel_size > 1:
            x = ops.mask_padding(x, valid_size)
        # A grouped convolution lays other numbers of channels out anew, and gathers the rows of a
        # mesh that splits them where taps lie far apart.
        is_grouped = self.policy.platform == "tpu" and self.dilation == 1 and x.shape[-1] % 128 == 0
        if self.is_depthwise and is_grouped:
            return ops.depthwise_by_groups(x, kernel, self.policy.precision)
        if self.is_depthwise:
            return ops.depthwise_conv3x3(x, kernel, self.dilation, self.policy.platform)
        precision, platform = self.policy.precision, self.policy.platform
        if self.kernel_size == 1:
            return ops.conv1x1(x, kernel, self.stride, precision, platform)
        if constant is not None:
            return ops.conv3x3_with_constant(x, constant, kernel, valid_size, precision, platform)
        if self.kernel_size == 3:
            return ops.conv3x3(x, kernel, self.stride, self.dilation, precision, platform)
        return ops.conv(x, kernel, self.stride, self.dilation, precision)


class ConvBNReLU(nn.Module):
    """Convolution, batch norm and, unless `use_relu` is off, ReLU."""

    features: int
    policy: ComputePolicy
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    is_depthwise: bool = False
    use_relu: bool = True
    in_blocks: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        is_train: bool,
        valid_size: ValidSize = None,
        constant: jax.Array | None = None,
    ) -> jax.Array:
        """Returns (B, ceil(H / stride), ceil(W / stride), features); `constant` as in `Conv`."""
        x = Conv(
            self.features,
            self.kernel_size,
            self.policy,
            self.stride,
            self.dilation,
            self.is_depthwise,
            self.in_blocks,
            name="conv",
        )(x, valid_size, constant)
        x = BatchNorm(self.policy, self.in_blocks, name="norm")(x, is_train)
        return nn.relu(x) if self.use_relu else x


class SeparableConvBNReLU(nn.Module):
    """Depthwise 3x3, then 1x1; norm and ReLU follow both."""

    features: int
    policy: ComputePolicy
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, is_train: bool, valid_size: ValidSize = None) -> jax.Array:
        """Returns (B, H, W, features)."""
        x = ConvBNReLU(
            x.shape[-1],
            self.policy,
            kernel_size=3,
            dilation=self.dilation,
            is_depthwise=True,
            name="depthwise",
        )(x, is_train, valid_size)
        return ConvBNReLU(self.features, self.policy, name="pointwise")(x, is_train)


class Classifier(nn.Module):
    """Drops whole channels, then maps features to logits by a 1x1 convolution with bias."""

    num_classes: int
    dropout_rate: float
    policy: ComputePolicy

    @nn.compact
    def __call__(self, x: jax.Array, use_dropout: bool) -> jax.Array:
        """Returns logits (B, H, W, num_classes), float32 or wider."""
        x = nn.Dropout(self.dropout_rate, broadcast_dims=(1, 2))(x, not use_dropout)
        dtype = self.policy.wide_dtype
        shape = (1, 1, x.shape[-1], self.num_classes)
        kernel = self.param("kernel", uniform_fan_in, shape, dtype)
        # PyTorch draws the bias from the same interval as the kernel.
        bias = self.param("bias", lambda key: uniform_fan_in(key, shape, dtype)[0, 0, 0])
        kernel = kernel.astype(self.policy.dtype)
        logits = ops.conv1x1(x, kernel, 1, self.policy.precision, self.policy.platform, dtype)
        return logits + ops.per_channel(bias)
