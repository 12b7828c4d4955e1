"""Operations in the forms that are fast on the platforms of `ComputePolicy`.

`tests/models/` compares each with its plain lax form, gradients included: `test_ops.py`,
`test_platforms.py`, `test_blocks.py` and `test_cross_entropy.py`.
"""

from deeplab_jax.models.ops.blocks import (
    conv3x3_blocks,
    max_pool3x3_blocks,
    to_blocks,
)
from deeplab_jax.models.ops.convolution import (
    conv,
    conv1x1,
    conv3x3,
    conv3x3_by_products,
    conv3x3_by_strips,
    conv3x3_with_constant,
)
from deeplab_jax.models.ops.cross_entropy import resized_cross_entropy
from deeplab_jax.models.ops.depthwise import depthwise_conv3x3
from deeplab_jax.models.ops.grouped import depthwise_by_groups
from deeplab_jax.models.ops.norm import BN_EPSILON, affine, normalize, per_channel
from deeplab_jax.models.ops.pictures import ValidSize, mask_padding, shift, strided_size
from deeplab_jax.models.ops.pooling import max_pool3x3
from deeplab_jax.models.ops.resize import resize_bilinear, resize_valid
from deeplab_jax.models.ops.winograd import conv3x3_winograd

__all__ = [
    "BN_EPSILON",
    "ValidSize",
    "affine",
    "conv",
    "conv1x1",
    "conv3x3",
    "conv3x3_blocks",
    "conv3x3_by_products",
    "conv3x3_by_strips",
    "conv3x3_winograd",
    "conv3x3_with_constant",
    "depthwise_by_groups",
    "depthwise_conv3x3",
    "mask_padding",
    "max_pool3x3",
    "max_pool3x3_blocks",
    "normalize",
    "per_channel",
    "resize_bilinear",
    "resize_valid",
    "resized_cross_entropy",
    "shift",
    "strided_size",
    "to_blocks",
]
