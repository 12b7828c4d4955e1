import os
import pickle
import struct
import subprocess
import time
import tracemalloc

import pth_files as made
import pytest

from convert import rebuild
from convert.pth import read_pth, read_weights


class Attack:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(marker):
    """Yields (name in the refusal, pickle) of code that would make the marker."""
    text = f"open({str(marker)!r}, 'w')"
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
            made.write_zip(path, 0, **{"data.pkl": data})
        elif form == "legacy":
            made.write_legacy(path, data[:-1])
        else:
            path.write_bytes(data)
        assert f"`{name}`" in made.refusal(path)
        assert f"`{name}`" in made.refusal(path, read_weights)
        assert not marker.exists()
    pickle.loads(next(attacks(marker))[1])
    assert marker.exists(), "the attack was none"


@pytest.mark.parametrize("part", ["magic", "version", "machine", "keys"])
def test_an_attack_in_any_part_of_the_old_format(tmp_path, part):
    marker, path = tmp_path / "marker", tmp_path / "x.pth"
    for name, data in attacks(marker):
        made.write_legacy(path, 0, **{part: data[:-1] if part == "keys" else data})
        assert f"`{name}`" in made.refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("obj", "what"),
    [
        (made.call("torch.load", "x"), "`torch.load`"),
        (made.call("torch._utils._rebuild_tensor_v3", 1), "`torch._utils._rebuild_tensor_v3`"),
        (
            made.call("builtins.getattr", b"ctorch._utils\n_rebuild_tensor\n", "__globals__"),
            "getattr",
        ),
        (
            made.call("builtins.getattr", b"cmmengine.logging.history_buffer\nHistoryBuffer\n", 3),
            "getattr",
        ),
        (b"\x8c\x05torch\x8c\x0aserializat\x93" + made.op(()) + b"R", "`torch.serializat`"),
        (b"\x8c\x05torch\x8c\x08Size.mro\x93" + made.op(()) + b"R", "`torch.Size.mro`"),
        (made.call("torch.FloatStorage", 10**12), "`torch.FloatStorage`"),
        (made.call("numpy.ndarray", (10**12,)), "`numpy.ndarray`"),
        (b"ctorch\nFloatStorage\n", "`torch.FloatStorage` as a value"),
        (made.op("text") + made.op(()) + b"R", "no function"),
        (b"ctorch\nSize\n" + made.op([1]) + b"R", "no function"),
        (b"(S'touch x'\nios\nsystem\n", "opcode INST"),
        (b"(cos\nsystem\nS'touch x'\no", "`os.system`"),
        (b"(ctorch\nSize\nS'touch x'\no", "opcode OBJ"),
        (b"ccollections\nOrderedDict\n)}\x92", "opcode NEWOBJ_EX"),
        (b"\x82\x01", "EXT1"),
        (b"ccollections\nOrderedDict\n)\x81", "makes an object"),
        (
            made.call("collections.OrderedDict") + made.op((None, {"__class__": 1})) + b"b",
            "sets a state",
        ),
        (made.op({}) + made.op({"__class__": 1}) + b"b", "sets a state"),
        (b"ctorch\nSize\n" + made.op({"__call__": 1}) + b"b", "sets a state"),
        (made.call("_codecs.encode", "x", "rot13"), "encodes"),
        (made.call("_codecs.encode", "\u4e2d", "latin1"), "damaged"),
        (made.call("numpy.dtype", "O", False, True), "type O"),
        (made.call("numpy.dtype", "V9", False, True), "type V9"),
        (
            made.call("numpy.core.multiarray._reconstruct", b"cnumpy\nndarray\n", (0,), "b"),
            "without content",
        ),
        (made.call("numpy.core.multiarray.scalar", "f8", b"c_codecs\nencode\n"), "scalar"),
        (made.op(("module", "x", "y", "z")) + b"Q", "other than a tensor's storage"),
        (made.op({(1, (2,)): 1}), "tuple as a key"),
        (made.op({(1, "a"): 1}), "tuple as a key"),
        (b"(ctorch\nSize\nNd", "Global as a key"),
        (b"\x8b" + struct.pack("<I", 2000) + b"\1" * 2000, "integer of"),
        (b"X\3\0\0\0\xed\xa0\x80", "damaged"),
        (b"N\x86", "too few values"),
    ],
)
def test_tricks_are_refused(tmp_path, obj, what):
    assert what in made.refusal(made.write_zip(tmp_path / "x.pth", obj))


