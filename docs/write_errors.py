"""Writes docs/errors/: every error that the source can raise, a page for each exit code.

    python docs/write_errors.py

The source's raises are read by docs/read_errors.py; what each field and each transform accepts is
in their tables. What is known only at run time is a word in braces.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from read_errors import Row, read_rows

from deeplab_jax.config import transforms
from deeplab_jax.config.checks import as_text, typed
from deeplab_jax.config.rules import Accepted
from deeplab_jax.config.schema import fields

FOLDER = Path(__file__).resolve().parent / "errors"
_PAGES = {
    2: ("usage", "Flags, fields and places",
        "The command itself: a flag, a field of the configuration, a file that is there already."),
    3: ("data", "Data", "Images, masks, lists, caches and archives."),
    4: ("checkpoints", "Checkpoints and weights",
        "Saved steps, PyTorch's files and exported folders."),
    5: ("machine", "Memory, disks, devices, hosts",
        "What the machine could not give. The command itself is right."),
    6: ("numbers", "Numbers", "A value that is not finite, or differs from what it must be."),
    130: ("stopped", "Stopped",
          "130 after Ctrl-C, 143 after SIGTERM, 141 where the reader of an output went away. The "
          "line says what was saved or lost."),
}  # fmt: skip
_ROOMS = {
    "account": "Goodput, reproduce, seeds", "checkpoint": "Saved steps",
    "config": "Recipes and fields", "convert": "Convert PyTorch's files",
    "data": "Images, masks, lists and data sets", "demo": "Demo",
    "distributed": "Devices and hosts", "doctor": "Doctor", "dry_run": "Dry run",
    "evaluation": "Evaluation", "export": "Export", "inference": "Prediction", "models": "Network",
    "report": "Reports and compare", "selftest": "Self-test", "serve": "Serve",
    "training": "Training", "utils": "Paths, locks, buckets", "verbs": "Commands and their flags",
    "verify": "Verify an export",
}  # fmt: skip
_ABOUT_FIELDS = """Each field has a line of its own. Where the recipe's own value is accepted, the
fix proposes that: `use a value such as the recipe's: ...`. For a value of the wrong type in a
recipe's file the line names the file first, and the fix is `give such as ...`.

"""
_PASSED_ON = ("{fault}",)  # what another error of the page says
_NOTE = "<!-- Written by docs/write_errors.py; a test compares. -->\n"
_HEAD = f"""# Every error, its cause and its fix

