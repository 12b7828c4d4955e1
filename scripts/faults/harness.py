"""A tiny run and its data, real commands on them, and what a command must leave."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from PIL import Image

from deeplab_jax.utils import steps

CLASSES, STEPS, EVERY = 5, 40, 5  # of the run: steps in all, and between saves
BATCH, TRAIN, VAL = 4, 24, 4  # images
_CLOCKS = ("images_per_second", "data_wait", "seconds", "time", "began")  # of lines of the log
_TEMPORARY = ".orbax-checkpoint-tmp"  # of a save under way
_BLOCK = 8  # pixels a side
_RECIPE = f'''"""A narrow network."""

from deeplab_jax import config


def get_config():
    """Returns the template for folders, made small."""
    c = config.get_config("folder", depth=18, output_stride=16)
    c.name = "tiny"
    c.model.num_classes = {CLASSES}
    c.model.atrous_rates = (1, 2, 3)
    c.model.width, c.model.head_channels = 8, 16
    c.model.low_level_channels, c.model.aux_channels = 4, 8
    c.data.crop_size = (64, 64)
    c.data.resize_base = (97, 65)
    c.train.batch_size = {BATCH}
    c.train.steps = {STEPS}
    c.log.every_steps = 1
    c.eval.every_epochs = 1000
    c.checkpoint.every_steps = {EVERY}
    return c
'''


class Failed(Exception):
    """The product does not do what a row requires."""


class Skipped(Exception):
    """A row cannot be tried on this machine."""


class Row(NamedTuple):
    """A fault.

    Attributes:
      number: of the row.
      title: what happens.
      run: brings it about and checks what is required.
    """

    number: int
    title: str
    run: Callable[["Box"], None]


class Done(NamedTuple):
    """What a command left: exit code, standard output, standard error, wall time."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def last(self) -> str:
        """The last line of standard error."""
        return (self.err.strip().splitlines() or [""])[-1]


class Run(NamedTuple):
    """What must be equal of two runs: the log without clocks, and checksums of the last step."""

    log: list[dict]
    arrays: dict


ROWS: dict[int, Row] = {}
_lock = threading.Lock()  # rows may run side by side


def row(number: int) -> Callable[[Callable[["Box"], None]], Callable[["Box"], None]]:
    """Adds a function to the table; its docstring is the row's title."""

    def add(function: Callable[["Box"], None]) -> Callable[["Box"], None]:
        ROWS[number] = Row(number, (function.__doc__ or "").strip().rstrip("."), function)
        return function

    return add


def fail(text: str) -> NoReturn:
    """Ends a row."""
    raise Failed(text)


def check(condition: object, text: str) -> None:
    """Ends a row unless a condition holds; the text says what was found."""
    if not condition:
        fail(text)


