"""Every field of a configuration: its type, default, accepted values and meaning.

Inside the package a configuration is a `Config`, whose sections are frozen dataclasses, so that a
misspelt field is a type error. Recipes change a `ConfigDict` with the same fields, which
`deeplab_jax.config.get_config` makes and `deeplab_jax.config.freeze` turns into a `Config`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType

from deeplab_jax.config import rules
from deeplab_jax.config.data_schema import DataConfig
from deeplab_jax.config.rules import Accepted, field

IGNORE_INDEX = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. Widths are those of the published table (spec section 2)."""

    depth: int = field(
        50, "layers of the ResNet", rules.one_of(18, 34, 50, 101, text="18, 34, 50 or 101")
    )
    output_stride: int = field(
        16, "input size over the size of the last feature map", rules.one_of(8, 16)
    )
    num_classes: int = field(2, "classes, without the ignored one", rules.CLASSES)
    atrous_rates: tuple[int, ...] = field(
        (6, 12, 18),
        "dilations of the three separable ASPP branches; the fourth is a 1x1 convolution",
        rules.integers(3),
    )
    stem: str = field(
        "deep",
        "first layer: three 3x3 convolutions (deep), or one 7x7",
        rules.one_of("deep", "7x7"),
    )
    multi_grid: tuple[int, ...] = field(
        (),
        "dilations of the last layer's blocks in place of its own; empty: its own",
        Accepted("3 positive integers (2 at depth 18), or empty"),
    )
    width: int = field(64, "channels of the first stage; later stages double it", rules.WIDTH)
    head_channels: int = field(512, "channels of ASPP and decoder", rules.CHANNELS)
    low_level_channels: int = field(48, "channels of the decoder's shortcut", rules.CHANNELS)
    aux_channels: int = field(512, "channels of the auxiliary head", rules.CHANNELS)
    dropout_rate: float = field(
        0.1, "share of whole channels dropped before each classifier", rules.fraction("rate")
    )
    dtype: str = field(
        "float32", "type of the activations", rules.one_of("float32", "bfloat16", "float64")
    )
    freeze_batch_norm: bool = field(
        False, "train with the running statistics, fixed", rules.BOOLEAN
    )
    remat: tuple[int, ...] = field(
        (),
        "stages of the backbone whose activations are computed again in the backward pass instead"
        " of kept: less memory, more time",
        rules.STAGES,
        is_free=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the run, loss and optimiser (spec sections 4 and 5)."""

    batch_size: int = field(
        16,
        "images of a step, over all devices and hosts",
        Accepted("2 or more, a multiple of loss_groups and of gradient_accumulation"),
        unit="images",
    )
    gradient_accumulation: int = field(
        1,
        "parts that a batch is taken in, one after the other, before one step of the optimiser:"
        " less memory; batch norm sees one part at a time",
        rules.at_least(1),
    )
    loss_groups: int = field(
        1,
        "groups of rows of the batch, each averaged over its own valid pixels, as the reference's"
        " processes do; the group count also sets the epoch's length",
        rules.at_least(1),
    )
    epochs: int = field(60, "length of the run", rules.at_least(1), unit="epochs")
    steps: int = field(
        0, "length of the run in optimiser steps; 0: by epochs", rules.at_least(0), unit="steps"
    )
    lr: float = field(
        0.01, "learning rate where the schedule begins", rules.positive("a positive rate")
    )
    min_lr: float = field(
        1e-4,
        "learning rate where the schedule ends; poly and cosine only",
        Accepted("0 to train.lr"),
    )
    poly_power: float = field(
        0.9, "power of the poly schedule", rules.positive("a positive number")
    )
    momentum: float = field(
        0.9, "momentum of SGD, beta1 of AdamW (its beta2 is 0.999)", rules.fraction("momentum")
    )
    weight_decay: float = field(
        5e-4,
        "weight decay, on every parameter, unless decay_norms is false: part of the gradient with"
        " SGD; AdamW shrinks parameters by the learning rate times it",
        rules.at_least(0),
    )
    aux_weight: float = field(0.4, "weight of the auxiliary head's loss", rules.at_least(0))
    on_nonfinite: str = field(
        "stop",
        "after a loss, gradient or new state that is not finite the run stops (stop), or goes back"
        " to its last save and leaves that step's batch out (rollback)",
        rules.one_of("stop", "rollback"),
        is_free=True,
    )
    max_rollbacks: int = field(
        3,
        "batches that a run leaves out at most; at one more it stops; rollback only",
        rules.at_least(1),
        unit="batches",
        is_free=True,
    )
    spike_factor: float = field(
        0.0,
        "a loss above this many times the median of the last 100 is warned of, or with"
        " on_nonfinite=rollback its batch is left out; 0: off",
        Accepted("0, or more than 1", lambda value: value == 0 or 1 < value < math.inf),
        is_free=True,
    )
    optimizer: str = field(
        "sgd",
        "SGD with momentum, or AdamW, whose learning rate is some hundred times smaller",
        rules.one_of("sgd", "adamw"),
    )
    schedule: str = field(
        "poly",
        "learning rate over the steps: (1 - share of the run)^poly_power (poly) or half a cosine"
        " wave (cosine) from lr to min_lr, lr (constant), or lr times step_factor at each of"
        " step_epochs (step)",
        rules.one_of("poly", "cosine", "constant", "step", text="poly, cosine, constant, step"),
    )
    step_epochs: tuple[int, ...] = field(
        (),
        "epochs after which the learning rate is multiplied by step_factor; schedule=step only",
        rules.EPOCHS,
        unit="epochs",
    )
    step_factor: float = field(
        0.1,
        "factor of the learning rate at each of step_epochs; schedule=step only",
        Accepted("0 < factor < 1", lambda value: 0 < value < 1),
    )
    warmup_steps: int = field(
        0,
        "steps in which the learning rate rises in equal parts to lr, before poly and cosine begin;"
        " of use with AdamW, large batches and new heads; 0: none",
        rules.at_least(0),
        unit="steps",
    )
    clip_norm: float = field(
        0.0,
        "largest norm of the whole gradient, before weight decay; a larger gradient is scaled down"
        " to it; of use where single batches spoil a run; 0: off",
        rules.at_least(0),
    )
    decay_norms: bool = field(
        True,
        "weight decay on norms and biases too, as the table has it; false: on kernels alone",
        rules.BOOLEAN,
    )
    head_lr_factor: float = field(
        1.0,
        "factor of the learning rate outside the backbone, such as 10 for new heads on a trained"
        " backbone",
        rules.positive("a positive number"),
    )
    freeze: tuple[str, ...] = field(
        (),
        'modules that do not learn, such as "backbone" or "backbone.stem,backbone.layer1": their'
        " parameters and statistics stay, and their norms use the running statistics; for few"
        " images",
        rules.FROZEN,
    )
    ema_half_life: float = field(
        0.0,
        "steps after which a step's weights count half in an exponential average of weights and"
        " statistics, which is evaluated, kept as best, predicted with, exported and converted;"
        " about a tenth of the run smooths its last steps; 0: off",
        Accepted("0, or 1 or more", lambda value: value == 0 or 1 <= value < math.inf),
        unit="steps",
    )
    early_stop: int = field(
        0,
        "epochs without a better score, of checkpoint.best, after which the run ends; 0: off",
        Accepted("0, or at least eval.every_epochs", lambda value: value >= 0),
        unit="epochs",
        is_free=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The training loss: a weighted sum of terms, the same for both heads (spec section 4)."""

    cross_entropy: float = field(1.0, "weight of the cross entropy; 0: off", rules.at_least(0))
    dice: float = field(
        0.0,
        "weight of the dice loss, the mean over the classes that a batch holds: each class counts"
        " alike; 0: off",
        rules.at_least(0),
    )
    focal: float = field(
        0.0,
        "weight of the focal loss, which turns to pixels that are predicted badly; in place of the"
        " cross entropy set loss.cross_entropy=0; 0: off",
        rules.at_least(0),
    )
    lovasz: float = field(
        0.0,
        "weight of the Lovasz-softmax loss, which approaches the mean IoU of the classes that a"
        " batch holds, and sorts all its pixels for each class; 0: off",
        rules.at_least(0),
    )
    focal_gamma: float = field(
        2.0,
        "power of the focal loss, (1 - p)^gamma; 0 is the cross entropy; focal only",
        rules.at_least(0),
    )
    label_smoothing: float = field(
        0.0,
        "share of each label that is spread over all classes; cross_entropy only",
        rules.fraction("share"),
    )
    ohem_threshold: float = field(
        0.0,
        "hard pixels alone count: those whose class has less than this probability;"
        " cross_entropy only; 0: off",
        Accepted("0 to 1", lambda value: 0 <= value <= 1),
    )
    ohem_min_kept: int = field(
        0,
        "pixels an image that count at least, the hardest, on average over each loss group;"
        " ohem_threshold only",
        rules.at_least(0),
        unit="pixels",
    )
    class_weights: tuple[float, ...] = field(
        (),
        "weight of each class in the cross entropy and the focal loss; a common factor changes"
        " nothing; empty: 1 each, or class_weighting",
        Accepted("a number, 0 or more, for each class, not all 0, or empty"),
    )
    class_weighting: str = field(
        "none",
        "how class weights follow from the pixels of each class in the training labels, counted"
        " when the run begins and kept by it",
        rules.one_of(
            "none", "inverse", "median_frequency", "effective_number",
            text="none, inverse, median_frequency, effective_number",
        ),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Division of the work between devices."""

    spatial: int = field(
        1,
        "devices that share an image, each with a band of its rows; the others split the batch",
        rules.at_least(1),
        unit="devices",
        is_free=True,
    )
    check_every_steps: int = field(
        500,
        "steps between two comparisons of the parameters that devices and hosts hold; 0: never",
        rules.at_least(0),
        unit="steps",
        is_free=True,
    )
    check_hardware: bool = field(
        False,
        "compute the training step twice on every TPU core and stop where the results differ, by"
        " libtpu's checker for silent data corruption; at least twice the time; TPUs only",
        rules.BOOLEAN,
        is_free=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The evaluation protocol (spec section 7)."""

    every_epochs: int = field(
        10,
        "epochs between evaluations; the last step always is one",
        rules.at_least(1),
        unit="epochs",
    )
    resize_base: tuple[int, int] | tuple[()] = field(
        (),
        "(long side, short side) that test images are fitted into; empty: their own size",
        rules.integers(2, is_optional=True),
        unit="pixels",
    )
    mode: str = field(
        "whole",
        "whole image, or slide: windows, averaged where they overlap",
        rules.one_of("whole", "slide"),
    )
    crop_size: tuple[int, int] | tuple[()] = field(
        (),
        "(height, width) of windows of the fitted image; slide only",
        rules.WINDOW,
        unit="pixels",
    )
    stride: tuple[int, int] | tuple[()] = field(
        (), "(down, right) from window to window; slide only", rules.WINDOW, unit="pixels"
    )
    scales: tuple[float, ...] = field(
        (1.0,), "scales of the image; scores are averaged", rules.SCALES
    )
    flip: bool = field(False, "average with the mirrored image, too", rules.BOOLEAN)
    softmax_first: bool = field(False, "resize probabilities, not logits", rules.BOOLEAN)
    both_weights: bool = field(
        False,
        "while a run trains, evaluate the weights of the step too, beside their average; with"
        " train.ema_half_life only",
        rules.BOOLEAN,
        is_free=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving of the state."""

    every_steps: int = field(
        0,
        "steps between saves; 0: once an epoch; the last step always is",
        rules.at_least(0),
        unit="steps",
    )
    keep: int = field(
        2,
        "latest steps that are kept, beside the best; older ones are removed once the next is on"
        " the disk",
        rules.at_least(1),
        unit="steps",
        is_free=True,
    )
    best: str = field(
        "mean_iou",
        "validation score by which a step is the best: mean IoU, boundary IoU, the IoU of a class,"
        " the highest of it; or the loss, the lowest",
        rules.SCORE,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Logging of steps, and where curves go beside log.jsonl and metrics.csv."""

    every_steps: int = field(
        10, "steps between lines of the log", rules.at_least(1), unit="steps", is_free=True
    )
    tensorboard: bool = field(
        False,
        "write curves, pictures and fields for TensorBoard into the work directory",
        rules.BOOLEAN,
        is_free=True,
    )
    wandb: str = field(
        "",
        "project of Weights & Biases that curves, pictures and fields go to; empty: none",
        Accepted("a name of at most 128 letters, digits, _, . and -, or empty", rules.is_project),
        is_free=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Initial weights of a new run."""

    backbone: str = field(
        "none",
        "backbone checkpoint (ImageNet weights), or none to start from random weights; a row of"
        " the table needs one or the other to be said, or a checkpoint",
        Accepted("a checkpoint directory, or none"),
    )
    checkpoint: str = field(
        "",
        "work directory of a run, or converted weights, whose latest network this run starts from,"
        " at step 0; empty: none",
        Accepted("a checkpoint directory, or empty"),
    )
    head: str = field(
        "load", "the checkpoint's classifiers, or skip: new ones", rules.one_of("load", "skip")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run's configuration, checked; see the sections' fields."""

    name: str = field(
        "folder_r50_os16",
        "name of the recipe; reading a file sets it to the file's",
        Accepted("a name"),
        is_free=True,
    )
    seed: int = field(
        0, "seed of initial weights, order of samples, augmentation, dropout", rules.SEED
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()  # noqa: RUF009  # frozen
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
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
