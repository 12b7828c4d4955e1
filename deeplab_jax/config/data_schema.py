"""The section `data` of a configuration; see `deeplab_jax.config.schema`."""

import dataclasses

from deeplab_jax.config import rules, transforms
from deeplab_jax.config.rules import Accepted, field

DATASETS = ("voc", "ade20k", "cityscapes", "folder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Samples, their paths, the meaning of their masks, and augmentation."""

    dataset: str = field(
        "folder",
        "a data set of the table, or a folder",
        rules.one_of(*DATASETS, text=", ".join(DATASETS)),
    )
    root: str = field(
        "data",
        "folder that holds the official layouts, or is the data set itself",
        Accepted("a folder"),
        is_free=True,
        is_local=True,
    )
    train_split: str = field("train", "split to train on", Accepted("a name"))
    val_split: str = field("val", "split to evaluate on", Accepted("a name"))
    source: str = field(
        "folder",
        "files of a folder, or the same samples from tfds or a cache",
        rules.one_of("folder", "tfds", "cache", text="folder, tfds, cache"),
        is_free=True,
    )
    images: str = field(
        "images/{split}",
        "folder of the images below the root, flat or nested, or a pattern of folders or files,"
        ' such as "{split}/*/img" or "*_rgb.png": * is any text in a part, ** any folders, {a,b}'
        " one of these; folder only",
        Accepted("a path; it or split_file holds {split}"),
    )
    masks: str = field(
        "labels/{split}",
        "folder of the masks below the root, flat or nested; or a pattern with the wildcards of"
        " images, which stand for the same in an image and its mask; folder only",
        Accepted("a path"),
    )
    mask_suffix: str = field(
        "",
        "what follows the image's name in its mask's, such as \"_mask\"; empty where masks names"
        " files",
        Accepted("text, or empty"),
    )
    split_file: str = field(
        "",
        'list of images, or of images and their masks, one a line, such as "splits/{split}.txt";'
        ' or a pattern of the lists of several scenes, such as "*/{split}.txt" or'
        ' "{a,b}/{split}.txt"; empty: all files',
        Accepted("a path, or empty"),
    )
    value_range: tuple[int, int] | tuple[()] = field(
        (),
        "(low, high): values of 16-bit pictures that become 0 and 255, those between in equal"
        " steps, those outside clipped; 8-bit pictures stay as they are; empty: 16 bits are"
        " refused",
        rules.VALUE_RANGE,
    )
    mask_format: str = field(
        "index",
        "a mask's values are classes (index), colours of classes (color), or 0 and 255 (binary)",
        rules.one_of("index", "color", "binary", text="index, color, binary"),
    )
    reduce_zero_label: bool = field(
        False, "value 0 of a mask is ignored and value k is class k - 1", rules.BOOLEAN
    )
    ignore_values: tuple[int, ...] = field(
        (255,), "values of a mask that are ignored", rules.mask_values(65535)
    )
    class_values: tuple[int, ...] = field(
        (),
        "values of class 0, 1, ... in a mask; empty: 0, 1, ..., C - 1",
        Accepted("a different number in 0..65535 for each class, or empty"),
    )
    class_names: tuple[str, ...] = field(
        (),
        "names of the classes; empty: classes.json, else class_0, class_1, ...; folder only",
        Accepted("a name for each class, or empty"),
    )
    class_colors: tuple[int, ...] = field(
        (),
        "R, G, B of class 0, 1, ...; empty: classes.json, else light colours that are safe for"
        " colour-blind eyes (of color masks VOC's)",
        Accepted("3 numbers in 0..255 for each class, or empty"),
    )
    max_bad_samples: int = field(
        0,
        "training samples that may be unreadable, and are left out",
        rules.at_least(0),
        unit="samples",
    )
    tfds_name: str = field(
        "", "name of a prepared TFDS data set; empty: ours; tfds only", Accepted("a name, or empty")
    )
    image_key: str = field("image", "feature with the image; tfds only", Accepted("a name"))
    mask_key: str = field("mask", "feature with the mask; tfds only", Accepted("a name"))
    resize_base: tuple[int, int] = field(
        (2048, 512),
        "(long side, short side) that scale 1 fits an image into",
        rules.integers(2),
        unit="pixels",
    )
    scale_range: tuple[float, float] = field(
        (0.5, 2.0), "lowest and highest random scale of the resize base in training", rules.RANGE
    )
    crop_size: tuple[int, int] = field(
        (512, 512), "(height, width) of a training sample", rules.integers(2), unit="pixels"
    )
    num_workers: int = field(
        0,
        "worker processes that read samples; 0: threads of this process",
        rules.at_least(0),
        unit="processes",
        is_free=True,
        is_local=True,
    )
    transforms: tuple[str, ...] = field(
        (),
        "augmentation in its order, a transform each: a name, with values such as"
        ' "rotate(degrees=15)", or a function of your own, "package.module:function", which is'
        " found in the recipe's folder, too; deeplab preview shows the result; empty: scale, crop,"
        " flip, photometric, as the reference",
        Accepted(f"{', '.join(transforms.NAMED)}, functions, or empty"),
    )
