"""Lays out the facts of a run as lines of text."""

from collections.abc import Iterator, Sequence

import numpy as np

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.dry_run import cycles, flops
from deeplab_jax.dry_run.compiled import CompiledStep
from deeplab_jax.dry_run.facts import RunFacts
from deeplab_jax.dry_run.hardware import GIB
from deeplab_jax.training.optimizer import describe_schedule
from deeplab_jax.utils.machine import describe

_MIB = 2**20
_MAX_CLASSES = 6  # named of the first image
_HEIGHT = 5  # lines of a plot
_COLLECTIVES = {
    "all-reduce": "sums over all devices: gradients and norms' statistics",
    "collective-permute": "rows passed to the neighbouring device",
    "all-gather": "whole arrays brought together",
    "all-to-all": "arrays laid out anew",
    "reduce-scatter": "sums of which each device keeps a part",
}


def render(facts: RunFacts) -> list[str]:
    """Returns the lines of the report, about 45; 15 more with the TPU's compiler."""
    lines = [f"{facts.config.name} on {facts.hardware.name}: a dry run, nothing is written", ""]
    for section in (_network, _memory, _cycles, _layout, _schedule, _disk, _first_image, _remarks):
        lines += section(facts)
    return lines


def _row(name: str, text: str) -> str:
    return f"{name:22}{text}"


def _network(facts: RunFacts) -> Iterator[str]:
    height, width = facts.config.data.crop_size
    yield _row("network", f"{'parameters, M':>14}{'GMAC forward':>14}   (of one {height}x{width})")
    numbers, macs = sum(facts.parameters.values()), sum(facts.macs.values())
    parts = {part: (facts.parameters[part], macs) for part, macs in facts.macs.items()}
    for part, (number, mac) in (parts | {"all": (numbers, macs)}).items():
        yield f"  {part:20}{number / 1e6:14.2f}{mac / 1e9:14.2f}"
    frozen = ", ".join(facts.config.train.freeze)
    text = f"   (frozen: {frozen})" if frozen else ""
    yield f"  {'that learn':20}{facts.learning / 1e6:14.2f}{text}"
    batch, remat = facts.config.train.batch_size, facts.config.model.remat
    tflop = 2 * flops.step_macs(facts.config, facts.macs) / 1e12
    again = f", layers {', '.join(map(str, sorted(remat)))} once more" if remat else ""
    again += ", frozen parts less" if frozen else ""
    text = f"{tflop:.1f} TFLOP, {tflop / facts.hardware.num_devices:.2f} a device (ours, counted:"
    yield _row("a training step", f"{text} 2 x {flops.TRAINING} x GMAC x {batch} images{again})")
    yield ""


def _memory(facts: RunFacts) -> Iterator[str]:
    memory, step, state = facts.memory, facts.memory.step, facts.state
    first, *more = memory.source.splitlines()
    yield _row("memory of a device", first)
    yield from (_row("", line) for line in more)
    moments = "momentum" if facts.config.train.optimizer == "sgd" else "moments"
    names = {"params": "parameters", "opt_state": moments, "batch_stats": "norms' statistics",
             "ema": "average"}  # fmt: skip
    kept = " + ".join(f"{names[k]} {state[k] / _MIB:.1f}" for k in names if k in state)
    yield _row("  state", f"{sum(state.values()) / _MIB:.0f} MiB: {kept}")
    yield _row("  feature maps etc.", f"{step.temporaries / _MIB:.0f} MiB while a step runs")
    needed = f"{step.needed / GIB:.2f} GiB, the batch included"
    if memory.usable is None or memory.total is None:
        yield _row("  in all", f"{needed}; the device's memory is not known")
    else:
        verdict = "fits" if memory.fits else "DOES NOT FIT"
        share = "a device's share" if memory.usable < memory.total / 2 else "usable"
        yield _row("  in all", f"{needed}: {verdict} {memory.usable / GIB:.1f} GiB ({share} of "
                   f"{memory.total / GIB:.0f} GiB; the rest is margin)")  # fmt: skip
        if memory.is_estimate and memory.fits and memory.usable < 1.5 * step.needed:
            yield _row("", "that is closer than the estimate is exact: it may not fit")
    about = "about " if memory.is_estimate else ""
    for kind, (count, size) in sorted(step.collectives.items()):
        text = f"{about}{count} a step, {size / _MIB:.1f} MiB"
        yield _row(f"  {kind}", f"{text} ({_COLLECTIVES.get(kind, 'between devices')})")
    if not step.collectives:
        yield _row("  communication", "none")
    yield ""


