"""The twelve rows of the published table, and the template for a folder of one's own.

Values come from sssegmentation's model zoo (DeepLabV3+; VOC, ADE20k and Cityscapes with R-50 and
R-101 at output stride 8 and 16).
"""

import dataclasses

from ml_collections import ConfigDict

from deeplab_jax.config.data_schema import DATASETS
from deeplab_jax.config.schema import Config, fields
from deeplab_jax.errors import ConfigError

# Each row: classes, global batch, epochs, crop and resize base (long side, short side).
_ROWS = {
    "voc": (21, 16, 60, (512, 512), (2048, 512)),
    "ade20k": (150, 16, 130, (512, 512), (2048, 512)),
    "cityscapes": (19, 8, 220, (512, 1024), (2048, 1024)),
}
PUBLISHED_MIOU = {  # percent; sssegmentation model zoo
    ("voc", 50, 8): 77.43,
    ("voc", 50, 16): 76.92,
    ("voc", 101, 8): 79.19,
    ("voc", 101, 16): 78.31,
    ("ade20k", 50, 8): 44.51,
    ("ade20k", 50, 16): 43.21,
    ("ade20k", 101, 8): 45.72,
    ("ade20k", 101, 16): 45.22,
    ("cityscapes", 50, 8): 80.38,
    ("cityscapes", 50, 16): 79.73,
    ("cityscapes", 101, 8): 81.09,
    ("cityscapes", 101, 16): 80.20,
}

# Images for training and validation, of the splits that the recipes name.
PUBLISHED_IMAGES = {
    "voc": (10_582, 1_449),
    "ade20k": (20_210, 2_000),
    "cityscapes": (2_975, 500),
}


def get_config(dataset: str, depth: int = 50, output_stride: int = 16) -> ConfigDict:
    """Returns the recipe of one table row, or a template for a folder of one's own.

    Args:
      dataset: "voc", "ade20k" or "cityscapes" for a row of the table; "folder" for
        `images/{train,val}` beside `labels/{train,val}`, where the recipe sets the rest.
      depth: 18, 34, 50 or 101 layers of ResNet; the table uses 50 and 101.
      output_stride: 8 or 16, the input size over the size of the last feature map.

    Returns:
      A locked `ConfigDict` with the fields of `schema.Config`; misspelt ones raise.

    Raises:
      ConfigError: an argument is not one of the above.
    """
    if dataset not in DATASETS:
        raise ConfigError("dataset", f"{dataset!r} is unknown", f"use one of {', '.join(DATASETS)}")
    for key, value in (("depth", depth), ("output_stride", output_stride)):
        field = fields()[f"model.{key}"]
        rule = field.metadata["rule"]
        if not rule.is_valid(value):
            what = f"must be {rule.accepted}, got {value!r}"
            raise ConfigError(key, what, f"use {field.default}")
    c = ConfigDict(dataclasses.asdict(Config()))
    c.name = f"{dataset}_r{depth}_os{output_stride}"
    c.model.depth, c.model.output_stride = depth, output_stride
    if output_stride == 8:
        c.model.atrous_rates = (12, 24, 36)
    if depth < 50:  # mmsegmentation's widths for basic blocks
        c.model.head_channels, c.model.low_level_channels, c.model.aux_channels = 128, 12, 64
    c.data.dataset = dataset
    if dataset in _ROWS:
        row = _ROWS[dataset]
        c.model.num_classes, c.train.batch_size, c.train.epochs, crop_size, resize_base = row
        c.data.crop_size = crop_size
        c.data.resize_base = c.eval.resize_base = resize_base
        c.data.num_workers = c.train.loss_groups = 8  # the reference's processes
        c.init.backbone = ""  # ImageNet weights, or "none", must be said
    if dataset == "voc":
        c.data.train_split = "trainaug"
    return c.lock()
