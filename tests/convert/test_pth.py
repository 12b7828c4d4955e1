import json
import pickle
import re
import struct
import zipfile

import numpy as np
import pth_files as made
import pytest

from convert.pth import read_pth, read_safetensors, read_weights, write_pth, write_safetensors
from deeplab_jax.errors import CheckpointError, ResourceError

# --- What is read


@pytest.mark.parametrize("dtype", made.STORAGES, ids=str)
@pytest.mark.parametrize("form", ["stored", "deflated", "legacy"])
def test_views_of_every_type_in_every_format(tmp_path, dtype, form):
    base = (np.arange(60) % 2 if dtype.kind == "b" else np.arange(60) + 100).astype(dtype)
    data = made.storage(made.STORAGES[dtype], "k0", 60)
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
    obj = {name: made.tensor(data, *view) for name, view in cases.items()}
    path = tmp_path / "x.pth"
    if form == "legacy":
        made.write_legacy(path, obj, {"k0": (60, base.tobytes())})
    else:
        method = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}[form]
        made.write_zip(path, obj, {"k0": base.tobytes()}, method)
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
    weight = made.tensor(made.storage("Float", "0", 2), 0, (2,), (1,))
    numpy_dtype = (
        made.call("numpy.dtype", "f8", False, True)
        + made.op((3, "<", None, None, None, -1, -1, 0))
        + b"b"
    )
    eight = made.call("_codecs.encode", np.float64(1.5).tobytes().decode("latin1"), "latin1")
    state = made.call("collections.OrderedDict") + b"(" + made.op("w") + weight + b"u"
    obj = {
        "parameter": made.call("torch._utils._rebuild_parameter", weight, True, None),
        "old": made.call(
            "torch._utils._rebuild_tensor", made.storage("Float", "0", 2), 1, (1,), (1,)
        ),
        "state": state + made.op({"_metadata": {"": {"version": 1}}}) + b"b",
        "pairs": made.call("collections.OrderedDict", [["a", 1], ("b", 2)]),
        "counter": made.call("collections.Counter", {30: 1}),
        "set": made.call("__builtin__.set", [1, "a"]),
        "frozen": made.call("builtins.frozenset", [1]),
        "bytes": made.call("__builtin__.bytes"),
        "size": made.call("torch.Size", (2, 3)),
        "dtype": b"ctorch\nbfloat16\n",
        "storage": made.storage("Float", "0", 2),
        "cuda": made.op(("storage", b"ctorch.cuda\nFloatStorage\n", "0", "cuda:0", 2)) + b"Q",
        "scalar": made.call("numpy.core.multiarray.scalar", numpy_dtype, eight),
        "new scalar": made.call("numpy._core.multiarray.scalar", numpy_dtype, eight),
        1: None,
    }
    loaded = read_pth(made.write_zip(tmp_path / "x.pth", obj, {"0": np.float32([1, 2]).tobytes()}))
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
        1: None,
    }
    made.assert_equal(loaded, expected)


def test_python_pickles_of_every_protocol(tmp_path):
    obj = {"a": [1, -(2**70), 2.5, "\u00e9", b"\xff\0", (), (1,), (1, 2, 3, 4), None, True]}
    obj |= {"set": {1, 2}, "again": obj["a"], "long": "x" * 300, "frozen": frozenset("a")}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(obj, protocol)
        loaded = read_pth(made.write_zip(tmp_path / f"{protocol}.pth", 0, **{"data.pkl": data}))
        made.assert_equal(loaded, obj)


def test_the_envelope_of_mmengine(shared):
    loaded = read_weights(shared / "reference" / "golden" / "dialects" / "mmengine_envelope.pth")
    assert loaded["meta"]["dataset_meta"]["classes"] == ("a", "b")
    shapes = {key: (value.dtype.name, value.shape) for key, value in loaded["state_dict"].items()}
    assert shapes == {
        "backbone.stem.0.weight": ("float32", (32, 3, 3, 3)),
        "backbone.stem.1.weight": ("float32", (32,)),
        "backbone.stem.1.num_batches_tracked": ("int64", ()),
        "decode_head.conv_seg.bias": ("float32", (21,)),
    }
    losses = loaded["message_hub"]["log_scalars"]["train/loss"]
    made.assert_equal(losses["_log_history"], np.array([1.5]))
    assert losses["statistics_methods"]["min"] == "HistoryBuffer.min"


# --- What is written


