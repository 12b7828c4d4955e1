"""Weights, images and labels of the golden values: functions of a name and a shape, NumPy alone.

Everything is drawn by PCG64 seeded with the CRC-32 of a name. Layouts are PyTorch's: weights OIHW,
images NCHW, labels NHW.
"""

import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
_BLOCK = 8  # pixels a side, of one colour or class
_CLASSIFIERS = ("decoder.3.weight", "auxiliary_decoder.4.weight")  # scaled down


def draw_weight(key, shape, salt=""):
    """Returns one entry of a state dict: float32, or an int64 zero for a norm's counter."""
    rng, kind = _rng(salt + key), key.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_var":
        return _uniform(rng, shape, 0.5, 1.5)
    if kind in ("running_mean", "bias"):
        return np.float32(0.1) * rng.standard_normal(shape, np.float32)
    if len(shape) == 1:  # a norm's scale; a block's last is small, so that depth does not blow up
        return _uniform(rng, shape, *((0.05, 0.25) if key.endswith(".bn3.weight") else (0.5, 1.5)))
    scale = np.float32(np.sqrt(2 / np.prod(shape[1:], dtype=int)))
    scale *= np.float32(0.25 if key in _CLASSIFIERS else 1)
    return scale * rng.standard_normal(shape, np.float32)


def without_stride(name):
    """Returns "r50_c21" for "r50_d8_c21": output stride leaves no trace in weights."""
    return "_".join(part for part in name.split("_") if part[:2] not in ("d8", "d1"))


def manifest(name):
    """Returns (salt, rows (key, shape, crc32) in the file's order) of a network, "r50_d8_c21"."""
    networks = json.loads((FOLDER / "manifests.json").read_text())
    network = networks[without_stride(name)]
    changed = {row[0]: row for row in network["entries"]}
    rows = networks[network["base"]]["entries"] if "base" in network else network["entries"]
    return network["salt"], [changed.get(row[0], row) for row in rows]


def draw_weights(name):
    """Returns the state dict of a network, after checking every array's CRC-32."""
    salt, rows = manifest(name)
    tensors = {key: draw_weight(key, tuple(shape), salt) for key, shape, _ in rows}
    for key, _, crc in rows:
        assert zlib.crc32(tensors[key].tobytes()) == crc, f"NumPy draws another {key}"
    return tensors


def draw_image(name, shape):
    """Returns a "normalised image", float32 NCHW: blocks of normal noise and finer noise."""
    batch, channels, height, width = shape
    rng = _rng("image/" + name)
    blocks = (batch, channels, -(-height // _BLOCK), -(-width // _BLOCK))
    coarse = rng.standard_normal(blocks, np.float32)
    fine = rng.standard_normal(shape, np.float32)
    return _grown(coarse, height, width) + np.float32(0.5) * fine


def draw_labels(name, shape, num_classes, share_ignored=0.1):
    """Returns uint8 (N, H, W): blocks of one class each, some pixels 255."""
    batch, height, width = shape
    rng = _rng("labels/" + name)
    blocks = (batch, -(-height // _BLOCK), -(-width // _BLOCK))
    labels = _grown(rng.integers(0, num_classes, blocks), height, width).astype(np.uint8)
    labels[rng.random(shape) < share_ignored] = 255
    return labels


def draw_picture(name, height, width):
    """Returns a uint8 (H, W, 3) RGB picture of blocks and noise."""
    rng = _rng("u8/" + name)
    # The reference draws BGR.
    coarse = rng.integers(0, 256, (3, -(-height // _BLOCK), -(-width // _BLOCK)))
    noise = rng.integers(-40, 41, (3, height, width))
    picture = np.clip(_grown(coarse, height, width) + noise, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(picture[::-1].transpose(1, 2, 0))


def sample(array, count):
    """Returns up to `count` values of an array, evenly spread in its flat order, ends included."""
    array = np.asarray(array).reshape(-1)
    return array[np.unique(np.linspace(0, array.size - 1, min(count, array.size)).astype(int))]


def sample_pixels(array, count):
    """Returns (count, C): all channels of evenly spread pixels of an array (N, H, W, C)."""
    pixels = np.asarray(array).reshape(-1, array.shape[-1])
    return pixels[np.unique(np.linspace(0, len(pixels) - 1, min(count, len(pixels))).astype(int))]


def _rng(name):
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def _uniform(rng, shape, low, high):
    low, high = np.float32(low), np.float32(high)
    return low + (high - low) * rng.random(shape, np.float32)


def _grown(blocks, height, width):
    return blocks.repeat(_BLOCK, -2).repeat(_BLOCK, -1)[..., :height, :width]
