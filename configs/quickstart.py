"""The drawn shapes of `deeplab demo`, a narrow ResNet-18, from scratch: minutes on a CPU.

    deeplab demo --draw-only
    deeplab train --config quickstart

Recipe: 6 classes, batch 8, 120 steps of AdamW, crop 128x128. `deeplab demo` trains it, and does
more. AdamW, because so few steps of the table's SGD leave a network from scratch unfinished.
"""

from deeplab_jax import config


def get_config():
    """Returns the template for folders, made small."""
    c = config.get_config("folder", depth=18, output_stride=16)
    c.model.num_classes = 6
    c.model.atrous_rates = (2, 4, 6)  # a crop's map is 8x8: larger rates would see only padding
    c.model.width = 32
    c.model.head_channels = 64
    c.model.aux_channels = 32
    c.data.root = "runs/demo/data"
    c.data.resize_base = (160, 128)  # every drawn image keeps its size at scale 1
    c.data.scale_range = (0.75, 1.5)
    c.data.crop_size = (128, 128)
    c.train.batch_size = 8
    c.train.steps = 120
    c.train.optimizer = "adamw"
    c.train.lr = 0.003
    c.train.weight_decay = 0.05
    c.train.schedule = "cosine"
    c.eval.every_epochs = 100  # after the last step only
    c.checkpoint.every_steps = 60
    return c