def test_round_trip_is_bit_equal_and_deterministic(tmp_path):
    obj = made.example()
    write_pth(tmp_path / "a.pth", obj)
    write_pth(tmp_path / "b.pth", read_pth(tmp_path / "a.pth"))
    made.assert_equal(read_weights(tmp_path / "a.pth"), obj)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "b.pth"}


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_a_new_file_has_the_permissions_of_any_other(tmp_path, write):
    (tmp_path / "any").touch()
    write(tmp_path / "a", {"a": np.zeros(3)})
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_any_memory_layout_is_written(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    obj = {
        "t": base.T,
        "steps": base[::2, ::-3],
        "big": base.astype(">f4"),
        "wide": np.broadcast_to(base[0], (3, 6)),
        "bf": base.astype(made.BFLOAT16).T,
        "scalar": np.int64(3),
        "float": np.float64(2.5),
    }
    write_pth(tmp_path / "a.pth", obj)
    for key, value in read_pth(tmp_path / "a.pth").items():
        np.testing.assert_array_equal(value, obj[key])
        assert value.dtype == np.asarray(obj[key]).dtype.newbyteorder("<")
        assert value.flags.c_contiguous


def test_storages_are_aligned(tmp_path):
    write_pth(tmp_path / "a.pth", made.example())
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
    done = made.run_python(code)
    assert "a.pth: cannot be written" in done, done
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    assert (tmp_path / "a.pth").read_text() == "old"


# --- Other files


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
    assert what in made.refusal(tmp_path / "x.pth")


def test_missing_files_and_folders(tmp_path):
    for reader in (read_pth, read_safetensors, read_weights):
        assert "does not exist" in made.refusal(tmp_path / "x.pth", reader)
        assert "is no file" in made.refusal(tmp_path, reader)


# --- safetensors


def test_safetensors_round_trip_is_bit_equal(tmp_path):
    tensors = dict(made.example()["model"])
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
    assert what in made.refusal(path, read_safetensors)
    assert what in made.refusal(path, read_weights)


# --- Against PyTorch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.torch
def test_torch_loads_what_we_write(tmp_path, torch):
    obj = made.example()
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
        made.assert_equal(loaded, {key: value for key, value in obj.items() if key != "model"})


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])
def test_we_load_what_torch_writes(tmp_path, torch, zipped):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    base = torch.arange(60.0)
    views = [base[3:9], base.view(5, 12).t(), base[::7], base[:1].expand(4, 3), base[7], base[:0]]
    obj = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": module[0].weight,
        "views": views,
        "types": [(base[:9] * 3).to(getattr(torch, dtype.name)) for dtype in made.STORAGES],
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


# --- Shards


@pytest.fixture
def shards(tmp_path):
    """Returns shards(suffix=".safetensors", **changes of the weight map) -> (index, tensors)."""

    def make(suffix=".safetensors", **changes):
        tensors = {name: np.arange(5.0) * i for i, name in enumerate("abcd")}
        names = [f"model-0000{i}-of-00002{suffix}" for i in (1, 2)]
        for name, keys in zip(names, ("ac", "bd"), strict=True):
            write = write_safetensors if suffix == ".safetensors" else write_pth
            write(tmp_path / name, {key: tensors[key] for key in keys})
        places = {key: names[key in "bd"] for key in tensors} | changes
        places = {key: place for key, place in places.items() if place is not None}
        path = tmp_path / f"model{suffix}.index.json"
        path.write_text(json.dumps({"metadata": {"total_size": 160}, "weight_map": places}))
        return path, tensors

    return make


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_read_by_their_index_or_folder(shards, suffix):
    path, tensors = shards(suffix)
    made.assert_equal(read_weights(path), tensors)
    made.assert_equal(read_weights(path.parent), tensors)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"a": "../model-00001-of-00002.safetensors"}, "which is no file beside it"),
        ({"a": "/etc/passwd"}, "which is no file beside it"),
        ({"a": "..\\x.safetensors"}, "which is no file beside it"),
        ({"a": ".safetensors"}, "which is no file beside it"),
        ({"a": "model.safetensors.index.json"}, "which is no file beside it"),
        ({"a": 3}, "which is no file beside it"),
        ({"a": "lost.safetensors"}, "names the shard lost.safetensors, which is not beside it"),
        ({"a": None}, "does not hold what model.safetensors.index.json says (missing: none; bey"),
        ({"e": "model-00001-of-00002.safetensors"}, "says (missing: e; beyond it: none)"),
        ({"a": "model-00002-of-00002.safetensors"}, "does not hold what"),
    ],
)
def test_shards_that_lie_are_refused(shards, changes, what):
    path, _ = shards(**changes)
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert what in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a": 1}', "is JSON, but no index of shards"),
        ('{"weight_map": {}}', "is JSON, but no index of shards"),
        ('{"weight_map": {"a": "x.bin", "a": "y.bin"}}', "names a key twice"),
        ('{"weight_map": ', "is damaged or cut short"),
        ('{"weight_map": ' + "[" * 10_000, "is damaged or cut short"),
    ],
)
def test_other_json_is_refused(tmp_path, text, what):
    (tmp_path / "x.index.json").write_text(text)
    assert what in made.refusal(tmp_path / "x.index.json", read_weights)


def test_safetensors_of_8_bits_are_read(tmp_path):
    header = b'{"a":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + b"\x3c\xc0")
    value = read_weights(tmp_path / "x")["a"]
    assert value.dtype.name == "float8_e5m2"
    assert value.astype(np.float32).tolist() == [1.0, -2.0]
