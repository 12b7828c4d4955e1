"""Every field of a configuration: its type, default, accepted values and meaning.

Inside the package a configuration is a `Config`, whose sections are frozen dataclasses, so that a
misspelt field is a type error. Recipes change a `ConfigDict` with the same fields, which
`deeplab_jax.config.get_config` makes and `deeplab_jax.config.freeze` turns into a `Config`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

IGNORE_INDEX = 255
DATASETS = ("voc", "ade20k", "cityscapes", "folder")
MAX_CHANNELS = 65536  # far above any network's; keeps sizes of arrays within 64 bits


class Accepted(NamedTuple):
    """The values that a field accepts, whatever the others hold.

    Attributes:
      accepted: in words, after "must be".
      is_valid: whether a value of the field's type is accepted; by default all are, and
        `checks.validate` compares the value with other fields.
      fix: what to do; empty: the recipe's value or the default is proposed.
    """

    accepted: str
    is_valid: Callable[[Any], bool] = lambda value: True
    fix: str = ""


def _one_of(*values: Any, text: str = "") -> Accepted:
    return Accepted(text or " or ".join(map(str, values)), lambda value: value in values)


def _from(low: float, text: str = "") -> Accepted:
    return Accepted(text or f"{low} or more", lambda value: low <= value < math.inf)


def _fraction(name: str) -> Accepted:
    return Accepted(f"0 <= {name} < 1", lambda value: 0 <= value < 1)


def _positive(text: str) -> Accepted:
    return Accepted(text, lambda value: 0 < value < math.inf)


def is_integers(value: Any, count: int) -> bool:
    """Tells whether `value` holds exactly `count` positive integers."""
    return len(value) == count and all(type(v) is int and v > 0 for v in value)


def _integers(count: int, is_optional: bool = False) -> Accepted:
    return Accepted(
        f"{count} positive integers{', or empty' if is_optional else ''}",
        lambda value: (is_optional and not value) or is_integers(value, count),
    )


def _numbers(value: Any) -> bool:
    return all(isinstance(v, int | float) for v in value)


def _values(largest: int) -> Accepted:
    return Accepted(
        f"different numbers in 0..{largest}",
        lambda value: (
            all(type(v) is int and 0 <= v <= largest for v in value)
            and len(set(value)) == len(value)
        ),
    )


_VALUE_RANGE = Accepted(
    "2 whole numbers, 0 <= low < high <= 65535, or empty",
    lambda value: (
        not value
        or (
            len(value) == 2
            and all(type(v) is int for v in value)
            and 0 <= value[0] < value[1] <= 65535
        )
    ),
    "deeplab doctor finds it; 0,65535 keeps the upper 8 bits",
)
_SCALES = Accepted(
    "different numbers from 0.25 to 4",
    lambda value: (
        _numbers(value)
        and all(0.25 <= scale <= 4 for scale in value)
        and 0 < len(value) == len(set(value))
    ),
)
_RANGE = Accepted(
    "(low, high), 0 < low <= high",
    lambda value: len(value) == 2 and _numbers(value) and 0 < value[0] <= value[1] < math.inf,
)
_STAGES = Accepted(
    "different stages, 1 to 4",
    lambda value: len(set(value)) == len(value) and set(value) <= {1, 2, 3, 4},
)
_CLASSES = Accepted(
    "2 to 255", lambda value: 2 <= value <= 255, "count the classes, without the ignored one"
)
_WIDTH = Accepted(
    f"an even number, 1 to {MAX_CHANNELS}",
    lambda value: value % 2 == 0 and 1 <= value <= MAX_CHANNELS,
)
_CHANNELS = Accepted(f"1 to {MAX_CHANNELS}", lambda value: 1 <= value <= MAX_CHANNELS)
_SEED = Accepted("0 to 4294967295", lambda value: 0 <= value < 2**32)
_BOOLEAN = Accepted("true or false")
_WINDOW = Accepted("2 positive integers with config.eval.mode=slide, empty with whole")


def _field(
    default: Any,
    text: str,
    rule: Accepted,
    *,
    unit: str = "",
    is_free: bool = False,
    is_local: bool = False,
) -> Any:
    """Declares a field.

    Args:
      default: its value in the template for a folder, ResNet-50 at output stride 16.
      text: its meaning.
      rule: accepted values.
      unit: of its numbers; empty where they have none.
      is_free: a continued run may change it: it changes no result of a run without a fault.
      is_local: hosts of one run may differ in it.
    """
    metadata = {
        "text": text, "rule": rule, "unit": unit, "is_free": is_free, "is_local": is_local
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. Widths are those of the published table (spec section 2)."""

    depth: int = _field(
        50, "layers of the ResNet", _one_of(18, 34, 50, 101, text="18, 34, 50 or 101")
    )
    output_stride: int = _field(
        16, "input size over the size of the last feature map", _one_of(8, 16)
    )
    num_classes: int = _field(2, "classes, without the ignored one", _CLASSES)
    atrous_rates: tuple[int, ...] = _field(
        (6, 12, 18),
        "dilations of the three separable ASPP branches; the fourth is a 1x1 convolution",
        _integers(3),
    )
    stem: str = _field(
        "deep", "first layer: three 3x3 convolutions (deep), or one 7x7", _one_of("deep", "7x7")
    )
    multi_grid: tuple[int, ...] = _field(
        (),
        "dilations of the last layer's blocks in place of its own; empty: its own",
        Accepted("3 positive integers (2 at depth 18), or empty"),
    )
    width: int = _field(64, "channels of the first stage; later stages double it", _WIDTH)
    head_channels: int = _field(512, "channels of ASPP and decoder", _CHANNELS)
    low_level_channels: int = _field(48, "channels of the decoder's shortcut", _CHANNELS)
    aux_channels: int = _field(512, "channels of the auxiliary head", _CHANNELS)
    dropout_rate: float = _field(
        0.1, "share of whole channels dropped before each classifier", _fraction("rate")
    )
    dtype: str = _field(
        "float32", "type of the activations", _one_of("float32", "bfloat16", "float64")
    )
    freeze_batch_norm: bool = _field(False, "train with the running statistics, fixed", _BOOLEAN)
    remat: tuple[int, ...] = _field(
        (),
        "stages of the backbone whose activations are computed again in the backward pass instead"
        " of kept: less memory, more time",
        _STAGES,
        is_free=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Samples, their paths, the meaning of their masks, and augmentation."""

    dataset: str = _field(
        "folder",
        "a data set of the table, or a folder",
        _one_of(*DATASETS, text=", ".join(DATASETS)),
    )
    root: str = _field(
        "data",
        "folder that holds the official layouts, or is the data set itself",
        Accepted("a folder"),
        is_free=True,
        is_local=True,
    )
    train_split: str = _field("train", "split to train on", Accepted("a name"))
    val_split: str = _field("val", "split to evaluate on", Accepted("a name"))
    source: str = _field(
        "folder",
        "files of a folder, or the same samples from tfds or a cache",
        _one_of("folder", "tfds", "cache", text="folder, tfds, cache"),
        is_free=True,
    )
    images: str = _field(
        "images/{split}",
        "folder of the images below the root, flat or nested, or a pattern of folders or files,"
        ' such as "{split}/*/img" or "*_rgb.png": * is any text in a part, ** any folders, {a,b}'
        " one of these; folder only",
        Accepted("a path; it or split_file holds {split}"),
    )
    masks: str = _field(
        "labels/{split}",
        "folder of the masks below the root, flat or nested; or a pattern with the wildcards of"
        " images, which stand for the same in an image and its mask; folder only",
        Accepted("a path"),
    )
    mask_suffix: str = _field(
        "",
        "what follows the image's name in its mask's, such as \"_mask\"; empty where masks names"
        " files",
        Accepted("text, or empty"),
    )
    split_file: str = _field(
        "",
        'list of images, or of images and their masks, one a line, such as "splits/{split}.txt";'
        ' or a pattern of the lists of several scenes, such as "*/{split}.txt" or'
        ' "{a,b}/{split}.txt"; empty: all files',
        Accepted("a path, or empty"),
    )
    value_range: tuple[int, int] | tuple[()] = _field(
        (),
        "(low, high): values of 16-bit pictures that become 0 and 255, those between in equal"
        " steps, those outside clipped; 8-bit pictures stay as they are; empty: 16 bits are"
        " refused",
        _VALUE_RANGE,
    )
    mask_format: str = _field(
        "index",
        "a mask's values are classes (index), colours of classes (color), or 0 and 255 (binary)",
        _one_of("index", "color", "binary", text="index, color, binary"),
    )
    reduce_zero_label: bool = _field(
        False, "value 0 of a mask is ignored and value k is class k - 1", _BOOLEAN
    )
    ignore_values: tuple[int, ...] = _field(
        (255,), "values of a mask that are ignored", _values(65535)
    )
    class_values: tuple[int, ...] = _field(
        (),
        "values of class 0, 1, ... in a mask; empty: 0, 1, ..., C - 1",
        Accepted("a different number in 0..65535 for each class, or empty"),
    )
    class_names: tuple[str, ...] = _field(
        (),
        "names of the classes; empty: classes.json, else class_0, class_1, ...; folder only",
        Accepted("a name for each class, or empty"),
    )
    class_colors: tuple[int, ...] = _field(
        (),
        "R, G, B of class 0, 1, ...; empty: classes.json, else light colours that are safe for"
        " colour-blind eyes (of color masks VOC's)",
        Accepted("3 numbers in 0..255 for each class, or empty"),
    )
    max_bad_samples: int = _field(
        0, "training samples that may be unreadable, and are left out", _from(0), unit="samples"
    )
    tfds_name: str = _field(
        "", "name of a prepared TFDS data set; empty: ours; tfds only", Accepted("a name, or empty")
    )
    image_key: str = _field("image", "feature with the image; tfds only", Accepted("a name"))
    mask_key: str = _field("mask", "feature with the mask; tfds only", Accepted("a name"))
    resize_base: tuple[int, int] = _field(
        (2048, 512),
        "(long side, short side) that scale 1 fits an image into",
        _integers(2),
        unit="pixels",
    )
    scale_range: tuple[float, float] = _field(
        (0.5, 2.0), "lowest and highest random scale of the resize base in training", _RANGE
    )
    crop_size: tuple[int, int] = _field(
        (512, 512), "(height, width) of a training sample", _integers(2), unit="pixels"
    )
    num_workers: int = _field(
        0,
        "worker processes that read samples; 0: threads of this process",
        _from(0),
        unit="processes",
        is_free=True,
        is_local=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the run, loss and optimiser (spec sections 4 and 5)."""

    batch_size: int = _field(
        16,
        "images of a step, over all devices and hosts",
        Accepted("2 or more, a multiple of loss_groups and of gradient_accumulation"),
        unit="images",
    )
    gradient_accumulation: int = _field(
        1,
        "parts that a batch is taken in, one after the other, before one step of the optimiser:"
        " less memory; batch norm sees one part at a time",
        _from(1),
    )
    loss_groups: int = _field(
        1,
        "groups of rows of the batch, each averaged over its own valid pixels, as the reference's"
        " processes do; the group count also sets the epoch's length",
        _from(1),
    )
    epochs: int = _field(60, "length of the run", _from(1), unit="epochs")
    steps: int = _field(
        0, "length of the run in optimiser steps; 0: by epochs", _from(0), unit="steps"
    )
    lr: float = _field(0.01, "learning rate at the first step", _positive("a positive rate"))
    min_lr: float = _field(1e-4, "learning rate where the schedule ends", Accepted("0 to train.lr"))
    poly_power: float = _field(0.9, "power of the poly schedule", _positive("a positive number"))
    momentum: float = _field(0.9, "momentum of SGD", _fraction("momentum"))
    weight_decay: float = _field(5e-4, "weight decay, on every parameter", _from(0))
    aux_weight: float = _field(0.4, "weight of the auxiliary head's loss", _from(0))
    on_nonfinite: str = _field(
        "stop",
        "after a loss, gradient or new state that is not finite the run stops (stop), or goes back"
        " to its last save and leaves that step's batch out (rollback)",
        _one_of("stop", "rollback"),
        is_free=True,
    )
    max_rollbacks: int = _field(
        3,
        "batches that a run leaves out at most; at one more it stops; rollback only",
        _from(1),
        unit="batches",
        is_free=True,
    )
    spike_factor: float = _field(
        0.0,
        "a loss above this many times the median of the last 100 is warned of, or with"
        " on_nonfinite=rollback its batch is left out; 0: off",
        Accepted("0, or more than 1", lambda value: value == 0 or 1 < value < math.inf),
        is_free=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Division of the work between devices."""

    spatial: int = _field(
        1,
        "devices that share an image, each with a band of its rows; the others split the batch",
        _from(1),
        unit="devices",
        is_free=True,
    )
    check_every_steps: int = _field(
        500,
        "steps between two comparisons of the parameters that devices and hosts hold; 0: never",
        _from(0),
        unit="steps",
        is_free=True,
    )
    check_hardware: bool = _field(
        False,
        "compute the training step twice on every TPU core and stop where the results differ, by"
        " libtpu's checker for silent data corruption; at least twice the time; TPUs only",
        _BOOLEAN,
        is_free=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The evaluation protocol (spec section 7)."""

    every_epochs: int = _field(
        10, "epochs between evaluations; the last step always is one", _from(1), unit="epochs"
    )
    resize_base: tuple[int, int] | tuple[()] = _field(
        (),
        "(long side, short side) that test images are fitted into; empty: their own size",
        _integers(2, is_optional=True),
        unit="pixels",
    )
    mode: str = _field(
        "whole",
        "whole image, or slide: windows, averaged where they overlap",
        _one_of("whole", "slide"),
    )
    crop_size: tuple[int, int] | tuple[()] = _field(
        (), "(height, width) of windows of the fitted image; slide only", _WINDOW, unit="pixels"
    )
    stride: tuple[int, int] | tuple[()] = _field(
        (), "(down, right) from window to window; slide only", _WINDOW, unit="pixels"
    )
    scales: tuple[float, ...] = _field((1.0,), "scales of the image; scores are averaged", _SCALES)
    flip: bool = _field(False, "average with the mirrored image, too", _BOOLEAN)
    softmax_first: bool = _field(False, "resize probabilities, not logits", _BOOLEAN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving of the state."""

    every_steps: int = _field(
        0, "steps between saves; 0: once an epoch; the last step always is", _from(0), unit="steps"
    )
    keep: int = _field(
        2,
        "latest steps that are kept, beside the best; older ones are removed once the next is on"
        " the disk",
        _from(1),
        unit="steps",
        is_free=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Logging of steps."""

    every_steps: int = _field(
        10, "steps between lines of the log", _from(1), unit="steps", is_free=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Initial weights of a new run."""

    backbone: str = _field(
        "none",
        "backbone checkpoint (ImageNet weights), or none to start from random weights; a row of"
        " the table needs one or the other to be said, or a checkpoint",
        Accepted("a checkpoint directory, or none"),
    )
    checkpoint: str = _field(
        "",
        "work directory of a run, or converted weights, whose latest network this run starts from,"
        " at step 0; empty: none",
        Accepted("a checkpoint directory, or empty"),
    )
    head: str = _field(
        "load", "the checkpoint's classifiers, or skip: new ones", _one_of("load", "skip")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run's configuration, checked; see the sections' fields."""

    name: str = _field(
        "folder_r50_os16",
        "name of the recipe; reading a file sets it to the file's",
        Accepted("a name"),
        is_free=True,
    )
    seed: int = _field(0, "seed of initial weights, order of samples, augmentation, dropout", _SEED)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    init: InitConfig = InitConfig()


@functools.cache
def fields() -> Mapping[str, dataclasses.Field]:
    """Returns every field by its full name, such as "train.lr", in order of declaration."""
    found: dict[str, dataclasses.Field] = {}
    for outer in dataclasses.fields(Config):
        if dataclasses.is_dataclass(outer.default):
            found |= {
                f"{outer.name}.{inner.name}": inner for inner in dataclasses.fields(outer.default)
            }
        else:
            found[outer.name] = outer
    return MappingProxyType(found)


def is_local(key: str) -> bool:
    """Tells whether hosts of a run may differ in `key`: a field, or `--config.field=value`.

    False for a key that is no field.
    """
    field = fields().get(key.removeprefix("--config.").partition("=")[0])
    return field is not None and field.metadata["is_local"]
