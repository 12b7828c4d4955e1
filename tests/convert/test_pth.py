import io
import pickle
import re
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convert import containers, rebuild
from convert.pth import read_pth, read_safetensors, read_weights, write_pth, write_safetensors
from deeplab_jax.errors import CheckpointError, ResourceError

ROOT = Path(__file__).parents[2]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(t) for t in ("f2", "f4", "f8", "u1", "i1", "i2", "i4", "i8", "?", BFLOAT16)]
STORAGES = dict(
    zip(
        DTYPES,
        ["Half", "Float", "Double", "Byte", "Char", "Short", "Int", "Long", "Bool", "BFloat16"],
    )
)  # noqa: B905
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
MACHINE = b"(dVlittle_endian\nI01\ns."
TORCH_KEYS = (".format_version", ".storage_alignment", "version", ".data/serialization_id")


# --- Files made by hand, with the text opcodes of protocol 0


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
        for dtype in DTYPES
        for shape in shapes
    }
    plain = {"epoch": 3, "lr": 1e-300, "on": True, "off": False, "no": None, "big": -(2**400)}
    nested = {"list": [1, [2.5, "t\nwo"], ()], "tuple": (-1, -128, 255, 2**31, b"\0\xff"), "": {}}
    return {"model": tensors, **plain, **nested, 3: "\u00e9\u4e2d\U0001f600"}


# --- What is read


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["stored", "deflated", "legacy"])
def test_views_of_every_type_in_every_format(tmp_path, dtype, form):
    base = (np.arange(60) % 2 if dtype == bool else np.arange(60) + 100).astype(dtype)
    data = storage(STORAGES[dtype], "k0", 60)
    cases = {
        "whole": (0, (60,), (1,)),
        "offset": (7, (5, 3), (3, 1)),
        "transposed": (0, (4, 15), (1, 4)),
        "steps": (1, (3, 2, 4), (20, 8, 2)),
        "last": (59, (1, 1), (1000, 7)),
        "scalar": (5, (), ()),
        "empty": (60, (0, 4), (4, 1)),
        "repeated": (2, (3, 5), (0, 1)),
        "overlapping": (0, (50, 10), (1, 1)),
    }
    obj = {name: tensor(data, *view) for name, view in cases.items()}
    path = tmp_path / "x.pth"
    if form == "legacy":
        write_legacy(path, obj, {"k0": (60, base.tobytes())})
    else:
        method = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}[form]
        write_zip(path, obj, {"k0": base.tobytes()}, method)
    loaded = read_pth(path)
    assert list(loaded) == list(cases)
    for name, (offset, shape, strides) in cases.items():
        steps = [stride * dtype.itemsize for stride in strides]
        start = base[offset:] if np.prod(shape) else base[:0]
        expected = np.lib.stride_tricks.as_strided(start, shape, steps)
        np.testing.assert_array_equal(loaded[name], expected, strict=True)
    views = [loaded[name] for name in cases if name != "empty"]
    assert not any(view.flags.writeable for view in views)
    assert all(np.may_share_memory(view, loaded["whole"]) for view in views), "copied"


def test_parameters_and_plain_containers(tmp_path):
    weight = tensor(storage("Float", "0", 2), 0, (2,), (1,))
    numpy_dtype = (
        call("numpy.dtype", "f8", False, True) + op((3, "<", None, None, None, -1, -1, 0)) + b"b"
    )
    eight = call("_codecs.encode", np.float64(1.5).tobytes().decode("latin1"), "latin1")
    state = call("collections.OrderedDict") + b"(" + op("w") + weight + b"u"
    obj = {
        "parameter": call("torch._utils._rebuild_parameter", weight, True, None),
        "old": call("torch._utils._rebuild_tensor", storage("Float", "0", 2), 1, (1,), (1,)),
        "state": state + op({"_metadata": {"": {"version": 1}}}) + b"b",
        "pairs": call("collections.OrderedDict", [["a", 1], ("b", 2)]),
        "counter": call("collections.Counter", {30: 1}),
        "set": call("__builtin__.set", [1, "a"]),
        "frozen": call("builtins.frozenset", [1]),
        "bytes": call("__builtin__.bytes"),
        "size": call("torch.Size", (2, 3)),
        "dtype": b"ctorch\nbfloat16\n",
        "storage": storage("Float", "0", 2),
        "cuda": op(("storage", b"ctorch.cuda\nFloatStorage\n", "0", "cuda:0", 2)) + b"Q",
        "scalar": call("numpy.core.multiarray.scalar", numpy_dtype, eight),
        "new scalar": call("numpy._core.multiarray.scalar", numpy_dtype, eight),
        (1, "a"): None,
    }
    loaded = read_pth(write_zip(tmp_path / "x.pth", obj, {"0": np.float32([1, 2]).tobytes()}))
    one, both = np.float32([2]), np.float32([1, 2])
    expected = {
        "parameter": both,
        "old": one,
        "state": {"w": both},
        "pairs": {"a": 1, "b": 2},
        "counter": {30: 1},
        "set": {1, "a"},
        "frozen": frozenset([1]),
        "bytes": b"",
        "size": (2, 3),
        "dtype": "torch.bfloat16",
        "storage": both,
        "cuda": both,
        "scalar": 1.5,
        "new scalar": 1.5,
        (1, "a"): None,
    }
    assert_equal(loaded, expected)


