"""Devices that are not there, and training steps compiled for them."""

import pytest

from deeplab_jax.dry_run import hardware
from deeplab_jax.dry_run.compiled import compile_step, lower_step


@pytest.fixture(scope="session")
def absent_devices():
    """Returns absent_devices(name) -> (devices, compiler options); skips without the compiler."""

    def find(name):
        chosen = hardware.parse_hardware(name)
        if not hardware.has_compiler(chosen):
            pytest.skip(f"needs: {hardware.install_command(chosen)}")
        hardware.set_compiler_environment(chosen)
        return hardware.compile_devices(chosen), hardware.compiler_options(chosen)

    return find


@pytest.fixture(scope="session")
def compile_run(absent_devices):
    """Returns compile_run(config, name) -> the compiled step's figures on hardware of that name."""

    def compile_run(config, name):
        devices, options = absent_devices(name)
        return compile_step(lower_step(config, devices), options)[0]

    return compile_run
