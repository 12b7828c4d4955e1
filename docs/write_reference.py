"""Writes docs/cli.md from every verb's `--help`, and docs/config.md from the fields and transforms.

python docs/write_reference.py
"""

import contextlib
import io
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from deeplab_jax import cli
from deeplab_jax.config import catalogue, schema, transforms

DOCS = Path(__file__).resolve().parent
_COLUMNS = "100"  # of the help texts
_CLI = """# Commands

`deeplab VERB ...`, or `python -m deeplab_jax VERB ...`. Written by
`python docs/write_reference.py` from each verb's `--help`; a test compares. Exit codes:
[when something goes wrong](when-something-goes-wrong.md#exit-codes).
"""
_CONFIG = """# Fields of a configuration

Written by `python docs/write_reference.py` from `deeplab_jax/config/schema.py`; a test compares. On
the terminal: `deeplab config fields WORD`. A recipe sets `c.train.lr = 0.02`; the command line sets
`--config.train.lr=0.02`, lists as `512,1024`, and an empty value as `--config.data.split_file=`.
The defaults are those of the template for a folder of one's own; the recipes of the table set their
own (`deeplab config show voc_r50_os16`).
"""
_TRANSFORMS = """
## Transforms

What `data.transforms` may list, each at most once. In a recipe
`c.data.transforms = ("scale", "crop", "flip", "rotate(degrees=15)", "photometric")`; on the command
line `--config.data.transforms="scale,crop,flip,rotate(degrees=15),photometric"`. What is larger
than `data.crop_size` after the last is cut about its centre, what is smaller is padded.

| transform | what it does | values |
| --- | --- | --- |
"""


def main() -> None:
    """Writes both pages."""
    for name, text in pages().items():
        (DOCS / name).write_text(text)


def pages() -> dict[str, str]:
    """Returns the text of each page by its file name."""
    return {"cli.md": _CLI + "".join(_verbs()), "config.md": _CONFIG + "".join(_sections())}


def _verbs() -> Iterator[str]:
    for verb in ("", *cli.VERBS):
        title = f"deeplab {verb}".strip()
        yield f"\n## {title}\n\n```text\n{help_of(verb)}```\n"


def help_of(verb: str) -> str:
    """Returns what `deeplab VERB --help` prints on a terminal of 100 columns; "" is no verb."""
    output = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _COLUMNS
    try:
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            cli.main([*verb.split(), "--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return output.getvalue()


def _sections() -> Iterator[str]:
    for section, rows in groupby(catalogue.rows(), lambda row: row.name.rpartition(".")[0]):
        about = ""
        if section:
            about = type(getattr(schema.Config(), section)).__doc__ or ""
        yield f"\n## {section or 'The run'}\n\n{about and about + chr(10) * 2}"
        yield "| field | default | unit | accepted | meaning |\n| --- | --- | --- | --- | --- |\n"
        for row in rows:
            default = f"`{row.default}`" if row.default else "(empty)"
            cells = (f"`{row.name}`", default, row.unit, row.accepted, row.text)
            yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n"
    yield _TRANSFORMS
    for name, transform in transforms.NAMED.items():
        values = ", ".join(
            f"`{key}`{'' if value.default is None else f'={value.default}'}: {value.text}"
            f" ({value.rule.accepted})"
            for key, value in transform.parameters.items()
        )
        yield f"| `{name}` | {transform.text} | {values.replace('|', '/')} |\n"


if __name__ == "__main__":
    main()
