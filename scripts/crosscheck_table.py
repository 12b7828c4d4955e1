"""Measures published PyTorch weights and compares them with the table they come from.

    python scripts/crosscheck_table.py --data ROOT --weights DIR [--rows voc_r50_os16 ...]

A row runs if DIR holds its file under the model zoo's name and ROOT its validation set: the file is
converted in memory, evaluated by its recipe in configs/, and passes within 0.05 percentage points.

Every row's outcome goes into a JSON file at once. A measurement found there is taken over unless
its fingerprint changed: SHA-256 of the weights file; of the packages' sources, this file and the
recipe; and of the ids of the validation split with size and modification time of every image and
mask (a mask rewritten without either changing goes unnoticed). Versions of libraries and the device
are recorded, and do not count: remove the JSON file to measure again regardless.
"""

import difflib
import hashlib
import importlib.util
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deeplab_jax import cli
from deeplab_jax.config import PUBLISHED_MIOU, get_config
from deeplab_jax.config.recipe import apply_overrides, load_recipe
from deeplab_jax.errors import ConfigError, DataError, DeepLabError, check_writable
from deeplab_jax.utils.atomic import atomic_write

if TYPE_CHECKING:
    from deeplab_jax.config import Config
    from deeplab_jax.data import Dataset

TOLERANCE = 0.05  # percentage points
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TELL_SECONDS = 30.0  # between lines of progress
_UNITS = "published, ours and difference are percent; what is in measurement, fractions"
_EXAMPLES = """\
  python scripts/crosscheck_table.py --data data --weights zoo
  python scripts/crosscheck_table.py --data data --weights zoo --rows voc_r50_os8 voc_r50_os16"""


class Row(NamedTuple):
    """A row of the table, as `PUBLISHED_MIOU` names it."""

    dataset: str
    depth: int
    output_stride: int

    @property
    def name(self) -> str:
        """The name of its recipe."""
        return f"{self.dataset}_r{self.depth}_os{self.output_stride}"

    @property
    def weights(self) -> str:
        """The name of its file in the model zoo."""
        return f"deeplabv3plus_resnet{self.depth}os{self.output_stride}_{self.dataset}_train.pth"


class Job(NamedTuple):
    """What all rows share.

    Attributes:
      data: root of the data sets.
      weights: folder of the .pth files.
      overrides: "--config.x=y", for every row.
      code: digest of the sources as they were when this process started.
    """

    data: str
    weights: Path
    overrides: list[str]
    code: str


class NotThere(Exception):
    """A row's weights or data are missing; the text says which."""


def main(argv: list[str]) -> None:
    """Parses arguments, checks the rows and prints the table.

    Raises:
      DeepLabError: the command cannot run; `cli.run` prints it. What befalls a row, the table says.
      SystemExit: code 1, unless a row ran and all that could run passed.
    """
    parser = cli.Parser("evaluate", _EXAMPLES)
    parser.prog = "python scripts/crosscheck_table.py"  # no verb: it needs the recipes beside it
    parser.description = "compare published PyTorch weights with the table they come from"
    parser.add_argument("--data", metavar="ROOT", required=True, help="root of the data sets")
    parser.add_argument("--weights", metavar="DIR", required=True, help="folder of the .pth files")
    parser.add_argument("--rows", metavar="ROW", nargs="+", help="recipes by name; default: all 12")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="default: DIR/crosscheck.json, or here if DIR cannot be written to",
    )
    parser.add_argument("--config.x", metavar="VALUE", help="any field of all recipes: a trial")
    args, overrides = parser.parse(argv)
    rows = _select(args.rows)
    trial = apply_overrides(get_config(*rows[0]), overrides)  # its mistakes are not a row's
    if trial.data.source != "folder":
        what = f"is {trial.data.source}; rows are measured on files"
        raise ConfigError("--config.data.source", what, "drop it")
    if not Path(args.weights).is_dir():
        what = f"there is no folder {args.weights}"
        raise ConfigError("--weights", what, "name the folder of the .pth files")
    job = Job(args.data, Path(args.weights), overrides, digest_sources())
    default = (job.weights if os.access(job.weights, os.W_OK) else Path()) / "crosscheck.json"
    path = Path(args.json) if args.json else default
    entries = crosscheck(rows, job, path)
    print_table(rows, entries, overrides)
    print(f"numbers: {path}")
    ran = {e["verdict"] for e in entries if not e["verdict"].startswith("not run")}
    if ran != {"pass"}:
        sys.exit(1)


