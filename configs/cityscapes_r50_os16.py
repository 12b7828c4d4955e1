"""Cityscapes, ResNet-50, output stride 16: published mean IoU 79.73 %.

    deeplab train --config cityscapes_r50_os16 --config.init.backbone=DIR

DIR is the ImageNet backbone as our checkpoint; `none` trains from scratch. Recipe:
19 classes, batch 8, 220 epochs, crop 512x1024, trained on train, evaluated on val.
Hardware and hours: not measured.
"""

from deeplab_jax import config


def get_config():
    """Returns the recipe of this row of the table."""
    return config.get_config("cityscapes", depth=50, output_stride=16)
