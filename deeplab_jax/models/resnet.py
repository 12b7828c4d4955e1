"""Dilated ResNet with a deep 3x3 stem (ResNet v1c; spec section 2.1), or the 7x7 one.

A layer that would shrink the map below the output stride dilates instead; its first block uses
half of the layer's dilation ("contracted dilation").
"""

import flax.linen as nn
import jax

from deeplab_jax.models import ops
from deeplab_jax.models.layers import ComputePolicy, ConvBNReLU
from deeplab_jax.models.ops import ValidSize

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES = {8: (1, 2, 1, 1), 16: (1, 2, 2, 1)}
_DILATIONS = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and 34); only the first is dilated."""

    features: int
    stride: int
    dilation: int
    policy: ComputePolicy

    @nn.compact
    def __call__(self, x: jax.Array, is_train: bool, valid_size: ValidSize = None) -> jax.Array:
        """Returns (B, ceil(H / stride), ceil(W / stride), features)."""
        identity = x
        if self.stride > 1 or x.shape[-1] != self.features:
            identity = ConvBNReLU(
                self.features, self.policy, stride=self.stride, use_relu=False, name="projection"
            )(x, is_train)
        x = ConvBNReLU(self.features, self.policy, 3, self.stride, self.dilation, name="conv1")(
            x, is_train, valid_size
        )
        valid_size = ops.strided_size(valid_size, self.stride)
        x = ConvBNReLU(self.features, self.policy, 3, use_relu=False, name="conv2")(
            x, is_train, valid_size
        )
        return nn.relu(x + identity)


class Bottleneck(nn.Module):
    """1x1, 3x3 (stride and dilation), 1x1 to four times the features, and a shortcut."""

    features: int
    stride: int
    dilation: int
    policy: ComputePolicy

    @nn.compact
    def __call__(self, x: jax.Array, is_train: bool, valid_size: ValidSize = None) -> jax.Array:
        """Returns (B, ceil(H / stride), ceil(W / stride), 4 * features)."""
        identity = x
        out = 4 * self.features
        if self.stride > 1 or x.shape[-1] != out:
            identity = ConvBNReLU(
                out, self.policy, stride=self.stride, use_relu=False, name="projection"
            )(x, is_train)
        x = ConvBNReLU(self.features, self.policy, name="conv1")(x, is_train)
        x = ConvBNReLU(self.features, self.policy, 3, self.stride, self.dilation, name="conv2")(
            x, is_train, valid_size
        )
        x = ConvBNReLU(out, self.policy, use_relu=False, name="conv3")(x, is_train)
        return nn.relu(x + identity)


class Stem(nn.Module):
    """Three 3x3 convolutions ("deep"), or one of 7x7 ("7x7"); the first has stride 2."""

    features: int
    kind: str
    policy: ComputePolicy

    @nn.compact
    def __call__(self, x: jax.Array, is_train: bool, valid_size: ValidSize = None) -> jax.Array:
        """Returns (B, ceil(H / 2), ceil(W / 2), features), `in_blocks` as of `ops.to_blocks`."""
        half, in_blocks = self.features // 2, self.in_blocks(x, is_train, valid_size)
        deep = [(half, 3), (half, 3), (self.features, 3)]
        layers = [(self.features, 7)] if self.kind == "7x7" else deep
        x = ops.to_blocks(x, 4) if in_blocks else x
        for index, (features, size) in enumerate(layers, 1):
            stride = 2 if index == 1 else 1
            x = ConvBNReLU(
                features, self.policy, size, stride, in_blocks=in_blocks, name=f"conv{index}"
            )(x, is_train, valid_size)
            valid_size = ops.strided_size(valid_size, stride)
        return x

    def in_blocks(self, x: jax.Array, is_train: bool, valid_size: ValidSize) -> bool:
        """Whether a TPU computes the stem in blocks: it pads 32 channels to 128."""
        is_training = is_train and not self.policy.freeze_batch_norm and valid_size is None
        fits = x.shape[1] % 4 == x.shape[2] % 4 == 0 and self.kind == "deep"
        return self.policy.platform == "tpu" and is_training and fits


class ResNet(nn.Module):
    """The four layers of a ResNet at output stride 8 or 16.

    Attributes:
      depth: 18, 34, 50 or 101.
      output_stride: 8 or 16.
      policy: dtype, platform and norm mode.
      width: channels of the stem and of the first layer's 3x3 convolutions.
      stem: "deep" (three 3x3 convolutions) or "7x7".
      multi_grid: dilations of the last layer's blocks in place of its own; () for none.
      remat: layers (1 to 4) whose blocks are computed again in the backward pass.
      frozen: parts, "stem" or "layer1" to "layer4", whose norms use the running statistics in
        training too.
    """

    depth: int
    output_stride: int
    policy: ComputePolicy
    width: int = 64
    stem: str = "deep"
    multi_grid: tuple[int, ...] = ()
    remat: tuple[int, ...] = ()
    frozen: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, x: jax.Array, is_train: bool, valid_size: ValidSize = None
    ) -> tuple[jax.Array, ...]:
        """Returns the feature maps of layers 1 to 4, NHWC."""
        stem = Stem(self.width, self.stem, self.policy, name="stem")
        is_trained = is_train and "stem" not in self.frozen
        in_blocks = stem.in_blocks(x, is_trained, valid_size)
        x = stem(x, is_trained, valid_size)
        # Zeros change no maximum, as ReLU leaves nothing negative.
        x = x if in_blocks else ops.mask_padding(x, ops.strided_size(valid_size, 2))
        x = ops.max_pool3x3_blocks(x) if in_blocks else ops.max_pool3x3(x)
        valid_size = ops.strided_size(valid_size, 4)
        block = BasicBlock if self.depth < 50 else Bottleneck
        maps = []
        for layer, dilations in enumerate(self.dilations()):
            stride = STRIDES[self.output_stride][layer]
            is_trained = is_train and f"layer{layer + 1}" not in self.frozen
            is_kept = layer + 1 not in self.remat
            layer_block = block if is_kept else nn.remat(block, static_argnums=(2,))
            for index, dilation in enumerate(dilations):
                own = stride if index == 0 else 1
                x = layer_block(
                    self.width * 2**layer,
                    own,
                    dilation,
                    self.policy,
                    name=f"layer{layer + 1}_{index}",
                )(x, is_trained, valid_size)
                valid_size = ops.strided_size(valid_size, own)
            maps.append(x)
        return tuple(maps)

    def dilations(self) -> list[tuple[int, ...]]:
        """Returns the dilation of every block of layers 1 to 4."""
        table = []
        for blocks, own in zip(BLOCKS[self.depth], _DILATIONS[self.output_stride], strict=True):
            table.append((max(1, own // 2),) + (own,) * (blocks - 1))
        if self.multi_grid:
            table[-1] = self.multi_grid
        return table
