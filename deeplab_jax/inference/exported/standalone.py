"""Verifies an exported network: `python verify.py`.

Needs NumPy, and the runtime of the files beside it: onnxruntime for model.onnx, JAX for
model.stablehlo. First every file is compared with SHA256SUMS. Then each model runs on
sample/input.png, and its outputs are compared with those that were computed when it was exported.

Exit code 0: all is as it was exported; 4: it is not, or a file cannot be parsed; 5: a model could
not be run here, as without its runtime or with one of another version.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

_NEAR = 1e-3  # between confidences
DESCRIPTION, SUMS, INPUT = "export.json", "SHA256SUMS", "sample/input.png"
MODELS = {"onnx": "model.onnx", "stablehlo": "model.stablehlo", "safetensors": "model.safetensors"}
# Values of an ONNX model: type and number of axes.
_INPUT, _TAKEN = "image", ("tensor(uint8)", 4)
_GIVEN = {
    "labels": ("tensor(uint8)", 3),
    "confidence": ("tensor(float)", 3),
    "logits": ("tensor(float)", 4),
}
_QUIET = 4  # onnxruntime tells an error once, by its exception
_NO_MODEL = ("protobuf parsing failed", "no graph was found")  # onnxruntime's words
# What the reader of JAX's container raises for bytes that are none.
_NO_CONTAINER = (struct.error, LookupError, AttributeError, UnicodeDecodeError)


class ForeignModelError(Exception):
    """A file that is no model, or one whose input or outputs are not those of an export."""


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def changed_files(folder: Path) -> list[str]:
    """Returns a phrase for each file that is missing, changed or not listed in SHA256SUMS."""
    if not (folder / SUMS).is_file():
        return [f"{SUMS} is missing"]
    listed = {}
    for line in (folder / SUMS).read_text("utf-8", "replace").splitlines():
        value, _, name = line.partition("  ")
        listed[name] = value
    present = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    }
    faults = [f"{name} is missing" for name in sorted(listed.keys() - present)]
    faults += [f"{name} was added" for name in sorted(present - listed.keys() - {SUMS})]
    for name in sorted(listed.keys() & present):
        if digest(folder / name) != listed[name]:
            faults.append(f"{name} was changed")
    return faults


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) as a PNG that `read_png` reads: 8 bits RGB, rows without a filter."""
    height, width = image.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = image.reshape(height, -1)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    ]
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in parts:
            file.write(struct.pack(">I", len(data)) + name + data)
            file.write(struct.pack(">I", zlib.crc32(name + data)))


def read_png(path: Path) -> np.ndarray:
    """Returns an image that `write_png` wrote, uint8 (H, W, 3)."""
    content, place, data = path.read_bytes(), 8, b""
    width, height = struct.unpack(">II", content[16:24])
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        if content[place + 4 : place + 8] == b"IDAT":
            data += content[place + 8 : place + 8 + length]
        place += 12 + length
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + 3 * width)
    return rows[:, 1:].reshape(height, width, 3)


