"""Commands about saved steps: what a directory holds, whether it is as saved, and changes to it.

    deeplab checkpoint ls runs/mine
    deeplab checkpoint verify runs/mine
    deeplab checkpoint diff runs/a runs/b --step best

None starts an accelerator, so that they run beside whoever trains on it.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab_jax import cli
from deeplab_jax.errors import CheckpointError, ConfigError, check_writable, shorten
from deeplab_jax.utils import steps

if TYPE_CHECKING:
    from deeplab_jax.checkpoint import Info
    from deeplab_jax.checkpoint.listing import Entry

_DIRECTORY = "a checkpoint directory: a run's, or a converter's output"
_STEP = "latest (default), best or a number"
_MEANS = {"unfinished": "an unfinished save or removal", "foreign": "not of this program"}


def main(argv: list[str]) -> None:
    """Runs `deeplab checkpoint VERB ...`; `argv` begins with the verb.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    verbs = {"ls": _ls, "verify": _verify, "rm": _rm, "export": _export, "diff": _diff}
    verbs[argv[0]](argv[1:])


def _parser(verb: str, examples: str, name: str = "DIR") -> cli.Parser:
    lines = "\n".join(f"  deeplab checkpoint {verb} {example}" for example in examples.split("\n"))
    parser = cli.Parser(f"checkpoint {verb}", lines)
    parser.add_argument(name.lower(), metavar=name, help=_DIRECTORY)
    return parser


def _parse(parser: cli.Parser, argv: Sequence[str]) -> argparse.Namespace:
    args, overrides = parser.parse(argv)
    if overrides:
        raise ConfigError(overrides[0], "there is no such argument", f"see {parser.prog} --help")
    os.environ["JAX_PLATFORMS"] = "cpu"  # Orbax asks JAX for devices, even to read on the host
    return args


def _ls(argv: Sequence[str]) -> None:
    parser = _parser("ls", "runs/mine\nruns/mine --json steps.json")
    parser.add_argument("--json", metavar="FILE", help="write the table there, too")
    args = _parse(parser, argv)
    if args.json:
        check_writable(Path(args.json), "--json")
    _check_folder(args.dir)
    from deeplab_jax.checkpoint.listing import entries
    from deeplab_jax.utils.atomic import atomic_write

    found = entries(args.dir)
    print("\n".join(_table(found)))
    if args.json:
        with atomic_write(Path(args.json)) as file:
            file.write(f"{json.dumps([_as_json(entry) for entry in found], indent=1)}\n".encode())
    _refuse_damaged(args.dir, {entry.name: entry.reason for entry in found if entry.reason})


def _verify(argv: Sequence[str]) -> None:
    parser = _parser("verify", "runs/mine\nruns/mine --step best")
    parser.add_argument("--step", metavar="S", help="latest, best or a number; default: every step")
    args = _parse(parser, argv)
    wanted = steps.check(args.dir, args.step or "latest")
    from deeplab_jax import checkpoint
    from deeplab_jax.checkpoint.listing import verify

    if args.step:
        wanted = [checkpoint.find_step(args.dir, args.step)]
    damaged = {}
    for step, number, has_checksums, reason in verify(args.dir, wanted):
        text = "are as saved" if has_checksums else "can be read; no checksums were saved"
        print(f"step {step}: {reason or f'{number} arrays {text}'}", flush=True)
        if reason:
            damaged[str(step)] = reason
    _refuse_damaged(args.dir, damaged)


def _rm(argv: Sequence[str]) -> None:
    parser = _parser("rm", "runs/mine 40000\nruns/mine 40000.damaged 39000.replaced")
    text = "a step's number, or a name that `deeplab checkpoint ls` shows, such as 40000.damaged"
    parser.add_argument("steps", metavar="STEP", nargs="+", help=text)
    text = "remove also the last step that is good"
    parser.add_argument("--force", action="store_true", help=text)
    args = _parse(parser, argv)
    _check_folder(args.dir)
    from deeplab_jax.checkpoint.manage import remove

    for name in remove(args.dir, list(dict.fromkeys(args.steps)), args.force):
        print(f"removed {steps.folder_of(args.dir) / name}")


