"""Recognises a state dict, its dialect by keys and its structure by shapes, and compares it.

Output stride, atrous rates and multi-grid leave no trace in weights.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from convert import shown
from convert.keymap import BLOCKS, COUNTER, DIALECTS, describe, leaves
from deeplab_jax.errors import CheckpointError

MAX_LINES = 10  # of a table of differences
MAX_COUNT = 2**62  # of a counter: it is int64, and grows

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

_ACCEPTED = f"give a state dict of {', '.join(DIALECTS)}"
# Units whose first axis tells a field of `config.model`.
_UNITS = {"head_channels": "aspp/merge", "low_level_channels": "decoder/low_level",
          "aux_channels": "aux_head", "num_classes": "classifier"}  # fmt: skip


class MisfitError(CheckpointError):
    """A state dict that does not fit; a command prints the lines of `table` before the error."""

    def __init__(self, where: str, what: str, fix: str, table: str = ""):
        super().__init__(where, what, fix)
        self.table = table


class Structure(NamedTuple):
    """What keys and shapes say about a network."""

    dialect: str  # one of `DIALECTS`
    depth: int  # 18, 34, 50 or 101; the nearest where the blocks are those of no known depth
    model: dict[str, int | str]  # fields of `config.model`; not those whose tensors are missing

    @property
    def is_backbone(self) -> bool:
        """Whether there is no segmentation head."""
        return not DIALECTS[self.dialect].heads


def recognise(keys: Collection[str]) -> str:
    """Returns the dialect that uses these keys, or ""."""

    def has(*prefixes: str) -> bool:
        return all(any(key.startswith(prefix) for key in keys) for prefix in prefixes)

    if has("backbone_net.stem."):
        return "sssegmentation"
    if has("backbone.stem.", "decode_head."):
        return "mmsegmentation"
    if has("stem.0.weight", "layer1."):
        return "v1c"
    if has("conv1.weight", "layer1."):
        return "torchvision"
    return ""


def detect(keys: Collection[str], where: str) -> str:
    """Returns the dialect that uses these keys of the file `where`.

    Raises:
      MisfitError: it is none of ours, with the closest.
      CheckpointError: it is segmentation_models.pytorch's.
    """
    if found := recognise(keys):
        return found
    starts = ("encoder.conv1.weight", "segmentation_head.")
    if all(any(key.startswith(start) for key in keys) for start in starts):
        what = "is a network of segmentation_models.pytorch: its head and norms are others than"
        fix = "or take its encoder alone, a backbone: --drop 'decoder.*' --drop"
        raise CheckpointError(where, f"{what} ours", f"{_ACCEPTED}, {fix} 'segmentation_head.*'")
    dialect, depth, common, count = _closest(keys)
    what = f"its {len(keys)} tensors have the names of no known layout; closest known layout: "
    known = {key: None for _, _, key in leaves(depth, dialect)}  # in order
    missing = [(key, "") for key in known if key not in keys]
    unexpected = [(shown(key), "") for key in keys if key not in known]
    likeness = f"{common} of {count} names end alike"
    if common == count and missing and unexpected:
        likeness = "its names end alike but begin otherwise: "
        likeness += f"{unexpected[0][0]} where {missing[0][0]} is wanted"
    what += f"{describe(dialect, depth)} ({likeness})"
    raise MisfitError(where, what, _ACCEPTED, Misfit(missing, unexpected, []).table())


def infer(shapes: Shapes, dialect: str) -> Structure:
    """Returns the structure that a dialect's tensors have, from their shapes by key."""
    spec = DIALECTS[dialect]
    layer3 = f"{spec.prefix}layer3."
    parts = [key.removeprefix(layer3).split(".") for key in shapes if key.startswith(layer3)]
    is_bottleneck = any(rest[:1] == ["conv3"] for _, *rest in parts)
    depth = nearest_depth(len({block for block, *_ in parts}), is_bottleneck)
    keys = {path: key for _, path, key in leaves(depth, dialect)}
    stem = ("backbone/" if spec.heads else "") + f"stem/conv{3 if spec.stem == 'deep' else 1}"
    model: dict[str, int | str] = {"depth": depth, "stem": spec.stem}
    for field, path in {"width": stem, **_UNITS}.items():
        for leaf in ("conv/kernel", "kernel", "norm/scale", "bias"):  # any may be missing
            shape = shapes.get(keys.get(f"{path}/{leaf}", ""), ())
            if shape:
                model[field] = shape[0]
                break
    return Structure(dialect, depth, model)


