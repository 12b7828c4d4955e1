"""CamVid, ResNet-50, output stride 16, from scratch: a folder of one's own, as an example.

    deeplab train --config camvid_r50_os16 --config.data.root=DIR

DIR holds `images/{train,val}/*.jpg` and `labels/{train,val}/*.png` (480x360, 255 = void).
Recipe: 11 classes, batch 8, 100 epochs, crop 360x480, validation images at their own size.
Hardware and hours: not measured.
"""

from deeplab_jax import config


def get_config():
    """Returns the template for folders with the classes and sizes of CamVid."""
    c = config.get_config("folder", depth=50, output_stride=16)
    c.data.root = "data/camvid"
    c.data.class_names = ("sky", "building", "pole", "road", "pavement", "tree", "sign_symbol",
                          "fence", "car", "pedestrian", "bicyclist")  # fmt: skip
    c.model.num_classes = len(c.data.class_names)
    c.data.resize_base = (480, 360)
    c.data.crop_size = (360, 480)
    c.train.batch_size = 8
    c.train.epochs = 100
    return c
