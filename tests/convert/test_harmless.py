"""What pickles name beside tensors: passed over without being made, or refused with the reason."""

import argparse
import collections
import datetime
import decimal
import pathlib
import pickle
import types
import uuid

import ml_dtypes
import numpy as np
import pth_files as made
import pytest

from convert.harmless import PASSED_OVER
from convert.pth import read_pth, write_pth
from convert.rebuild import CALLS, STORAGES
from convert.source import read_source

VALUES = [
    argparse.Namespace(a=1, device=[pathlib.Path("x")]),
    types.SimpleNamespace(a=1),
    datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    datetime.date(2026, 1, 2),
    datetime.timedelta(1),
    pathlib.PurePosixPath("a/b"),
    pathlib.PureWindowsPath("a"),
    pathlib.Path("a"),
    np.str_("ab"),
    np.dtype("U3"),
    np.array(["a", "b"]),
    np.array([1j]),
    np.datetime64("2026-01-01"),
    np.float32,
    np.random.RandomState(0),
    np.random.default_rng(0),
    collections.deque([1, 2], 3),
    collections.UserDict(a=1),
    collections.ChainMap({"a": 1}),
    decimal.Decimal(1),
    uuid.UUID(int=1),
    slice(1),
    range(3),
    int,
    1j,
]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_harmless_values_become_the_text_of_their_name(tmp_path, protocol):
    data = pickle.dumps({"values": VALUES, "last": 7}, protocol)
    loaded = read_pth(made.write_zip(tmp_path / "x.pth", 0, **{"data.pkl": data}))
    assert len(loaded["values"]) == len(VALUES)
    assert all(type(value) is str for value in loaded["values"])
    assert loaded["last"] == 7


def test_harmless_containers_are_read(tmp_path):
    obj = {"d": collections.defaultdict(list, a=[1]), "c": collections.Counter("aab"), "n": None}
    obj |= {
        "f": np.float32(1.5),
        "i": np.int16(3),
        "b": np.bool_(True),
        "s": {1},
        "t": np.dtype("f4"),
    }
    obj |= {"paths": {pathlib.PurePosixPath("a"): 1, pathlib.PurePosixPath("b"): 2}}
    loaded = read_pth(made.write_zip(tmp_path / "x.pth", 0, **{"data.pkl": pickle.dumps(obj, 2)}))
    assert list(loaded.pop("paths").values()) == [1, 2]
    expected = {"d": {"a": [1]}, "c": {"a": 2, "b": 1}, "n": None, "f": 1.5, "i": 3, "b": True}
    made.assert_equal(loaded, expected | {"s": {1}, "t": "float32"})


class Harmful:
    """Makes a file when it is made or given a state, under the name of something harmless."""

    def __init__(self, *args):
        pathlib.Path(args[0]).touch()


@pytest.mark.parametrize("name", ["pathlib.PosixPath", "argparse.Namespace", "torch.device"])
def test_nothing_that_is_passed_over_is_made(tmp_path, monkeypatch, name):
    monkeypatch.setattr(pathlib, "PosixPath", Harmful)
    monkeypatch.setattr(argparse, "Namespace", Harmful)
    marker = tmp_path / "marker"
    obj = made.call(name, str(marker)) + made.op({"a": made.call("builtins.slice", 1)}) + b"b"
    assert read_pth(made.write_zip(tmp_path / "x.pth", {"a": obj}))["a"] == name
    assert not marker.exists()


def test_no_name_has_two_meanings():
    assert not PASSED_OVER & (CALLS.keys() | STORAGES.keys())
    assert not any(name.startswith(("os.", "sys.", "subprocess.")) for name in PASSED_OVER)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("torch._utils._rebuild_qtensor", "a quantised tensor"),
        ("torch._utils._rebuild_sparse_tensor", "save its `to_dense()`"),
        ("torch.QInt8Storage", "a type of number that weights do not have"),
        ("torch.nn.modules.conv.Conv2d", "a part of a whole model instead of its weights"),
        ("torch.optim.lr_scheduler.LambdaLR", "which belongs to no weights"),
        ("numpy.ma.core._mareconstruct", "which belongs to no weights"),
    ],
)
def test_known_names_are_refused_with_another_way_to_save(tmp_path, name, what):
    line = made.refusal(made.write_zip(tmp_path / "x.pth", made.call(name)))
    assert f"`{name}`" in line
    assert what in line
    assert 'torch.save(model.state_dict(), "weights.pth")' in line