def open_onnx(
    model: str | bytes, names: list[str]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns a function that runs a model on the CPU; needs onnxruntime.

    Args:
      model: its path, or its bytes.
      names: of the outputs to compute.

    Returns:
      run(images), uint8 (B, H, W, 3) -> {name: output}: "logits" float32 (B, h, w, C), "labels"
      uint8 (B, H, W), "confidence" float32 (B, H, W).

    Raises:
      ForeignModelError: it is no model, or its input or outputs are not those of an export.
      Exception: of onnxruntime's own kinds, which have no common base.
    """
    import onnxruntime

    options, once = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.log_severity_level = once.log_severity_level = _QUIET
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if any(words in str(error).lower() for words in _NO_MODEL):
            raise unparsable(error) from error
        raise
    takes, gives = (
        {value.name: (value.type, len(value.shape)) for value in values}
        for values in (session.get_inputs(), session.get_outputs())
    )
    if takes != {_INPUT: _TAKEN}:
        raise ForeignModelError(f"takes {_in_words(takes)}, not {_in_words({_INPUT: _TAKEN})}")
    wanted = {name: _GIVEN[name] for name in names if name in _GIVEN}
    if wanted.items() - gives.items():
        raise ForeignModelError(f"gives {_in_words(gives)}, not {_in_words(wanted)}")

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {_INPUT: images}, once), strict=True))

    return run


def _in_words(values: dict[str, tuple[str, int]]) -> str:
    words = [f"{name} {kind} of {axes} axes" for name, (kind, axes) in values.items()]
    return ", ".join(words) or "nothing"


def told(error: Exception) -> str:
    """Returns what a runtime says of an error, on one line, without places in its source."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"/\S*\.(?:h|cc):\d+ [^()]*\([^()]*\) ", "", text)[:300]


def unparsable(error: Exception) -> ForeignModelError:
    """Returns the error about a file that its runtime cannot parse, whatever its version."""
    return ForeignModelError(f"cannot be parsed ({told(error)})")


def run_onnx(path: Path, images: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Returns the outputs of a batch; needs onnxruntime (see `open_onnx`)."""
    return open_onnx(str(path), names)(images)


def read_stablehlo(path: Path) -> Any:
    """Returns the program of a StableHLO file, a `jax.export.Exported`; needs JAX.

    Raises:
      ForeignModelError: the file is no such program.
      Exception: of JAX's kinds, where it is of another version.
    """
    from jax import export

    try:
        return export.deserialize(bytearray(path.read_bytes()))
    except _NO_CONTAINER as error:
        raise unparsable(error) from error


def is_damaged_program(error: Exception, written_by: str) -> bool:
    """Tells whether JAX does not parse a program that its own version, `written_by`, wrote."""
    import jax

    return "deserialize" in str(error) and written_by == jax.__version__


def run_stablehlo(
    path: Path, images: np.ndarray, names: list[str], written_by: str
) -> dict[str, np.ndarray]:
    """Returns the outputs of a batch; needs JAX (see `read_stablehlo`)."""
    import jax

    program = read_stablehlo(path)
    try:
        outputs = jax.jit(program.call)(images)
    except Exception as error:
        if is_damaged_program(error, written_by):
            raise unparsable(error) from error
        raise
    return dict(zip(names, map(np.asarray, outputs), strict=True))


def differences(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns how outputs differ.

    "logits" is the largest difference over the largest logit, "pixels" the share of pixels with
    another label, and "confidence" the share of the others whose confidence is apart by more than
    0.001. It is a share because confidence follows logits of a thousand to their last digits.
    Outputs of another shape are infinitely apart.
    """
    found: dict[str, float] = {}
    if any(got[name].shape != wanted[name].shape for name in got):
        names = {"logits": "logits", "labels": "pixels", "confidence": "confidence"}
        return {names[name]: math.inf for name in got}
    if "logits" in got:
        largest = np.abs(wanted["logits"]).max()
        found["logits"] = float(np.abs(got["logits"] - wanted["logits"]).max() / largest)
        labels = [x["logits"].argmax(-1) for x in (got, wanted)]
        found["pixels"] = float((labels[0] != labels[1]).mean())
    if "labels" in got:
        agree = got["labels"] == wanted["labels"]
        found["pixels"] = float(1 - agree.mean())
        is_near = np.abs(got["confidence"] - wanted["confidence"]) <= _NEAR  # NaN is not
        found["confidence"] = float(1 - is_near[agree].mean()) if agree.any() else 1.0
    return found


def too_large(found: dict[str, float], tolerances: dict[str, float]) -> list[str]:
    """Returns the names of the differences above their tolerance, NaN included."""
    return [name for name, value in found.items() if not value <= tolerances[name]]


def in_words(found: dict[str, float], tolerances: dict[str, float]) -> str:
    """Returns differences and tolerances in one line."""
    words = {
        "logits": "largest logit difference {:.1e} of the largest logit (allowed {:g})",
        "confidence": "share of pixels with another confidence {:.6f} (allowed {:g})",
        "pixels": "share of pixels with another label {:.6f} (allowed {:g})",
    }
    return "; ".join(words[name].format(found[name], tolerances[name]) for name in found)


def tensors(path: Path) -> dict[str, list]:
    """Returns type and shape of each tensor of a safetensors file."""
    header, _ = _read_safetensors(path)
    return {name: [value["dtype"], value["shape"]] for name, value in header.items()}


def wrong_tensors(path: Path, wanted: dict[str, list]) -> list[str]:
    """Returns a phrase for each tensor that has another type or shape, or is not finite.

    Whether the values are the right ones is for SHA256SUMS to say.
    """
    header, data = _read_safetensors(path)
    found = tensors(path)
    faults = [f"tensor {name} is missing" for name in sorted(wanted.keys() - found.keys())]
    faults += [f"tensor {name} was added" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        kind, shape = wanted[name]
        begin, end = header[name]["data_offsets"]
        if found[name] != [kind, shape]:
            faults.append(f"tensor {name} has another type or shape")
        elif end - begin != int(kind[1:]) // 8 * math.prod(shape):
            faults.append(f"tensor {name} is cut short")
        elif kind == "F32" and not np.isfinite(data[begin:end].view("<f4")).all():
            faults.append(f"tensor {name} holds values that are not finite")
    return faults


def _read_safetensors(path: Path) -> tuple[dict[str, dict], np.ndarray]:
    """Returns the header by tensor, and the bytes after it."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, np.memmap(path, np.uint8, "r", 8 + length)


def expected(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Returns the sample's outputs, as they were computed when the folder was exported."""
    return {name: np.load(folder / "sample" / f"{name}.npy") for name in names}


def read_sample(folder: Path, names: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the sample's image, uint8 (H, W, 3), and its `expected` outputs."""
    return read_png(folder / INPUT), expected(folder, names)


def read_part(what: str, read: Callable[[], Any]) -> Any:
    """Returns what `read` returns; any error is about `what`, a part of the folder.

    Raises:
      ForeignModelError: it cannot be read.
    """
    try:
        return read()
    except Exception as error:  # of a file that was changed together with SHA256SUMS
        cause = f"{type(error).__name__}: {told(error)}"
        raise ForeignModelError(f"{what} cannot be read ({cause})") from error


def _described(folder: Path) -> tuple[dict[str, float], list[str], dict[str, dict[str, Any]]]:
    """Returns tolerances, names of the outputs, and details of each model."""
    content = json.loads((folder / DESCRIPTION).read_bytes())
    tolerances = {str(name): float(value) for name, value in content["tolerances"].items()}
    files = {kind: dict(details) for kind, details in content["files"].items()}
    if not files or files.keys() - MODELS.keys():
        raise ValueError(f"files are {', '.join(files) or 'missing'}")
    return tolerances, [str(name) for name in content["outputs"]], files


def main(folder: Path) -> int:
    """Prints a line for each check; returns the exit code."""
    faults = changed_files(folder)
    if faults:
        print(f"NOT as exported: {'; '.join(faults)}")
        return 4
    print(f"files: all as in {SUMS}, whose own SHA-256 is {digest(folder / SUMS)}")
    try:
        return _check_models(folder)
    except ForeignModelError as error:
        print(f"NOT as exported: {error}")
        return 4


def _check_models(folder: Path) -> int:
    """Prints a line for each model; returns the exit code (ForeignModelError)."""
    tolerances, names, files = read_part(DESCRIPTION, lambda: _described(folder))
    image, wanted = read_part("sample", partial(read_sample, folder, names))
    codes = {0}
    for kind, details in files.items():
        path = folder / MODELS[kind]
        if kind == "safetensors":
            faults = read_part(path.name, partial(wrong_tensors, path, details.get("tensors", {})))
            print(f"{path.name}: {'; '.join(faults) or 'names, types, shapes as written; finite'}")
            codes.add(4 if faults else 0)
            continue
        try:
            if kind == "onnx":
                outputs = run_onnx(path, image[None], names)
            else:
                outputs = run_stablehlo(path, image[None], names, str(details.get("jax")))
        except ForeignModelError as error:
            print(f"{path.name}: NOT as exported: {error}")
            codes.add(4)
            continue
        except Exception as error:  # a runtime's own: another version, or for other devices
            fix = "see model_card.md for versions and devices"
            if isinstance(error, ImportError):
                fix = f"pip install {'onnxruntime' if kind == 'onnx' else 'jax'}"
            print(f"{path.name}: not run ({told(error)}) - {fix}")
            codes.add(5)
            continue
        got = {name: output[0] for name, output in outputs.items()}
        found = differences(got, wanted)
        wrong = too_large(found, tolerances)
        codes.add(4 if wrong else 0)
        print(f"{path.name}: {'DIFFERS' if wrong else 'good'}: {in_words(found, tolerances)}")
    return 4 if 4 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