def _select(names: Sequence[str] | None) -> list[Row]:
    rows = {row.name: row for row in (Row(*key) for key in PUBLISHED_MIOU)}
    for name in names or ():
        if name not in rows:
            close = difflib.get_close_matches(name, rows, 1)
            fix = f"did you mean {close[0]}?" if close else f"use some of {', '.join(rows)}"
            raise ConfigError("--rows", f"{name!r} is no row of the table", fix)
    return [rows[name] for name in dict.fromkeys(names or rows)]


def crosscheck(rows: Sequence[Row], job: Job, path: Path) -> list[dict[str, Any]]:
    """Checks rows in turn and returns an entry for each.

    Args:
      rows: which.
      job: where their weights and data are.
      path: JSON file, whose earlier measurements are taken over where they still hold.

    Raises:
      ConfigError: the file is something else's.
      ResourceError: it cannot be written.
    """
    check_writable(path, "--json")
    _read(path)
    entries = []
    for row in rows:
        key = " ".join([row.name, *job.overrides])  # trials never take the place of the table's
        earlier = _read(path).get(key, {}).get("measurement")
        entry = check(row, job, earlier)
        figure = "" if entry["ours"] is None else f" with {entry['ours']:.2f} %"
        _tell(row, entry["verdict"] + figure)
        _write(path, _read(path) | {key: entry})  # others may have written to it meanwhile
        entries.append(entry)
    return entries


