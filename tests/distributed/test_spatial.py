"""Images, and their rows, split over devices: the whole step against one device (spatial.py)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deeplab_jax.config import get_config, validate
from deeplab_jax.errors import ConfigError

# Relative, by step, of loss, gradient and statistics. Rounding grows from step to step, just so
# where only the batch is split.
TOLERANCES = np.array([[1e-12, 1e-11, 1e-13], [1e-11, 1e-8, 1e-11], [1e-9, 1e-7, 1e-9]])

# A sum over the mesh is one over `spatial` and then one over `data`. Each 3x3 convolution sends the
# rows at its seams up and down: of its input forward and again for its kernel's gradient, of its
# output's gradient for its input's.
COLLECTIVES = {
    (50, 16, "2x4"): {"all-reduce": 259, "collective-permute": 160},
    (50, 16, "1x8"): {"all-reduce": 127, "collective-permute": 154},
    (18, 8, "2x4"): {"all-reduce": 127, "collective-permute": 163},
    (18, 8, "1x8"): {"all-reduce": 62, "collective-permute": 157},
    (18, 8, "8x1"): {"all-reduce": 63},
}


EIGHT_DEVICES = pytest.mark.process("minutes on eight virtual devices")


def run(depth, output_stride, height, *ways):
    argv = [sys.executable, Path(__file__).with_name("spatial.py"), depth, output_stride, height]
    done = subprocess.run([*map(str, argv), *ways], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {line["mesh"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.process("half a minute of compiling; the first tier splits a batch")
def test_rows_split_over_two_devices_compute_what_one_device_does():
    result = run(18, 16, 64, "1x2")["1x2"]
    assert (np.array(result["errors"]) < TOLERANCES).all(), result["errors"]
    assert result["collectives"].keys() == {"all-reduce", "collective-permute"}


@EIGHT_DEVICES
@pytest.mark.parametrize(
    ("depth", "output_stride"),
    [
        pytest.param(50, 16, marks=pytest.mark.slow("two minutes more of compiling")),
        pytest.param(18, 8, marks=pytest.mark.slow("a minute; uneven bands have the same split")),
    ],
)
def test_split_rows_compute_what_one_device_does(depth, output_stride):
    ways = [way for *key, way in COLLECTIVES if key == [depth, output_stride]]
    results = run(depth, output_stride, 256, *ways)
    assert list(results) == ways
    for way, result in results.items():
        assert (np.array(result["errors"]) < TOLERANCES).all(), (way, result["errors"])
        counts = {kind: count for kind, (count, _) in result["collectives"].items()}
        assert counts == COLLECTIVES[depth, output_stride, way]


@pytest.mark.slow("a minute; bands of equal height are in the second tier")
def test_bands_that_are_uneven_deep_in_the_network_are_exact_too_but_gather():
    # Refused all the same: a prototype's gradient was wrong here, where loss and statistics were
    # right, and what uneven bands need is a gather.
    result = run(18, 16, 144, "2x4")["2x4"]  # 9 rows at the top, over 4 devices
    assert (np.array(result["errors"]) < TOLERANCES).all(), result["errors"]
    assert "all-gather" in result["collectives"]


@pytest.mark.parametrize(
    ("height", "stride", "spatial", "near"),
    [(513, 16, 4, "512 or 576"), (512, 8, 3, "504 or 528"), (32, 16, 4, "64")],
)
def test_heights_that_do_not_divide_are_refused_with_the_nearest_that_do(
    height, stride, spatial, near
):
    config = get_config("folder", output_stride=stride)
    config.data.crop_size, config.mesh.spatial = (height, 512), spatial
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert str(error.value) == (
        f"config.data.crop_size: height {height} does not divide by output stride x "
        f"config.mesh.spatial = {stride * spatial} - "
        f"use a height of {near}, or another config.mesh.spatial"
    )
