"""Cityscapes, ResNet-101, output stride 8: published mean IoU 81.09 %.

    deeplab train --config cityscapes_r101_os8 --config.init.backbone=DIR

DIR is the ImageNet backbone as our checkpoint; `none` trains from scratch. Recipe:
19 classes, batch 8, 220 epochs, crop 512x1024, trained on train, evaluated on val.
Hardware and hours: not measured.
"""

from deeplab_jax import config


def get_config():
    """Returns the recipe of this row of the table."""
    return config.get_config("cityscapes", depth=101, output_stride=8)
