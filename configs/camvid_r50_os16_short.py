"""CamVid, ResNet-50, output stride 16, 300 steps: learning compared with the PyTorch reference's.

    deeplab train --config camvid_r50_os16_short --config.data.root=DIR --seeds 0,1,2

DIR as in camvid_r50_os16.py. Recipe: 11 classes, batch 4, 300 steps, crop 192x256, from random
weights, validation images at half size (240x180). Both curves: docs/results/learning.md.

Images are halved because taps of the larger atrous rates fall outside the map of so small a crop,
are never trained, and would take part at random in larger images.
"""

from deeplab_jax import config


def get_config():
    """Returns the template for folders with CamVid's classes and the measured protocol."""
    c = config.get_config("folder", depth=50, output_stride=16)
    c.data.root = "data/camvid"
    c.data.class_names = ("sky", "building", "pole", "road", "pavement", "tree", "sign_symbol",
                          "fence", "car", "pedestrian", "bicyclist")  # fmt: skip
    c.model.num_classes = len(c.data.class_names)
    c.data.resize_base = (480, 360)
    c.data.crop_size = (192, 256)
    c.train.batch_size = 4
    c.train.steps = 300
    c.eval.resize_base = (240, 180)
    c.eval.every_epochs = 10  # once, after the last step
    c.log.every_steps = 1
    return c
