"""The self-test as a command runs it: devices, checks, and the result that is kept."""

from collections.abc import Sequence

import jax

from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.distributed import hosts, selftest_record
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.selftest import checks, network
from deeplab_jax.utils import compile_cache


def run(overrides: Sequence[str]) -> tuple[str, list[checks.Result]]:
    """Runs all checks and prints a line for each; returns the devices in words, and what failed.

    Args:
      overrides: "--config.model.dtype=..." and "--config.mesh.spatial=...".

    Raises:
      ConfigError: the batch or the rows do not divide over the devices.
    """
    compile_cache.enable()
    config = apply_overrides(network.config(), overrides)
    devices = checks.choose_devices(config.mesh.spatial)
    if jax.process_count() > 1:
        devices = jax.devices()  # every host has a part
    mesh = mesh_lib.mesh_of(config, devices)
    where = f"{checks.where(mesh)}, {config.model.dtype}"
    print(f"{selftest_record.describe(config)}; {checks.where(mesh)}", flush=True)
    failed = []
    for result in checks.run(checks.Programs(config, mesh)):
        print(f"{'ok  ' if result.is_good else 'FAIL'} {result.name}: {result.text}", flush=True)
        failed += [] if result.is_good else [result]
    if hosts.is_primary():
        selftest_record.keep(config, [result.name for result in failed])
    return where, failed
