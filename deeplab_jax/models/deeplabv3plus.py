"""DeepLabV3+ (ECCV 2018, section 3.1): ASPP over a dilated ResNet, and a decoder.

Widths and the auxiliary head follow the published table's models (spec section 2), which
depart from the paper: head width 512, a 3x3 ASPP merge, separable ASPP with a ResNet.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax.models import ops
from deeplab_jax.models.layers import Classifier, ComputePolicy, ConvBNReLU, SeparableConvBNReLU
from deeplab_jax.models.ops import ValidSize
from deeplab_jax.models.resnet import ResNet


class Output(NamedTuple):
    """The network's output.

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
    policy: ComputePolicy

    @nn.compact
    def __call__(self, x: jax.Array, is_train: bool, valid_size: ValidSize = None) -> jax.Array:
        """Returns (B, H, W, features)."""
        branches = [ConvBNReLU(self.features, self.policy, name="branch0")(x, is_train)]
        for index, rate in enumerate(self.atrous_rates, 1):
            branch = SeparableConvBNReLU(self.features, self.policy, rate, name=f"branch{index}")
            branches.append(branch(x, is_train, valid_size))
        pooled = self._image_mean(x, valid_size)
        pooled = ConvBNReLU(self.features, self.policy, name="image_pool")(pooled, is_train)
        x = jnp.concatenate(branches, -1)  # (B, H, W, 4 * features)
        merge = ConvBNReLU(self.features, self.policy, 3, name="merge")
        return merge(x, is_train, valid_size, pooled)

    def _image_mean(self, x: jax.Array, valid_size: ValidSize) -> jax.Array:
        """Returns the mean of each picture without its padding, (B, 1, 1, C)."""
        dtype = self.policy.wide_dtype
        if valid_size is None:
            return jnp.mean(x, (1, 2), dtype, keepdims=True).astype(x.dtype)
        total = jnp.sum(ops.mask_padding(x, valid_size), (1, 2), dtype, keepdims=True)
        count = valid_size.prod(1).reshape(-1, 1, 1, 1).astype(dtype)
        return (total / count).astype(x.dtype)


class Decoder(nn.Module):
    """Concatenates ASPP's output and the first layer's, and refines them by two convolutions."""

    features: int
    low_level_features: int
    policy: ComputePolicy

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        low_level: jax.Array,
        is_train: bool,
        valid_sizes: tuple[ValidSize, ValidSize] = (None, None),  # of `x` and of `low_level`
    ) -> jax.Array:
        """Returns (B, h, w, features) at the size of `low_level` (B, h, w, channels)."""
        size, (before, valid_size) = low_level.shape[1:3], valid_sizes
        if before is None or valid_size is None:
            x = ops.resize_bilinear(x, size, self.policy.platform)
        else:
            x = ops.resize_valid(x, size, before, valid_size)
        shortcut = ConvBNReLU(self.low_level_features, self.policy, name="low_level")
        x = jnp.concatenate([x, shortcut(low_level, is_train)], -1)
        x = SeparableConvBNReLU(self.features, self.policy, name="refine0")(x, is_train, valid_size)
        return SeparableConvBNReLU(self.features, self.policy, name="refine1")(
            x, is_train, valid_size
        )


class DeepLabV3Plus(nn.Module):
    """The segmentation network.

    Attributes:
      num_classes: C.
      depth: layers of the backbone: 18, 34, 50 or 101.
      output_stride: 8 or 16.
      atrous_rates: dilations of ASPP's three separable branches.
      policy: dtype, platform and norm mode.
      width: channels of the backbone's first layer.
      stem: "deep" or "7x7".
      multi_grid: dilations of the last layer's blocks in place of its own; () for none.
      remat: layers of the backbone (1 to 4) that are computed again in the backward pass.
      head_channels: channels of ASPP and decoder.
      low_level_channels: channels of the decoder's shortcut.
      aux_channels: channels of the auxiliary head.
      dropout_rate: share of whole channels dropped before each classifier.
      frozen: modules whose norms use the running statistics in training too, such as "aspp" or
        "backbone.layer1".
    """

    num_classes: int
    depth: int = 50
    output_stride: int = 16
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    policy: ComputePolicy = ComputePolicy()
    width: int = 64
    stem: str = "deep"
    multi_grid: tuple[int, ...] = ()
    remat: tuple[int, ...] = ()
    head_channels: int = 512
    low_level_channels: int = 48
    aux_channels: int = 512
    dropout_rate: float = 0.1
    frozen: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        is_train: bool = False,
        use_dropout: bool = False,
        valid_size: ValidSize = None,
    ) -> Output:
        """Computes logits.

        Args:
          images: (B, H, W, 3) RGB, normalised, any floating dtype.
          is_train: normalise with the batch's statistics and update the running ones
            (collection "batch_stats" must be mutable).
          use_dropout: drop channels (needs the "dropout" random stream).
          valid_size: true sizes of images that are padded below and on the right, not in training.
            The logits of their top left ceil(valid_size / 4) are those of the images without
            padding; others are meaningless.

        Returns:
          Logits of both heads. Under `jit` a head whose result is not used costs nothing.
        """
        policy = self.policy

        def is_trained(name: str) -> bool:
            return is_train and name not in self.frozen

        x = images.astype(policy.dtype)
        backbone = ResNet(
            self.depth,
            self.output_stride,
            policy,
            self.width,
            self.stem,
            self.multi_grid,
            self.remat,
            tuple(name.removeprefix("backbone.") for name in self.frozen),
            name="backbone",
        )
        low_level, _, middle, top = backbone(x, is_trained("backbone"), valid_size)
        top_valid_size = ops.strided_size(valid_size, self.output_stride)
        aspp = ASPP(self.head_channels, self.atrous_rates, policy, name="aspp")
        x = aspp(top, is_trained("aspp"), top_valid_size)
        decoder = Decoder(self.head_channels, self.low_level_channels, policy, name="decoder")
        valid_sizes = top_valid_size, ops.strided_size(valid_size, 4)
        x = decoder(x, low_level, is_trained("decoder"), valid_sizes)
        rate = self.dropout_rate
        classifier = Classifier(self.num_classes, rate, policy, name="classifier")
        logits = classifier(x, use_dropout)
        aux_head = ConvBNReLU(self.aux_channels, policy, 3, name="aux_head")
        aux = aux_head(
            middle, is_trained("aux_head"), ops.strided_size(valid_size, self.output_stride)
        )
        aux_classifier = Classifier(self.num_classes, rate, policy, name="aux_classifier")
        return Output(logits, aux_classifier(aux, use_dropout))
