"""PASCAL VOC 2012, ResNet-101, output stride 8: published mean IoU 79.19 %.

    deeplab train --config voc_r101_os8 --config.init.backbone=DIR

DIR is the ImageNet backbone as our checkpoint; `none` trains from scratch. Recipe:
21 classes, batch 16, 60 epochs, crop 512x512, trained on trainaug, evaluated on val.
Hardware and hours: not measured.
"""

from deeplab_jax import config


def get_config():
    """Returns the recipe of this row of the table."""
    return config.get_config("voc", depth=101, output_stride=8)
