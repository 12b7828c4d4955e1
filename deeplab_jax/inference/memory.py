"""Check of the memory that an image needs on a device."""

from pathlib import Path

import jax
from jax.stages import Compiled

from deeplab_jax.errors import ResourceError
from deeplab_jax.inference.buckets import Size

WINDOWS = "--config.eval.mode=slide --config.eval.crop_size=512,512 --config.eval.stride=341,341"


class TooLargeError(ResourceError):
    """An image that needs more memory than there is."""


def check_memory(program: Compiled, free: int | None, size: Size, is_slide: bool) -> None:
    """Refuses an image that would exhaust memory, for which the system would end the process.

    `free` is in bytes; None, where unknown, refuses nothing. The image's `size`, (height, width),
    and `is_slide` are for the message.

    Raises:
      TooLargeError: the program needs more memory than is free.
    """
    analysis = program.memory_analysis()
    needed = analysis.temp_size_in_bytes + analysis.output_size_in_bytes if analysis else 0
    if free is not None and needed > free:
        how, fix = "as a whole", "use windows"
        if is_slide:
            how, fix = "in these windows", "use smaller windows"
        raise TooLargeError(
            f"image of {size[0]} x {size[1]} pixels",
            f"needs {needed / 2**30:.1f} GiB {how}, and {free / 2**30:.1f} GiB are free",
            f"{fix}: {WINDOWS}",
        )


def free_memory(device: jax.Device) -> int | None:
    """Returns a device's free memory in bytes; None where unknown."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else limit - stats.get("bytes_in_use", 0)
    return host_memory()


def host_memory() -> int | None:
    """Returns this machine's free memory in bytes; None where unknown."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None  # not Linux
