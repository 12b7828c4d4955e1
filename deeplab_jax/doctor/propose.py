"""Writes a recipe for a data set that was looked at, each value with its reason.

Sizes come from the images; batch and length from their number. The recipe trains as it is; it is
a start to change, not the best that can be had.
"""

import json
import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax.config import flatten, get_config
from deeplab_jax.data.classes import CLASS_NAMES
from deeplab_jax.doctor.findings import Finding, all_colors
from deeplab_jax.doctor.inspect import Facts
from deeplab_jax.doctor.layouts import Layout
from deeplab_jax.doctor.survey import Survey
from deeplab_jax.errors import ConfigError, DataError

_WIDTH = 100
_OUTPUT_STRIDE = 16
_RATE = 18  # the largest atrous rate at output stride 16
_MAX_CROP = 512  # as in the table
_STEPS = 10_000  # of a run
_EPOCHS = (20, 300)  # bounds
_EVALUATIONS = 10
_MAX_COLORS = 255


class Field(NamedTuple):
    """A line of the recipe and why it is so.

    Attributes:
      key: under `config`, such as "data.root".
      value: of the type of the field.
      reason: one sentence.
    """

    key: str
    value: Any
    reason: str


class Proposal(NamedTuple):
    """What is written.

    Attributes:
      dataset: of `config.get_config`.
      fields: in the order of the file.
      unsplit: samples to be split by fraction, grouped: equal pictures stay together.
    """

    dataset: str
    fields: list[Field]
    unsplit: list[list[str]]


def check_free(path: str, layout: Layout) -> None:
    """Refuses to write over anything.

    Raises:
      ConfigError: the recipe or one of its lists exists, or it is no Python file.
    """
    if not path.endswith(".py"):
        raise ConfigError("--write-config", f"{path} is no Python file", "name it such as mine.py")
    if not Path(path).resolve().parent.is_dir():
        raise ConfigError("--write-config", f"there is no folder for {path}", "make it first")
    for file in (Path(path), *([] if layout.is_split else _list_paths(path))):
        if file.exists():
            raise ConfigError("--write-config", f"{file} exists", "choose another name")


def settle(survey: Survey, findings: Sequence[Finding]) -> list[Finding]:
    """Returns the findings less what the proposed recipe makes good: colours it declares."""
    if not _is_color(survey):
        return list(findings)
    note = "they are declared in the proposed recipe; name and order them as you like"
    return sorted(
        (f._replace(severity="note", fix=note) if f.kind == "color-mask" else f for f in findings),
        key=lambda f: ("error", "warning", "note").index(f.severity),
    )


def propose(survey: Survey, layout: Layout) -> Proposal:
    """Returns a recipe for the data set.

    Raises:
      DataError: there are not two images to train on, or not two classes; or a name cannot be
        written to the recipe or its lists.
    """
    _check_names(survey, layout)
    train = _usable(survey.of_split(survey.splits[0]))
    unsplit = [] if layout.is_split else _groups(train)
    if len(train) < (2 if layout.is_split else 3):
        what = f"{len(train)} usable training images"
        raise DataError(str(survey.root), what, "two or more are needed, and one to validate on")
    dataset = layout.fields["dataset"]
    fields = [Field("data.root", str(survey.root), "as given to the doctor, from anywhere")]
    if dataset in CLASS_NAMES:
        fields.append(Field("data.train_split", layout.splits[0], "the list that is there"))
    else:
        fields += _places(survey, layout) + _class_fields(survey)
    fields += _size_fields(survey, train)
    fields += _length_fields(len(train))
    fields.append(
        Field("init.backbone", "none", "no weights needed; README: ImageNet weights learn faster")
    )
    defaults = flatten(get_config(dataset))
    # The published row says what is not told, and so do the defaults of what nobody asks for.
    is_quiet = {f.key for f in fields if dataset in CLASS_NAMES} | {"train.loss_groups"}
    fields = [f for f in fields if f.key not in is_quiet or defaults[f.key] != f.value]
    return Proposal(dataset, fields, unsplit)


