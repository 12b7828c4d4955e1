import pytest

from deeplab_jax.utils import machine


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.5, 0.5, "0.5 s"),
        (20, 80, "20 to 80 s"),
        (60, 180, "1 to 3 min"),
        (3600, 10800, "1 to 3 h"),
        (360_000, 360_000, "100 h"),
    ],
)
def test_ranges_of_seconds_in_words(low, high, text):
    assert machine.describe(low, high) == text


@pytest.mark.parametrize(
    ("file", "module", "platforms", "expected"),
    [
        ("/dev/nvidia[0-9]*", "jax_plugins.xla_cuda13", "", True),
        ("/dev/nvidia[0-9]*", "jax_plugins.xla_cuda13", "cpu", False),  # hidden
        ("/dev/nvidia[0-9]*", "libtpu", "", False),  # a GPU, and JAX for processors
        ("/dev/vfio/[0-9]*", "libtpu", "", True),
        ("/dev/vfio/[0-9]*", "jax_plugins.xla_cuda13", "", False),  # another device
    ],
)
def test_an_accelerator_needs_its_device_and_its_support(
    monkeypatch, file, module, platforms, expected
):
    monkeypatch.setattr(machine.glob, "glob", lambda pattern: [pattern] if pattern == file else [])
    monkeypatch.setattr(machine, "find_spec", lambda name: name if name == module else None)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert machine.has_accelerator() == expected