def _read(path: Path) -> dict[str, Any]:
    """Returns the file's entries by row and overrides; none if it is not there."""
    try:
        rows = json.loads(path.read_text())["rows"] if path.exists() else {}
        for entry in rows.values():
            match entry:
                case {"verdict": str(), "measurement": None}:
                    pass
                case {
                    "verdict": str(),
                    "measurement": {
                        "fingerprint": dict(),
                        "date": str(),
                        "mean_iou": float() | int(),
                        "seconds": float() | int(),
                    },
                }:
                    pass
                case _:
                    raise ValueError("an entry lacks what is read of it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "name another --json FILE, or remove this one"
        raise ConfigError(str(path), "was not written by this script", fix) from error
    return rows


def _write(path: Path, rows: dict[str, Any]) -> None:
    """Replaces the file in one go, so that it is whole whenever this process ends."""
    with atomic_write(path) as file:
        file.write(json.dumps({"units": _UNITS, "rows": rows}, indent=1).encode() + b"\n")


def check(row: Row, job: Job, earlier: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the row's entry in the JSON file; whatever fails becomes its verdict.

    Args:
      row: which.
      job: where its weights and data are.
      earlier: its last measurement, which stays in the entry until there is another.
    """
    published = PUBLISHED_MIOU[row]
    entry = {"verdict": "", "published": published, "ours": None, "difference": None}
    entry |= {"seconds": None, "overrides": job.overrides, "measurement": earlier}
    try:
        measurement = _measure(row, job, earlier)
    except NotThere as error:
        return entry | {"verdict": f"not run: {error}"}
    except Exception as error:  # the other rows have done nothing wrong
        text = str(error)
        if not isinstance(error, DeepLabError | OSError):
            traceback.print_exc()  # a bug of ours, or the device's: what a report needs
            text = f"{type(error).__name__}: {text}".splitlines()[0]
        if table := getattr(error, "table", ""):  # of weights that do not fit
            print(table, file=sys.stderr, flush=True)
        return entry | {"verdict": f"error: {' '.join(text.split())}"}
    ours = 100 * measurement["mean_iou"]
    is_pass = abs(ours - published) <= TOLERANCE + 1e-9  # 76.97 - 76.92 is a little more than 0.05
    entry |= {"verdict": "pass" if is_pass else "fail", "ours": ours, "measurement": measurement}
    return entry | {"difference": ours - published, "seconds": measurement["seconds"]}


def _measure(row: Row, job: Job, earlier: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the row's measurement: the earlier one if nothing has changed."""
    recipe, weights = CONFIGS / f"{row.name}.py", job.weights / row.weights
    config = load_recipe(str(recipe), [f"--config.data.root={job.data}", *job.overrides])
    dataset = _open(weights, config)
    code = _digest([job.code, _file(recipe)])
    fingerprint = {"weights": _file(weights), "code": code, "data": _data(dataset)}
    if earlier:
        old = earlier["fingerprint"]
        changed = [key for key, value in fingerprint.items() if old.get(key) != value]
        if not changed:
            _tell(row, f"as measured at {earlier['date']}")
            return earlier
        _tell(row, f"changed since {earlier['date']}: {', '.join(changed)}")
    start = time.perf_counter()
    summary = _evaluate(row, weights, config, dataset)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": str(weights),
        "data": f"{config.data.root}: {dataset.name}/{dataset.split}",
        "fingerprint": fingerprint,
        **summary,
    }


def _open(weights: Path, config: "Config") -> "Dataset":
    """Returns the validation set, if it and the weights are there."""
    from deeplab_jax.data import open_dataset

    missing = [] if weights.exists() else [str(weights)]
    try:
        dataset = open_dataset(config.data, config.model.num_classes, config.data.val_split)
    except DataError as error:
        if not Path(error.where).exists():
            missing.append(error.where)
        elif not missing:
            raise
    if missing:
        raise NotThere(f"missing {', '.join(missing)}")
    return dataset


def _evaluate(row: Row, path: Path, config: "Config", dataset: "Dataset") -> dict[str, Any]:
    """Converts, evaluates, and returns the result and what it was computed with."""
    import jax

    from convert.source import read_source
    from deeplab_jax.evaluation.evaluator import Evaluator
    from deeplab_jax.models import build_model

    source = read_source(str(path))
    source.require_network(f"configs/{row.name}.py")
    variables, _ = source.to_variables(config.model, f"configs/{row.name}.py")
    device = jax.local_devices()[0]
    _tell(row, f"converted; {len(dataset)} images on {device.device_kind}")
    evaluator = Evaluator(build_model(config.model), dataset, config.eval.resize_base)
    result = evaluator(variables, on_image=_progress(row, len(dataset)))
    assert result is not None  # nothing asks it to stop
    if math.isnan(result.mean_iou):
        fix = "give the masks of the validation set"
        raise DataError(config.data.root, "no mask has a pixel that counts", fix)
    summary = result.summary()
    del summary["confusion"], summary["images"]  # 22,500 and 8,000 lines for ADE20k
    return {"jax": jax.__version__, "platform": device.platform, **summary}


def _progress(row: Row, total: int) -> Callable[[], None]:
    """Returns a function to call after each image, which now and then tells how far it is."""
    start = told = time.perf_counter()
    done = 0

    def tell() -> None:
        nonlocal told, done
        now, done = time.perf_counter(), done + 1
        if now - told >= TELL_SECONDS:
            told = now
            left = timedelta(seconds=round((now - start) / done * (total - done)))
            _tell(row, f"{done}/{total} images, {left} left")

    return tell


def _tell(row: Row, text: str) -> None:
    print(f"{row.name}: {text}", file=sys.stderr, flush=True)


def _file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_sources() -> str:
    """Returns a digest of both packages' sources and this file."""
    files = {"script": Path(__file__)}
    for package in ("convert", "deeplab_jax"):
        folder = Path(importlib.util.find_spec(package).origin).parent
        names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
        files |= {f"{package}/{name}": path for name, path in names.items()}
    return _digest([(name, _file(files[name])) for name in sorted(files)])


def _data(dataset: "Dataset") -> str:
    """Returns a digest of ids, and of size and modification time of every file."""
    names = map(dataset.source.names, range(len(dataset)))
    return _digest([(i, *map(_stamp, paths)) for i, paths in zip(dataset.ids, names, strict=True)])


def _stamp(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def print_table(
    rows: Sequence[Row], entries: Sequence[dict[str, Any]], overrides: Sequence[str]
) -> None:
    """Prints published and measured mean IoU, in percent, and the verdicts."""
    if overrides:
        print(f"not the table's network or protocol, but with {' '.join(overrides)}:")
    print(f"{'row':19}{'published':>9}{'ours':>8}{'difference':>12}{'seconds':>9}  verdict")
    for row, entry in zip(rows, entries, strict=True):
        # Three decimals of the difference: 0.054 is a failure and must not read as 0.05.
        formats = {"published": ".2f", "ours": ".2f", "difference": "+.3f", "seconds": ".1f"}
        cells = ["-" if entry[key] is None else f"{entry[key]:{formats[key]}}" for key in formats]
        print(f"{row.name:19}{'{:>9}{:>8}{:>12}{:>9}'.format(*cells)}  {entry['verdict']}")


if __name__ == "__main__":
    cli.run(main)