def test_python_pickles_of_every_protocol(tmp_path):
    obj = {"a": [1, -(2**70), 2.5, "\u00e9", b"\xff\0", (), (1,), (1, 2, 3, 4), None, True]}
    obj |= {"set": {1, 2}, "again": obj["a"], "long": "x" * 300, "frozen": frozenset("a")}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(obj, protocol)
        loaded = read_pth(write_zip(tmp_path / f"{protocol}.pth", 0, **{"data.pkl": data}))
        assert_equal(loaded, obj)


def test_the_envelope_of_mmengine(golden):
    loaded = read_weights(golden / "dialects" / "mmengine_envelope.pth")
    assert loaded["meta"]["dataset_meta"]["classes"] == ("a", "b")
    shapes = {key: (value.dtype.name, value.shape) for key, value in loaded["state_dict"].items()}
    assert shapes == {
        "backbone.stem.0.weight": ("float32", (32, 3, 3, 3)),
        "backbone.stem.1.weight": ("float32", (32,)),
        "backbone.stem.1.num_batches_tracked": ("int64", ()),
        "decode_head.conv_seg.bias": ("float32", (21,)),
    }
    losses = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert_equal(losses["_log_history"], np.array([1.5]))
    assert losses["statistics_methods"]["min"] == "HistoryBuffer.min"


# --- What is written


def test_round_trip_is_bit_equal_and_deterministic(tmp_path):
    obj = example()
    write_pth(tmp_path / "a.pth", obj)
    write_pth(tmp_path / "b.pth", read_pth(tmp_path / "a.pth"))
    assert_equal(read_weights(tmp_path / "a.pth"), obj)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "b.pth"}


