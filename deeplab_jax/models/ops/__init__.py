"""Operations whose plain lax form is slow, in their fast form.

`tests/models/test_ops.py` compares each with the plain form, gradients included.
"""

from deeplab_jax.models.ops.convolution import conv, conv1x1, conv3x3_by_products
from deeplab_jax.models.ops.depthwise import depthwise_conv3x3
from deeplab_jax.models.ops.norm import BN_EPSILON, affine, normalize, per_channel
from deeplab_jax.models.ops.pictures import ValidSize, mask_padding, shift, strided_size
from deeplab_jax.models.ops.pooling import max_pool3x3
from deeplab_jax.models.ops.resize import resize_bilinear, resize_valid

__all__ = [
    "BN_EPSILON",
    "ValidSize",
    "affine",
    "conv",
    "conv1x1",
    "conv3x3_by_products",
    "depthwise_conv3x3",
    "mask_padding",
    "max_pool3x3",
    "normalize",
    "per_channel",
    "resize_bilinear",
    "resize_valid",
    "shift",
    "strided_size",
]
