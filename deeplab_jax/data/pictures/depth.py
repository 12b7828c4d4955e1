"""Scaling of 16-bit photographs to the 8 bits that the network sees."""

import functools
from collections.abc import Sequence

import numpy as np

from deeplab_jax.errors import DataError


class NoRangeError(DataError):
    """A picture of 16 bits where `config.data.value_range` is missing: no fault of the picture."""


def to_8_bits(name: str, pixels: np.ndarray, value_range: Sequence[int]) -> np.ndarray:
    """Returns a photograph as uint8 (H, W, 3) RGB.

    Value v of 16 bits becomes floor((v - low) * 256 / (high + 1 - low)), clipped to 0..255, so that
    (0, 65535) keeps the upper 8 bits.

    Args:
      name: the picture's, for messages.
      pixels: uint8 (H, W, 3), which is returned as it is; or uint16 (H, W, 3) or (H, W) grey.
      value_range: (low, high) of `config.data.value_range`, or empty.

    Raises:
      NoRangeError: 16 bits, and no range is given; names the one of this picture.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if not value_range:
        high = int(pixels.max())
        fix = f"set --config.data.value_range=0,{usable_high(high)} (deeplab doctor finds that of "
        fix += "all pictures), or 0,65535 for the upper 8 bits"
        raise NoRangeError(name, f"has 16 bits a channel, values up to {high}", fix)
    scaled = table(*value_range)[pixels]
    return np.stack([scaled] * 3, -1) if scaled.ndim == 2 else scaled


@functools.lru_cache(maxsize=4)
def table(low: int, high: int) -> np.ndarray:
    """Returns uint8 (65536,): the 8-bit value of each 16-bit value; see `to_8_bits`."""
    values = np.arange(65536, dtype=np.int64)
    return np.clip((values - low) * 256 // (high + 1 - low), 0, 255).astype(np.uint8)


def usable_high(largest: int) -> int:
    """Returns the upper end of a range for a largest value: 8-bit values in 16 bits stay equal."""
    return max(largest, 255)
