import os
import subprocess
import sys

import numpy as np
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


def test_speed_is_that_of_the_least_disturbed_product_and_soon_there(monkeypatch):
    clock = 0.0
    sides = []

    def dot(matrix, other):
        nonlocal clock
        sides.append(len(matrix))
        clock += 0.001 if sides.count(384) == 3 else 0.3  # one small product is undisturbed

    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock)
    monkeypatch.setattr(np, "dot", dot)
    assert machine.product_speed() == pytest.approx(2 * 384**3 / 0.001)
    assert set(sides) == {768, 384}
    assert clock < 4


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


FAULTS = """
import resource, threading
from deeplab_jax.utils import machine

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

machine.keep_freed_memory()
counts = []
thread = threading.Thread(target=lambda: counts.extend([faults(), faults()]))
thread.start()
thread.join()
print(*counts)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another allocator")
@pytest.mark.parametrize("is_tuned", [False, True])
def test_freed_memory_is_used_again_unless_the_user_tunes_the_allocator(is_tuned):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"JAX_PLATFORMS": "cpu"} | ({"MALLOC_CHECK_": "0"} if is_tuned else {})
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True)
    first, second = map(int, done.stdout.split())
    pages = 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert first > pages // 2
    assert second > pages // 2 if is_tuned else second < pages // 100
