"""Writes a proposed recipe, and the lists of its splits, as files."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deeplab_jax.doctor.layouts import GuessedLayout
from deeplab_jax.doctor.propose import (
    OUTPUT_STRIDE,
    Field,
    Fields,
    Proposal,
    depth_for,
    length_fields,
)
from deeplab_jax.errors import ConfigError

_WIDTH = 100


def check_free(path: str, layout: GuessedLayout) -> None:
    """Refuses to write over anything.

    Raises:
      ConfigError: the recipe or one of its lists exists, or `path` is no Python file.
    """
    if not path.endswith(".py"):
        raise ConfigError("--write-config", f"{path} is no Python file", "name it such as mine.py")
    if not Path(path).resolve().parent.is_dir():
        raise ConfigError("--write-config", f"there is no folder for {path}", "make it first")
    for file in (Path(path), *([] if layout.is_split else _list_paths(path))):
        if file.exists():
            raise ConfigError("--write-config", f"{file} exists", "choose another name")


def write(proposal: Proposal, path: str, val_fraction: float, seed: int) -> None:
    """Writes the recipe, and the lists of a split by fraction; prints each value's reason.

    Lists get the recipe's name and `_train.txt`, `_val.txt`.

    Raises:
      OSError: a file appeared meanwhile or cannot be written.
    """
    fields = proposal.fields
    if proposal.unsplit:
        train, val = split(proposal.unsplit, val_fraction, seed)
        lengths = length_fields(len(train), proposal.here, proposal.crop)
        fields = {key: lengths.get(key, field) for key, field in fields.items()}
        for file, stems in zip(_list_paths(path), (train, val), strict=True):
            _create(file, "".join(f"{stem}\n" for stem in stems))
            print(f"wrote {file}: {len(stems)} images")
    network = Field(*depth_for(proposal.here))
    _create(Path(path), to_python(proposal.dataset, network, fields, path))
    print(f"wrote {path}:")
    for key, field in ({"model.depth": network} | fields).items():
        value = f"{Path(path).stem}_{{split}}.txt" if field.value is None else field.value
        text = f"{key} = {textwrap.shorten(str(value), 50, placeholder=' ...')}"
        print(textwrap.fill(f"{text}: {field.reason}", 80, subsequent_indent="    ",
                            initial_indent="  ", break_long_words=False))  # fmt: skip
    print()


def _create(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:  # "x": never over another
        file.write(text)


def _list_paths(path: str) -> list[Path]:
    return [Path(path).with_name(f"{Path(path).stem}_{split}.txt") for split in ("train", "val")]


def split(
    groups: Sequence[Sequence[str]], fraction: float, seed: int
) -> tuple[list[str], list[str]]:
    """Returns (training, validation) names, at least one of each, no group in both."""
    order = np.random.default_rng(seed).permutation(len(groups))
    wanted = max(1, round(fraction * sum(map(len, groups))))
    train: list[str] = []
    val: list[str] = []
    for number, index in enumerate(order, 1):
        is_last_chance = number == len(groups) and not train
        (val if len(val) < wanted and not is_last_chance else train).extend(groups[index])
    return sorted(train), sorted(val)


def to_python(dataset: str, network: Field, fields: Fields, path: str) -> str:
    """Returns the recipe's source, formatted as ruff does."""
    lines, imports, start = [], "", "    # "
    for key, field in fields.items():
        lines += textwrap.wrap(field.reason, _WIDTH, initial_indent=start, subsequent_indent=start)
        if field.value is None:
            imports, name = "from pathlib import Path\n\n", f"{Path(path).stem}_{{split}}.txt"
            lines.append(f'    lists = Path(__file__).resolve().with_name("{name}")')
            lines.append(f"    c.{key} = str(lists)")
        else:
            lines += _assign(f"    c.{key} = ", field.value)
    body = "\n".join(lines)
    return f'''"""Proposed by `deeplab doctor`: change what you know better.

Train with it: deeplab train --config {Path(path).name}
"""

{imports}from deeplab_jax import config


def get_config():
    """Returns the template with what was seen in the images and masks."""
    # {network.reason}
    c = config.get_config("{dataset}", depth={network.value}, output_stride={OUTPUT_STRIDE})
{body}
    return c
'''


def _assign(start: str, value: object) -> list[str]:
    """Returns an assignment, one element a line where it does not fit one."""
    if not isinstance(value, tuple):
        return [start + _literal(value)]
    items = [_literal(item) for item in value]
    line = f"{start}({', '.join(items)}{',' if len(items) == 1 else ''})"
    if len(line) <= _WIDTH:
        return [line]
    return [f"{start}(", *(f"        {item}," for item in items), "    )"]


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