def environment(folder: Path, devices: int = 1) -> dict[str, str]:
    """Returns the environment of commands: virtual processors, programs compiled once, quickly."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "NPROC": "64",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONUNBUFFERED": "1",
    }


@dataclasses.dataclass
class Box:
    """A folder of one row and seed, with a copy of the data, and the commands tried there.

    Attributes:
      folder: the folder.
      shared: the folder of all rows, see `prepare`.
      rng: drawn from the seed and the row.
    """

    folder: Path
    shared: Path
    seed: int
    rng: random.Random

    @property
    def data(self) -> Path:
        """The data: `images` and `labels`, each with `train` and `val`; copied when asked for."""
        path = self.folder / "data"
        if not path.exists():
            shutil.copytree(self.shared / "data", path)
        return path

    @property
    def workdir(self) -> Path:
        """The work directory of the run."""
        return self.folder / "run"

    @property
    def control(self) -> Path:
        """The work directory of a run that was never interrupted."""
        return self._made("control", self._train_to_the_end)

    @property
    def halfway(self) -> Path:
        """The work directory of a run that was stopped halfway."""
        return self._made("half", self._train_halfway)

    def _made(self, name: str, make: Callable[["Box"], None]) -> Path:
        """Returns a work directory that all rows share, made when first asked for."""
        with _lock:
            path, folder = self.shared / name, self.shared / f"making-{name}"
            if not path.exists():
                folder.mkdir(exist_ok=True)
                box = Box(folder, self.shared, 0, self.rng)
                make(box)
                box.workdir.rename(path)
            return path

    @staticmethod
    def _train_to_the_end(box: "Box") -> None:
        box.succeeds(box.continued())

    @staticmethod
    def _train_halfway(box: "Box") -> None:
        process = box.start(box.continued())
        box.until_logged(process, STEPS // 2 + 2)
        process.terminate()
        done = box.finish(process)
        check(done.code == 143, f"SIGTERM ended with {done.code}: {done.last}")

    def image(self, index: int, split: str = "train") -> Path:
        """Returns the path of an image."""
        return self.data / "images" / split / f"{index:03d}.jpg"

    def mask(self, index: int, split: str = "train") -> Path:
        """Returns the path of a mask."""
        return self.data / "labels" / split / f"{index:03d}.png"

    def train(self, *flags: str, workdir: Path | None = None, own: bool = True) -> list[str]:
        """Returns the command that trains; `own` takes this row's copy of the data."""
        root = self.data if own else self.shared / "data"
        argv = ["train", "--config", str(self.shared / "tiny.py"), f"--config.data.root={root}"]
        return [*argv, "--workdir", str(workdir or self.workdir), *flags]

    def continued(self) -> list[str]:
        """Returns the command of the run whose end is known, see `same`."""
        return self.train(own=False)

    def start(
        self, argv: Sequence[str], prefix: Sequence[str] = (), devices: int = 1, **env: str
    ) -> subprocess.Popen:
        """Starts a command in a session of its own; `prefix` is what runs it."""
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "deeplab_jax", *map(str, argv)],
            cwd=self.folder,
            env=environment(self.shared, devices) | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen, timeout: float = 300) -> Done:
        """Waits for a command; one that does not end fails the row."""
        began = time.monotonic()
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill(process)
            fail(f"still ran after {timeout:.0f} s: {process.args[-8:]}")
        return Done(process.returncode, out, err, time.monotonic() - began)

    def run(self, argv: Sequence[str], timeout: float = 300, **options: object) -> Done:
        """Runs a command to its end; the options are those of `start`."""
        return self.finish(self.start(argv, **options), timeout)  # type: ignore[arg-type]

    def succeeds(self, argv: Sequence[str], **options: object) -> Done:
        """Runs a command that must end with 0."""
        done = self.run(argv, **options)
        check(done.code == 0, f"exit {done.code} instead of 0: {done.last}")
        return done

    def refuses(self, argv: Sequence[str], code: int, *parts: object, **options: object) -> Done:
        """Runs a command that must end so, with one line that has the parts."""
        return refused(self.run(argv, **options), code, *parts)

    def same(self) -> None:
        """Runs the command again; its end must equal that of the run never interrupted."""
        self.succeeds(self.continued())
        found, control = read_run(self.workdir), read_run(self.control)
        check(found.log == control.log, "the log differs from the uninterrupted run's")
        check(found.arrays == control.arrays, "the last step differs from the uninterrupted run's")

    def half(self) -> Path:
        """Copies a run that was stopped halfway here; returns the folder of its newest step."""
        shutil.copytree(self.halfway, self.workdir)
        return self.newest()

    def newest(self) -> Path:
        """Returns the folder of the newest step."""
        latest = steps.latest_step(self.workdir)
        if latest is None:
            fail("no step was saved")
        return steps.step_path(self.workdir, latest)

    def until_logged(self, process: subprocess.Popen, step: int) -> None:
        """Waits until the log has a step of training."""
        log = self.workdir / "log.jsonl"
        self.until(process, lambda: log.exists() and last_logged(self.workdir) >= step)

    def until(self, process: subprocess.Popen, condition: Callable[[], object]) -> None:
        """Waits for a condition while a command runs; fails the row if it ends before."""
        deadline = time.monotonic() + 300
        while not condition():
            if process.poll() is not None:
                done = self.finish(process)
                fail(f"ended with {done.code} before the fault: {done.last}")
            if time.monotonic() > deadline:
                kill(process)
                fail("the moment of the fault did not come")
            time.sleep(0.001)


