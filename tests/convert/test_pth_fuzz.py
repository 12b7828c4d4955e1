"""Whatever the bytes: a correct value or one line, never another exception."""

import numpy as np
import pth_files as made
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.pth import read_pth, read_safetensors, read_weights, write_pth, write_safetensors

fuzz = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Returns {kind: bytes} of good files with the same content as far as the kind can hold it."""
    folder = tmp_path_factory.mktemp("valid")
    write_pth(folder / "zip", made.example())
    write_safetensors(folder / "safetensors", made.example()["model"])
    views = {"w": ((2, 3), (3, 1)), "t": ((3, 2), (1, 3)), "s": ((), ())}
    data = made.storage("Float", "0", 6)
    obj = {key: made.tensor(data, 0, *view) for key, view in views.items()}
    content = np.arange(6, dtype=np.float32).tobytes()
    made.write_legacy(folder / "legacy", obj | {"text": "x"}, {"0": (6, content)})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mutate(data, rng):
    """Returns the bytes after one to three of the accidents that happen to files."""
    for _ in range(rng.integers(1, 4)):
        at, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 40))
        some = rng.bytes(length)
        other = int(rng.integers(len(data) + 1))
        bit = bytes([data[at] ^ 1 << int(rng.integers(8))]) if at < len(data) else b""
        data = [
            data[:at] + bit + data[at + 1 :],
            data[:at] + some + data[at + length :],
            data[:at] + some + data[at:],
            data[:at] + data[at + length :],
            data[:at] + bytes(length) + data[at + length :],
            data[:at] + data[other : other + length] + data[at + length :],
            data[:at] if rng.integers(4) == 0 else data[:at] + bit + data[at + 1 :],
        ][rng.integers(7)]
    return data


def read(path, reader=read_weights):
    """Returns what was read, or None where the file was refused with one line."""
    try:
        return [reader(path)]
    except Exception:
        made.refusal(path, reader)
        return None


def test_mutations_of_a_zip_load_correctly_or_are_refused(tmp_path, valid):
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "x.pth", 0
    for _ in range(300):
        path.write_bytes(mutate(valid["zip"], rng))
        loaded = read(path)
        refused += loaded is None
        if loaded is not None:
            made.assert_equal(loaded[0], made.example())
    assert 150 < refused < 300


@pytest.mark.parametrize("kind", ["legacy", "safetensors"])
def test_mutations_of_files_without_checksums_raise_nothing_else(tmp_path, valid, kind):
    rng = np.random.default_rng(1)
    for _ in range(300):
        (tmp_path / "x.pth").write_bytes(mutate(valid[kind], rng))
        read(tmp_path / "x.pth")


HEADS = [
    b"",
    b"PK\3\4",
    made.MAGIC,
    made.MAGIC + b"I1001\n." + made.MACHINE,
    b"\x80\x02",
    b"PK\5\6",
]


@fuzz
@given(st.sampled_from(HEADS), st.binary(max_size=300))
def test_random_bytes(tmp_path, head, data):
    (tmp_path / "x.pth").write_bytes(head + data)
    for reader in (read_weights, read_pth, read_safetensors):
        read(tmp_path / "x.pth", reader)


@fuzz
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["zip", "legacy", "safetensors"]), st.integers(0), st.integers(0)
        ),
        max_size=4,
    )
)
def test_random_splices_of_good_files(tmp_path, valid, pieces):
    data = b""
    for kind, start, end in pieces:
        start, end = start % len(valid[kind]), end % len(valid[kind])
        data += valid[kind][start : end + 1] if start < end else valid[kind][start:]
    (tmp_path / "x.pth").write_bytes(data)
    read(tmp_path / "x.pth")


GLOBALS = (
    b"ctorch\nFloatStorage\n ctorch\nSize\n ctorch\nfloat32\n ctorch._utils\n_rebuild_tensor_v2\n "
    b"ctorch._utils\n_rebuild_parameter\n ccollections\nOrderedDict\n ccollections\nCounter\n "
    b"cbuiltins\nset\n cbuiltins\ngetattr\n c_codecs\nencode\n cnumpy\ndtype\n cnumpy\nndarray\n "
    b"cnumpy._core.multiarray\nscalar\n cnumpy._core.multiarray\n_reconstruct\n cos\nsystem\n "
    b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
).split(b" ")  # fmt: skip
VALUES = [
    *map(made.op, (0, 1, -1, 3, 10**12, "storage", "cpu", "0", "latin1", "f8", "b", (), (2,), [])),
    *map(
        made.op, ({}, {"neg": True}, (2, 3), (3, 1), (0,), None, True, (3, "<", None), "\xff" * 8)
    ),
    made.storage("Float", "0", 6),
    made.storage("Bool", "0", 6),
    made.tensor(made.storage("Float", "0", 6), 0, (2, 3), (3, 1)),
    b"G" + bytes(8),
    b"B\2\0\0\0ab",
]
OPCODES = [bytes([code]) for code in b"(0125}])Rb\x81\x85\x86\x87\x93\x94\x8f\x90\x91Qadelstu"]
MEMO = [code + bytes([index]) for code in (b"q", b"h") for index in range(3)]


def assert_plain(value):
    if isinstance(value, dict | list | tuple | set | frozenset):
        assert type(value) in (dict, list, tuple, set, frozenset)
        for item in value:
            assert_plain(item)
    if isinstance(value, dict):
        assert_plain(list(value.values()))
    plain = (str, int, float, bool, bytes, type(None), np.ndarray)
    assert isinstance(value, dict | list | tuple | set | frozenset) or type(value) in plain


@fuzz
@given(st.lists(st.sampled_from(GLOBALS + VALUES * 2 + OPCODES * 3 + MEMO), max_size=25))
def test_random_programs(tmp_path, program):
    """Well-formed containers, so that the machine meets every opcode in every state."""
    content = np.ones(6, np.float32).tobytes()
    path = made.write_zip(tmp_path / "x.pth", b"".join(program), {"0": content})
    loaded = read(path)
    for value in loaded or []:
        assert_plain(value)
