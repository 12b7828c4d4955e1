"""CamVid, ResNet-18, output stride 16, from scratch: what a processor without a GPU can train.

    deeplab train --config camvid_r18_os16 --config.data.root=DIR

DIR as in camvid_r50_os16.py. Recipe: 11 classes, batch 4, 8 epochs (728 steps), crop 304x400,
validation images at their own size (480x360).
Measured on two shared CPU cores (2026-11-24): about 35 minutes, mean IoU 39.55 %.
"""

from deeplab_jax import config


def get_config():
    """Returns the template for folders with a small backbone and the classes of CamVid."""
    c = config.get_config("folder", depth=18, output_stride=16)
    c.data.root = "data/camvid"
    c.data.class_names = ("sky", "building", "pole", "road", "pavement", "tree", "sign_symbol",
                          "fence", "car", "pedestrian", "bicyclist")  # fmt: skip
    c.model.num_classes = len(c.data.class_names)
    c.data.resize_base = (480, 360)
    c.data.crop_size = (304, 400)  # above 288 a side: every atrous rate trains
    c.train.batch_size = 4
    c.train.epochs = 8
    c.train.lr = 0.02
    c.eval.every_epochs = 2
    return c