def bombs():
    """Yields (name, pickle without its end) of small pickles that ask for much."""
    text = b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\0"
    method = b"cmmengine.logging.history_buffer\nHistoryBuffer\nq\1c__builtin__\ngetattr\nq\2"
    twice = [b"(h%ch%ctq%c" % (i, i, i + 1) for i in range(40)]
    yield "shared tuples", b")q\0" + b"".join(twice)
    yield "shared lists", b"]q\0" + b"".join(twice).replace(b"t", b"l")
    yield "cycle", b"]q\0h\0a"
    yield "nested lists", b"]" * 200_000 + b"a" * 199_999
    yield "nested tuples", b")" + b"\x85" * 300_000
    yield "nested tuple as key", b"}" + b")" + b"\x85" * 300_000 + b"Ns"
    yield "many steps", b"N0" * 600_000 + b"N"
    yield "huge memo index", b"Nr\xff\xff\xff\xffK"
    repeat = b"c_codecs\nencode\nq\1" + b"h\1h\0X\6\0\0\0latin1\x86R" * 20_000
    yield "long text again and again", text + repeat
    yield "long name again and again", text + method + b"h\2h\1h\0\x86R" * 20_000
    repeat = b"tq\0ctorch\nSize\nq\1(" + b"h\1h\0\x85R" * 50_000 + b"t"
    yield "long list again and again", b"(" + b"K\1" * 100_000 + repeat
    yield "text of 4 EiB", b"\x8d" + struct.pack("<Q", 2**62) + b"abc"
    yield "bytes of 4 GiB", b"B\xff\xff\xff\xffabc"
    yield "integer of 2 GiB", b"\x8b\xff\xff\xff\x7fabc"


@pytest.mark.parametrize(("name", "data"), bombs(), ids=[name for name, _ in bombs()])
def test_bombs_end_soon_and_small(tmp_path, monkeypatch, name, data):
    monkeypatch.setattr(rebuild, "MAX_STEPS", 100_000)  # a tenth: tracing is slow
    path = made.write_zip(tmp_path / "x.pth", data)
    tracemalloc.start()
    try:
        made.refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def equal_hashes(before=b"", after=b""):
    return b"".join(before + made.op(2**61 * i - i + 1) + after for i in range(40_000))


def tuples():
    """Of -1 and -2, whose hashes are equal."""
    numbers = (made.op(-1), made.op(-2))
    rows = ((numbers[i >> k & 1] for k in range(16)) for i in range(20_000))
    return b"".join(b"(" + b"".join(row) + b"t" for row in rows)


COLLISIONS = {  # pickles without their end, and how they are refused
    "dict": (lambda: b"(" + equal_hashes(after=b"N") + b"d", "a key of "),
    "items of a dict": (lambda: b"}(" + equal_hashes(after=b"N") + b"u", "a key of "),
    "items one by one": (lambda: b"}" + equal_hashes(after=b"Ns"), "a key of "),
    "items of a set": (lambda: b"\x8f(" + equal_hashes() + b"\x90", "a key of "),
    "frozenset": (lambda: b"(" + equal_hashes() + b"\x91", "a key of "),
    "set": (lambda: b"cbuiltins\nset\n((" + equal_hashes() + b"ltR", "a key of "),
    "OrderedDict": (
        lambda: b"ccollections\nOrderedDict\n((" + equal_hashes(b"(", b"Nt") + b"ltR",
        "a key of ",
    ),
    "many numbers": (
        lambda: b"\x8f(" + b"".join(map(made.op, range(20_000))) + b"\x90",
        "more than 10000 numbers",
    ),
    "numbers again and again": (
        lambda: (
            b"((" + b"".join(made.op(i) + b"N" for i in range(900)) + b"dq\0" + b"h\0" * 99 + b"l"
        ),
        "more than 10000 numbers",
    ),
    "tuples": (lambda: b"\x8f(" + tuples() + b"\x90", "a tuple as a key"),
    "memo": (
        lambda: b"N" + b"".join(b"p%d\n" % (2**61 * i - i + 1) for i in range(40_000)),
        "numbers its objects beyond",
    ),
    "negative memo": (lambda: b"Np-1\n", "numbers its objects beyond"),
    "long memo": (lambda: b"Nr" + struct.pack("<I", 10**6), "numbers its objects beyond"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", COLLISIONS)
def test_keys_that_meet_in_a_table_are_refused_at_once(tmp_path, name):
    make, what = COLLISIONS[name]
    path = made.write_zip(tmp_path / "x.pth", make())
    start = time.process_time()
    assert what in made.refusal(path)
    assert time.process_time() - start < 5


def test_old_format_may_list_no_numbers_for_storages(tmp_path):
    obj = [made.storage("Float", str(i), 0) for i in range(40_000)]
    path = tmp_path / "x.pth"
    made.write_legacy(path, obj, keys=[2**61 * i - i + 1 for i in range(40_000)])
    start = time.process_time()
    made.refusal(path)
    assert time.process_time() - start < 5


def test_a_long_training_fits_the_limits(tmp_path):
    """ResNet-101 twice, with momentum: more than any checkpoint of ours."""
    tensor = made.tensor(made.storage("Float", "0", 1), 0, (1, 1, 1, 1), (1, 1, 1, 1))
    obj = {f"backbone.layer3.22.conv3.{i}": tensor for i in range(4000)}
    path = made.write_zip(tmp_path / "x.pth", obj, {"0": bytes(4)})
    assert len(read_pth(path)) == 4000
