"""Devices as one named mesh, and batches laid out over it."""

import math
from collections import deque
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deeplab_jax.errors import ConfigError

DATA_AXIS = "data"


def make_mesh(
    batch_size: int, devices: Sequence[jax.Device] | None = None, num_groups: int = 1
) -> Mesh:
    """Returns a mesh over all devices (or those given) whose axis splits the batch.

    Args:
      batch_size: over all devices.
      devices: all by default.
      num_groups: what else the batch must divide into, for the advice when it does not.

    Raises:
      ConfigError: `batch_size` does not divide over the devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if batch_size % count:
        unit = math.lcm(count, num_groups)
        nearest = max(unit, round(batch_size / unit) * unit)
        raise ConfigError(
            "config.train.batch_size",
            f"{batch_size} does not divide over {count} devices",
            f"use {nearest}, or fewer devices",
        )
    return jax.make_mesh((count,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def platform(mesh: Mesh) -> str:
    """Returns "gpu", "tpu" or "cpu"; "cpu_mesh" where processors stand in for several devices.

    What is fast on one processor may gather whole arrays on several.
    """
    name = mesh.devices.flat[0].platform
    return "cpu_mesh" if name == "cpu" and mesh.size > 1 else name


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the layout of what every device holds whole: state and metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the layout of a batch: rows in order over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Returns the rows of the global batch that this host's devices hold, in order."""
    layout = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = {row for index in layout.values() if index for row in range(batch_size)[index[0]]}
    return sorted(rows)


def to_devices(batches: Iterator, mesh: Mesh, depth: int = 2) -> Iterator:
    """Yields (batch, batch on the devices), copying up to `depth` batches ahead.

    Args:
      batches: tuples of arrays holding this host's rows.
      mesh: where they go.
      depth: batches whose copy is under way while the current one computes.
    """
    sharding = batch_sharding(mesh)
    queue: deque = deque()

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, array)

    for batch in batches:
        queue.append((batch, jax.tree.map(put, batch)))
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue
