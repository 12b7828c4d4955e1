"""The cases of `deeplab bench`, one after the other, and their results as JSON."""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deeplab_jax.benchmark import machine, ours, rivals, timing
from deeplab_jax.benchmark.drawn import draw_pictures, draw_variables
from deeplab_jax.benchmark.rows import CASES, Row
from deeplab_jax.config import Config
from deeplab_jax.dry_run import flops
from deeplab_jax.errors import DeepLabError, describe_cause
from deeplab_jax.training.log.display import peak_memory
from deeplab_jax.utils import environment
from deeplab_jax.utils.progress import clock

OURS, EAGER, COMPILED = "deeplab_jax", "pytorch eager", "pytorch compiled"
FORMAT = 1  # of the JSON
_ROUNDS, _QUICK_ROUNDS = 9, 3
_LEAST = {"cpu": 0.5}  # seconds of a round of steps
_LEAST_ACCELERATOR = 1.0
_IMAGES = {"cpu": 3}  # of a round end to end
_IMAGES_ACCELERATOR = 48
_BUSY = 0.1  # share of the cores' time that other programs may take
_READ = 48  # images of a round of reading, at least
# Largest differences that count as equal, by type and case: of logits and loss, relative; of
# labels, the share of pixels. With statistics of a small batch rounding grows most.
_EQUAL = {
    "float64": {
        "train": {"logits": 1e-8, "loss": 1e-9},
        "inference": {"logits": 1e-10},
        "end-to-end": {"labels": 0.001},
    },
    "float32": {
        "train": {"logits": 1e-3, "loss": 1e-4},
        "inference": {"logits": 1e-4},
        "end-to-end": {"labels": 0.01},
    },
    "bfloat16": {
        "train": {"logits": 0.05, "loss": 0.01},
        "inference": {"logits": 0.05},
        "end-to-end": {"labels": 0.1},
    },
}
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "opencv-python-headless", "torch", "libtpu",
             "jax-cuda12-plugin", "jax-cuda13-plugin")  # fmt: skip

# (variables, depth) -> PyTorch's state dict; `convert.keymap` has it, which no room may import
ToTensors = Callable[[Mapping[str, Any], int], dict[str, np.ndarray]]