def _export(argv: Sequence[str]) -> None:
    parser = _parser("export", "runs/mine --step best --output weights/mine")
    parser.add_argument("--step", metavar="S", default="latest", help=_STEP)
    parser.add_argument("--output", metavar="DIR", required=True, help="a new directory")
    cli.add_weights(parser)
    args = _parse(parser, argv)
    if not args.output:  # which would be the current folder
        raise ConfigError("--output", "is empty", "give a path")
    steps.check(args.dir, args.step)
    from deeplab_jax.checkpoint.manage import export

    info = export(args.dir, args.step, args.output, args.weights)
    print(f"{args.dir}, step {info.step}: weights without the optimiser's state")
    cli.finish(args.output, "evaluate", "--checkpoint", args.output)


def _diff(argv: Sequence[str]) -> None:
    examples = "runs/a runs/b\nruns/a runs/b --step best\nruns/a runs/a --step 3000,6000"
    parser = _parser("diff", examples, "A")
    parser.add_argument("b", metavar="B", help="another, or the same")
    text = f"{_STEP}; two with a comma are A's and B's"
    parser.add_argument("--step", metavar="S", default="latest", help=text)
    args = _parse(parser, argv)
    first, comma, second = args.step.partition(",")
    places = (args.a, first), (args.b, second if comma else first)
    for place, step in places:
        steps.check(place, step)
    from deeplab_jax.checkpoint.manage import compare

    count = 0
    for line in compare(*places):
        count += 1
        print(line)
    if not count:
        print("nothing differs")


def _check_folder(path: str) -> None:
    """Refuses a directory without a folder of steps; there may be no finished step in it."""
    if not steps.folder_of(path).is_dir():
        steps.check(path)


def _refuse_damaged(path: str, reasons: dict[str, str]) -> None:
    """Raises CheckpointError if a step is damaged."""
    if reasons:
        count = "a step is" if len(reasons) == 1 else f"{len(reasons)} steps are"
        what = f"{count} damaged: {shorten(reasons)}"
        fix = f"`deeplab train` sets damaged steps aside; or deeplab checkpoint rm {path}"
        raise CheckpointError(path, what, f"{fix} {' '.join(reasons)}")


def _table(found: "Sequence[Entry]") -> Iterator[str]:
    """Yields the lines of a table: steps with a good description, then all else."""
    rows: list[tuple[str, ...]] = [("step", "kind", "size", "score", "checksums", "saved")]
    rows += [_row(entry) for entry in found if entry.described is not None]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if len(rows) > 1:
        for row in rows:
            cells = zip(row, widths, strict=True)
            yield "  ".join(cell.ljust(width) for cell, width in cells).rstrip()
    for entry in found:
        if entry.described is None:
            what = (
                f"damaged: {entry.reason}" if entry.reason else _MEANS.get(entry.role, entry.role)
            )
            size = "" if entry.role == "foreign" else f", {_megabytes(entry)}"
            yield f"{entry.name}: {what}{size}"


def _row(entry: "Entry") -> tuple[str, ...]:
    assert entry.described is not None
    info, arrays = entry.described
    saved = ""
    if entry.saved is not None:
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.saved))
    return (
        entry.name, info.kind, _megabytes(entry), _score(info),
        "no" if arrays is None else "yes", saved,
    )  # fmt: skip


def _score(info: "Info") -> str:
    """Returns what the best step is chosen by, with its name unless it is the mean IoU."""
    name = info.config.checkpoint.best if info.config else "mean_iou"
    value = (info.metrics or {}).get(name)
    if value is None:
        return ""
    text = f"{value:.4f}" if name == "loss" else f"{100 * value:.2f} %"
    return text if name == "mean_iou" else f"{name} {text}"


def _megabytes(entry: "Entry") -> str:
    return f"{entry.bytes / 1e6:.1f} MB"


def _as_json(entry: "Entry") -> dict[str, Any]:
    fields: dict[str, Any] = {"name": entry.name, "role": entry.role, "bytes": entry.bytes}
    if entry.reason:
        fields["damaged"] = entry.reason
    if entry.described is not None:
        info, arrays = entry.described
        fields |= {"kind": info.kind, "step": info.step, "metrics": info.metrics}
        fields |= {"checksums": arrays is not None, "saved": entry.saved}
    return fields


if __name__ == "__main__":
    cli.main(["checkpoint", *sys.argv[1:]])
