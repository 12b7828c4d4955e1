"""ADE20k, ResNet-50, output stride 8: published mean IoU 44.51 %.

    deeplab train --config ade20k_r50_os8 --config.init.backbone=DIR

DIR is the ImageNet backbone as our checkpoint; `none` trains from scratch. Recipe:
150 classes, batch 16, 130 epochs, crop 512x512, trained on train, evaluated on val.
Hardware and hours: not measured.
"""

from deeplab_jax import config


def get_config():
    """Returns the recipe of this row of the table."""
    return config.get_config("ade20k", depth=50, output_stride=8)
