"""The facts of a run as lines of text."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deeplab_jax.dry_run import charts, flops

if TYPE_CHECKING:
    from deeplab_jax.dry_run.gather import Facts

_MIB, _GIB = 2**20, 2**30
_WIDTH = 36  # characters of a picture
_MEANINGS = {
    "all-reduce": "sums over all devices: gradients and norms' statistics",
    "collective-permute": "rows passed to the neighbouring device",
    "all-gather": "whole arrays brought together",
    "all-to-all": "arrays laid out anew",
    "reduce-scatter": "sums of which each device keeps a part",
}


def render(facts: "Facts") -> list[str]:
    """Returns the lines of a report, about 60 of them."""
    lines = [f"{facts.config.name} on {facts.target}: a dry run, nothing is written", ""]
    for section in (_network, _memory, _layout, _schedule, _disk, _picture, _remarks):
        lines += [*section(facts)]
    return lines


def _row(name: str, text: str) -> str:
    return f"{name:22}{text}"


def _network(facts: "Facts") -> Iterator[str]:
    height, width = facts.config.data.crop_size
    yield _row("network", f"{'parameters, M':>14}{'GMAC forward':>14}   (of one {height}x{width})")
    for part, macs in facts.macs.items():
        yield f"  {part:20}{facts.parameters[part] / 1e6:14.2f}{macs / 1e9:14.2f}"
    numbers, macs = sum(facts.parameters.values()), sum(facts.macs.values())
    yield f"  {'all':20}{numbers / 1e6:14.2f}{macs / 1e9:14.2f}"
    batch, remat = facts.config.train.batch_size, facts.config.model.remat
    step = 2 * flops.step_macs(facts.config, facts.macs)
    text = (
        f"{step / 1e12:.1f} TFLOP, {step / facts.num_devices / 1e12:.2f} a device (ours, counted:"
    )
    again = f", layers {', '.join(map(str, sorted(remat)))} once more" if remat else ""
    yield _row("a training step", f"{text} 2 x {flops.TRAINING} x GMAC x {batch} images{again})")
    yield ""


def _memory(facts: "Facts") -> Iterator[str]:
    memory, state = facts.memory, facts.state
    first, *more = memory.source.splitlines()
    yield _row("memory of a device", first)
    yield from (_row("", line) for line in more)
    names = {"params": "parameters", "opt_state": "momentum", "batch_stats": "norms' statistics"}
    kept = " + ".join(f"{names[k]} {state[k] / _MIB:.1f}" for k in names)
    yield _row("  state", f"{sum(state.values()) / _MIB:.0f} MiB: {kept}")
    yield _row("  feature maps etc.", f"{memory.temporaries / _MIB:.0f} MiB while a step runs")
    needed = f"{memory.needed / _GIB:.2f} GiB, the batch included"
    if memory.usable is None or memory.total is None:
        yield _row("  in all", f"{needed}; the device's memory is not known")
    else:
        verdict = "fits" if memory.fits else "DOES NOT FIT"
        share = "a device's share" if memory.usable < memory.total / 2 else "usable"
        yield _row("  in all", f"{needed}: {verdict} {memory.usable / _GIB:.1f} GiB ({share} of "
                   f"{memory.total / _GIB:.0f} GiB; the rest is margin)")  # fmt: skip
        close = memory.is_estimate and memory.usable < 1.5 * memory.needed and memory.fits
        if close:
            yield _row("", "that is closer than the estimate is exact: it may not fit")
    about = "about " if memory.is_estimate else ""
    for kind, (count, size) in sorted(memory.collectives.items()):
        text = f"{about}{count} a step, {size / _MIB:.1f} MiB"
        yield _row(f"  {kind}", f"{text} ({_MEANINGS.get(kind, 'between devices')})")
    if not memory.collectives:
        yield _row("  communication", "none")
    yield ""


def _layout(facts: "Facts") -> Iterator[str]:
    (data, spatial), train = facts.mesh, facts.config.train
    images = train.batch_size // data
    height = facts.config.data.crop_size[0]
    rows = "" if spatial == 1 else f", {height // spatial} of their {height} rows"
    parts = (
        ""
        if train.gradient_accumulation == 1
        else f", in {train.gradient_accumulation} parts one after the other"
    )
    yield _row("batch", f"{train.batch_size} images over {facts.num_devices} devices, mesh "
               f"{data} (batch) x {spatial} (rows): each holds {images}{rows}{parts}")  # fmt: skip


def _schedule(facts: "Facts") -> Iterator[str]:
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
    if facts.rates:
        last = len(facts.rates) - 1
        marks = (0, last // 4, last // 2, 3 * last // 4, last)
        shown = ", ".join(f"{facts.rates[k]:.2g}" for k in marks)
        yield _row("learning rate", charts.curve(facts.rates))
        yield _row("", f"{shown} at 0, 25, 50, 75, 100 % (poly {train.poly_power})")


def _disk(facts: "Facts") -> Iterator[str]:
    verdict = "" if facts.disk_needed <= facts.disk_free else ": TOO LITTLE"
    free = f"{facts.disk_free / 1e9:.1f} GB free{verdict}"
    yield _row("disk", f"{facts.disk_needed / 1e9:.2f} GB for 3 checkpoints (latest, best, the one "
               f"being written) and the log; {free}")  # fmt: skip
    yield _row("work directory", str(facts.workdir))
    yield ""


def _picture(facts: "Facts") -> Iterator[str]:
    batch, dataset = facts.inputs.first, facts.inputs.dataset
    if batch is None or dataset is None:
        yield _row("first batch", "not known: no data" if dataset is None else "not readable")
        return
    yield f"first image of the first batch, augmented: {dataset.ids[batch.index[0]]}"
    yield from charts.sample(
        batch.image[0],
        batch.label[0],
        dataset.palette,
        dataset.class_names,
        _WIDTH,
        charts.has_colour(),
    )


def _remarks(facts: "Facts") -> Iterator[str]:
    for warning in facts.inputs.warnings:
        yield f"warning: {warning}"
    for error in facts.errors[1:]:  # the first is the command's own
        yield f"also: {error}"
