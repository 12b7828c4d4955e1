"""The network: a dilated ResNet under ASPP and a decoder."""

from deeplab_jax.models.deeplabv3plus import DeepLabV3Plus, Output
from deeplab_jax.models.layers import Numerics

__all__ = ["DeepLabV3Plus", "Numerics", "Output"]