def nearest_depth(blocks: int, is_bottleneck: bool) -> int:
    """Returns the depth with that kind of block whose layer 3 has about so many."""
    depths = [depth for depth in BLOCKS if (depth >= 50) == is_bottleneck]
    return min(depths, key=lambda depth: abs(BLOCKS[depth][2] - blocks))


class Misfit(NamedTuple):
    """How a state dict differs from the wanted one; rows (key, what it is or should be)."""

    missing: list[tuple[str, str]]
    unexpected: list[tuple[str, str]]
    changed: list[tuple[str, str]]

    def counts(self) -> str:
        """Returns "2 missing, 0 unexpected, 1 of another shape or type"."""
        missing, unexpected, changed = map(len, self)
        return f"{missing} missing, {unexpected} unexpected, {changed} of another shape or type"

    def table(self) -> str:
        """Returns up to ten lines, some of each kind, and the counts if there are more."""
        rows = [(i, kind, *row) for kind, part in enumerate(self) for i, row in enumerate(part)]
        chosen = sorted(sorted(rows)[:MAX_LINES], key=lambda row: row[1])  # the first of each kind
        width = max(len(key) for _, _, key, _ in chosen)
        names = ("missing", "unexpected", "differs")
        lines = [f"  {names[kind]:10}  {key:{width}}  {text}" for _, kind, key, text in chosen]
        if len(rows) > len(chosen):
            lines.append(f"  ... in all {self.counts()}")
        return "\n".join(line.rstrip() for line in lines)


def compare(tensors: Mapping[str, np.ndarray], wanted: Shapes, dialect: str) -> Misfit:
    """Returns how tensors differ from the wanted shapes.

    Counters may be missing altogether, and may be of any types of number, but not whole numbers
    beside floating ones. The dialect's drops may be there.
    """
    if not any(_is_counter(key) for key in tensors):
        wanted = {key: shape for key, shape in wanted.items() if not _is_counter(key)}
    drops = DIALECTS[dialect].drops
    missing = [(key, f"{shape} wanted") for key, shape in wanted.items() if key not in tensors]
    others = {k: v for k, v in tensors.items() if k not in wanted and k not in drops}
    unexpected = [(shown(key), f"{value.shape} {value.dtype}") for key, value in others.items()]
    return Misfit(missing, unexpected, list(_changed(tensors, wanted)))


def _changed(tensors: Mapping[str, np.ndarray], wanted: Shapes) -> Iterator[tuple[str, str]]:
    kinds = {is_floating(value.dtype) for key, value in tensors.items() if _is_counter(key)}
    for key, shape in wanted.items():
        if key not in tensors:
            continue
        value = tensors[key]
        if value.shape != shape:
            yield key, f"{value.shape}, {shape} wanted"
        elif not _is_counter(key):
            if not is_floating(value.dtype):
                yield key, f"{value.dtype}, a floating type wanted"
        elif not _is_number(value.dtype) or (len(kinds) > 1 and is_floating(value.dtype)):
            yield key, f"{value.dtype}, int64 wanted"
        elif not 0 <= float(value) <= MAX_COUNT or int(value) > MAX_COUNT:
            yield key, f"{value}, 0 to {MAX_COUNT} wanted"


def is_auxiliary(path: str) -> bool:
    """Tells whether our path of a variable lies in the auxiliary head."""
    return path.startswith("aux_")


def is_floating(dtype: np.dtype) -> bool:
    """Tells whether a type is a floating one, bfloat16 and those of 8 bits among them."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat16", "float8_"))


def _is_number(dtype: np.dtype) -> bool:
    return dtype.kind in "iu" or is_floating(dtype)


def _is_counter(key: str) -> bool:
    return key.endswith(f".{COUNTER}")


def _closest(keys: Iterable[str]) -> tuple[str, int, int, int]:
    """Returns the dialect and depth with the most names in common, how many, and of how many.

    Names count as alike where their last two parts are, as in "layer3.0.conv1.weight": a prefix
    of one's own must not hide a layout.
    """
    found, scores = _tails(keys), {}
    for dialect, depth in itertools.product(DIALECTS, BLOCKS):
        known = _tails(key for _, _, key in leaves(depth, dialect))
        common = (found & known).total()
        scores[dialect, depth, common, known.total()] = common / (found | known).total()
    return max(scores, key=scores.__getitem__)  # the first of equals


def _tails(keys: Iterable[str]) -> Counter[str]:
    return Counter(".".join(key.split(".")[-2:]) for key in keys)