def _cycles(facts: RunFacts) -> Iterator[str]:
    step = facts.memory.step
    if not isinstance(step, CompiledStep) or not step.cycles:
        return
    text = f"{step.cycles / 1e6:.1f} million on a chip, the compiler's estimates, not measurements"
    yield _row("cycles of a step", text)
    yield from (f"  {line}" for line in cycles.table(step.cycles_by_kind))
    if step.flops and step.bytes_accessed:
        dtype = facts.config.model.dtype
        speeds = cycles.roofline(facts.hardware, dtype, step.flops, step.bytes_accessed)
        if speeds:
            yield _row("  roofline", speeds)
    yield ""


def _layout(facts: RunFacts) -> Iterator[str]:
    (data, spatial), train = facts.mesh, facts.config.train
    height, number = facts.config.data.crop_size[0], train.gradient_accumulation
    rows = "" if spatial == 1 else f", {height // spatial} of their {height} rows"
    parts = "" if number == 1 else f", in {number} parts one after the other"
    yield _row("batch", f"{train.batch_size} images over {facts.hardware.num_devices} device(s), "
               f"mesh {data} (batch) x {spatial} (rows): each holds {train.batch_size // data}"
               f"{rows}{parts}")  # fmt: skip


def _schedule(facts: RunFacts) -> Iterator[str]:
    inputs, train = facts.inputs, facts.config.train
    plan = inputs.plan
    if inputs.num_samples is not None:
        known = "" if inputs.dataset else " (as published; the data set is not here)"
        yield _row("training images", f"{inputs.num_samples}{known}")
    if plan is not None:
        epochs = plan.total / plan.steps_per_epoch
        yield _row("steps", f"{plan.total} = {epochs:.4g} epochs of {plan.steps_per_epoch}; saved "
                   f"every {plan.save_every}, evaluated every {plan.eval_every}")  # fmt: skip
    else:
        yield _row("steps", f"{train.steps or 'not known: no data'}; an epoch's are not known")
    if inputs.start:
        yield _row("continues", f"at step {inputs.start}")
    if step := facts.step_time:
        yield _row("time of a step", f"{describe(step.low, step.high)} ({step.basis})")
        if (left := (plan.total if plan else train.steps) - inputs.start) > 0:
            whole = describe(left * step.low, left * step.high)
            yield _row("time of the run", f"{whole} for {left} steps, without evaluations")
    if facts.rates:
        marks = {int(at): rate for at, rate in facts.rates.items() if at % 25 == 0}
        rates = ", ".join(f"{rate:.2g}" for rate in marks.values())
        places = ", ".join(map(str, marks))
        yield _row("learning rate", f"{rates} at {places} % ({describe_schedule(train)})")
        yield from plot(list(facts.rates.values()))


def plot(values: Sequence[float]) -> Iterator[str]:
    """Yields the lines of a plot of positive values, from 0 to the largest, one a column."""
    largest = max(values)
    heights = [round((_HEIGHT - 1) * value / largest) for value in values]
    for height in reversed(range(_HEIGHT)):
        label = {_HEIGHT - 1: f"{largest:.2g}", 0: "0"}.get(height, "")
        marks = "".join("*" if own == height else " " for own in heights)
        yield f"{label:>20} |{marks}".rstrip()


def _disk(facts: RunFacts) -> Iterator[str]:
    free, verdict, keep = "in a bucket", "", facts.config.checkpoint.keep
    if facts.disk_free is not None:
        free = f"{facts.disk_free / 1e9:.1f} GB free"
        verdict = "" if facts.disk_needed <= facts.disk_free else ": TOO LITTLE"
    yield _row("disk", f"{facts.disk_needed / 1e9:.2f} GB for {keep + 2} checkpoints (the latest "
               f"{keep}, best, the one being written) and the log; {free}"
               f"{verdict}")  # fmt: skip
    yield _row("work directory", str(facts.workdir))
    yield ""


def _first_image(facts: RunFacts) -> Iterator[str]:
    batch, dataset = facts.inputs.first, facts.inputs.dataset
    if batch is None or dataset is None:
        yield _row("first batch", "not known: no data" if dataset is None else "not readable")
        return
    yield f"first image of the first batch, augmented: {dataset.ids[batch.index[0]]}"
    yield class_shares(batch.label[0], dataset.class_names)


def class_shares(label: np.ndarray, class_names: Sequence[str]) -> str:
    """Returns the most frequent classes of a label, uint8 (H, W), and their shares."""
    counts = np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)
    largest = [k for k in np.argsort(-counts, kind="stable")[:_MAX_CLASSES] if counts[k]]
    names = ["ignored" if k == IGNORE_INDEX else class_names[k] for k in largest]
    shares = 100 * counts[largest] / label.size
    return ", ".join(f"{name} {share:.0f} %" for name, share in zip(names, shares, strict=True))


def _remarks(facts: RunFacts) -> Iterator[str]:
    yield from (f"warning: {warning}" for warning in facts.inputs.warnings)
    yield from (f"also: {error}" for error in facts.errors[1:])  # the command ends with the first
