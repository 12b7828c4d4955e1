"""What the hosts of a run say to each other; with one process, nothing.

Every host calls these functions in the same order. `distributed.start` has joined them before.
"""

import json
import platform
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Tells whether this process writes and prints for all."""
    return jax.process_index() == 0


def name() -> str:
    """Returns what this process is called in messages."""
    return f"{platform.node()} (process {jax.process_index()})"


def exchange(value: Any) -> list[Any]:
    """Returns every host's value, in order of processes.

    Args:
      value: what JSON can hold.
    """
    if jax.process_count() == 1:
        return [value]
    return [json.loads(data) for data in exchange_bytes(json.dumps(value).encode())]


def exchange_bytes(data: bytes) -> list[bytes]:
    """Returns every host's bytes, in order of processes."""
    if jax.process_count() == 1:
        return [data]
    # Bytes travel as they are; numbers would become 32 bits wide.
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.uint32))[:, 0]
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)  # few shapes to compile
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    gathered = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(gathered, sizes, strict=True)]
