import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from deeplab_jax.dry_run import hardware
from deeplab_jax.dry_run.hardware import Hardware, parse_hardware
from deeplab_jax.errors import ConfigError, ResourceError

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "kind", "num_devices", "memory"),
    [
        ("cpu", "cpu", 1, None),
        ("cpu:8", "cpu", 8, None),
        ("v5e:4x8", "tpu", 32, 16 * GIB),
        ("v6e:1x1", "tpu", 1, 32 * GIB),
        ("v4:2x2x1", "tpu", 4, 32 * GIB),
        ("v5p:4x4x12", "tpu", 192, 95 * GIB),
        ("h200", "gpu", 1, 151_397_597_184),
        ("h100:8", "gpu", 8, 84_942_979_072),
        ("h200:32", "gpu", 32, 151_397_597_184),
    ],
)
def test_hardware_is_named_as_people_name_them(text, kind, num_devices, memory):
    assert parse_hardware(text) == Hardware(text, kind, num_devices, memory)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("", "one of cpu, v4, v5e, v5p, v6e, h200, h100"),
        ("a100", "one of cpu, v4, v5e, v5p, v6e, h200, h100"),
        ("V5E:4x4", "one of cpu, v4, v5e, v5p, v6e, h200, h100"),
        ("cpu:0", "1 to 256 virtual devices"),
        ("cpu:1e3", "1 to 256 virtual devices"),
        ("cpu:257", "1 to 256 virtual devices"),
        ("v5e", "a slice of 1x1, 2x2"),
        ("v5e:8x4", "a slice of 1x1, 2x2"),
        ("v6e:4x4x4", "a slice of 1x1, 2x2"),
        ("v5p:4x4", "a slice XxYxZ"),
        ("v4:4x4x6", "a slice XxYxZ"),
        ("v4:0x4x4", "a slice XxYxZ"),
        ("h200:9", "1 to 8 GPUs, or a multiple of 8"),
        ("h100:-1", "1 to 8 GPUs, or a multiple of 8"),
    ],
)
def test_unknown_hardware_is_one_line_that_says_what_is_known(text, accepted):
    with pytest.raises(ConfigError) as error:
        parse_hardware(text)
    message = str(error.value)
    assert message.startswith(f"--hardware: {text!r} is no known hardware: it must be {accepted}")
    assert "use one such as" in message
    assert "\n" not in message


def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(hardware, "find_spec", lambda name: None)
    monkeypatch.setattr(hardware.metadata, "version", lambda name: "1.2.3")
    commands = {
        "v5e:2x2": 'pip install "jax[tpu]==1.2.3"',
        "h200": "pip install --no-deps jax-cuda13-plugin==1.2.3 jax-cuda13-pjrt==1.2.3",
    }
    for text, command in commands.items():
        chosen = parse_hardware(text)
        assert not hardware.has_compiler(chosen)
        with pytest.raises(ResourceError, match="compiler is missing") as error:
            hardware.compile_devices(chosen)
        assert str(error.value).endswith(f"install it: {command}")
    assert hardware.has_compiler(parse_hardware("cpu:8"))


def test_processors_are_the_virtual_devices_that_jax_started_with():
    devices = jax.devices()  # starts JAX
    assert list(hardware.compile_devices(parse_hardware("cpu:2"))) == devices[:2]
    with pytest.raises(ResourceError, match="JAX has started with 4 devices") as error:
        hardware.compile_devices(parse_hardware("cpu:8"))
    assert error.value.fix == "set XLA_FLAGS=--xla_force_host_platform_device_count=8"


def test_as_many_processors_as_asked_for_where_jax_has_not_started():
    code = """
from deeplab_jax.dry_run import hardware
processors = hardware.parse_hardware("cpu:3")
hardware.set_compiler_environment(processors)
print(len(hardware.compile_devices(processors)))
"""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", code]
    got = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert got.stdout == "3\n"


@pytest.mark.parametrize(("text", "kind"), [("v4:2x2x1", "TPU v4"), ("h200:2", "NVIDIA H200")])
def test_devices_that_are_not_there_can_be_compiled_for(text, kind, absent_devices):
    devices, options = absent_devices(text)
    assert len(devices) == parse_hardware(text).num_devices
    assert {device.device_kind for device in devices} == {kind}
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    lowered = jax.jit(jnp.sin, in_shardings=sharding).lower(x)
    compiled = lowered.compile(compiler_options=options)
    assert compiled.memory_analysis().argument_size_in_bytes == 8 * 128 * 4
