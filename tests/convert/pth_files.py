"""Checkpoints made by hand, with the text opcodes of protocol 0, and how they are compared.

Test modules import it by name: the folder's conftest.py puts it on the path.
"""

import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convert import keymap
from convert.pth import read_pth
from deeplab_jax.errors import CheckpointError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STORAGES = {
    np.dtype(np.float16): "Half",
    np.dtype(np.float32): "Float",
    np.dtype(np.float64): "Double",
    np.dtype(np.uint8): "Byte",
    np.dtype(np.int8): "Char",
    np.dtype(np.int16): "Short",
    np.dtype(np.int32): "Int",
    np.dtype(np.int64): "Long",
    np.dtype(np.bool_): "Bool",
    BFLOAT16: "BFloat16",
}
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
MACHINE = b"(dVlittle_endian\nI01\ns."
TOTAL = 12  # steps of a run's schedule
ROOT = Path(__file__).parents[2]


def op(value):
    """Returns the opcodes of a plain value; bytes are opcodes already."""
    match value:
        case bytes():
            return value
        case None:
            return b"N"
        case bool():
            return b"I01\n" if value else b"I00\n"
        case int():
            return b"L%dL\n" % value
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(op, value)) + b"t"
        case list():
            return b"(" + b"".join(map(op, value)) + b"l"
        case dict():
            return b"(" + b"".join(op(key) + op(item) for key, item in value.items()) + b"d"


def call(name, *args):
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode() + op(args) + b"R"


def storage(kind, key, numel, *rest):
    return op(("storage", f"ctorch\n{kind}Storage\n".encode(), key, "cpu", numel, *rest)) + b"Q"


def tensor(data, offset, shape, strides, *rest):
    ordered = call("collections.OrderedDict")
    return call(
        "torch._utils._rebuild_tensor_v2", data, offset, shape, strides, False, ordered, *rest
    )


def write_zip(path, obj, storages=(), method=zipfile.ZIP_STORED, root="archive", **members):
    """Writes a zip checkpoint; `members` replace or add to its members, None takes one away."""
    contents = {"data.pkl": op(obj) + b".", "byteorder": b"little"}
    contents |= {f"data/{key}": bytes(data) for key, data in dict(storages).items()}
    contents |= {"version": b"3\n"} | members
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            if data is not None:
                archive.writestr(f"{root}/{name}", data)
    return path


def write_legacy(
    path, obj, storages=(), magic=MAGIC, version=b"I1001\n.", machine=MACHINE, keys=None
):
    """Writes the format before 2020; storages: {key: (count, bytes)}."""
    storages = dict(storages)
    parts = [magic, version, machine, op(obj) + b"."]
    parts.append(op(list(storages) if keys is None else keys) + b".")
    parts += [struct.pack("<q", count) + bytes(data) for count, data in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


def refusal(path, reader=read_pth):
    """Returns the line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        reader(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    assert line.isascii()
    assert len(line) < 400 + len(str(path))
    assert " - " in line
    return line.removeprefix(f"{path}: ")


def assert_refused(result, code, *texts, max_rows=0):
    """A command left no file, and only one line after at most so many rows of a table.

    `result` is (exit code, standard output, standard error, what it would have written).
    """
    got, text, err, path = result
    assert (got, text) == (code, ""), err
    *table, line = err.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(table) <= max_rows
    assert all(row.startswith("  ") for row in table)
    assert all(wanted in err for wanted in texts), err
    assert not path.exists()
    assert not list(path.parent.glob(".*"))


def assert_equal(left, right):
    """Equal values, types, shapes and bits, in equal order."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        left, right = list(left.values()), list(right.values())
    if isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_equal(a, b)
    elif isinstance(left, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert left.tobytes() == right.tobytes()
    else:
        assert left == right


def example(seed=0):
    """Everything that we write: each dtype in each shape, and plain values around."""
    rng = np.random.default_rng(seed)
    shapes = [(), (0,), (3, 0, 2), (7,), (2, 3, 4, 5)]
    tensors = {
        f"{dtype}.{len(shape)}.{sum(shape)}": (rng.standard_normal(shape) * 9).astype(dtype)
        if shape
        else np.asarray(3).astype(dtype)
        for dtype in STORAGES
        for shape in shapes
    }
    plain = {"epoch": 3, "lr": 1e-300, "on": True, "off": False, "no": None, "big": -(2**400)}
    nested = {"list": [1, [2.5, "t\nwo"], ()], "tuple": (-1, -128, 255, 2**31, b"\0\xff"), "": {}}
    return {"model": tensors, **plain, **nested, 3: "\u00e9\u4e2d\U0001f600"}


def parameters(tensors):
    """Returns the keys of a state dict that an optimiser knows, in order."""
    buffers = ("running_mean", "running_var", keymap.COUNTER)
    return [key for key in tensors if not key.endswith(buffers)]


def sgd_state(tensors, iteration):
    """What torch.optim.SGD's state_dict() gives after `iteration` of `TOTAL` steps."""
    rng, keys = np.random.default_rng(5), parameters(tensors)
    buffers = [rng.standard_normal(tensors[key].shape).astype(np.float32) for key in keys]
    group = {
        "lr": (0.01 - 1e-4) * (1 - iteration / TOTAL) ** 0.9 + 1e-4,
        "momentum": 0.9,
        "dampening": 0,
        "weight_decay": 5e-4,
        "nesterov": False,
        "maximize": False,
        "foreach": None,
        "differentiable": False,
        "fused": None,
        "initial_lr": 0.01,
        "params": list(range(len(keys))),
    }
    state = {i: {"momentum_buffer": buffer} for i, buffer in enumerate(buffers)}
    return {"state": state, "param_groups": [group]}


def run_python(code):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
