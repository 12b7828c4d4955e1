"""Rows about saved steps: cut off, damaged, on disks that are full or read-only."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from deeplab_jax.utils import steps
from faults.harness import (
    STEPS,
    Box,
    check,
    disk,
    fail,
    kill,
    refused,
    remount,
    row,
    temporary,
    tool,
)
from faults.runs import check_steps

_KILLS, _PLACES = 7, 10  # a seed


def _killed_while_saving(box: Box) -> None:
    """Runs the command and kills it within 50 ms after a save has begun."""
    process = box.start(box.continued())
    known = set(temporary(box.workdir))
    box.until(process, lambda: set(temporary(box.workdir)) - known)
    time.sleep(box.rng.uniform(0, 0.05))
    kill(process)


@row(2)
def crash_while_saving(box: Box) -> None:
    """Crash while saving."""
    for _ in range(_KILLS):
        if (steps.latest_step(box.workdir) or 0) >= STEPS - 5:
            shutil.rmtree(box.workdir)
        _killed_while_saving(box)
        check_steps(box)
    if steps.latest_step(box.workdir) is not None:
        box.succeeds(["checkpoint", "verify", str(box.workdir)])
    box.same()


@row(10)
def leftovers(box: Box) -> None:
    """Leftovers of killed saves."""
    for _ in range(_KILLS):
        _killed_while_saving(box)
        if temporary(box.workdir):
            break
        shutil.rmtree(box.workdir)
    else:
        fail("no kill left anything")
    box.same()
    check(not temporary(box.workdir), f"{temporary(box.workdir)} are still there")


def _falls_back(box: Box) -> None:
    """Runs the command, which must go on from the step before the newest, with one warning."""
    newest = box.newest()
    done = box.succeeds(box.continued())
    warnings = [line for line in (done.out + done.err).splitlines() if "warning: " in line]
    check(len(warnings) == 1, f"{len(warnings)} warnings: {warnings}")
    for part in (str(newest), f"{newest.name}.damaged", "going on from step"):
        check(part in warnings[0], f"{part} is not in: {warnings[0]}")
    check(newest.with_name(f"{newest.name}.damaged").is_dir(), "the damaged step is gone")
    box.same()


def _files(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def _largest(step: Path) -> Path:
    return max(_files(step), key=lambda path: path.stat().st_size)


def _is_silent(box: Box, step: Path, sound: dict) -> bool:
    """Tells whether other arrays than the saved ones are read without an error."""
    from deeplab_jax import checkpoint
    from deeplab_jax.checkpoint.checksums import checksums
    from deeplab_jax.errors import CheckpointError

    names = sorted({name.partition("/")[0] for name in sound})
    with suppress(CheckpointError):
        found = checksums(checkpoint.read_arrays(box.workdir, int(step.name), names))
        return found != {name: saved[2] for name, saved in sound.items()}
    return False


def _each(box: Box, changes: Iterator[tuple[Path, Callable[[Path], object]]]) -> None:
    """Makes each change alone, none of which may be silent; undoes it."""
    step = box.newest()
    sound = steps.read_description(box.workdir, int(step.name))["arrays"]
    for path, change in changes:
        content = path.read_bytes()
        change(path)
        if _is_silent(box, step, sound):
            fail(f"{path.relative_to(step)} was changed, and read without an error")
        path.write_bytes(content)


@row(5)
def payload_truncated(box: Box) -> None:
    """Arrays cut short."""
    file = _largest(box.half())
    os.truncate(file, file.stat().st_size // 2)
    _falls_back(box)


@row(6)
def payload_overwritten(box: Box) -> None:
    """Arrays overwritten."""
    step = box.half()

    def overwrite(path: Path) -> None:
        data = bytearray(path.read_bytes())
        start = box.rng.randrange(len(data) - 64)
        data[start : start + 64] = box.rng.randbytes(64)
        path.write_bytes(data)

    _each(box, ((_largest(step), overwrite) for _ in range(_PLACES)))
    data = bytearray(_largest(step).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = box.rng.randbytes(64)
    _largest(step).write_bytes(data)
    _falls_back(box)


@row(7)
def metadata_garbage(box: Box) -> None:
    """Garbage in place of descriptions and lists."""
    files = [path for path in _files(box.half()) if path.parent.name != "d"]
    _each(box, ((path, lambda path: path.write_text("{")) for path in files))
    description = box.newest() / steps.DESCRIPTION
    lists = [path for path in files if path.name == "manifest.ocdbt"]
    (description if box.seed % 2 == 0 else lists[0]).write_text("{")
    _falls_back(box)


@row(8)
def payload_missing(box: Box) -> None:
    """Files of a step missing."""
    files = _files(box.half())
    _each(box, ((path, Path.unlink) for path in files))
    _largest(box.newest() / "params").unlink()
    _falls_back(box)


@row(9)
def every_step_bad(box: Box) -> None:
    """Every step damaged."""
    box.half()
    names = [str(step) for step in steps.finished(box.workdir)]
    for name in names:
        _largest(box.newest().with_name(name)).write_bytes(b"")
    parts = [f"step {name} is damaged: " for name in names]
    for _ in range(2):
        box.refuses(box.continued(), 4, "no step is good", *parts, "--restart")
    box.succeeds([*box.continued(), "--restart"])
    box.same()


@row(11)
def disk_full(box: Box) -> None:
    """The disk is full while saving."""
    half = box.halfway
    size = sum(path.stat().st_size for path in _files(_newest_of(half)))
    with disk(box.folder, 2.6 * size / 1e6) as place:
        box.workdir.symlink_to(place)
        done = box.refuses(box.continued(), 5, "cannot save a checkpoint")
        check(re.search(r"[\d.]+ MB to write, [\d.]+ MB free", done.last), done.last)
        check(steps.finished(place), "no step was saved before")
        box.succeeds(["checkpoint", "verify", str(place)])
        remount(place, "size=200m")
        box.same()


def _newest_of(workdir: Path) -> Path:
    return steps.step_path(workdir, steps.latest_step(workdir) or 0)


@row(12)
def file_size_limit(box: Box) -> None:
    """A limit on the size of files."""
    size = _largest(_newest_of(box.halfway)).stat().st_size
    limit = tool("bash", "-c", f'ulimit -f {max(1, size // 2048)}; exec "$0" "$@"')
    refused(box.run(box.continued(), prefix=limit), 5, "cannot save a checkpoint: File too large")
    box.same()


@row(13)
def read_only(box: Box) -> None:
    """The work directory is read-only."""
    if os.geteuid() == 0:
        with disk(box.folder, 8) as place:
            remount(place, "ro")
            done = box.refuses(box.train(workdir=place / "run", own=False), 5, place)
    else:
        box.workdir.mkdir(mode=0o500)
        done = box.refuses(box.continued(), 5, box.workdir)
    check("compiling" not in done.out, "compiled first")
