"""DeepLabV3+ (ECCV 2018, section 3.1): ASPP over a dilated ResNet, and a decoder.

Widths and the auxiliary head follow the published table's models (ssseg spec section 2), which
depart from the paper: head width 512, a 3x3 ASPP merge, separable ASPP with a ResNet.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.models import ops
from deeplab_jax.models.layers import Classifier, ConvBNReLU, Numerics, SeparableConvBNReLU
from deeplab_jax.models.resnet import ResNet


class Output(NamedTuple):
    """What the network returns.

    Attributes:
      logits: (B, ceil(H / 4), ceil(W / 4), C), float32 or wider.
      aux_logits: (B, h, w, C) at the third layer's size; for the training loss only.
    """

    logits: jax.Array
    aux_logits: jax.Array


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated separable 3x3, and the image mean."""

    features: int
    atrous_rates: tuple[int, ...]
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array, is_train: bool, extent: jax.Array | None = None) -> jax.Array:
        """Returns (B, H, W, features)."""
        branches = [ConvBNReLU(self.features, self.numerics, name="branch0")(x, is_train)]
        for index, rate in enumerate(self.atrous_rates, 1):
            branch = SeparableConvBNReLU(self.features, self.numerics, rate, name=f"branch{index}")
            branches.append(branch(x, is_train, extent))
        pooled = self._image_mean(x, extent)
        pooled = ConvBNReLU(self.features, self.numerics, name="image_pool")(pooled, is_train)
        # Wide, for the gradient of a broadcast is a sum over the map.
        wide = jnp.broadcast_to(pooled.astype(self.numerics.wide_dtype), branches[0].shape)
        branches.append(wide.astype(x.dtype))
        x = jnp.concatenate(branches, -1)  # (B, H, W, 5 * features)
        return ConvBNReLU(self.features, self.numerics, 3, name="merge")(x, is_train, extent)

    def _image_mean(self, x: jax.Array, extent: jax.Array | None) -> jax.Array:
        """Returns the mean of each picture (B, 1, 1, C), padding left out."""
        dtype = self.numerics.wide_dtype
        if extent is None:
            return jnp.mean(x, (1, 2), dtype, keepdims=True).astype(x.dtype)
        total = jnp.sum(ops.keep_inside(x, extent), (1, 2), dtype, keepdims=True)
        count = extent.prod(1).reshape(-1, 1, 1, 1).astype(dtype)
        return (total / count).astype(x.dtype)


class Decoder(nn.Module):
    """Joins ASPP's output with the first layer's and refines it."""

    features: int
    low_level_features: int
    numerics: Numerics

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        low_level: jax.Array,
        is_train: bool,
        extents: tuple[jax.Array | None, jax.Array | None] = (None, None),
    ) -> jax.Array:
        """Returns (B, h, w, features) at the size of `low_level` (B, h, w, channels).

        `extents` are those of `x` and of `low_level`.
        """
        size, (before, extent) = low_level.shape[1:3], extents
        if before is None or extent is None:
            x = ops.resize_bilinear(x, size)
        else:
            x = ops.resize_inside(x, size, before, extent)
        shortcut = ConvBNReLU(self.low_level_features, self.numerics, name="low_level")
        x = jnp.concatenate([x, shortcut(low_level, is_train)], -1)
        x = SeparableConvBNReLU(self.features, self.numerics, name="refine0")(x, is_train, extent)
        return SeparableConvBNReLU(self.features, self.numerics, name="refine1")(
            x, is_train, extent
        )


class DeepLabV3Plus(nn.Module):
    """The segmentation network.

    Attributes:
      num_classes: C.
      depth: layers of the backbone: 18, 34, 50 or 101.
      output_stride: 8 or 16.
      atrous_rates: dilations of ASPP's three separable branches.
      numerics: dtype, platform and norm mode.
      width: channels of the backbone's first layer.
      stem: "deep" or "7x7".
      multi_grid: dilations of the last layer's blocks in place of its own; () for none.
      remat: layers of the backbone (1 to 4) that are computed again in the backward pass.
      head_channels: of ASPP and decoder.
      low_level_channels: of the decoder's shortcut.
      aux_channels: of the auxiliary head.
      dropout_rate: of whole channels before each classifier.
    """

    num_classes: int
    depth: int = 50
    output_stride: int = 16
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    numerics: Numerics = Numerics()
    width: int = 64
    stem: str = "deep"
    multi_grid: tuple[int, ...] = ()
    remat: tuple[int, ...] = ()
    head_channels: int = 512
    low_level_channels: int = 48
    aux_channels: int = 512
    dropout_rate: float = 0.1

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        is_train: bool = False,
        use_dropout: bool = False,
        extent: jax.Array | None = None,
    ) -> Output:
        """Computes logits.

        Args:
          images: (B, H, W, 3) RGB, normalised, any floating dtype.
          is_train: normalise with the batch's statistics and update the running ones
            (collection "batch_stats" must be mutable).
          use_dropout: drop channels (needs the "dropout" random stream).
          extent: int32 (B, 2), true (height, width) of images that are padded below and on the
            right, not in training; the logits of their top left ceil(extent / 4) are those of the
            images without padding, others mean nothing. None: there is no padding.

        Returns:
          Logits of both heads. Under `jit` a head whose result is not used costs nothing.
        """
        numerics = self.numerics
        x = images.astype(numerics.dtype)
        backbone = ResNet(
            self.depth,
            self.output_stride,
            numerics,
            self.width,
            self.stem,
            self.multi_grid,
            self.remat,
            name="backbone",
        )
        low_level, _, middle, top = backbone(x, is_train, extent)
        top_extent = ops.shrink(extent, self.output_stride)
        aspp = ASPP(self.head_channels, self.atrous_rates, numerics, name="aspp")
        x = aspp(top, is_train, top_extent)
        decoder = Decoder(self.head_channels, self.low_level_channels, numerics, name="decoder")
        x = decoder(x, low_level, is_train, (top_extent, ops.shrink(extent, 4)))
        rate = self.dropout_rate
        classifier = Classifier(self.num_classes, rate, numerics, name="classifier")
        logits = classifier(x, use_dropout)
        aux_head = ConvBNReLU(self.aux_channels, numerics, 3, name="aux_head")
        aux = aux_head(middle, is_train, ops.shrink(extent, self.output_stride))
        aux_classifier = Classifier(self.num_classes, rate, numerics, name="aux_classifier")
        return Output(logits, aux_classifier(aux, use_dropout))