def test_unknown_names_are_refused_as_before(tmp_path):
    line = made.refusal(made.write_zip(tmp_path / "x.pth", made.call("mine.Net")))
    assert line.startswith(
        "its pickle asks for `mine.Net`, which no tensor needs - get the weights"
    )


# --- Types of 8 bits


EIGHT_BITS = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


def rebuilt(name, numel, shape):
    ordered = made.call("collections.OrderedDict")
    bytes_ = b"ctorch.storage\nUntypedStorage\n"
    storage = made.op(("storage", bytes_, "0", "cpu", numel)) + b"Q"
    args = (storage, 0, shape, (1,) * len(shape), False, ordered, f"ctorch\n{name}\n".encode())
    return made.call("torch._utils._rebuild_tensor_v3", *args)


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_types_of_8_bits_are_read(tmp_path, name):
    data = bytes(range(256))
    path = made.write_zip(tmp_path / "x.pth", rebuilt(name, 256, (256,)), {"0": data})
    expected = np.frombuffer(data, getattr(ml_dtypes, name))
    np.testing.assert_array_equal(read_pth(path).view(np.uint8), expected.view(np.uint8))


def test_types_of_8_bits_lie_in_their_storage(tmp_path):
    path = made.write_zip(tmp_path / "x.pth", rebuilt("uint32", 8, (3,)), {"0": bytes(8)})
    assert "needs 3 elements of a storage that holds 2" in made.refusal(path)


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_weights_of_8_bits_become_float32_exactly(make_tensors, tmp_path, name):
    tensors = make_tensors("v1c")
    narrow = {
        k: v.astype(getattr(ml_dtypes, name)) if v.dtype.kind == "f" else v
        for k, v in tensors.items()
    }
    write_pth(tmp_path / "x.pth", tensors)
    source = read_source(str(tmp_path / "x.pth"))
    source.tensors.update(narrow)
    variables, _ = source.to_variables(_model(source))
    got = variables["params"]["layer1_0"]["conv1"]["norm"]["scale"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, narrow["layer1.0.bn1.weight"].astype(np.float32))


def _model(source):
    from deeplab_jax.config import freeze, get_config

    config = get_config("folder", 18)
    config.model.update(source.structure.model)
    return freeze(config).model


# --- Against PyTorch


@pytest.mark.torch
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_what_torch_saves_beside_tensors(tmp_path, options):
    torch = pytest.importorskip("torch")
    plain = torch.arange(4.0)
    with_attribute, parameter = plain.clone(), torch.nn.Parameter(plain.clone())
    with_attribute.origin = parameter.origin = "x"
    obj = {
        "device": torch.device("cuda:1"),
        "dtypes": [torch.float32, torch.float8_e5m2, torch.uint16, torch.complex64],
        "layout": torch.strided,
        "scheme": torch.per_tensor_affine,
        "generator": torch.Generator(),
        "state": torch.Generator().get_state(),
        "version": torch.__version__,
        "tensors": [with_attribute, parameter, torch.nn.parameter.Buffer(plain)],
        "eight": plain.to(torch.float8_e4m3fn),
        "sixteen": torch.tensor([1, 65535], dtype=torch.uint16),
    }
    torch.save(obj, tmp_path / "x.pth", **options)
    loaded = read_pth(tmp_path / "x.pth")
    assert loaded["device"] == "torch.device"
    assert loaded["dtypes"] == [str(dtype) for dtype in obj["dtypes"]]
    for tensor in loaded["tensors"]:
        np.testing.assert_array_equal(tensor, plain)
    np.testing.assert_array_equal(loaded["eight"].astype(np.float32), plain)
    assert loaded["sixteen"].tolist() == [1, 65535]
    np.testing.assert_array_equal(loaded["state"], obj["state"])