def _check_names(survey: Survey, layout: Layout) -> None:
    """Refuses names that no UTF-8 file holds, and those that a line of a list does not carry."""
    for text in (str(survey.root), *(v for v in layout.fields.values() if isinstance(v, str))):
        if not _is_unicode(text):
            raise DataError(text, "is no name in UTF-8", "rename the folder")
    for f in [] if layout.is_split else survey.facts:
        stem = f.sample.stem
        path = survey.name(f.sample.image or f.sample.mask or stem)
        if not _is_unicode(stem):
            raise DataError(path, "is no name in UTF-8, as a list needs", "rename the file")
        if stem.splitlines() != [stem] or stem != stem.strip() or stem[0] == "\ufeff":
            what = "has a name with line breaks or outer spaces, which no list carries"
            raise DataError(path, what, "rename the file")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _usable(facts: Sequence[Facts]) -> list[Facts]:
    return [f for f in facts if f.sample.image and f.sample.mask and f.image_size]


def _groups(facts: Sequence[Facts]) -> list[list[str]]:
    groups: dict[bytes, list[str]] = defaultdict(list)
    for f in facts:
        groups[f.image_hash].append(f.sample.stem)
    return list(groups.values())


def _places(survey: Survey, layout: Layout) -> list[Field]:
    fields = [
        Field(f"data.{key}", layout.fields[key], reason)
        for key, reason in (
            ("images", "found there"),
            ("masks", "found there, under the same names"),
            ("mask_suffix", "what masks' names add"),
        )
        if key in layout.fields
    ]
    if not layout.is_split:
        names = {"train_split": "train", "val_split": "val"}
        reason = "a random split, written beside this file: no picture is in both"
        fields.append(Field("data.split_file", None, reason))
        return fields + [Field(f"data.{key}", v, "a list each") for key, v in names.items()]
    if "split_file" in layout.fields:
        fields.append(Field("data.split_file", layout.fields["split_file"], "lists found there"))
    fields.append(Field("data.train_split", layout.splits[0], "found there"))
    fields.append(Field("data.val_split", layout.splits[1], "found there"))
    return fields


def _is_color(survey: Survey) -> bool:
    masks = [f for f in survey.facts if f.mask_kind == "color"]
    readable = sum(bool(f.mask_size) for f in survey.facts)
    colors = all_colors(masks)
    if all(f.is_grey for f in masks) and len(colors) > 2 and (255, 255, 255) in colors:
        return False  # no recipe ignores a colour: the masks are to be saved as grey
    return 2 * len(masks) > readable and 2 <= len(colors) <= _MAX_COLORS


def _class_fields(survey: Survey) -> list[Field]:
    values, data = survey.values, survey.data
    names = survey.class_names
    has_file = (survey.root / "classes.json").is_file()
    fields = []
    if data.mask_format == "color":
        fields.append(Field("data.mask_format", "color", "colours of classes.json"))
    elif _is_color(survey):
        colors = [c for c, _ in all_colors(f for f in survey.facts if f.colors).most_common()]
        names = names if has_file else tuple(f"class_{i}" for i in range(len(colors)))
        flat = tuple(part for color in colors for part in color)
        fields.append(Field("data.mask_format", "color", "the masks hold colours"))
        if not has_file:
            reason = "R, G, B of each class, the most frequent colour first"
            fields.append(Field("data.class_colors", flat, reason))
    elif survey.is_described:
        pass
    elif values.is_binary:
        fields.append(Field("data.mask_format", "binary", "0 and 255 are all the masks hold"))
    else:
        fields += _value_fields(survey)
        if not has_file and not any(f.key == "data.class_values" for f in fields):
            first = int(any(f.key == "data.reduce_zero_label" for f in fields))
            last = max(values.classes, default=first - 1)
            names = tuple(f"class_{i}" for i in range(last + 1 - first))
    if len(names) < 2:
        what = f"holds {len(names)} class(es) in its masks"
        raise DataError(str(survey.root), what, "a network needs two; count the background")
    if not has_file:
        reason = "to be renamed; they are shown in results"
        fields.append(Field("data.class_names", names, reason))
    number = f"{len(names)} of classes.json" if has_file else "as many as names"
    return [*fields, Field("model.num_classes", len(names), number)]