@dataclass
class Bench:
    """Times rows.

    Attributes:
      to_tensors: makes PyTorch's state dict.
      only: cases to time.
      is_quick: fewer rounds, and no `torch.compile`.
      is_alone: without PyTorch.
      devices: those that train; inference takes all that JAX has.
      notes: what the user should know, a line each.
      unequal: networks of PyTorch's that were not equal to ours, and so were not timed.
    """

    to_tensors: ToTensors
    only: Sequence[str] = CASES
    is_quick: bool = False
    is_alone: bool = False
    devices: Sequence[jax.Device] = field(default_factory=jax.devices)
    notes: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    _ceilings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def results(self, rows: Sequence[Row], command: str) -> Iterator[dict[str, Any]]:
        """Yields all results so far after each case; fields are those of `--output`'s JSON."""
        device = jax.local_devices()[0]
        facts: dict[str, Any] = {
            "format": FORMAT,
            "command": command,
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "is_quick": self.is_quick,
            "machine": {
                "processor": environment.processor()["model"],
                "cores": environment.processor()["cores"],
                "threads": machine.threads(),
                "platform": device.platform,
                "device": device.device_kind,
                "devices": len(self.devices),
                "load": round(os.getloadavg()[0], 1),
            },
            "packages": environment.packages(_PACKAGES),
            "variables": environment.variables(),
            "commit": environment.commit(),
            "ceilings": self._ceilings,
            "notes": self.notes,
            "cases": [],
        }
        if not self.is_alone and self._obstacle:
            self.notes.append(f"no comparison with PyTorch: {self._obstacle}")
        for row in rows:
            step: float | None = None
            for case in CASES:
                if case not in self.only:
                    continue
                facts["cases"].append(self._case(case, row, step))
                if case == "train":
                    step = facts["cases"][-1].get("sides", {}).get(OURS, {}).get(
                        "images_per_second"
                    )  # fmt: skip
                facts["peak_bytes"] = peak_memory() or machine.peak_resident()
                yield facts

    def _case(self, case: str, row: Row, step: float | None) -> dict[str, Any]:
        """Returns a case's results, or its error where memory ran out."""
        config = row.config
        facts: dict[str, Any] = {
            "case": case,
            "recipe": config.name,
            "network": f"R-{config.model.depth}-D{config.model.output_stride}",
            "classes": config.model.num_classes,
            "dtype": config.model.dtype,
            "batch_size": config.train.batch_size,
            "size": list(config.data.crop_size),
            "rounds": _QUICK_ROUNDS if self.is_quick else _ROUNDS,
            "equal": None,
        }
        try:
            if case == "train":
                self._train(row, facts)
            elif case == "inference":
                self._inference(row, facts)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    place = Path(folder)
                    if case == "end-to-end":
                        self._end_to_end(row, facts, place)
                    else:
                        self._input(row, facts, place, step)
        except Exception as error:
            if not rivals.is_out_of_memory(error):
                raise
            facts["error"] = f"out of memory ({describe_cause(error)[:150]})"
            self.notes.append(f"{case} of {config.name}: {facts['error']}")
        gc.collect()
        rivals.free()
        return facts

    def _train(self, row: Row, facts: dict[str, Any]) -> None:
        config = row.config
        side = ours.Training(config, self.devices)
        with timing.first() as first:
            side.compile()
        sides: dict[str, timing.Run] = {OURS: side.run}
        own = {OURS: first.as_json() | {"settings": self._settings(config)}}
        variables = side.variables()
        rival: rivals.TorchTraining | None = None
        if self._compares(config):
            with self._rival("train", config):
                tensors = self.to_tensors(variables, config.model.depth)
                rival = rivals.TorchTraining(config, tensors, self._platform, side.batches)
                (logits, loss), (their_logits, their_loss) = side.outputs(), rival.outputs()
                equal = {
                    "logits": ours.difference(logits, their_logits),
                    "loss": ours.difference(loss, their_loss),
                }
                facts["equal"] = equal
                if self._is_equal("train", config, equal):
                    self._warm(rival, sides, own, config)
        times = self._alternate(sides, facts)
        own[OURS] |= side.memory()
        for name in times.keys() - {OURS}:
            assert rival is not None
            own[name] |= rival.memory_of(sides[name])
        macs = flops.count_macs(config)
        images = config.train.batch_size
        self._finish(facts, times, own, images, 2 * flops.TRAINING * sum(macs.values()))

    def _inference(self, row: Row, facts: dict[str, Any]) -> None:
        config, variables = row.config, draw_variables(row.config)
        side = ours.Inference(config, variables, row.size)
        with timing.first() as first:
            side.compile()
        facts |= {"batch_size": len(side.images), "size": list(row.size)}
        sides: dict[str, timing.Run] = {OURS: side.run}
        own = {OURS: first.as_json() | {"settings": self._settings(config)}}
        rival: rivals.TorchInference | None = None
        if self._compares(config):
            with self._rival("inference", config):
                tensors = self.to_tensors(variables, config.model.depth)
                rival = rivals.TorchInference(config, tensors, self._platform, side.images)
                equal = {"logits": ours.difference(side.run(1), rival.outputs())}
                facts["equal"] = equal
                if self._is_equal("inference", config, equal):
                    self._warm(rival, sides, own, config)
        times = self._alternate(sides, facts)
        own[OURS] |= side.memory()
        for name in times.keys() - {OURS}:
            assert rival is not None
            own[name] |= rival.memory(sides[name], rival.bytes_held())
        sized = replace(config, data=replace(config.data, crop_size=row.size))
        macs = flops.count_macs(sized)
        flop = 2 * sum(number for part, number in macs.items() if part != "auxiliary head")
        self._finish(facts, times, own, len(side.images), flop)

    def _end_to_end(self, row: Row, facts: dict[str, Any], folder: Path) -> None:
        config, variables = row.config, draw_variables(row.config)
        number = _IMAGES.get(self._platform, _IMAGES_ACCELERATOR)
        draw_pictures(folder, number, num_classes=config.model.num_classes)
        files = sorted((folder / "images" / "train").iterdir())
        facts |= {"batch_size": number, "size": []}
        segmenter = ours.make_segmenter(config, variables)
        with timing.first() as first:
            labels = ours.segment(segmenter, files)
        sides: dict[str, timing.Run] = {OURS: lambda count: ours.segment(segmenter, files)}
        own = {OURS: first.as_json() | {"settings": self._settings(config)}}
        if not rivals.is_plain(config):
            self.notes.append(f"{config.name}, end to end: PyTorch's loop has no such config.eval")
        elif self._compares(config):
            with self._rival("end-to-end", config):
                tensors = self.to_tensors(variables, config.model.depth)
                rival = rivals.TorchInference(config, tensors, self._platform)
                pairs = zip(labels, rival.segment(files), strict=True)
                differ = [float((mine != theirs).mean()) for mine, theirs in pairs]
                facts["equal"] = {"labels": sum(differ) / number}
                if self._is_equal("end-to-end", config, facts["equal"]):
                    sides[EAGER] = lambda count: rival.segment(files)
                    own[EAGER] = {"settings": f"{rival.settings}, one image at a time"}
        times = self._alternate(sides, facts, least=0)
        self._finish(facts, times, own, number, None)

    def _input(self, row: Row, facts: dict[str, Any], folder: Path, step: float | None) -> None:
        batch = row.config.train.batch_size
        if not ours.has_data(row.config):
            draw_pictures(folder, max(_READ, batch), num_classes=row.config.model.num_classes)
        dataset, config, facts["source"] = ours.training_data(row.config, folder)
        if config.data.transforms != row.config.data.transforms:
            self.notes.append(f"{row.config.name}, input: {facts['source']}")
        each, rounds = -(-_READ // batch), facts["rounds"]
        started = config.data.num_workers + 2  # batches that are read ahead
        batches = ours.read(config, dataset, started + rounds * each)
        for _ in range(started):
            next(batches)

        def run(count: int) -> None:
            for _ in range(count):
                next(batches)

        others = machine.Others()
        seconds = [timing.seconds_of(run, each) for _ in range(rounds)]
        facts["others"] = others.share()
        facts["need"] = step
        workers = config.data.num_workers
        how = f"{workers} processes" if workers else "threads"
        own = {OURS: {"settings": f"config.data.num_workers={workers}, {how}"}}
        self._finish(facts, {OURS: seconds}, own, batch, None)

    @cached_property
    def _platform(self) -> str:
        return jax.local_devices()[0].platform

    @cached_property
    def _obstacle(self) -> str:
        return rivals.obstacle(self._platform, len(self.devices))

    def _compares(self, config: Config) -> bool:
        """Tells whether PyTorch's network can be timed beside ours; notes why a recipe's cannot."""
        if self.is_alone or self._obstacle:
            return False
        missing = rivals.difference_of_recipe(config)
        note = f"{config.name}: no comparison with PyTorch, whose side has no {missing}"
        if missing and note not in self.notes:
            self.notes.append(note)
        return not missing

    @contextmanager
    def _rival(self, case: str, config: Config) -> Iterator[None]:
        """A block of PyTorch's; if memory runs out there, a note says so and ours goes on."""
        try:
            with clock(f"comparing {case} of {config.name} with PyTorch", is_told=True):
                yield
        except Exception as error:
            if isinstance(error, DeepLabError) or not rivals.is_out_of_memory(error):
                raise
            text = f"{case} of {config.name}, PyTorch: out of memory, not timed"
            self.notes.append(text)

    def _is_equal(self, case: str, config: Config, differences: Mapping[str, float]) -> bool:
        """Tells whether both computed the same; notes where they did not."""
        limits = _EQUAL[config.model.dtype][case]
        wrong = [f"{k} by {v:.2g}" for k, v in differences.items() if not v <= limits[k]]
        if wrong:
            text = f"{case} of {config.name}: PyTorch's differ, {', '.join(wrong)}; not timed"
            self.unequal.append(text)
            self.notes.append(text)
        return not wrong

    def _warm(
        self,
        rival: "rivals.TorchTraining | rivals.TorchInference",
        sides: dict[str, timing.Run],
        own: dict[str, dict[str, Any]],
        config: Config,
    ) -> None:
        """Runs PyTorch's sides for the first time, and adds those that work."""
        with timing.first() as first:
            rival.eager(1)
        rival.choose_format(rival.eager)
        sides[EAGER] = rival.eager
        own[EAGER] = {"first_seconds": first.seconds, "settings": rival.settings}
        if self.is_quick:
            return
        try:
            with timing.first() as first:
                rival.compiled(1)
            rival.compiled(1)
        except Exception as error:  # no C++ compiler, no Triton, a bug of theirs
            text = f"{config.name}: torch.compile fails ({describe_cause(error)[:150]})"
            self.notes.append(text)
            return
        sides[COMPILED] = rival.compiled
        own[COMPILED] = {"first_seconds": first.seconds, "settings": rival.settings}

    def _alternate(
        self, sides: Mapping[str, timing.Run], facts: dict[str, Any], least: float | None = None
    ) -> timing.Times:
        if least is None:
            least = _LEAST.get(self._platform, _LEAST_ACCELERATOR)
        what = f"timing {facts['case']} of {facts['recipe']}: {', '.join(sides)}"
        others = machine.Others()
        with clock(what, is_told=True):
            times = timing.alternate(sides, facts["rounds"], least)
        facts["others"] = share = others.share()
        if share is not None and share > _BUSY and self._platform == "cpu":
            self.notes.append(
                f"{facts['case']} of {facts['recipe']}: other programs took {100 * share:.0f} % of"
                " the cores meanwhile, so times are too long, PyTorch's most; end them and repeat"
            )
        return times

    def _settings(self, config: Config) -> str:
        words = [f"jax {jax.__version__}", config.model.dtype]
        if self._platform == "cpu":
            words.append(f"{machine.threads()} threads")
        return ", ".join(words)

    def _finish(
        self,
        facts: dict[str, Any],
        times: timing.Times,
        own: Mapping[str, Mapping[str, Any]],
        images: int,
        flop: int | None,
    ) -> None:
        """Adds sides and ratios to a case; `images` of a call, `flop` of an image."""
        facts["flop_per_image"] = flop
        facts["sides"] = {}
        for name, seconds in times.items():
            side = timing.summary(seconds, images) | dict(own[name])
            if flop is not None:
                devices = len(self.devices) if facts["case"] == "train" else 1
                dtype = facts["dtype"]
                if dtype not in self._ceilings:
                    self._ceilings[dtype] = machine.ceiling(dtype)
                most = devices * self._ceilings[dtype]["flops_per_second"]
                side["share_of_ceiling"] = flop * side["images_per_second"] / most
            facts["sides"][name] = side
        facts["ratios"] = {
            name: timing.ratio(times[OURS], seconds)
            for name, seconds in times.items()
            if name != OURS
        }
