"""Every field of a recipe, its default, and the twelve rows of the published table.

A recipe file calls `get_config` and changes what it must. Values come from sssegmentation's model
zoo (DeepLabV3+; VOC, ADE20k and Cityscapes with R-50/R-101 at output stride 8 and 16).
"""

import difflib
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.errors import ConfigError

# Each row: classes, global batch, epochs, crop and resize base (long side, short side).
_TABLE = {
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
DATASETS = (*_TABLE, "folder")
SOURCES = ("folder", "tfds", "cache")
MASK_FORMATS = ("index", "color", "binary")
LABEL_IDS, TRAIN_IDS = "_gtFine_labelIds", "_gtFine_labelTrainIds"  # masks of Cityscapes
IGNORE_INDEX = 255
MAX_CHANNELS = 65536  # no network comes near, and sizes of arrays stay in 64 bits

# Meaningless for the data sets of the table, whose files and values are known.
_FOLDER_KEYS = ("images", "masks", "mask_suffix", "split_file", "mask_format", "reduce_zero_label",
                "ignore_values", "class_values", "class_colors")  # fmt: skip

# Keys that may differ between a run and its continuation: they cannot change a result.
_FREE_ON_RESUME = ("name", "data.root", "data.source", "data.num_workers", "log.every_steps",
                   "model.remat", "mesh.spatial", "mesh.check_every_steps")  # fmt: skip


def get_config(dataset: str, depth: int = 50, output_stride: int = 16) -> ConfigDict:
    """Returns the recipe of one table row, or a template for a folder of one's own.

    Args:
      dataset: "voc", "ade20k" or "cityscapes" for a row of the table; "folder" for
        `images/{train,val}` beside `labels/{train,val}`, where the recipe sets the rest.
      depth: 18, 34, 50 or 101 layers of ResNet; the table uses 50 and 101.
      output_stride: 8 or 16, the input size over the size of the last feature map.

    Returns:
      A locked `ConfigDict`; misspelt fields raise.

    Raises:
      ConfigError: an argument is not one of the above.
    """
    if dataset not in DATASETS:
        raise ConfigError("dataset", f"{dataset!r} is unknown", f"use one of {', '.join(DATASETS)}")
    is_row = dataset in _TABLE
    classes, batch, epochs, crop, base = _TABLE.get(dataset, (2, 16, 60, (512, 512), (2048, 512)))
    is_small = depth < 50  # mmsegmentation's widths for basic blocks

    c = ConfigDict()
    c.name = f"{dataset}_r{depth}_os{output_stride}"  # reading a recipe sets it to the file's
    c.seed = 0  # initial weights, order of samples, augmentation, dropout

    c.model = ConfigDict()
    c.model.depth = depth  # 18, 34, 50 or 101
    c.model.output_stride = output_stride  # 8 or 16
    c.model.num_classes = classes
    # Dilations of the three separable ASPP branches; the fourth is a 1x1 convolution.
    c.model.atrous_rates = (12, 24, 36) if output_stride == 8 else (6, 12, 18)
    c.model.stem = "deep"  # three 3x3 convolutions, or "7x7"
    c.model.multi_grid = ()  # dilations of the last layer's blocks in place of its own
    c.model.width = 64  # channels of the first stage; later stages double it
    c.model.head_channels = 128 if is_small else 512  # ASPP and decoder
    c.model.low_level_channels = 12 if is_small else 48  # the decoder's shortcut
    c.model.aux_channels = 64 if is_small else 512  # auxiliary head
    c.model.dropout_rate = 0.1  # whole channels, before each classifier; [0, 1)
    c.model.dtype = "float32"  # of the computation: float32, bfloat16 or float64
    c.model.freeze_batch_norm = False  # train with the running statistics
    # Stages of the backbone, of 1 to 4, whose activations are computed again in the backward
    # pass instead of kept: less memory, more time.
    c.model.remat = ()

    c.data = ConfigDict()
    c.data.dataset = dataset
    c.data.root = "data"  # holds the official layouts, or is the folder itself
    c.data.train_split = "trainaug" if dataset == "voc" else "train"
    c.data.val_split = "val"
    c.data.source = "folder"  # of files; or the same samples from "tfds" or a "cache"
    # Where a folder data set lies under its root: {split} is replaced; flat or nested.
    c.data.images = "images/{split}"
    c.data.masks = "labels/{split}"
    c.data.mask_suffix = ""  # after the image's name in its mask's, such as "_mask"
    c.data.split_file = ""  # such as "splits/{split}.txt", one id a line; empty: all files
    # What a mask's values mean, for data sets that are not of the table.
    c.data.mask_format = "index"  # "color": those of the classes; "binary": 0 and 255
    c.data.reduce_zero_label = False  # 0 is ignored and k is class k - 1
    c.data.ignore_values = (255,)  # 0 to 65535
    c.data.class_values = ()  # of class 0, 1, ...; empty: 0, 1, ..., C - 1
    c.data.class_names = ()  # folder only; empty: classes.json, else class_0, class_1, ...
    c.data.class_colors = ()  # R, G, B of class 0, 1, ...; empty: classes.json, else VOC's
    c.data.max_bad_samples = 0  # training samples that may be unreadable, and are left out
    # TFDS only: a prepared data set's name, and its features.
    c.data.tfds_name = ""
    c.data.image_key = "image"
    c.data.mask_key = "mask"
    c.data.resize_base = base  # (long side, short side) that scale 1 fits an image into, pixels
    c.data.scale_range = (0.5, 2.0)  # random scale of the resize base in training
    c.data.crop_size = crop  # (height, width) of a training sample, pixels
    c.data.num_workers = 8 if is_row else 0  # processes that read; 0: threads of this process

    c.train = ConfigDict()
    c.train.batch_size = batch  # over all devices and hosts
    # Parts that a batch is taken in, one after the other, before one step of the optimiser: less
    # memory. Batch norm then sees a part at a time.
    c.train.gradient_accumulation = 1
    # The loss averages this many groups of rows, each over its own valid pixels, as the
    # reference's processes do; it also sets the epoch's length. The table's runs used 8.
    c.train.loss_groups = 8 if is_row else 1
    c.train.epochs = epochs
    c.train.steps = 0  # 0: by epochs
    c.train.lr = 0.01
    c.train.min_lr = 1e-4  # where the schedule ends
    c.train.poly_power = 0.9
    c.train.momentum = 0.9
    c.train.weight_decay = 5e-4  # on every parameter
    c.train.aux_weight = 0.4  # of the auxiliary head's loss

    c.mesh = ConfigDict()
    # Devices that share an image, each with a band of its rows; the others split the batch. With
    # more, a batch of 8 or 16 uses a pod.
    c.mesh.spatial = 1
    # Steps between two comparisons of the parameters that devices and hosts hold; 0: never.
    c.mesh.check_every_steps = 500

    c.eval = ConfigDict()
    c.eval.every_epochs = 10  # and after the last step
    # (long side, short side) that test images are fitted into; empty: their own size.
    c.eval.resize_base = base if is_row else ()
    c.eval.mode = "whole"  # or "slide": windows, averaged where they overlap
    c.eval.crop_size = ()  # (height, width) of windows, pixels of the fitted image
    c.eval.stride = ()  # (down, right) from window to window
    c.eval.scales = (1.0,)  # of the image; scores are averaged
    c.eval.flip = False  # average with the mirrored image, too
    c.eval.softmax_first = False  # resize probabilities, not logits

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 0  # 0: once an epoch; the last step is always saved

    c.log = ConfigDict()
    c.log.every_steps = 10

    c.init = ConfigDict()
    # Backbone checkpoint (ImageNet weights), or "none" to start from random weights. A table row
    # needs one or the other to be said, or a checkpoint.
    c.init.backbone = "" if is_row else "none"
    # Fine-tuning: work directory of a run, or converted weights, whose network this run starts
    # from, at step 0; its latest step, which is what `evaluate` and `predict` take; empty: none.
    c.init.checkpoint = ""
    c.init.head = "load"  # the checkpoint's classifiers; "skip": new ones, as for other classes
    return c.lock()


def validate(config: ConfigDict) -> None:
    """Checks what types cannot: ranges, lengths and what fits with what.

    Raises:
      ConfigError: naming the first field that cannot be used, what is accepted, and the fix.
    """
    _check_model(config.model)
    _check_data(config.data, config.model.num_classes)
    _check_protocol(config.eval)
    for key in ("eval.every_epochs", "log.every_steps", "mesh.spatial"):
        value = _get(config, key)
        _require(key, value, value >= 1, "1 or more")
    for key in ("checkpoint.every_steps", "mesh.check_every_steps"):
        value = _get(config, key)
        _require(key, value, 0 <= value < math.inf, "0 or more")
    _require("seed", config.seed, 0 <= config.seed < 2**32, "0 to 4294967295")
    _check_train(config.train)
    _require_height(config.data.crop_size[0], config.model.output_stride, config.mesh.spatial)
    _check_init(config.init)


def _check_model(model: ConfigDict) -> None:
    _require("model.depth", model.depth, model.depth in (18, 34, 50, 101), "18, 34, 50 or 101")
    _require("model.output_stride", model.output_stride, model.output_stride in (8, 16), "8 or 16")
    _require("model.stem", model.stem, model.stem in ("deep", "7x7"), "deep or 7x7")
    if model.multi_grid:
        _require_ints("model.multi_grid", model.multi_grid, 3 if model.depth > 18 else 2)
    dtypes = ("float32", "bfloat16", "float64")
    _require("model.dtype", model.dtype, model.dtype in dtypes, " or ".join(dtypes))
    fix = "count the classes, without the ignored one"
    _require("model.num_classes", model.num_classes, 2 <= model.num_classes <= 255, "2 to 255", fix)
    _require("model.dropout_rate", model.dropout_rate, 0 <= model.dropout_rate < 1, "0 <= rate < 1")
    _require_ints("model.atrous_rates", model.atrous_rates, 3)
    for name in ("width", "head_channels", "low_level_channels", "aux_channels"):
        is_good = 1 <= model[name] <= MAX_CHANNELS
        _require(f"model.{name}", model[name], is_good, f"1 to {MAX_CHANNELS}")
    _require("model.width", model.width, model.width % 2 == 0, "an even number")
    is_good = len(set(model.remat)) == len(model.remat) and set(model.remat) <= {1, 2, 3, 4}
    _require("model.remat", tuple(model.remat), is_good, "different stages, 1 to 4")


def _check_data(data: ConfigDict, num_classes: int) -> None:
    _require("data.dataset", data.dataset, data.dataset in DATASETS, ", ".join(DATASETS))
    _require_ints("data.crop_size", data.crop_size, 2)
    _require_ints("data.resize_base", data.resize_base, 2)
    scale = data.scale_range
    is_range = len(scale) == 2 and all(isinstance(value, int | float) for value in scale)
    is_range = is_range and 0 < scale[0] <= scale[1] < math.inf
    _require("data.scale_range", scale, is_range, "(low, high), 0 < low <= high")
    names = data.class_names
    is_named = not names or len(names) == num_classes
    fix = "name each class once, or correct config.model.num_classes"
    _require("data.class_names", len(names), is_named, f"{num_classes} names or none", fix)
    _check_masks(data, num_classes)
    for name in ("num_workers", "max_bad_samples"):
        _require(f"data.{name}", data[name], 0 <= data[name] < math.inf, "0 or more")


def _check_train(train: ConfigDict) -> None:
    for name in ("epochs", "loss_groups", "gradient_accumulation"):
        _require(f"train.{name}", train[name], train[name] >= 1, "1 or more")
    for name in ("steps", "weight_decay", "aux_weight"):
        _require(f"train.{name}", train[name], 0 <= train[name] < math.inf, "0 or more")
    _require("train.lr", train.lr, 0 < train.lr < math.inf, "a positive rate")
    accepted = f"0 to config.train.lr ({train.lr})"
    fix = "lower it, or raise config.train.lr"
    _require("train.min_lr", train.min_lr, 0 <= train.min_lr <= train.lr, accepted, fix)
    power = train.poly_power
    _require("train.poly_power", power, 0 < power < math.inf, "a positive number")
    _require("train.momentum", train.momentum, 0 <= train.momentum < 1, "0 <= momentum < 1")
    _require_batch(train)


def _check_init(init: ConfigDict) -> None:
    _require("init.head", init.head, init.head in ("load", "skip"), "load or skip")
    fix = "name the checkpoint: --config.init.checkpoint=DIR"
    is_used = init.head == "load" or bool(init.checkpoint)
    _require("init.head", init.head, is_used, "load without config.init.checkpoint", fix)
    if init.checkpoint and init.backbone not in ("", "none"):
        what = f"{init.backbone} is named beside config.init.checkpoint={init.checkpoint}"
        raise ConfigError("config.init.backbone", what, "name one: a checkpoint has its backbone")


def _require(key: str, value: Any, is_good: bool, accepted: str, fix: str = "") -> None:
    if is_good:
        return
    example = _get(get_config("folder"), key)
    text = ",".join(map(str, example)) if isinstance(example, tuple) else example
    fix = fix or f"use a value such as the default: --config.{key}={text}"
    raise ConfigError(f"config.{key}", f"must be {accepted}, got {value}", fix)


def _require_ints(key: str, value: Any, count: int) -> None:
    is_good = len(value) == count and all(type(v) is int and v > 0 for v in value)
    _require(key, tuple(value), is_good, f"{count} positive integers")


def _check_protocol(protocol: ConfigDict) -> None:
    if protocol.resize_base:
        _require_ints("eval.resize_base", protocol.resize_base, 2)
    _require("eval.mode", protocol.mode, protocol.mode in ("whole", "slide"), "whole or slide")
    is_slide, fix = protocol.mode == "slide", "give both, or use config.eval.mode=whole"
    for key in ("crop_size", "stride"):
        value = protocol[key]
        is_good = all(type(side) is int and side > 0 for side in value)
        is_good = is_good and len(value) == (2 if is_slide else 0)
        accepted = "2 positive integers with config.eval.mode=slide, empty with whole"
        _require(f"eval.{key}", tuple(value), is_good, accepted, fix)
    pairs = zip(protocol.stride, protocol.crop_size, strict=True)
    is_good = all(step <= side for step, side in pairs)
    fix = "lower it, or pixels between windows are not seen"
    _require("eval.stride", protocol.stride, is_good, "at most config.eval.crop_size", fix)
    scales = protocol.scales
    is_good = all(isinstance(scale, int | float) and 0.25 <= scale <= 4 for scale in scales)
    is_good = is_good and 0 < len(scales) == len(set(scales))
    _require("eval.scales", scales, is_good, "different numbers from 0.25 to 4")


def _check_masks(data: ConfigDict, num_classes: int) -> None:
    """Checks where samples lie and what mask values mean."""
    _require("data.source", data.source, data.source in SOURCES, ", ".join(SOURCES))
    _require("data.mask_format", data.mask_format, data.mask_format in MASK_FORMATS,
             ", ".join(MASK_FORMATS))  # fmt: skip
    defaults = get_config("folder").data
    for key in _FOLDER_KEYS:
        is_meant = data.dataset == "folder" or data[key] == defaults[key]
        if (data.dataset, key) == ("cityscapes", "mask_suffix"):
            is_meant = data[key] in ("", LABEL_IDS, TRAIN_IDS)
        accepted = f"left as it is for {data.dataset}, whose layout is known"
        fix = "set config.data.dataset=folder for a layout of your own"
        _require(f"data.{key}", data[key], is_meant, accepted, fix)
    is_split = "{split}" in data.images + data.split_file or data.train_split == data.val_split
    fix = 'name a config.data.split_file such as "splits/{split}.txt"'
    _require("data.images", data.images, is_split, "different for each {split}", fix)
    _require_values("data.ignore_values", data.ignore_values, 65535)
    _require_values("data.class_values", data.class_values, 65535, num_classes)
    _require_values("data.class_colors", data.class_colors, 255, 3 * num_classes)
    is_color, is_binary = data.mask_format == "color", data.mask_format == "binary"
    accepted, fix = "2 for binary masks", "count the background"
    _require("model.num_classes", num_classes, num_classes == 2 or not is_binary, accepted, fix)
    for key in ("reduce_zero_label", "class_values", "ignore_values"):
        is_meant = data[key] == defaults[key] or not (is_color or is_binary)
        accepted = f"{defaults[key]} with config.data.mask_format={data.mask_format}"
        fix = "set config.data.mask_format=index, or drop this"
        _require(f"data.{key}", data[key], is_meant, accepted, fix)
    if is_color or is_binary:
        return
    is_one = not (data.reduce_zero_label and data.class_values)
    fix = "give the values alone, or reduce_zero_label alone"
    _require("data.class_values", data.class_values, is_one, "() with reduce_zero_label", fix)
    first = int(data.reduce_zero_label)
    values = data.class_values or range(first, first + num_classes)
    both = sorted(set(values) & set(data.ignore_values))
    fix = "correct it, config.data.class_values or config.model.num_classes"
    accepted = "values that are no class" + (f" ({both[0]} is one)" if both else "")
    if data.dataset == "folder":
        _require("data.ignore_values", data.ignore_values, not both, accepted, fix)


def _require_values(key: str, values: Any, largest: int, count: int | None = None) -> None:
    is_good = all(type(value) is int and 0 <= value <= largest for value in values)
    is_good = is_good and (count is None or len(values) in (0, count))
    is_good = is_good and (largest == 255 or len(set(values)) == len(values))
    number = "" if count is None else f"{count} or no "
    unique = "" if largest == 255 else "different "
    fix = "" if values and count is None else "count them, or leave it empty"
    _require(key, tuple(values), is_good, f"{number}{unique}numbers in 0..{largest}", fix)


def _require_batch(train: ConfigDict) -> None:
    batch, processes, parts = train.batch_size, train.loss_groups, train.gradient_accumulation
    if batch < 2 * parts:
        few = "must be at least 2" if parts == 1 else f"must be at least 2 x {parts} parts"
        raise ConfigError(
            "config.train.batch_size",
            f"{few}, got {batch} (the image-pool norm would see one value)",
            f"use {2 * parts} or more, with a smaller config.data.crop_size if memory is short",
        )
    for name, count, text in (
        ("loss_groups", processes, "groups"), ("gradient_accumulation", parts, "parts")
    ):  # fmt: skip
        if batch % count:
            nearest = nearest_multiple(batch, math.lcm(processes, parts))
            raise ConfigError(
                "config.train.batch_size",
                f"{batch} does not divide into config.train.{name}={count} {text}",
                f"use {nearest}, or set config.train.{name}=1",
            )


def _require_height(height: int, stride: int, spatial: int) -> None:
    """Bands of rows must be whole at every layer: what uneven ones compute is not proven."""
    unit = stride * spatial
    if spatial > 1 and height % unit:
        near = sorted({max(unit, height // unit * unit), -(-height // unit) * unit})
        raise ConfigError(
            "config.data.crop_size",
            f"height {height} does not divide by output stride x config.mesh.spatial = {unit}",
            f"use a height of {' or '.join(map(str, near))}, or another config.mesh.spatial",
        )


def nearest_multiple(value: int, unit: int) -> int:
    """Returns the positive multiple of `unit` nearest to `value`."""
    return max(unit, round(value / unit) * unit)


def steps_per_epoch(config: ConfigDict, num_samples: int) -> int:
    """Returns floor(ceil(N / P) / (B / P)), P the reference's processes (spec section 5)."""
    processes = config.train.loss_groups
    per_process = config.train.batch_size // processes
    return -(-num_samples // processes) // per_process


def total_steps(config: ConfigDict, num_samples: int) -> int:
    """Returns the number of optimiser steps of the whole run: T of the schedule."""
    return config.train.steps or config.train.epochs * steps_per_epoch(config, num_samples)


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns {"model.depth": 50, ...}, sorted by name."""
    return dict(_leaves(config.to_dict(), ""))


def _leaves(tree: dict, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _get(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def to_json(config: ConfigDict) -> str:
    """Returns the configuration as indented JSON; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2)


def from_dict(tree: dict) -> ConfigDict:
    """Rebuilds a configuration from its JSON form.

    A field the JSON lacks keeps its default, so that older checkpoints stay readable.

    Raises:
      ConfigError: the JSON has a field that this version does not know.
    """
    config = get_config("folder")
    known = flatten(config)
    with config.ignore_type():
        for key, value in _leaves(tree, ""):
            if key not in known:
                raise unknown_key(key, known)
            *path, leaf = key.split(".")
            node = _get(config, ".".join(path)) if path else config
            node[leaf] = tuple(value) if isinstance(value, list) else value
    return config.lock()


def difference(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Returns "key: old -> new" for every field that would change what a run computes."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in after
        if key not in _FREE_ON_RESUME and before.get(key) != after.get(key)
    ]


def unknown_key(key: str, known: Iterable[str]) -> ConfigError:
    """Returns the error for a field that does not exist, with the closest that does."""
    known = list(known)
    leaf = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}  # the first of a name
    close = difflib.get_close_matches(key, known, 1, 0.6) if "." in key else []
    close = close or [leaf[k] for k in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaf, 1)]
    sections = sorted({name.rsplit(".", 1)[0] for name in known if name.startswith(f"{key}.")})
    if sections:
        fix = f"name one of its fields, such as {next(k for k in known if k.startswith(key + '.'))}"
        return ConfigError(f"config.{key}", "is a group of fields, not a value", fix)
    fix = (
        f"did you mean config.{close[0]}?" if close else "see deeplab_jax/config.py for all fields"
    )
    return ConfigError(f"config.{key}", "there is no such field", fix)