{_NOTE}
An error is one line, `error: WHERE: WHAT - FIX`, and its kind is the command's
[exit code](../when-something-goes-wrong.md#exit-codes):

| exit code | page |
| --- | --- |
@PAGES@

To find yours, put some words of WHAT that are no name, path or number into the search field of the
site, such as `does not divide`; or open the page of the exit code (`echo $?` prints it) and search
there. Tables are sorted by WHERE and then by WHAT. A word in braces, such as `{{path}}` or
`{{number}}`, stands for what only your run knows. Of several texts in a cell one is printed.

Errors about one host of several name it, `on HOST`; a list with several faults tells the first, and
`, and 2 more such`. Another command that meets an error may give its own fix, or add one, after a
semicolon. What to do in common cases, with whole lines:
[when something goes wrong](../when-something-goes-wrong.md). What a field accepts:
[fields](../config.md).

```{{toctree}}
:hidden:

@TOCTREE@
```
"""


def main() -> None:
    """Writes the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def pages() -> dict[str, str]:
    """Returns {file name: text} of the pages."""
    rows = sorted(
        dict.fromkeys([*_table_rows(), *read_rows()]), key=lambda row: (row.code, _ROOMS[row.room])
    )
    made = {
        f"{_PAGES[code][0]}.md": _page(code, list(group))
        for code, group in itertools.groupby(rows, lambda row: row.code)
    }
    lines = [f"| {_codes(code)} | [{title}]({name}.md) |"
             for code, (name, title, _) in _PAGES.items()]  # fmt: skip
    index = _HEAD.replace("@PAGES@", "\n".join(lines))
    return made | {
        "index.md": index.replace("@TOCTREE@", "\n".join(name for name, _, _ in _PAGES.values()))
    }


def _page(code: int, rows: list[Row]) -> str:
    """Returns the page of one exit code: a table for each room, by where and what is wrong."""
    _, title, about = _PAGES[code]
    text = f"# Exit code {_codes(code)}: {title.lower()}\n\n{_NOTE}\n{about}\n"
    others = [fix for row in rows for fix in row.fix if row.what == _PASSED_ON]
    rows = [row for row in rows if row.what != _PASSED_ON]
    for room, group in itertools.groupby(rows, lambda row: row.room):
        text += f"\n## {_ROOMS[room]}\n\n{_ABOUT_FIELDS * (code == 2 and room == 'config')}"
        text += "| where | what | fix |\n| --- | --- | --- |\n"
        text += "".join(sorted(map(_line, _merged(list(group))), key=_order))
    if others:
        text += "\n## Other fixes\n\nWhere another command meets one of these, its fix may be:\n\n"
        text += "".join(f"- {_code(fix)}\n" for fix in sorted(set(others)))
    return f"{text}\n[All exit codes](index.md)\n"


def _merged(rows: list[Row]) -> list[Row]:
    """Returns rows of which no two have the same where and what, nor the same what and fix."""
    for part, others in (("fix", ("where", "what")), ("where", ("what", "fix"))):
        found: dict[object, Row] = {}
        for row in rows:
            key = tuple(getattr(row, name) for name in others)
            texts = (*getattr(found.get(key, row), part), *getattr(row, part))
            found[key] = row._replace(**{part: tuple(dict.fromkeys(texts))})
        rows = list(found.values())
    return rows


def _order(line: str) -> tuple[bool, str]:
    """Sorts lines by their text; those that begin with a word in braces are last."""
    return line.startswith("| `{"), line.replace("`", "").lower()


def _table_rows() -> Iterator[Row]:
    """Yields the errors that the tables of fields and of transforms hold: one for each value."""
    for key, field in fields().items():
        rule, default = field.metadata["rule"], as_text(field.default)
        is_any = rule.is_valid is Accepted._field_defaults["is_valid"]
        accepted = (typed(key),) if is_any else (typed(key), rule.accepted)
        fix = (rule.fix or f"use a value such as the default: --config.{key}={default}",)
        if rule.names and not rule.fix:
            fix = (f"did you mean --config.{key}={{nearest}}?", *fix)
        what = tuple(f"must be {text}, got {{value}}" for text in dict.fromkeys(accepted))
        yield Row(2, "config", (f"config.{key}",), what, fix)
    for name, transform in transforms.NAMED.items():
        where = (f"config.data.transforms, {name}",)
        fix = (f"write such as {transforms.example(name)}",)
        yield Row(2, "config", where, ("has no value {name}",), ("did you mean {nearest}?", *fix))
        for key, value in transform.parameters.items():
            accepted = value.rule.accepted
            yield Row(2, "config", where, (f"{key} must be {accepted}, got {{value}}",), fix)
            if value.default is None:
                yield Row(2, "config", where, (f"lacks {key}, {accepted}",), fix)


def _codes(code: int) -> str:
    return "130, 143, 141" if code == 130 else str(code)


def _line(row: Row) -> str:
    return f"| {' | '.join(_cell(part) for part in (row.where, row.what, row.fix))} |\n"


def _cell(texts: tuple[str, ...]) -> str:
    """Returns texts as code; a longer one that begins as another stands alone."""
    kept = [" ".join(text.split()) for text in texts]
    return " or ".join(map(_code, dict.fromkeys(text for text in kept if text)))


def _code(text: str) -> str:
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")


if __name__ == "__main__":
    main()