def _value_fields(survey: Survey) -> list[Field]:
    """Returns what turns mask values into classes, where they are not 0, 1, ..., C - 1."""
    values = survey.values.classes
    fields = []
    ignored = tuple(survey.data.ignore_values)
    if ignored != (255,):
        fields.append(Field("data.ignore_values", ignored, "void in this layout"))
    if not values:
        return fields
    first, last = values[0], values[-1]
    if first == 1 and 2 * len(values) > last:
        reason = f"0 never occurs, {first}..{last} do: k becomes class k-1"
        fields.append(Field("data.reduce_zero_label", True, reason))
    elif 2 * len(values) <= last or first > 1:
        fields.append(Field("data.class_values", values, "the values found; class 0, 1, ..."))
    return fields


def _size_fields(survey: Survey, train: Sequence[Facts]) -> list[Field]:
    sizes = np.array([f.image_size for f in train])
    long, short = (int(np.median(side)) for side in (sizes.max(1), sizes.min(1)))
    height, width = (int(np.median(side)) for side in sizes.T)
    is_mixed = 0.1 < float((sizes[:, 0] > sizes[:, 1]).mean()) < 0.9
    crop = (_crop(short),) * 2 if is_mixed else (_crop(height), _crop(width))
    shape = "square: images stand and lie" if is_mixed else f"the median image is {height}x{width}"
    limit = _RATE * _OUTPUT_STRIDE
    reason = f"multiples of 64 or 32; {shape}; up to {_MAX_CROP} for memory"
    if min(crop) > limit:
        reason += f"; above {limit}, the reach of the largest atrous rate"
    fields = [
        Field("data.resize_base", (long, short), "median (long, short) side: scale 1 is native"),
        Field("data.crop_size", crop, reason),
    ]
    if min(crop) <= limit:
        side = min(crop) // _OUTPUT_STRIDE
        rates = tuple(max(1, (side - 1) * part // 3) for part in (1, 2, 3))
        reason = f"a crop's feature map is {side} wide: larger rates would see only padding"
        fields.append(Field("model.atrous_rates", rates, reason))
    shapes = {f.image_size for f in _usable(survey.facts)}
    if len(shapes) == 1:
        fields.append(Field("eval.resize_base", (), "all images have one size: evaluated at it"))
    else:
        reason = f"as in training; images have {len(shapes)} sizes"
        fields.append(Field("eval.resize_base", (long, short), reason))
    return fields


def _crop(side: int) -> int:
    """Returns the multiple of 64 below a side, or of 32 above it where that were too small."""
    limit = _RATE * _OUTPUT_STRIDE
    crop = min(side // 64 * 64, _MAX_CROP)
    if crop <= limit:  # too small to train the largest rate, where the image may allow it
        crop = math.ceil(side / 32) * 32 if side <= limit else limit + 32
    return crop


def _length_fields(number: int) -> list[Field]:
    batch = max(2, min(8, 1 << (number.bit_length() - 1)))
    per_epoch = number // batch
    epochs = min(max(round(_STEPS / per_epoch), _EPOCHS[0]), _EPOCHS[1])
    reason = "fits most cards at this crop; 16 where memory allows"
    if batch < 8:
        reason = f"there are but {number} images to train on"
    every = max(1, epochs // _EVALUATIONS)
    total = epochs * per_epoch
    bounds = f" ({_EPOCHS[0]} to {_EPOCHS[1]} epochs)" if epochs in _EPOCHS else ""
    return [
        Field("train.batch_size", batch, reason),
        Field("train.loss_groups", 1, "one loss over the batch"),
        Field("train.epochs", epochs,
              f"{per_epoch} steps each, {total} in all; aimed at {_STEPS}{bounds}"),
        Field("eval.every_epochs", every, f"about {_EVALUATIONS} times in the run"),
        Field("data.num_workers", 0, "threads; some processes if `data wait` stays above 5 %"),
    ]  # fmt: skip


def write(proposal: Proposal, path: str, val_fraction: float, seed: int) -> None:
    """Writes the recipe, and the lists of a split by fraction; prints each value's reason.

    Args:
      proposal: what to write.
      path: of the recipe; lists get its name and `_train.txt`, `_val.txt`.
      val_fraction: of the images to validate on.
      seed: of the split.

    Raises:
      ResourceError: a file appeared meanwhile or cannot be written; see `cli.run`.
    """
    fields = proposal.fields
    if proposal.unsplit:
        train, val = split(proposal.unsplit, val_fraction, seed)
        lengths = {f.key: f for f in _length_fields(len(train))}
        fields = [lengths.get(f.key, f) for f in fields]
        for file, stems in zip(_list_paths(path), (train, val), strict=True):
            _create(file, "".join(f"{stem}\n" for stem in stems))
            print(f"wrote {file}: {len(stems)} images")
    _create(Path(path), to_python(proposal.dataset, fields, path))
    print(f"wrote {path}:")
    for field in fields:
        value = f"{Path(path).stem}_{{split}}.txt" if field.value is None else field.value
        text = f"{field.key} = {textwrap.shorten(str(value), 50, placeholder=' ...')}"
        print(textwrap.fill(f"{text}: {field.reason}", 80, subsequent_indent="    ",
                            initial_indent="  ", break_long_words=False))  # fmt: skip
    print(f"\ntrain with it:  deeplab train --config {path}\n")


def _create(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:  # "x": never over another
        file.write(text)


def _list_paths(path: str) -> list[Path]:
    return [Path(path).with_name(f"{Path(path).stem}_{split}.txt") for split in ("train", "val")]


def split(groups: Sequence[Sequence[str]], fraction: float, seed: int) -> tuple[list, list]:
    """Returns (training, validation) names, at least one of each, no group in both."""
    order = np.random.default_rng(seed).permutation(len(groups))
    total = sum(map(len, groups))
    val: list[str] = []
    train: list[str] = []
    for number, index in enumerate(order):
        is_last = number == len(groups) - 1
        to_val = (not val or len(val) < round(fraction * total)) and not (is_last and not train)
        (val if to_val else train).extend(groups[index])
    return sorted(train), sorted(val)


def to_python(dataset: str, fields: Sequence[Field], path: str) -> str:
    """Returns the recipe's source, in the style that ruff gives."""
    name = Path(path).name
    needs_path = any(field.value is None for field in fields)
    lines = [
        '"""Proposed by `deeplab doctor`: change what you know better.',
        "",
        f"Train with it: deeplab train --config {name}",
        '"""',
        "",
        *(["from pathlib import Path", ""] if needs_path else []),
        "from deeplab_jax import config",
        "",
        "",
        "def get_config():",
        '    """Returns the template with what was seen in the images and masks."""',
        f'    c = config.get_config("{dataset}", depth=50, output_stride={_OUTPUT_STRIDE})',
    ]
    for field in fields:
        comment = "    # "
        lines += textwrap.wrap(
            field.reason, _WIDTH, initial_indent=comment, subsequent_indent=comment
        )
        if field.value is None:
            stem = Path(path).stem
            lines.append(f'    lists = Path(__file__).resolve().with_name("{stem}_{{split}}.txt")')
            lines.append(f"    c.{field.key} = str(lists)")
        else:
            lines += _assign(f"    c.{field.key} = ", field.value)
    return "\n".join([*lines, "    return c", ""])


def _assign(start: str, value: Any) -> list[str]:
    """Returns an assignment, one element a line where it does not fit one."""
    if not isinstance(value, tuple):
        return [start + _literal(value)]
    items = [_literal(item) for item in value]
    line = f"{start}({', '.join(items)}{',' if len(items) == 1 else ''})"
    if len(line) <= _WIDTH:
        return [line]
    return [f"{start}(", *(f"        {item}," for item in items), "    )"]


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
