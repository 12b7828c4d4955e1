"""Checks that types cannot make: the range of each field, and what fields require of each other."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deeplab_jax.config import patterns, transforms
from deeplab_jax.config.data_schema import DataConfig
from deeplab_jax.config.rules import BACKBONE_PARTS, HEADS, are_numbers, is_integers
from deeplab_jax.config.schema import (
    Config,
    EvalConfig,
    InitConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
    fields,
)
from deeplab_jax.errors import ConfigError

LABEL_IDS, TRAIN_IDS = "_gtFine_labelIds", "_gtFine_labelTrainIds"  # masks of Cityscapes

# Meaningless for the data sets of the table, whose files and values are known.
_FOLDER_KEYS = ("images", "masks", "mask_suffix", "split_file", "mask_format", "reduce_zero_label",
                "ignore_values", "class_values", "class_colors")  # fmt: skip


def validate(config: Config, recipe: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Checks every field by itself and together with others.

    `recipe` holds values by full name that are proposed in place of wrong ones; where it has none,
    the default is.

    Raises:
      ConfigError: a field cannot be used; names the first such, what is accepted, and the fix.
    """
    for key, field in fields().items():
        value, rule = get(config, key), field.metadata["rule"]
        fix = rule.fix or _proposal(key, value, recipe)
        _require(key, value, _has_type(value, field.default), typed(key), fix)
        _require(key, value, rule.is_valid(value), rule.accepted, fix)
    _check_model(config.model)
    _check_classes(config.data, config.model.num_classes)
    _check_layout(config.data)
    _check_masks(config.data, config.model.num_classes)
    data = config.data
    usual = DataConfig().scale_range
    transforms.check(data.transforms, data.scale_range, usual, config.model.num_classes)
    _check_windows(config.eval)
    _check_train(config.train)
    _check_schedule(config.train)
    _check_learning(config)
    _check_loss(config.loss, config.train, config.model.num_classes)
    _check_early_stop(config)
    _check_height(config.data.crop_size[0], config.model.output_stride, config.mesh.spatial)
    _check_init(config.init)


def get(config: Any, key: str) -> Any:
    """Returns the value of a field by its full name, such as "train.lr"."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def nearest_multiple(value: int, unit: int) -> int:
    """Returns the positive multiple of `unit` nearest to `value`."""
    return max(unit, round(value / unit) * unit)


def _has_type(value: Any, default: Any) -> bool:
    kinds = {float: float | int, tuple: tuple | list}
    is_boolean = isinstance(value, bool) == isinstance(default, bool)
    return is_boolean and isinstance(value, kinds.get(type(default), type(default)))


def typed(key: str) -> str:
    """Returns the type and the accepted values of a field, in words."""
    field = fields()[key]
    names = {int: "a whole number", float: "a number", str: "text", tuple: "a list"}
    accepted = field.metadata["rule"].accepted
    kind = names.get(type(field.default))
    return f"{kind} ({accepted})" if kind else accepted


def _proposal(key: str, value: Any, recipe: Mapping[str, Any]) -> str:
    """Returns the fix: a near name, else the recipe's value, or the default if that is wrong."""
    if near := fields()[key].metadata["rule"].near(value):
        return f"did you mean --config.{key}={near}?"
    origin, example = "recipe's", recipe.get(key, value)
    if example == value:
        origin, example = "default", fields()[key].default
    return f"use a value such as the {origin}: --config.{key}={as_text(example)}"


