"""CamVid, ResNet-18, output stride 16, from scratch: the best of some hours on a processor.

    deeplab train --config camvid_r18_os16_tuned --config.data.root=DIR

DIR as in camvid_r50_os16.py. Recipe: 11 classes, batch 4, 36 epochs (3,276 steps), crop 304x400,
validation images at their own size (480x360).
Measured on two cores (2026-12-01): 1.4 hours, mean IoU 62.05 %. By class, and why each choice:
docs/results/camvid.md.
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
    c.data.scale_range = (0.85, 1.75)  # smaller ones would be padded to the crop
    c.data.crop_size = (304, 400)  # above 288 a side: every atrous rate trains
    c.train.batch_size = 4
    c.train.epochs = 36
    c.train.optimizer = "adamw"
    c.train.lr = 1e-3
    c.train.min_lr = 1e-6
    c.train.schedule = "cosine"
    c.train.warmup_steps = 50
    c.train.weight_decay = 0.05
    c.train.decay_norms = False
    c.train.ema_half_life = 100.0
    # The cube root of median over frequency: rare classes count more, but not in proportion.
    c.loss.class_weights = (0.6, 0.5, 1.6, 0.5, 1.0, 0.8, 1.5, 1.6, 0.9, 1.9, 2.5)
    c.eval.every_epochs = 3
    return c