def refused(done: Done, code: int, *parts: object) -> Done:
    """Checks that a command ended with a code and one line that has the parts."""
    check(done.code == code, f"exit {done.code} instead of {code}: {done.last}")
    check("Traceback" not in done.err, "a traceback")
    check(done.err.count("error: ") == 1 and done.last.startswith("error: "), f"said {done.err}")
    check(" - " in done.last, f"no fix in: {done.last}")
    for part in parts:
        check(str(part) in done.last, f"{part!s} is not in: {done.last}")
    return done


def prepare(folder: Path) -> None:
    """Draws the data and writes the recipe."""
    for split, count in (("train", TRAIN), ("val", VAL)):
        for index in range(count):
            draw(folder / "data", split, index)
    (folder / "tiny.py").write_text(_RECIPE)


def draw(root: Path, split: str, index: int, size: tuple[int, int] | None = None) -> None:
    """Draws noisy blocks in their class's colour, and their classes; 255 is ignored."""
    rng = np.random.default_rng((index, len(split)))
    height, width = size or ((65, 97), (97, 65))[index % 2]
    blocks = rng.integers(0, CLASSES, (-(-height // _BLOCK), -(-width // _BLOCK)))
    label = blocks.repeat(_BLOCK, 0).repeat(_BLOCK, 1)[:height, :width].astype(np.uint8)
    colors = np.random.default_rng(0).integers(30, 220, (CLASSES, 3))
    image = np.clip(colors[label] + rng.integers(-20, 21, (height, width, 3)), 0, 255)
    label[5:12, 20:31] = 255
    for kind, array, suffix in (
        ("images", image.astype(np.uint8), "jpg"),
        ("labels", label, "png"),
    ):
        path = root / kind / split / f"{index:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def read_run(workdir: Path) -> Run:
    """Returns what must be equal of a run."""
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    log = [
        {key: value for key, value in line.items() if key not in _CLOCKS}
        for line in lines
        if line["event"] in ("train", "eval", "end")
    ]
    latest = steps.latest_step(workdir)
    if latest is None:
        fail("no step was saved")
    return Run(log, steps.read_description(workdir, latest)["arrays"])


def losses(workdir: Path) -> dict[int, float]:
    """Returns the loss of each step."""
    return {
        line["step"]: line["loss"] for line in read_run(workdir).log if line["event"] == "train"
    }


def last_logged(workdir: Path) -> int:
    """Returns the newest step of training in the log."""
    found = 0
    for line in (workdir / "log.jsonl").read_text(errors="replace").splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if entry["event"] == "train":
                found = entry["step"]
    return found


def temporary(workdir: Path) -> list[str]:
    """Returns the names of unfinished saves."""
    root = steps.folder_of(workdir)
    return [name for name in os.listdir(root) if _TEMPORARY in name] if root.is_dir() else []


def kill(process: subprocess.Popen) -> None:
    """Kills a command and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def children(process: subprocess.Popen) -> list[int]:
    """Returns the processes that read samples for a command."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@contextmanager
def disk(folder: Path, megabytes: float) -> Iterator[Path]:
    """Mounts an empty disk of some size while the block runs."""
    path = folder / "disk"
    path.mkdir()
    size = ["-o", f"size={round(megabytes * 1024)}k"]
    if os.geteuid() != 0 or _quiet("mount", "-t", "tmpfs", *size, "tmpfs", str(path)):
        raise Skipped("no file system can be mounted here")
    try:
        yield path
    finally:
        _quiet("umount", "-l", str(path))


def remount(path: Path, options: str) -> None:
    """Changes a disk's options."""
    check(not _quiet("mount", "-o", f"remount,{options}", str(path)), f"cannot remount {options}")


def tool(*argv: str) -> list[str]:
    """Returns the words that run a command under a tool, if that works here."""
    if shutil.which(argv[0]) is None or _quiet(*argv, "true"):
        raise Skipped(f"{argv[0]} is not to be had here")
    return list(argv)


def _quiet(*argv: str) -> int:
    return subprocess.run(argv, capture_output=True).returncode


@contextmanager
def scratch(kept: str | None) -> Iterator[Path]:
    """Yields a folder that is removed at the end, or stays where it is asked for."""
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        yield Path(kept).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="faults.") as name:
        yield Path(name)
