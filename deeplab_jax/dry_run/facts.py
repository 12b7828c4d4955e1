"""Facts of a run before it begins, and the errors that follow from them."""

from dataclasses import dataclass
from pathlib import Path

from deeplab_jax.config import Config
from deeplab_jax.data import Dataset, TrainBatch
from deeplab_jax.dry_run.compiled import CompiledStep
from deeplab_jax.dry_run.estimate import Estimate
from deeplab_jax.dry_run.hardware import GIB, Hardware
from deeplab_jax.dry_run.hours import StepTime
from deeplab_jax.errors import DeepLabError, ResourceError
from deeplab_jax.training.plan import Plan


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device during a training step."""

    step: CompiledStep | Estimate  # figures of the compiler, or an estimate
    usable: int | None  # bytes that the step may use; None where unknown
    total: int | None  # bytes of the device; None where unknown
    source: str  # where the figures come from; one or two lines

    @property
    def is_estimate(self) -> bool:
        """Whether the figures are estimated, not the compiler's."""
        return isinstance(self.step, Estimate)

    @property
    def fits(self) -> bool:
        """Tells whether a device holds the step; true where its memory is unknown."""
        return self.usable is None or self.step.needed <= self.usable


@dataclass(frozen=True)
class Inputs:
    """Data, start and schedule of a run."""

    dataset: Dataset | None  # training data; None where they are not here
    num_samples: int | None  # training images; None where unknown
    plan: Plan | None  # steps; None where unknown
    first: TrainBatch | None  # all rows of the first batch; None where they cannot be read
    start: int  # step that the run continues at; 0 for a new run
    warnings: tuple[str, ...]  # legal settings that are probably not meant
    errors: tuple[DeepLabError, ...]  # would end the run; in the order of the run's own checks


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run before it begins."""

    config: Config
    hardware: Hardware  # all devices of the run
    mesh: tuple[int, int]  # (data, spatial): groups sharing the batch, devices sharing an image
    parameters: dict[str, int]  # numbers by part of the network
    learning: int  # number of parameters that are not frozen
    macs: dict[str, int]  # multiply-adds of one image, forward, by part
    state: dict[str, int]  # bytes by item
    memory: DeviceMemory  # what one device needs and has
    step_time: StepTime | None  # None where it cannot even be guessed
    inputs: Inputs
    rates: dict[float, float]  # {percent of the steps: learning rate}; empty without known steps
    disk_needed: int  # bytes
    disk_free: int | None  # bytes on the disk of the work directory; None of a bucket
    workdir: Path  # work directory; need not exist

    @property
    def errors(self) -> tuple[DeepLabError, ...]:
        """Errors that would end the run, too little memory or disk first."""
        found: list[DeepLabError] = []
        memory = self.memory
        if memory.usable is not None and not memory.fits:
            needed, usable = memory.step.needed / GIB, memory.usable / GIB
            what = f"a device needs {needed:.1f} GiB of the {usable:.1f} GiB that can be used"
            found.append(ResourceError(self.hardware.name, what, memory_advice(self.config)))
        if self.disk_free is not None and self.disk_needed > self.disk_free:
            needed, free = self.disk_needed / 1e9, self.disk_free / 1e9
            what = f"needs {needed:.2f} GB, and {free:.2f} GB are free"
            fix = "make room, or choose another place"
            found.append(ResourceError(str(self.workdir), what, fix))
        return (*found, *self.inputs.errors)


def memory_advice(config: Config) -> str:
    """Returns the settings that lower a step's memory and are not in use yet."""
    model, parts = config.model, config.train.gradient_accumulation
    ways = []
    if model.dtype != "bfloat16":
        ways.append("config.model.dtype=bfloat16")
    if not model.remat:
        ways.append("config.model.remat=1,2,3,4")
    if config.train.batch_size % (2 * parts) == 0:
        ways.append(f"config.train.gradient_accumulation={2 * parts} (batch norm then sees parts)")
    ways.append(f"more devices, or config.mesh.spatial={2 * config.mesh.spatial}")
    return "try " + ", ".join(ways)