def test_any_memory_layout_is_written(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    obj = {
        "t": base.T,
        "steps": base[::2, ::-3],
        "big": base.astype(">f4"),
        "wide": np.broadcast_to(base[0], (3, 6)),
        "bf": base.astype(BFLOAT16).T,
        "scalar": np.int64(3),
        "float": np.float64(2.5),
    }
    write_pth(tmp_path / "a.pth", obj)
    for key, value in read_pth(tmp_path / "a.pth").items():
        np.testing.assert_array_equal(value, obj[key])
        assert value.dtype == np.asarray(obj[key]).dtype.newbyteorder("<")
        assert value.flags.c_contiguous


def test_storages_are_aligned(tmp_path):
    write_pth(tmp_path / "a.pth", example())
    data = (tmp_path / "a.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            name, extra = struct.unpack_from("<2H", data, info.header_offset + 26)
            assert (info.header_offset + 30 + name + extra) % 64 == 0, info.filename


@pytest.mark.parametrize(
    ("obj", "what"),
    [
        ({"a": [object()]}, "`a.0` is a object"),
        ({"a": {1, 2}}, "`a` is a set"),
        ({"a": np.array(["x"])}, "`a` is of type <U1"),
        ({"a": np.zeros(3, np.complex64)}, "`a` is of type complex64"),
        ({"a": "\ud800"}, "no Unicode"),
        ({"a": 2**3000}, "`a` is a int"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, obj, what):
    path = tmp_path / "a.pth"
    path.write_text("old")
    with pytest.raises(CheckpointError, match=re.escape(what)):
        write_pth(path, obj)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_endless_nesting_is_not_written(tmp_path):
    loop = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="nested"):
        write_pth(tmp_path / "a.pth", loop)


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_a_failing_write_leaves_nothing(tmp_path, write):
    with pytest.raises(ResourceError, match="cannot be written"):
        write(tmp_path / "missing" / "a.pth", {"a": np.zeros(3)})
    # A file-size limit stands for a full disk; SIGXFSZ is ignored by Python.
    code = f"""
        import resource, sys
        import numpy as np
        from pathlib import Path
        from convert import pth
        from deeplab_jax.errors import ResourceError
        path = Path({str(tmp_path)!r}) / "a.pth"
        path.write_text("old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            pth.{write.__name__}(path, {{"a": np.zeros(100_000), "b": np.zeros(3)}})
        except ResourceError as error:
            print(error)
    """
    done = run_python(code)
    assert "a.pth: cannot be written" in done, done
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    assert (tmp_path / "a.pth").read_text() == "old"


# --- Attacks


class Attack:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(marker):
    """Yields (name in the refusal, pickle) of code that would make the marker."""
    text = f"open({str(marker)!r}, 'w')"
    import os  # the name under which pickle knows it is the platform's

    for protocol in (0, 2, 4):
        yield f"{os.name}.system", pickle.dumps(Attack(os.system, f"touch {marker}"), protocol)
    yield "builtins.eval", pickle.dumps(Attack(eval, text), 4)
    yield (
        "subprocess.Popen",
        pickle.dumps({"model": [Attack(subprocess.Popen, ["touch", str(marker)])]}),
    )
    yield (
        "builtins.exec",
        pickle.dumps({"a": 1, "b": Attack(exec, text)}, 2).replace(b"__builtin__", b"builtins"),
    )


@pytest.mark.parametrize("form", ["zip", "legacy", "raw"])
def test_pickle_attacks_run_nothing(tmp_path, form):
    marker, path = tmp_path / "marker", tmp_path / "x.pth"
    for name, data in attacks(marker):
        if form == "zip":
            write_zip(path, 0, **{"data.pkl": data})
        elif form == "legacy":
            write_legacy(path, data[:-1])
        else:
            path.write_bytes(data)
        assert f"`{name}`" in refusal(path)
        assert f"`{name}`" in refusal(path, read_weights)
        assert not marker.exists()
    for _, data in attacks(marker):  # they would have worked
        assert pickle.loads(data) is not None
    subprocess.run(["sync", "-f", str(tmp_path)], check=False)
    assert marker.exists()


@pytest.mark.parametrize("part", ["magic", "version", "machine", "keys"])
def test_an_attack_in_any_part_of_the_old_format(tmp_path, part):
    marker, path = tmp_path / "marker", tmp_path / "x.pth"
    for name, data in attacks(marker):
        write_legacy(path, 0, **{part: data[:-1] if part == "keys" else data})
        assert f"`{name}`" in refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("obj", "what"),
    [
        (call("torch.load", "x"), "`torch.load`"),
        (call("torch._utils._rebuild_tensor_v3", 1), "`torch._utils._rebuild_tensor_v3`"),
        (call("builtins.getattr", b"ctorch._utils\n_rebuild_tensor\n", "__globals__"), "getattr"),
        (
            call("builtins.getattr", b"cmmengine.logging.history_buffer\nHistoryBuffer\n", 3),
            "getattr",
        ),
        (b"\x8c\x05torch\x8c\x0aserializat\x93" + op(()) + b"R", "`torch.serializat`"),
        (b"\x8c\x05torch\x8c\x08Size.mro\x93" + op(()) + b"R", "`torch.Size.mro`"),
        (call("torch.FloatStorage", 10**12), "`torch.FloatStorage`"),
        (call("numpy.ndarray", (10**12,)), "`numpy.ndarray`"),
        (b"ctorch\nFloatStorage\n", "`torch.FloatStorage` as a value"),
        (op("text") + op(()) + b"R", "no function"),
        (b"ctorch\nSize\n" + op([1]) + b"R", "no function"),
        (b"(S'touch x'\nios\nsystem\n", "opcode INST"),
        (b"(cos\nsystem\nS'touch x'\no", "`os.system`"),
        (b"(ctorch\nSize\nS'touch x'\no", "opcode OBJ"),
        (b"ccollections\nOrderedDict\n)}\x92", "opcode NEWOBJ_EX"),
        (b"\x82\x01", "EXT1"),
        (b"ccollections\nOrderedDict\n)\x81", "makes an object"),
        (call("collections.OrderedDict") + op((None, {"__class__": 1})) + b"b", "sets a state"),
        (op({}) + op({"__class__": 1}) + b"b", "sets a state"),
        (b"ctorch\nSize\n" + op({"__call__": 1}) + b"b", "sets a state"),
        (call("_codecs.encode", "x", "rot13"), "encodes"),
        (call("_codecs.encode", "\u4e2d", "latin1"), "damaged"),
        (call("numpy.dtype", "O", False, True), "type O"),
        (call("numpy.dtype", "V9", False, True), "type V9"),
        (
            call("numpy.core.multiarray._reconstruct", b"cnumpy\nndarray\n", (0,), "b"),
            "without content",
        ),
        (call("numpy.core.multiarray.scalar", "f8", b"c_codecs\nencode\n"), "scalar"),
        (op(("module", "x", "y", "z")) + b"Q", "other than a tensor's storage"),
        (op({(1, (2,)): 1}), "tuple as a key"),
        (op({(1,) * 100: 1}), "tuple as a key"),
        (b"(ctorch\nSize\nNd", "Global as a key"),
        (b"\x8b" + struct.pack("<I", 2000) + b"\1" * 2000, "integer of"),
        (b"X\3\0\0\0\xed\xa0\x80", "damaged"),
        (b"", "too few values"),
        (b"\x85", "too few values"),
    ],
)
def test_tricks_are_refused(tmp_path, obj, what):
    if obj == b"":
        obj = b"\x85"
    assert what in refusal(write_zip(tmp_path / "x.pth", obj))


def bombs():
    doubling = b"".join(
        b"(" + b"h" + bytes([i]) * 1 + b"h" + bytes([i]) + b"tq" + bytes([i + 1]) for i in range(40)
    )
    yield "shared tuples", b")q\0" + doubling
    yield "shared lists", b"]q\0" + doubling.replace(b"t", b"l")
    yield "cycle", b"]q\0h\0a"
    yield "nested lists", b"]" * 200_000 + b"a" * 199_999
    yield "nested tuples", b")" + b"\x85" * 300_000
    yield "nested tuple as key", b"}" + b")" + b"\x85" * 300_000 + b"Ns"
    yield "many steps", b"N0" * 600_000 + b"N"
    yield "huge memo index", b"Nr\xff\xff\xff\xff"
    yield "long text again and again", (
        b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\0"
        + b"c_codecs\nencode\nq\1" + b"h\1h\0X\6\0\0\0latin1\x86R" * 20_000
    )  # fmt: skip
    yield "long name again and again", (
        b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\0(" + (
        b"cmmengine.logging.history_buffer\nHistoryBuffer\nq\1c__builtin__\ngetattr\nq\2"
        + b"h\2h\1h\0\x86R" * 20_000) + b"t"
    )  # fmt: skip
    yield (
        "long list again and again",
        (b"(" + b"K\1" * 100_000 + b"tq\0ctorch\nSize\nq\1(" + b"h\1h\0\x85R" * 50_000 + b"t"),
    )
    yield "text of 4 EiB", b"\x8d" + struct.pack("<Q", 2**62) + b"abc"
    yield "bytes of 4 GiB", b"B\xff\xff\xff\xffabc"
    yield "integer of 2 GiB", b"\x8b\xff\xff\xff\x7fabc"


@pytest.mark.parametrize(("name", "data"), bombs(), ids=[name for name, _ in bombs()])
def test_bombs_end_soon_and_small(tmp_path, name, data):
    path = write_zip(tmp_path / "x.pth", data)
    tracemalloc.start()
    try:
        if name == "huge memo index":
            assert read_pth(path) is None
        else:
            refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


# --- Lies about sizes

LIES = {
    "outside": (tensor(storage("Float", "0", 4), 0, (5,), (1,)), "needs 5 elements"),
    "offset": (tensor(storage("Float", "0", 4), 4, (1,), (1,)), "needs 5 elements"),
    "offset of nothing": (tensor(storage("Float", "0", 4), 5, (0,), (1,)), "needs 5 elements"),
    "stride": (tensor(storage("Float", "0", 4), 0, (2, 2), (3, 1)), "needs 5 elements"),
    "149 GiB": (tensor(storage("Float", "0", 4), 0, (200_000, 200_000), (200_000, 1)), "needs 40"),
    "149 GiB of one": (tensor(storage("Float", "0", 4), 0, (200_000, 200_000), (0, 0)), "repeats"),
    "overflow": (tensor(storage("Float", "0", 4), 0, (2**32, 2**32), (2**32, 1)), "needs 18"),
    "negative size": (tensor(storage("Float", "0", 4), 0, (-1,), (1,)), "no counts"),
    "negative stride": (tensor(storage("Float", "0", 4), 3, (2,), (-1,)), "no counts"),
    "negative offset": (tensor(storage("Float", "0", 4), -1, (1,), (1,)), "no counts"),
    "bool": (tensor(storage("Float", "0", 4), True, (1,), (1,)), "no counts"),
    "text": (tensor(storage("Float", "0", 4), 0, "ab", "cd"), "no counts"),
    "ranks": (tensor(storage("Float", "0", 4), 0, (2, 2), (1,)), "2 sizes and 1 strides"),
    "dimensions": (tensor(storage("Float", "0", 4), 0, (1,) * 65, (1,) * 65), "65 sizes"),
    "claim of more": (tensor(storage("Float", "0", 5), 0, (4,), (1,)), "20"),
    "claim of less": (tensor(storage("Float", "0", 3), 0, (3,), (1,)), "12"),
    "claim of 149 GiB": (tensor(storage("Float", "0", 4 * 10**10), 0, (3,), (1,)), "160000000000"),
    "negative claim": (tensor(storage("Float", "0", -1), 0, (0,), (1,)), "other than a tensor's"),
    "two claims": ((storage("Float", "0", 4), storage("Int", "0", 4)), "two sizes or types"),
    "view of a storage": (storage("Float", "0", 4, ("1", 0, 2)), "views of others"),
    "unknown storage": (storage("QInt8", "0", 4), "`torch.QInt8Storage`"),
    "no storage": (tensor("0", 0, (1,), (1,)), "no storage"),
    "negated": (tensor(storage("Float", "0", 4), 0, (1,), (1,), {"neg": True}), "negated"),
    "missing": (tensor(storage("Float", "../0", 4), 0, (1,), (1,)), "../0"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_lying_sizes_are_refused(tmp_path, lie, form):
    obj, what = LIES[lie]
    path, data = tmp_path / "x.pth", bytes(16)
    if form == "zip":
        write_zip(path, obj, {"0": data})
    else:
        write_legacy(path, obj, {"0": (4, data)})
        what = "" if lie.startswith("claim") or lie == "missing" else what  # differs in words
    line = refusal(path)
    assert what in line
    assert "Error" not in line, "met by chance, not by a check"


def test_booleans_are_0_or_1(tmp_path):
    obj = tensor(storage("Bool", "0", 2), 0, (2,), (1,))
    assert "booleans" in refusal(write_zip(tmp_path / "x.pth", obj, {"0": b"\1\2"}))


def huge(folder):
    """Writes small files that claim to be huge."""
    for name in ("149 GiB", "149 GiB of one", "claim of 149 GiB", "overflow"):
        write_zip(folder / f"{name}.pth", LIES[name][0], {"0": bytes(16)})
        write_legacy(folder / f"old {name}.pth", LIES[name][0], {"0": (4, bytes(16))})
    obj = tensor(storage("Float", "0", 4 * 10**10), 0, (4 * 10**10,), (1,))
    write_legacy(folder / "count.pth", obj, {"0": (4 * 10**10, bytes(16))})
    write_zip(folder / "bomb.pth", tensor(storage("Byte", "0", 1), 0, (1,), (1,)), {"0": b"1"})
    with zipfile.ZipFile(folder / "bomb.pth", "a", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data/1", "w") as member:
            for _ in range(280):
                member.write(bytes(1 << 20))
    write_zip(
        folder / "size.pth",
        tensor(storage("Byte", "0", 160 * 10**9), 0, (9,), (1,)),
        {"0": b"1" * 16},
    )
    data = bytearray((folder / "size.pth").read_bytes())
    at = data.rindex(b"archive/data/0")  # in the directory: two sizes, as zip64
    data[at - 26 : at - 18] = b"\xfe\xff\xff\xff" * 2
    (folder / "size.pth").write_bytes(data)
    header = b'{"a":{"dtype":"F32","shape":[200000,200000],"data_offsets":[0,160000000000]}}'
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    (folder / "b.safetensors").write_bytes(struct.pack("<Q", 2**62) + header)
    deep = b"[" * (7 << 20)
    (folder / "c.safetensors").write_bytes(struct.pack("<Q", len(deep) + 1) + b"{" + deep)


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


def test_huge_claims_are_refused_at_once_without_allocating(tmp_path):
    huge(tmp_path)
    code = f"""
        import resource, time
        from pathlib import Path
        from convert.pth import read_weights
        from deeplab_jax.errors import CheckpointError
        usage = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        for path in sorted(Path({str(tmp_path)!r}).iterdir()):
            before, start = usage(), time.perf_counter()
            try:
                read_weights(path)
            except CheckpointError as error:
                print(path.name, usage() - before, round(time.perf_counter() - start, 2), usage(), sep="|")
    """
    lines = run_python(code).splitlines()
    assert len(lines) == len(list(tmp_path.iterdir()))
    for line in lines:
        name, megabytes, seconds, total = line.split("|")
        assert float(seconds) < 2, name
        assert int(megabytes) < 100, name
        assert int(total) < 500, name


def test_memory_is_that_of_the_file(tmp_path):
    size = 16 << 20
    obj = {
        f"w{i}": np.random.default_rng(i).random(size // 32).astype(np.float32) for i in range(4)
    }
    obj["zero"] = np.zeros(size // 8, np.float32)
    tracemalloc.start()
    try:
        write_pth(tmp_path / "x.pth", obj)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        with zipfile.ZipFile(tmp_path / "x.pth") as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        del members, data
        for name in ("x.pth", "y.pth"):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            loaded = read_pth(tmp_path / name)
            assert tracemalloc.get_traced_memory()[1] - before < size + (6 << 20), name
            assert_equal(loaded, obj)
            del loaded
    finally:
        tracemalloc.stop()


# --- Damage


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_in_any_member_is_refused(tmp_path, method):
    path = tmp_path / "x.pth"
    extra = {name: b"some content" for name in TORCH_KEYS} | {"data/unused": b"12345678"}
    obj = tensor(storage("Float", "0", 40), 0, (40,), (1,))
    write_zip(path, obj, {"0": np.arange(40, dtype="f4").tobytes()}, method, **extra)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    assert len(infos) == 8
    for info in infos:
        start = info.header_offset + 30 + len(info.filename)
        for at in range(start, start + info.compress_size):
            bad = bytearray(good)
            bad[at] ^= 1 << (at % 8)
            path.write_bytes(bad)
            if method == zipfile.ZIP_STORED:
                refusal(path)
                continue
            try:  # a deflated stream has bits that change nothing
                loaded = read_pth(path)
            except CheckpointError:
                continue
            assert loaded.tobytes() == np.arange(40, dtype="f4").tobytes()


def damaged_zips(path):
    """Yields (what is said, content) of zips that no `torch.save` writes."""
    obj = tensor(storage("Byte", "0", 4), 0, (4,), (1,))
    good = write_zip(path, obj, {"0": b"abcd"}).read_bytes()
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("archive/data/0").header_offset
    entry = good.rindex(b"archive/data/0") - 46

    def edited(at, data):
        return good[:at] + data + good[at + len(data) :]

    yield "encrypted", edited(entry + 8, b"\1\0")
    yield "neither stored nor deflated", edited(entry + 10, b"\x0c\0")
    yield "two sizes", edited(entry + 24, b"\3\0\0\0")
    yield "lies outside", edited(entry + 20, b"\xff\0\0\0\xff\0\0\0")
    yield "lies outside", edited(entry + 42, struct.pack("<I", len(good)))
    yield "damaged", edited(entry + 42, struct.pack("<I", offset + 1))
    yield "damaged", edited(entry + 16, b"\0\0\0\0")
    yield "damaged", good[:-1]
    yield "damaged", good[: len(good) // 2]
    yield "damaged", good[:4]
    yield "damaged", good[:50] + b"xyz" + good[50:]
    yield "list its members", edited(len(good) - 10, b"\xff\xff\xff\x7f")
    yield (
        "no checkpoint",
        write_zip(path, obj, {"0": b"abcd"}, root="a/data.pkl").read_bytes()[:0]
        or (write_zip(path, obj, **{"data.pkl": None}).read_bytes()),
    )
    yield "no checkpoint", write_zip(path, obj, **{"../x/data.pkl": b"N."}).read_bytes()
    yield "TorchScript", write_zip(path, obj, **{"constants.pkl": b"N."}).read_bytes()
    yield "big-endian", write_zip(path, obj, {"0": b"abcd"}, byteorder=b"big").read_bytes()
    yield "no member data/0", write_zip(path, obj).read_bytes()
    write_zip(path, obj, {"0": b"abcd"})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", b"efgh")
    yield "two members of one name", path.read_bytes()


def test_zips_that_no_writer_makes_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    for what, data in list(damaged_zips(path)):
        path.write_bytes(data)
        assert what in refusal(path), what


def test_a_pickle_of_more_than_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MAX_PICKLE", 10)
    assert "more than 10 bytes" in refusal(write_zip(tmp_path / "x.pth", op("a long text")))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"magic": b"I3\n."}, "no PyTorch checkpoint"),
        ({"version": b"I1002\n."}, "unknown version"),
        ({"machine": MACHINE.replace(b"I01", b"I00")}, "big-endian"),
        ({"machine": b"N."}, "damaged"),
        ({"keys": ["0", "0"]}, "other storages"),
        ({"keys": ["1"]}, "other storages"),
        ({"keys": []}, "other storages"),
        ({"storages": {"0": (5, b"1" * 20)}}, "holds 5 elements"),
        ({"storages": {"0": (-4, b"1" * 16)}}, "elements"),
        ({"storages": {"0": (4, b"1" * 15)}}, "cut short"),
        ({"storages": {"0": (4, b"")}}, "cut short"),
    ],
)
def test_damage_in_the_old_format(tmp_path, changes, what):
    obj = tensor(storage("Float", "0", 4), 0, (4,), (1,))
    arguments = {"storages": {"0": (4, bytes(16))}} | changes
    assert what in refusal(write_legacy(tmp_path / "x.pth", obj, **arguments))


def test_every_cut_of_a_file_is_refused(tmp_path):
    obj = {"w": tensor(storage("Float", "0", 4), 0, (4,), (1,))}
    path = tmp_path / "x.pth"
    write_zip(path, obj, {"0": bytes(16)})
    zipped = path.read_bytes()
    legacy = write_legacy(path, obj, {"0": (4, bytes(16))}).read_bytes()
    for data in (zipped, legacy):
        for size in range(0, len(data), 3):
            path.write_bytes(data[:size])
            refusal(path)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><p>404", "HTML"),
        (b"<html>", "HTML"),
        (b"<?xml version='1.0'?><Error/>", "XML"),
        (b"Hello, this is no checkpoint.\n", "text"),
        (b"cannot open\nthis file\n", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "Git LFS"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"a" * 257 + b"ustar\x0000" + b"\0" * 300, "tar archive"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "no PyTorch checkpoint"),
        (pickle.dumps({"a": 1}), "is a pickle"),
        (pickle.dumps({"a": 1})[:-4], "is a pickle"),
        (bytes(100), "no PyTorch checkpoint"),
        (struct.pack("<Q", 2) + b"{}", "safetensors"),
    ],
)
def test_other_files_are_named(tmp_path, data, what):
    (tmp_path / "x.pth").write_bytes(data)
    assert what in refusal(tmp_path / "x.pth")


def test_missing_files_and_folders(tmp_path):
    for reader in (read_pth, read_safetensors, read_weights):
        assert "does not exist" in refusal(tmp_path / "x.pth", reader)
        assert "is no file" in refusal(tmp_path, reader)


# --- safetensors


def test_safetensors_round_trip_is_bit_equal(tmp_path):
    tensors = {key: value for key, value in example()["model"].items()}
    tensors["view"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    tensors["big"] = np.arange(3, dtype=">i4")
    write_safetensors(tmp_path / "named.pth", tensors)
    loaded = read_weights(tmp_path / "named.pth")
    assert set(loaded) == set(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(loaded[key], value)
        assert loaded[key].shape == value.shape
        assert loaded[key].dtype == value.dtype.newbyteorder("<")
    with pytest.raises(CheckpointError, match="complex64"):
        write_safetensors(tmp_path / "y", {"a": np.zeros(3, np.complex64)})


ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    ("header", "body", "what"),
    [
        (b"{" + ONE + b"}", 3, "damaged"),
        (b"{" + ONE + b"}", 5, "damaged"),
        (b"{" + ONE.replace(b"[1]", b"[2]") + b"}", 4, "damaged"),
        (b"{" + ONE.replace(b"[1]", b"[-1]") + b"}", 4, "damaged"),
        (
            b"{" + ONE.replace(b"[1]", b"[18446744073709551615,18446744073709551615]") + b"}",
            4,
            "damaged",
        ),
        (b"{" + ONE + b"," + ONE.replace(b'"a"', b'"b"') + b"}", 4, "damaged"),
        (b"{" + ONE + b"," + ONE + b"}", 4, "twice"),
        (b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', 4, "twice"),
        (b"{" + ONE.replace(b"F32", b"F8_E4M3") + b"}", 4, "F8_E4M3"),
        (b"{" + ONE.replace(b"F32", b"BOOL").replace(b",4]", b",1]") + b"}", 1, "booleans"),
        (b"{" + ONE, 4, "damaged"),
        (b'{"a":3}', 4, "damaged"),
        (b"{\xff}", 4, "damaged"),
    ],
)
def test_safetensors_abuse_is_refused(tmp_path, header, body, what):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\2" * body)
    assert what in refusal(path, read_safetensors)
    assert what in refusal(path, read_weights)


# --- Against PyTorch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.torch
def test_torch_loads_what_we_write(tmp_path, torch):
    obj = example()
    write_pth(tmp_path / "x.pth", obj)
    for options in ({}, {"mmap": True}):
        loaded = torch.load(tmp_path / "x.pth", weights_only=True, **options)
        tensors = loaded.pop("model")
        assert list(tensors) == list(obj["model"])
        for key, value in tensors.items():
            expected = obj["model"][key]
            assert str(value.dtype).removeprefix("torch.") == expected.dtype.name, key
            assert value.is_contiguous()
            assert tuple(value.shape) == expected.shape
            assert value.flatten().view(torch.uint8).numpy().tobytes() == expected.tobytes()
        assert_equal(loaded, {key: value for key, value in obj.items() if key != "model"})


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])
def test_we_load_what_torch_writes(tmp_path, torch, zipped):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    base = torch.arange(60.0)
    views = [base[3:9], base.view(5, 12).t(), base[::7], base[:1].expand(4, 3), base[7], base[:0]]
    names = [
        "float16",
        "float32",
        "float64",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "bool",
        "bfloat16",
    ]
    obj = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": module[0].weight,
        "views": views,
        "types": [(base[:9] * 3).to(getattr(torch, name)) for name in names],
        "tuple": (1, "a", None, 2.5, torch.Size([2, 3])),
    }
    torch.save(obj, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    loaded = read_weights(tmp_path / "x.pth")

    def compare(ours, theirs):
        if isinstance(theirs, torch.Tensor):
            theirs = theirs.detach()
            assert str(theirs.dtype).removeprefix("torch.") == ours.dtype.name
            assert tuple(theirs.shape) == ours.shape
            content = theirs.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            assert content == ours.tobytes()
        elif isinstance(theirs, dict):
            assert list(theirs) == list(ours)
            for key in theirs:
                compare(ours[key], theirs[key])
        elif isinstance(theirs, list | tuple):
            assert len(theirs) == len(ours)
            for pair in zip(ours, theirs, strict=True):
                compare(*pair)
        else:
            assert ours == theirs

    compare(loaded, obj)
    whole = loaded["views"][1]
    assert all(np.may_share_memory(whole, view) for view in loaded["views"][:5])
    assert io.BytesIO and rebuild.MAX_STEPS  # keep the names in use
