"""The TPU compiler's estimated cycles of a step by kind of operation, beside the roofline.

An operation counts by its name, which tells the module it comes from; a fusion by its root's.
"""

import re
from collections.abc import Iterator, Mapping

from deeplab_jax.dry_run.hardware import Hardware, memory_speed, peak_speed

# The first pattern that the name of an operation contains.
_KINDS = {
    "loss": r"[(/]loss[)/]",
    "norms": r"/norm/",
    "casts of weights": r"/conv/convert_element_type|classifier/convert_element_type",
    "classifiers": r"classifier/",
    "depthwise": r"/depthwise/conv/",
    "convolutions and 1x1": r"/conv/",
    "ReLU and max pool": r"relu|/gt$|max_pool",
    "model, other": r"DeepLabV3Plus",
    "input, optimiser": r".",
    "copies without a name": r"",
}


def kind_of(name: str) -> tuple[str, bool]:
    """Returns the kind of the operation with a name in the compiled step, and if it is backward."""
    kind = next(kind for kind, pattern in _KINDS.items() if re.search(pattern, name))
    return kind, "transpose(" in name


def table(kinds: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """Yields the lines of a table; `kinds` is {kind: cycles (forward, backward)}, not empty."""
    total = sum(map(sum, kinds.values()))
    yield f"{'million cycles':24}{'forward':>10}{'backward':>10}{'share':>8}"
    rows = sorted(kinds.items(), key=lambda row: -sum(row[1]))
    both = sum(row[0] for row in kinds.values()), sum(row[1] for row in kinds.values())
    for kind, (forward, backward) in [*rows, ("all", both)]:
        share = 100 * (forward + backward) / (total or 1)
        yield f"  {kind:22}{forward / 1e6:10.2f}{backward / 1e6:10.2f}{share:6.0f} %"


def roofline(hardware: Hardware, dtype: str, flops: float, size: float) -> str | None:
    """Returns what arithmetic and memory alone would take; None where the speeds are unknown.

    Args:
      hardware: the devices.
      dtype: type of the activations.
      flops: operations of one device.
      size: bytes that one device reads and writes.
    """
    peak, speed = peak_speed(hardware, dtype), memory_speed(hardware)
    if peak is None or speed is None:
        return None
    arithmetic, memory = f"{1e3 * flops / peak:.1f} ms", f"{1e3 * size / speed:.1f} ms"
    return (
        f"{flops / 1e9:.0f} GFLOP at {peak / 1e12:.0f} TFLOP/s {arithmetic}, "
        f"{size / 1e9:.1f} GB at {speed / 1e9:.0f} GB/s {memory}"
    )