def as_text(value: Any) -> str:
    """Returns a value as it is written after `--config.x=`."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _require(key: str, value: Any, is_good: bool, accepted: str, fix: str) -> None:
    if not is_good:
        raise ConfigError(f"config.{key}", f"must be {accepted}, got {value}", fix)


def _check_model(model: ModelConfig) -> None:
    blocks = 3 if model.depth > 18 else 2
    is_good = not model.multi_grid or is_integers(model.multi_grid, blocks)
    fix = f"give {blocks}, or leave it empty: --config.model.multi_grid="
    _require("model.multi_grid", model.multi_grid, is_good, f"{blocks} positive integers", fix)


def _check_classes(data: DataConfig, num_classes: int) -> None:
    is_named = len(data.class_names) in (0, num_classes)
    fix = "name each class once, or correct config.model.num_classes"
    names = len(data.class_names)
    _require("data.class_names", names, is_named, f"{num_classes} names or none", fix)
    unique = len(set(data.class_values)) == len(data.class_values)
    for key, largest, count, kind, is_good in (
        ("class_values", 65535, num_classes, "different numbers", unique),
        ("class_colors", 255, 3 * num_classes, "numbers", True),
    ):
        values = getattr(data, key)
        is_good &= all(type(value) is int and 0 <= value <= largest for value in values)
        is_good &= len(values) in (0, count)
        accepted = f"{count} or no {kind} in 0..{largest}"
        _require(f"data.{key}", values, is_good, accepted, "count them, or leave it empty")


def _check_layout(data: DataConfig) -> None:
    """Checks the paths of samples, which are fixed for the data sets of the table."""
    defaults = DataConfig()
    for key in _FOLDER_KEYS:
        value = getattr(data, key)
        is_meant = data.dataset == "folder" or value == getattr(defaults, key)
        if (data.dataset, key) == ("cityscapes", "mask_suffix"):
            is_meant = value in ("", LABEL_IDS, TRAIN_IDS)
        accepted = f"left as it is for {data.dataset}, whose layout is known"
        fix = "set config.data.dataset=folder for a layout of your own"
        _require(f"data.{key}", value, is_meant, accepted, fix)
    is_split = "{split}" in data.images + data.split_file or data.train_split == data.val_split
    fix = 'name a config.data.split_file such as "splits/{split}.txt"'
    _require("data.images", data.images, is_split, "different for each {split}", fix)
    patterns.check(data.images, data.masks, data.mask_suffix)


def _check_masks(data: DataConfig, num_classes: int) -> None:
    """Checks the meaning of mask values."""
    is_index, is_binary = data.mask_format == "index", data.mask_format == "binary"
    accepted, fix = "2 for binary masks", "count the background"
    _require("model.num_classes", num_classes, num_classes == 2 or not is_binary, accepted, fix)
    if not is_index:
        for key in ("reduce_zero_label", "class_values", "ignore_values"):
            value, default = getattr(data, key), getattr(DataConfig(), key)
            accepted = f"{default} with config.data.mask_format={data.mask_format}"
            fix = "set config.data.mask_format=index, or drop this"
            _require(f"data.{key}", value, value == default, accepted, fix)
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


def _check_windows(protocol: EvalConfig) -> None:
    is_slide = protocol.mode == "slide"
    fix = "give both, such as --config.eval.crop_size=512,512 --config.eval.stride=341,341"
    fix += ", or use config.eval.mode=whole"
    for key in ("crop_size", "stride"):
        value = getattr(protocol, key)
        is_good = is_integers(value, 2 if is_slide else 0)
        accepted = "2 positive integers with config.eval.mode=slide, empty with whole"
        _require(f"eval.{key}", value, is_good, accepted, fix)
    pairs = zip(protocol.stride, protocol.crop_size, strict=True)
    is_good = all(step <= side for step, side in pairs)
    fix = "lower it, or pixels between windows are not seen"
    _require("eval.stride", protocol.stride, is_good, "at most config.eval.crop_size", fix)


def _check_train(train: TrainConfig) -> None:
    batch, groups, parts = train.batch_size, train.loss_groups, train.gradient_accumulation
    if batch < 2 * parts:
        few = "must be at least 2" if parts == 1 else f"must be at least 2 x {parts} parts"
        raise ConfigError(
            "config.train.batch_size",
            f"{few}, got {batch} (the image-pool norm would see one value)",
            f"use {2 * parts} or more, with a smaller config.data.crop_size if memory is short",
        )
    for name, count, text in (
        ("loss_groups", groups, "groups"), ("gradient_accumulation", parts, "parts")
    ):  # fmt: skip
        if batch % count:
            nearest = nearest_multiple(batch, math.lcm(groups, parts))
            raise ConfigError(
                "config.train.batch_size",
                f"{batch} does not divide into config.train.{name}={count} {text}",
                f"use {nearest}, or set config.train.{name}=1",
            )


def _check_schedule(train: TrainConfig) -> None:
    kind, defaults = train.schedule, TrainConfig()
    for key, kinds in (
        ("min_lr", ("poly", "cosine")),
        ("poly_power", ("poly",)),
        ("step_epochs", ("step",)),
        ("step_factor", ("step",)),
    ):
        value, default = getattr(train, key), getattr(defaults, key)
        accepted = f"{as_text(default) or 'empty'} with config.train.schedule={kind}"
        fix = f"leave it out, or set --config.train.schedule={kinds[0]}"
        _require(f"train.{key}", value, kind in kinds or value == default, accepted, fix)
    if kind in ("poly", "cosine"):
        accepted = f"0 to config.train.lr ({train.lr})"
        fix = f"lower it: --config.train.min_lr={train.lr / 100:g}, or raise config.train.lr"
        _require("train.min_lr", train.min_lr, 0 <= train.min_lr <= train.lr, accepted, fix)
    if kind == "step":
        accepted, fix = (
            "0 with config.train.schedule=step",
            "give the length as config.train.epochs",
        )
        _require("train.steps", train.steps, train.steps == 0, accepted, fix)
        epochs = train.step_epochs
        accepted = f"epochs below config.train.epochs ({train.epochs})"
        fix = f"name some: --config.train.step_epochs={max(1, train.epochs // 2)}"
        is_good = bool(epochs) and epochs[-1] < train.epochs
        _require("train.step_epochs", epochs, is_good, accepted, fix)
    is_short = not train.steps or train.warmup_steps < train.steps
    accepted = f"below config.train.steps ({train.steps})"
    fix = f"lower it: --config.train.warmup_steps={train.steps // 10}"
    _require("train.warmup_steps", train.warmup_steps, is_short, accepted, fix)


def _check_learning(config: Config) -> None:
    """Checks what learns, how fast, and what is averaged."""
    train = config.train
    heads = set(HEADS) - {*train.freeze}
    backbone = {f"backbone.{part}" for part in BACKBONE_PARTS} - {*train.freeze}
    has_backbone = bool(backbone) and "backbone" not in train.freeze
    fix = "leave out what is to learn"
    _require("train.freeze", train.freeze, has_backbone or bool(heads), "fewer modules", fix)
    is_used = train.head_lr_factor == 1 or (has_backbone and bool(heads))
    accepted = "1 where config.train.freeze holds the whole backbone, or all heads"
    fix = "set config.train.lr alone"
    _require("train.head_lr_factor", train.head_lr_factor, is_used, accepted, fix)
    is_used, accepted = train.decay_norms or train.weight_decay > 0, "true without weight decay"
    fix = "leave it out, or set config.train.weight_decay"
    _require("train.decay_norms", train.decay_norms, is_used, accepted, fix)
    is_used = not config.eval.both_weights or train.ema_half_life > 0
    accepted = "false with config.train.ema_half_life=0: there is one kind of weights"
    fix = "leave it out, or set config.train.ema_half_life"
    _require("eval.both_weights", config.eval.both_weights, is_used, accepted, fix)


# Fields of `loss` that act through a term, or another field, alone.
_ACTS_THROUGH = {
    "focal_gamma": ("focal",),
    "label_smoothing": ("cross_entropy",),
    "ohem_threshold": ("cross_entropy",),
    "ohem_min_kept": ("ohem_threshold",),
    "class_weights": ("cross_entropy", "focal"),
    "class_weighting": ("cross_entropy", "focal"),
}
_NO_SUMS = ("dice", "lovasz", "ohem_threshold")  # what is no sum over pixels


def _check_loss(loss: LossConfig, train: TrainConfig, num_classes: int) -> None:
    is_some = any((loss.cross_entropy, loss.dice, loss.focal, loss.lovasz))
    fix = "give a term a weight: --config.loss.cross_entropy=1"
    accepted = "above 0 where dice, focal and lovasz are 0"
    _require("loss.cross_entropy", loss.cross_entropy, is_some, accepted, fix)
    for key, needed in _ACTS_THROUGH.items():
        value, default = getattr(loss, key), getattr(LossConfig(), key)
        is_used = value == default or any(getattr(loss, name) for name in needed)
        fix = " or ".join(f"config.loss.{name}" for name in needed)
        fix = f"give {fix} a weight" if needed[0] != "ohem_threshold" else f"set {fix}, such as 0.7"
        accepted = f"{as_text(default) or 'empty'} without {' and '.join(needed)}"
        _require(f"loss.{key}", value, is_used, accepted, f"{fix}, or drop this")
    weights = loss.class_weights
    is_good = are_numbers(weights) and all(0 <= weight < math.inf for weight in weights)
    is_good &= not weights or (len(weights) == num_classes and any(weights))
    accepted = f"{num_classes} numbers, 0 or more and not all 0, or empty"
    fix = "give one for each class, or --config.loss.class_weighting=inverse"
    _require("loss.class_weights", weights, is_good, accepted, fix)
    is_one = not weights or loss.class_weighting == "none"
    fix = "drop the numbers, or --config.loss.class_weighting=none"
    _require("loss.class_weights", weights, is_one, "empty with class_weighting", fix)
    for key in _NO_SUMS:
        value, parts = getattr(loss, key), train.gradient_accumulation
        accepted = f"0 with config.train.gradient_accumulation={parts}: it is no sum over its parts"
        fix = "set config.train.gradient_accumulation=1 with a smaller batch_size, or weigh the"
        fix += " classes: --config.loss.class_weighting=inverse"
        _require(f"loss.{key}", value, parts == 1 or not value, accepted, fix)


def _check_early_stop(config: Config) -> None:
    patience, every = config.train.early_stop, config.eval.every_epochs
    accepted = f"0, or at least config.eval.every_epochs ({every}): others are not evaluated"
    fix = f"--config.train.early_stop={every}, or evaluate more often"
    _require("train.early_stop", patience, not 0 < patience < every, accepted, fix)


def _check_height(height: int, stride: int, spatial: int) -> None:
    """Checks that bands of rows are whole at every layer: uneven bands are not tested."""
    unit = stride * spatial
    if spatial > 1 and height % unit:
        near = sorted({max(unit, height // unit * unit), -(-height // unit) * unit})
        raise ConfigError(
            "config.data.crop_size",
            f"height {height} does not divide by output stride x config.mesh.spatial = {unit}",
            f"use a height of {' or '.join(map(str, near))}, or another config.mesh.spatial",
        )


def _check_init(init: InitConfig) -> None:
    fix = "name the checkpoint: --config.init.checkpoint=DIR"
    is_used = init.head == "load" or bool(init.checkpoint)
    _require("init.head", init.head, is_used, "load without config.init.checkpoint", fix)
    if init.checkpoint and init.backbone not in ("", "none"):
        what = f"{init.backbone} is named beside config.init.checkpoint={init.checkpoint}"
        raise ConfigError("config.init.backbone", what, "name one: a checkpoint has its backbone")


def warnings(config: Config) -> list[str]:
    """Returns a line for each setting that is legal but probably a mistake."""
    return [*_small_maps(config), *_frozen_noise(config), *_flat_rate(config.train)]


def _flat_rate(train: TrainConfig) -> list[str]:
    """Tells of a low rate, such as AdamW's, that the default of `min_lr` keeps from falling."""
    if train.schedule not in ("poly", "cosine") or train.min_lr <= train.lr / 10:
        return []
    return [
        f"config.train.lr={train.lr:g} falls to config.train.min_lr={train.min_lr:g} alone:"
        f" --config.train.min_lr={train.lr / 100:g} lets it fall as in the table"
    ]


def _frozen_noise(config: Config) -> list[str]:
    frozen = [name for name in config.train.freeze if name.startswith("backbone")]
    if not frozen or config.init.checkpoint or config.init.backbone != "none":
        return []
    return [
        f"config.train.freeze={','.join(frozen)} keeps weights that are drawn at random: name"
        " trained ones, --config.init.backbone=DIR or --config.init.checkpoint=DIR"
    ]


def _small_maps(config: Config) -> list[str]:
    stride = config.model.output_stride
    height, width = (-(-side // stride) for side in config.data.crop_size)
    rate = max(config.model.atrous_rates)
    if min(height, width) > rate:
        return []
    crop = "x".join(map(str, config.data.crop_size))
    return [
        f"crop {crop} gives a {height}x{width} feature map, not larger than the atrous rate {rate}:"
        " some taps of that rate never train, and images larger than the crop would use them at"
        f" random. Use crops above {rate * stride} pixels a side, or config.eval.resize_base no"
        " larger than the crop."
    ]
