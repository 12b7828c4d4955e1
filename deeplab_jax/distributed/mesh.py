"""Devices as one named mesh, and batches laid out over it."""

import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deeplab_jax.config import Config, nearest_multiple
from deeplab_jax.errors import ConfigError
from deeplab_jax.utils.trees import PyTree

DATA_AXIS = "data"  # splits the batch
SPATIAL_AXIS = "spatial"  # splits the rows of each image


def make_mesh(
    batch_size: int, devices: Sequence[jax.Device] | None = None, spatial: int = 1
) -> Mesh:
    """Returns the mesh ("data", "spatial") over all devices, or those given.

    Args:
      batch_size: over all devices.
      devices: all by default.
      spatial: devices that share an image.

    Raises:
      ConfigError: the devices do not divide by `spatial`, or the batch not over the groups of them.
    """
    devices = jax.devices() if devices is None else devices
    return _mesh((_check_shape(batch_size, len(devices), spatial), spatial), devices)


def mesh_of(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of a run over all devices, or those given.

    Raises:
      ConfigError: as `mesh_shape`; or `mesh.check_hardware` is set and the devices are no TPUs.
    """
    devices = jax.devices() if devices is None else devices
    if config.mesh.check_hardware and devices[0].platform != "tpu":
        what = f"TPUs alone are checked, and these devices are {devices[0].platform}"
        fix = "leave it out: --config.mesh.check_hardware=false"
        raise ConfigError("config.mesh.check_hardware", what, fix)
    return _mesh(mesh_shape(config, len(devices)), devices)


def _mesh(shape: tuple[int, int], devices: Sequence[jax.Device]) -> Mesh:
    kinds = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, (DATA_AXIS, SPATIAL_AXIS), axis_types=kinds, devices=devices)


def mesh_shape(config: Config, num_devices: int) -> tuple[int, int]:
    """Returns the sizes (data, spatial) of a run's mesh.

    Raises:
      ConfigError: the devices do not divide by `mesh.spatial`, or a part of the batch
        (`train.gradient_accumulation`) does not divide over the groups of devices.
    """
    train, spatial = config.train, config.mesh.spatial
    height, stride = config.data.crop_size[0], config.model.output_stride
    count = _check_shape(
        train.batch_size,
        num_devices,
        spatial,
        num_groups=train.loss_groups,
        gradient_accumulation=train.gradient_accumulation,
        num_rows=1 if height % stride else height // stride,
    )
    return count, spatial


def _check_shape(
    batch_size: int,
    num_devices: int,
    spatial: int,
    num_groups: int = 1,
    gradient_accumulation: int = 1,
    num_rows: int = 0,
) -> int:
    """Returns the number of groups of devices that share the batch; raises as `mesh_shape`.

    The fix names a batch that `num_groups` divides, or a split that divides `num_rows`.
    """
    count, remainder = divmod(num_devices, spatial)
    if remainder:
        raise ConfigError(
            "config.mesh.spatial",
            f"{num_devices} devices do not divide into groups of {spatial}",
            f"use one of {', '.join(map(str, _divisors(num_devices)))}",
        )
    if batch_size % (count * gradient_accumulation):
        nearest = nearest_multiple(batch_size, math.lcm(count * gradient_accumulation, num_groups))
        parts = f" in {gradient_accumulation} parts" if gradient_accumulation > 1 else ""
        shared = f" / config.mesh.spatial={spatial}" if spatial > 1 else ""
        splits = [
            more
            for more in _divisors(num_devices)
            if num_rows % more == 0
            and batch_size % (num_devices // more * gradient_accumulation) == 0
        ]
        other = f"config.mesh.spatial={splits[0]} (which keeps the result), " if splits else ""
        raise ConfigError(
            "config.train.batch_size",
            f"{batch_size} does not divide over {num_devices} devices{shared}{parts}",
            f"use {nearest}, {other}or fewer devices",
        )
    return count


def _divisors(number: int) -> list[int]:
    return [k for k in range(1, number + 1) if number % k == 0]


def platform(mesh: Mesh) -> str:
    """Returns "gpu", "tpu", "cpu", or "cpu_mesh" for several devices that are processors.

    Operations that are fast on one processor may gather whole arrays on several.
    """
    name = mesh.devices.flat[0].platform
    return "cpu_mesh" if name == "cpu" and mesh.size > 1 else name


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole: state and metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, has_rows: bool = False) -> NamedSharding:
    """Returns the sharding of a batch (B, ...); with `has_rows`, (B, H, ...) is split by H too."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS, *[SPATIAL_AXIS] * has_rows))


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Returns the rows of the global batch that this host's devices hold, in order."""
    layout = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = {row for index in layout.values() if index for row in range(batch_size)[index[0]]}
    return sorted(rows)


def put_batch(batch: PyTree, mesh: Mesh, batch_size: int) -> PyTree:
    """Returns a batch's arrays on the devices.

    Args:
      batch: pytree of arrays (R, ...) with this host's rows, those of `local_rows`; pictures have
        three or four dimensions.
      mesh: the devices.
      batch_size: rows of the global batch.
    """
    position = {row: k for k, row in enumerate(local_rows(mesh, batch_size))}

    def put(array: np.ndarray) -> jax.Array:
        sharding = batch_sharding(mesh, has_rows=array.ndim > 2)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            rows = range(batch_size)[index[0]]
            own = slice(position[rows[0]], position[rows[-1]] + 1)  # rows of a device are adjacent
            return array[(own, *index[1:])]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)

    return jax.tree.map(put, batch)


def to_devices(batches: Iterator, mesh: Mesh, batch_size: int, depth: int = 2) -> Generator:
    """Yields (batch, the result of `put_batch`), copying up to `depth` batches ahead."""
    queue: deque = deque()
    for batch in batches:
        queue.append((batch, put_batch(batch, mesh, batch_size)))
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue
