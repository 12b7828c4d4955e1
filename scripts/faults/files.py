"""Rows about foreign files, the command line and the network."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from faults.harness import Box, Done, check, environment, refused, row, tool

# Runs a command and prints the most memory it had, which that of its parent is no part of.
_MEASURED = """
import sys
from pathlib import Path
from deeplab_jax import cli
try:
    cli.main(sys.argv[1:])
finally:
    print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
_MAGIC = 0x1950A86A20F9469CFC6C  # of PyTorch's files before 2020


def _convert(box: Box, path: Path, *flags: str) -> list[str]:
    output = box.folder / "converted"
    command = ["convert", "from-pytorch", "--checkpoint", str(path), "--output", str(output)]
    return [*command, "--output-stride", "16", *flags]


def _measured(box: Box, argv: list[str], megabytes: int) -> Done:
    """Runs a command that may take no more memory than that."""
    began = time.monotonic()
    got = subprocess.run(
        [sys.executable, "-c", _MEASURED, *argv],
        env=environment(box.shared), cwd=box.folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    used = int(got.stdout.splitlines()[-1]) / 1000
    check(used < megabytes, f"took {used:.0f} MB")
    return Done(got.returncode, got.stdout, got.stderr, time.monotonic() - began)


class _Attack:
    def __init__(self, marker: Path):
        self._command = f"touch {marker}"

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.system, (self._command,)


@row(30)
def pickle_attack(box: Box) -> None:
    """Pickles that run commands."""
    marker = box.folder / "marker"
    attack = pickle.dumps({"state_dict": _Attack(marker)}, protocol=2)
    raw, legacy, packed = (box.folder / f"{name}.pth" for name in ("raw", "legacy", "zip"))
    raw.write_bytes(attack)
    header = [_MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    parts = [pickle.dumps(part, protocol=2) for part in header]
    legacy.write_bytes(b"".join([*parts, attack, pickle.dumps([], protocol=2)]))
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in (("data.pkl", attack), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", content)
    for path in (raw, legacy, packed):
        done = box.refuses(_convert(box, path), 4, path)
        check("system" in done.last, f"the global is not named: {done.last}")
        check(not marker.exists(), f"{path.name} ran a command")
        check(not (box.folder / "converted").exists(), "something was written")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    types = {"F32": np.float32, "I64": np.int64}
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray], header: Any = None) -> Path:
    """Writes a file; a header may be given that lies."""
    body, entries = io.BytesIO(), {}
    for name, array in tensors.items():
        start = body.tell()
        body.write(np.ascontiguousarray(array).tobytes())
        kind = "I64" if array.dtype == np.int64 else "F32"
        entries[name] = {"dtype": kind, "shape": list(array.shape),
                         "data_offsets": [start, body.tell()]}  # fmt: skip
    text = header if isinstance(header, bytes) else json.dumps(header or entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body.getvalue())
    return path


@row(31)
def wrong_weights(box: Box) -> None:
    """Weights of another network."""
    file = box.folder / "ours.safetensors"
    control = str(box.control)
    box.succeeds(["convert", "to-pytorch", "--checkpoint", control, "--output", str(file)])
    ours = _read_safetensors(file)
    head = [name for name in ours if not name.startswith("backbone")]
    rng = np.random.default_rng(box.seed)
    more_classes = {
        name: rng.normal(size=(19, *array.shape[1:])).astype(np.float32)
        if array.ndim and array.shape[0] == 5
        else array
        for name, array in ours.items()
    }
    backbone = {name: array for name, array in ours.items() if name not in head}
    wrong = {
        "classifier": {
            name.removeprefix("backbone_net."): array for name, array in backbone.items()
        }
        | {"fc.weight": np.zeros((1000, 64), np.float32), "fc.bias": np.zeros(1000, np.float32)},
        "other": {name: array for name, array in ours.items() if "layer3.1" not in name},
        "classes": more_classes,
        "renamed": {name.replace("conv", "konv"): array for name, array in ours.items()},
    }
    said = {"classifier": "is an ImageNet classifier", "other": "12 missing, 0 unexpected",
            "classes": "19 classes there, 5 here", "renamed": "closest known layout"}  # fmt: skip
    for name, tensors in wrong.items():
        path = _write_safetensors(box.folder / f"{name}.safetensors", tensors)
        recipe = ["--config", str(box.shared / "tiny.py")]
        command = ["convert", "from-pytorch", "--checkpoint", str(path), *recipe]
        done = box.run([*command, "--output", str(box.folder / name)])
        refused(done, 4, path, said[name])
        check(len(done.err.splitlines()) <= 25, f"{name}: {len(done.err.splitlines())} lines")
        check(not (box.folder / name).exists(), f"{name}: something was written")


@row(32)
def safetensors_abuse(box: Box) -> None:
    """Files of safetensors that lie."""
    one = np.zeros(4, np.float32)
    good = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    second = {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}
    text = json.dumps(good)
    files = {
        "lying": ({"a": one}, {"a": good | {"shape": [1 << 40]}}),
        "overlap": ({"a": one, "b": one[:2]}, {"a": good, "b": second}),
        "twice": ({"a": one}, f'{{"a": {text}, "a": {text}}}'.encode()),
        "extra": ({"a": one, "b": one}, {"a": good}),
        "deep": ({"a": one}, b"[" * 100_000),
    }
    paths = [
        _write_safetensors(box.folder / f"{name}.safetensors", *content)
        for name, content in files.items()
    ]
    huge = box.folder / "huge.safetensors"
    huge.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    for path in (*paths, huge):
        refused(_measured(box, _convert(box, path), 500), 4, path)


def _bomb(side: int) -> bytes:
    """Returns a black grey PNG of side x side pixels, whole and valid."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@row(34)
def image_bomb(box: Box) -> None:
    """Small pictures of a huge size."""
    for side in (12_000, 20_000):
        path = box.folder / f"{side}.png"
        path.write_bytes(_bomb(side))
        command = ["predict", "--checkpoint", str(box.control), str(path)]
        done = _measured(box, [*command, "--output", str(box.folder / "out")], 1000)
        refused(done, 3, f"{path}: is too large")


@row(35)
def typing_errors(box: Box) -> None:
    """Typing errors on the command line."""
    recipe = ["train", "--config", str(box.shared / "tiny.py")]
    for argv, advice in (
        ([*recipe, "--config.optim.lrr=1"], "did you mean config.train.lr?"),
        ([*recipe, "--config.train.lr=abc"], "'abc' is not a number"),
        (["train"], "--config"),
        (["train", "--config", "nowhere.py"], "there is no such recipe"),
        (["trian"], "did you mean train?"),
    ):
        done = box.refuses(argv, 2, advice)
        check(len(done.err.splitlines()) <= 5, f"{len(done.err.splitlines())} lines")


@row(36)
def no_network(box: Box) -> None:
    """No network."""
    prefix = tool("unshare", "-n" if os.geteuid() == 0 else "-rn")
    control, data = str(box.control), str(box.data)
    out = box.folder / "out"
    for argv in (
        box.train("--config.train.steps=2"),
        ["evaluate", "--checkpoint", str(box.workdir)],
        ["predict", "--checkpoint", control, f"{data}/images/val", "--output", f"{out}.d"],
        ["report", str(box.workdir)],
        ["doctor", "--data", data],
        ["recipes"],
        ["config", "fields", "batch"],
        ["checkpoint", "ls", control],
        ["convert", "to-pytorch", "--checkpoint", control, "--output", f"{out}.pth"],
        ["convert", "from-pytorch", "--checkpoint", f"{out}.pth", "--output", f"{out}.w",
         "--config", str(box.shared / "tiny.py")],
        ["demo", "--draw-only", "--output", f"{out}.demo"],
        ["--version"],
    ):  # fmt: skip
        box.succeeds(argv, prefix=prefix, timeout=120)
    box.refuses(["prepare", "voc", "--output", f"{out}.voc"], 2, prefix=prefix)
