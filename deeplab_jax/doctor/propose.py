"""Proposes a recipe for a surveyed data set, each value with its reason.

Sizes come from the images; batch and length from their number. On a machine with a processor alone,
the network is small and the length is what it trains in about two hours. The recipe trains as it
is; it is a start to change, not the best that can be had.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deeplab_jax.config import flatten, get_config
from deeplab_jax.data.classes import CLASS_NAMES
from deeplab_jax.doctor.advice import depth, rare
from deeplab_jax.doctor.findings import Finding, worst_first
from deeplab_jax.doctor.hours import Machine, in_words, step_seconds
from deeplab_jax.doctor.layouts import GuessedLayout
from deeplab_jax.doctor.scan import SampleFacts
from deeplab_jax.doctor.survey import Survey
from deeplab_jax.errors import DataError, shorten

OUTPUT_STRIDE = 16
_RATE = 18  # the largest atrous rate at output stride 16
_MAX_CROP = 512  # as in the table
_MAX_CROP_HERE = 320  # on a processor: above the reach of the largest rate
_MAX_BATCH_HERE = 4
_SECONDS_HERE = 2 * 3600  # of a run on a processor, by the longer end of the guess
_STEPS = 10_000  # of a run
_EPOCHS = (20, 300)  # bounds
_EVALUATIONS = 10
_IMAGENET = {18: "resnet18_v1c-b5776b93.pth", 50: "resnet50_v1c-2cccc1ad.pth"}  # of `depth_for`


class Field(NamedTuple):
    """The value of a field and why it is proposed."""

    # value of the field's type; None for the path of list files beside the recipe
    value: str | int | float | tuple[int, ...] | tuple[str, ...] | None
    reason: str  # one sentence


Fields = dict[str, Field]  # by name under `config`, such as "data.root"


class Proposal(NamedTuple):
    """A recipe that is not yet written."""

    dataset: str  # argument of `config.get_config`
    fields: Fields  # in order
    unsplit: list[list[str]]  # samples to split by fraction, in groups of equal pictures
    crop: tuple[int, int]
    here: Machine  # that it is proposed for


def settle(survey: Survey, findings: Sequence[Finding]) -> list[Finding]:
    """Returns the findings; colours that the proposed recipe declares are a note, not an error."""
    if not survey.palette:
        return list(findings)
    note = "they are declared in the proposed recipe; name and order them as you like"
    return worst_first(
        f._replace(severity="note", fix=note) if f.kind == "color-mask" else f for f in findings
    )


def propose(survey: Survey, layout: GuessedLayout, here: Machine) -> Proposal:
    """Returns a recipe for the data set, to be trained on a machine such as `here`.

    Raises:
      DataError: there are not two images to train on, or not two classes; or a name cannot be
        written to the recipe or its lists.
    """
    _check_names(survey, layout)
    train = _usable(survey.of_split(survey.splits[0]))
    groups: dict[bytes, list[str]] = defaultdict(list)
    for f in [] if layout.is_split else train:
        groups[f.image_hash].append(f.pair.stem)
    if len(train) < (2 if layout.is_split else 3):
        what = f"{len(train)} usable training images"
        raise DataError(str(survey.root), what, "two or more are needed, and one to validate on")
    dataset = layout.data.dataset
    fields = {"data.root": Field(str(survey.root), "as given to the doctor, from anywhere")}
    if dataset in CLASS_NAMES:
        fields["data.train_split"] = Field(layout.splits[0], "the list that is there")
    else:
        fields |= _place_fields(layout) | _class_fields(survey)
    fields |= _depth_fields(survey)
    crop, sizes = _size_fields(survey, train, here)
    fields |= sizes | length_fields(len(train), here, crop)
    if dataset not in CLASS_NAMES and (few := rare.in_words(survey)):
        reason = f"{shorten(few, 3)}: lovasz counts each class alike, cross entropy each pixel; it"
        reason += " sorts the pixels for each class, so with very many classes class_weighting ="
        reason += " median_frequency is faster; if they are small things, data.transforms may also"
        fields["loss.lovasz"] = Field(1.0, f"{reason} be {rare.pasting(survey)}")
    depth, _ = depth_for(here)
    reason = "random weights; ImageNet's learn faster: give the folder that `deeplab convert"
    reason += f" from-pytorch` makes of a file such as {_IMAGENET[depth]}"
    fields["init.backbone"] = Field("none", reason)
    defaults = flatten(get_config(dataset, depth))
    # Lines equal to the default are left out: all for a data set of the table, else this one.
    is_quiet = fields.keys() if dataset in CLASS_NAMES else {"train.loss_groups"}
    fields = {k: f for k, f in fields.items() if k not in is_quiet or defaults[k] != f.value}
    return Proposal(dataset, fields, list(groups.values()), crop, here)


def depth_for(here: Machine) -> tuple[int, str]:
    """Returns the layers of the network to train on a machine, and the reason."""
    if here.has_accelerator:
        return 50, "ResNet-50, as in the table"
    return 18, "ResNet-18: this machine has no GPU or TPU; with one take 50"


def _check_names(survey: Survey, layout: GuessedLayout) -> None:
    """Refuses names that no UTF-8 file holds, and those that a line of a list does not carry."""
    data = layout.data
    for text in (data.root, data.images, data.masks, data.mask_suffix, *layout.splits[:2]):
        if not _is_unicode(text):
            raise DataError(text, "is no name in UTF-8", "rename the folder")
    for f in [] if layout.is_split else survey.facts:
        stem = f.pair.stem
        path = survey.name(f.pair.image or f.pair.mask or stem)
        if not _is_unicode(stem):
            raise DataError(path, "is no name in UTF-8, as a list needs", "rename the file")
        if stem.splitlines() != [stem] or stem != stem.strip() or stem[0] == "\ufeff":
            what = "has a name with line breaks or outer spaces, which no list carries"
            raise DataError(path, what, "rename the file")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _usable(facts: Sequence[SampleFacts]) -> list[SampleFacts]:
    return [f for f in facts if f.pair.image and f.pair.mask and f.image_size]


def _place_fields(layout: GuessedLayout) -> Fields:
    data, splits, reason = layout.data, layout.splits, "found there"
    others = [item.partition(": ")[0] for finding in layout.findings for item in finding.items
              if (finding.severity, finding.kind) == ("warning", "layout")]  # fmt: skip
    found = f"found there{f'; not used: {shorten(others, 3)}' if others else ''}"
    names = "found there, under the same names"
    if "*" in data.images or "," in data.images:
        found += "; * is any text in one part, ** any folders, {a,b} one of these"
        names = "found there, where the same stands for each * and {a,b}"
    fields = {
        "data.images": Field(data.images, found),
        "data.masks": Field(data.masks, names),
        "data.mask_suffix": Field(data.mask_suffix, "what masks' names add"),
        "data.split_file": Field(data.split_file, "lists found there"),
    }
    fields = {key: field for key, field in fields.items() if field.value}
    if not layout.is_split:
        reason = "a random split, written beside this file: no picture is in both"
        fields["data.split_file"] = Field(None, reason)
        splits, reason = ("train", "val"), "one list for each"
    parts = zip(("data.train_split", "data.val_split"), splits, strict=False)
    return fields | {key: Field(split, reason) for key, split in parts}


def _class_fields(survey: Survey) -> Fields:
    names, source = survey.class_names, survey.names_file
    has_file = (survey.root / "classes.json").is_file()
    fields: Fields = {}
    if survey.data.mask_format == "color":
        fields["data.mask_format"] = Field("color", "colours of classes.json")
    elif survey.palette:
        fields["data.mask_format"] = Field("color", "the masks hold colours")
        flat = tuple(part for color in survey.palette for part in color)
        order = f"of {source}" if source else "the most frequent colour first"
        fields["data.class_colors"] = Field(flat, f"R, G, B of each class, {order}")
    elif survey.values.is_binary and not survey.is_described:
        fields["data.mask_format"] = Field("binary", "0 and 255 are all the masks hold")
    elif not survey.is_described:
        fields |= _value_fields(survey)
    if not any(f.counts for f in survey.facts):
        what, fix = "holds no mask that can be used", "mend the errors that are listed above"
        raise DataError(str(survey.root), what, fix)
    if len(names) < 2:
        what = f"holds {len(names)} class(es) in its masks"
        raise DataError(str(survey.root), what, "a network needs two; count the background")
    number = f"{len(names)} of classes.json" if has_file else "as many as names"
    if not has_file:
        reason = f"of {source}" if source else "to be renamed; they are shown in results"
        fields["data.class_names"] = Field(names, reason)
    return fields | {"model.num_classes": Field(len(names), number)}


def _value_fields(survey: Survey) -> Fields:
    """Returns the fields that turn mask values into classes, if these are not 0, ..., C - 1."""
    values, ignored = survey.values.classes, tuple(survey.data.ignore_values)
    fields = {}
    if ignored != (255,):
        fields["data.ignore_values"] = Field(ignored, "void in this layout")
    count = len(values)
    if count and values == tuple(range(1, count + 1)):
        reason = f"0 never occurs, 1..{count} do: k becomes class k-1"
        fields["data.reduce_zero_label"] = Field(True, reason)
    elif values != tuple(range(count)):
        fields["data.class_values"] = Field(values, "the values found; class 0, 1, ...")
    return fields


def _depth_fields(survey: Survey) -> Fields:
    found = depth.proposed_range(survey)
    if found is None:
        return {}
    number, few = len(depth.deep(survey)), sum(1 for _ in depth.with_few_levels(survey))
    reason = f"{number} images of 16 bits hold {depth.in_words(survey)}"
    reason += f"; {few} of them keep fewer than {depth.FEW_LEVELS} of 256 levels"
    return {"data.value_range": Field(found, reason)}


def _size_fields(
    survey: Survey, train: Sequence[SampleFacts], here: Machine
) -> tuple[tuple[int, int], Fields]:
    """Returns the crop, and it among the fields that depend on the images' sizes."""
    largest, why = (_MAX_CROP, "memory") if here.has_accelerator else (_MAX_CROP_HERE, "time")
    sizes = np.array([f.image_size for f in train])  # (n, 2)
    long, short = (int(np.median(side)) for side in (sizes.max(1), sizes.min(1)))
    height, width = (int(np.median(side)) for side in sizes.T)
    is_mixed = 0.1 < float((sizes[:, 0] > sizes[:, 1]).mean()) < 0.9
    sides = (short, short) if is_mixed else (height, width)
    crop = _crop(sides[0], largest), _crop(sides[1], largest)
    shape = "square: images stand and lie" if is_mixed else f"the median image is {height}x{width}"
    limit = _RATE * OUTPUT_STRIDE
    reason = f"multiples of 64 or 32; {shape}; at most {largest}, to save {why}"
    if min(crop) > limit:
        reason += f"; above {limit}, the reach of the largest atrous rate"
    base = Field((long, short), "median (long, short) side: scale 1 is native")
    fields: Fields = {"data.resize_base": base, "data.crop_size": Field(crop, reason)}
    if min(crop) <= limit:
        side = min(crop) // OUTPUT_STRIDE
        rates = tuple(max(1, (side - 1) * part // 3) for part in (1, 2, 3))
        reason = f"a crop's feature map is {side} wide: larger rates would see only padding"
        fields["model.atrous_rates"] = Field(rates, reason)
    num_sizes = len({f.image_size for f in _usable(survey.facts)})
    base = Field((long, short), f"as in training; images have {num_sizes} sizes")
    one = Field((), "all images have one size: evaluated at it")
    return crop, fields | {"eval.resize_base": one if num_sizes == 1 else base}


def _crop(side: int, largest: int) -> int:
    """Returns the multiple of 64 below a side, or of 32 above it where that were too small."""
    limit = _RATE * OUTPUT_STRIDE
    crop = min(side // 64 * 64, largest)
    if crop <= limit:  # too small to train the largest rate, where the image may allow it
        crop = math.ceil(side / 32) * 32 if side <= limit else limit + 32
    return crop


def length_fields(number: int, here: Machine, crop: tuple[int, ...]) -> Fields:
    """Returns the fields that depend on the number of training images."""
    largest = 8 if here.has_accelerator else _MAX_BATCH_HERE
    batch = max(2, min(largest, 1 << (number.bit_length() - 1)))
    per_epoch = number // batch
    epochs = min(max(round(_STEPS / per_epoch), _EPOCHS[0]), _EPOCHS[1])
    bounds = f" ({_EPOCHS[0]} to {_EPOCHS[1]} epochs)" if epochs in _EPOCHS else ""
    aim = f"aimed at {_STEPS} steps{bounds}"
    if not here.has_accelerator:
        seconds = step_seconds(here, depth_for(here)[0], crop, batch) * per_epoch
        if epochs * seconds > _SECONDS_HERE:
            epochs = max(1, int(_SECONDS_HERE / seconds))
            aim = "as many as two hours allow"
        aim = f"{in_words(here, epochs * seconds)}; {aim}"
    steps = f"{per_epoch} steps each, {epochs * per_epoch} in all; {aim}"
    usual = "fits most cards at this crop; 16 where memory allows"
    if batch < 8:
        few = number < 2 * batch
        usual = f"there are but {number} images to train on" if few else "small, to save time"
    every = Field(max(1, epochs // _EVALUATIONS), f"about {_EVALUATIONS} times in the run")
    return {
        "train.batch_size": Field(batch, usual),
        "train.loss_groups": Field(1, "one loss over the batch"),
        "train.epochs": Field(epochs, steps),
        "eval.every_epochs": every,
        "data.num_workers": Field(0, "0: threads; take processes if `data wait` stays above 5 %"),
    }
