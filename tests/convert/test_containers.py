import struct
import tracemalloc
import zipfile

import numpy as np
import pth_files as made
import pytest

from convert import containers
from convert.pth import read_pth, write_pth
from deeplab_jax.errors import CheckpointError

TORCH_KEYS = (".format_version", ".storage_alignment", "version", ".data/serialization_id")


# --- Lies about sizes

LIES = {
    "outside": (made.tensor(made.storage("Float", "0", 4), 0, (5,), (1,)), "needs 5 elements"),
    "offset": (made.tensor(made.storage("Float", "0", 4), 4, (1,), (1,)), "needs 5 elements"),
    "offset of nothing": (
        made.tensor(made.storage("Float", "0", 4), 5, (0,), (1,)),
        "needs 5 elements",
    ),
    "stride": (made.tensor(made.storage("Float", "0", 4), 0, (2, 2), (3, 1)), "needs 5 elements"),
    "149 GiB": (
        made.tensor(made.storage("Float", "0", 4), 0, (200_000, 200_000), (200_000, 1)),
        "needs 40",
    ),
    "149 GiB of one": (
        made.tensor(made.storage("Float", "0", 4), 0, (200_000, 200_000), (0, 0)),
        "repeats",
    ),
    "overflow": (
        made.tensor(made.storage("Float", "0", 4), 0, (2**32, 2**32), (2**32, 1)),
        "needs 18",
    ),
    "negative size": (made.tensor(made.storage("Float", "0", 4), 0, (-1,), (1,)), "no counts"),
    "negative stride": (made.tensor(made.storage("Float", "0", 4), 3, (2,), (-1,)), "no counts"),
    "negative offset": (made.tensor(made.storage("Float", "0", 4), -1, (1,), (1,)), "no counts"),
    "bool": (made.tensor(made.storage("Float", "0", 4), True, (1,), (1,)), "no counts"),
    "text": (made.tensor(made.storage("Float", "0", 4), 0, "ab", "cd"), "no counts"),
    "ranks": (made.tensor(made.storage("Float", "0", 4), 0, (2, 2), (1,)), "2 sizes and 1 strides"),
    "dimensions": (made.tensor(made.storage("Float", "0", 4), 0, (1,) * 65, (1,) * 65), "65 sizes"),
    "claim of more": (made.tensor(made.storage("Float", "0", 5), 0, (4,), (1,)), "20"),
    "claim of less": (made.tensor(made.storage("Float", "0", 3), 0, (3,), (1,)), "12"),
    "claim of 149 GiB": (
        made.tensor(made.storage("Float", "0", 4 * 10**10), 0, (3,), (1,)),
        "160000000000",
    ),
    "negative claim": (
        made.tensor(made.storage("Float", "0", -1), 0, (0,), (1,)),
        "other than a tensor's",
    ),
    "two claims": (
        (made.storage("Float", "0", 4), made.storage("Int", "0", 4)),
        "two sizes or types",
    ),
    "view of a storage": (made.storage("Float", "0", 4, ("1", 0, 2)), "views of others"),
    "unknown storage": (made.storage("QInt8", "0", 4), "`torch.QInt8Storage`"),
    "no storage": (made.tensor("0", 0, (1,), (1,)), "no storage"),
    "negated": (
        made.tensor(made.storage("Float", "0", 4), 0, (1,), (1,), {"neg": True}),
        "negated",
    ),
    "missing": (made.tensor(made.storage("Float", "../0", 4), 0, (1,), (1,)), "../0"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_lying_sizes_are_refused(tmp_path, lie, form):
    obj, what = LIES[lie]
    path, data = tmp_path / "x.pth", bytes(16)
    if form == "zip":
        made.write_zip(path, obj, {"0": data})
    else:
        made.write_legacy(path, obj, {"0": (4, data)})
        what = "" if lie.startswith("claim") or lie == "missing" else what  # differs in words
    line = made.refusal(path)
    assert what in line
    assert "Error" not in line, "met by chance, not by a check"


def test_booleans_are_0_or_1(tmp_path):
    obj = made.tensor(made.storage("Bool", "0", 2), 0, (2,), (1,))
    assert "booleans" in made.refusal(made.write_zip(tmp_path / "x.pth", obj, {"0": b"\1\2"}))


def huge(folder):
    """Writes small files that claim to be huge."""
    for name in ("149 GiB", "149 GiB of one", "claim of 149 GiB", "overflow"):
        made.write_zip(folder / f"{name}.pth", LIES[name][0], {"0": bytes(16)})
        made.write_legacy(folder / f"old {name}.pth", LIES[name][0], {"0": (4, bytes(16))})
    obj = made.tensor(made.storage("Float", "0", 4 * 10**10), 0, (4 * 10**10,), (1,))
    made.write_legacy(folder / "count.pth", obj, {"0": (4 * 10**10, bytes(16))})
    made.write_zip(
        folder / "bomb.pth", made.tensor(made.storage("Byte", "0", 1), 0, (1,), (1,)), {"0": b"1"}
    )
    archive = zipfile.ZipFile(folder / "bomb.pth", "a", zipfile.ZIP_DEFLATED)
    with archive, archive.open("archive/data/1", "w") as member:
        for _ in range(280):
            member.write(bytes(1 << 20))
    made.write_zip(
        folder / "size.pth",
        made.tensor(made.storage("Byte", "0", 160 * 10**9), 0, (9,), (1,)),
        {"0": b"1" * 16},
    )
    data = bytearray((folder / "size.pth").read_bytes())
    at = data.rindex(b"archive/data/0")  # in the directory: two sizes, as zip64
    data[at - 26 : at - 18] = b"\xfe\xff\xff\xff" * 2
    (folder / "size.pth").write_bytes(data)
    header = b'{"a":{"dtype":"F32","shape":[200000,200000],"data_offsets":[0,160000000000]}}'
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    (folder / "b.safetensors").write_bytes(struct.pack("<Q", 2**62) + header)
    for name, part in (("deep", b"["), ("wide", b"[],")):
        header = b'{"a":[' + part * ((7 << 20) // len(part)) + b"[]]}"
        path = folder / f"{name}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_huge_claims_are_refused_at_once_without_allocating(tmp_path):
    huge(tmp_path)
    code = f"""
        import re, time
        from pathlib import Path
        from convert.pth import read_weights
        from deeplab_jax.errors import CheckpointError
        def usage():  # not ru_maxrss, which begins with what the parent had
            text = Path("/proc/self/status").read_text()
            return int(re.search("VmHWM: *\\t? *([0-9]+)", text)[1]) >> 10
        for path in sorted(Path({str(tmp_path)!r}).iterdir()):
            before, start = usage(), time.process_time()
            try:
                read_weights(path)
            except CheckpointError as error:
                seconds = time.process_time() - start
                print(path.name, usage() - before, seconds, usage(), sep="|")
    """
    lines = made.run_python(code).splitlines()
    assert len(lines) == len(list(tmp_path.iterdir()))
    for line in lines:
        name, megabytes, seconds, total = line.split("|")
        assert float(seconds) < 2, name
        assert int(megabytes) < (250 if "safetensors" in name else 20), line
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
            made.assert_equal(loaded, obj)
            del loaded
    finally:
        tracemalloc.stop()


# --- Damage


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_in_any_member_is_refused(tmp_path, method):
    path = tmp_path / "x.pth"
    extra = {name: b"some content" for name in TORCH_KEYS} | {"data/unused": b"12345678"}
    obj = made.tensor(made.storage("Float", "0", 40), 0, (40,), (1,))
    made.write_zip(path, obj, {"0": np.arange(40, dtype="f4").tobytes()}, method, **extra)
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
                made.refusal(path)
                continue
            try:  # a deflated stream has bits that change nothing
                loaded = read_pth(path)
            except CheckpointError:
                continue
            assert loaded.tobytes() == np.arange(40, dtype="f4").tobytes()


def damaged_zips(path):
    """Yields (what is said, content) of zips that no `torch.save` writes."""
    obj = made.tensor(made.storage("Byte", "0", 4), 0, (4,), (1,))
    good = made.write_zip(path, obj, {"0": b"abcd"}).read_bytes()
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
    yield "lies outside", edited(entry + 42, struct.pack("<I", offset + 1))
    yield "damaged", edited(offset, b"PK\1\2")
    yield "damaged", edited(offset + 30, b"archivE")
    yield "damaged", edited(entry + 16, b"\0\0\0\0")
    yield "damaged", good[:-1]
    yield "damaged", good[: len(good) // 2]
    yield "damaged", good[:4]
    yield "damaged", good[:50] + b"xyz" + good[50:]
    yield "damaged", edited(len(good) - 10, b"\xff\xff\xff\x7f")
    yield "no checkpoint", made.write_zip(path, obj, **{"data.pkl": None}).read_bytes()
    yield "no checkpoint", made.write_zip(path, obj, **{"../x/data.pkl": b"N."}).read_bytes()
    yield "TorchScript", made.write_zip(path, obj, **{"constants.pkl": b"N."}).read_bytes()
    yield "big-endian", made.write_zip(path, obj, {"0": b"abcd"}, byteorder=b"big").read_bytes()
    yield "no member data/0", made.write_zip(path, obj).read_bytes()
    made.write_zip(path, obj, {"0": b"abcd"})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", b"efgh")
    yield "two members of one name", path.read_bytes()


def test_zips_that_no_writer_makes_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    for what, data in list(damaged_zips(path)):
        path.write_bytes(data)
        assert what in made.refusal(path), what


@pytest.mark.parametrize("limit", ["MAX_PICKLE", "MAX_DIRECTORY"])
def test_nothing_beyond_the_limits_is_read(tmp_path, monkeypatch, limit):
    path = made.write_zip(tmp_path / "x.pth", "a long text")
    assert read_pth(path) == "a long text"
    monkeypatch.setattr(containers, limit, 10)
    assert "more than 10 bytes" in made.refusal(path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"magic": b"I3\n."}, "no PyTorch checkpoint"),
        ({"version": b"I1002\n."}, "unknown version"),
        ({"machine": made.MACHINE.replace(b"I01", b"I00")}, "big-endian"),
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
    obj = made.tensor(made.storage("Float", "0", 4), 0, (4,), (1,))
    arguments = {"storages": {"0": (4, bytes(16))}} | changes
    assert what in made.refusal(made.write_legacy(tmp_path / "x.pth", obj, **arguments))


def test_every_cut_of_a_file_is_refused(tmp_path):
    obj = {"w": made.tensor(made.storage("Float", "0", 4), 0, (4,), (1,))}
    path = tmp_path / "x.pth"
    made.write_zip(path, obj, {"0": bytes(16)})
    zipped = path.read_bytes()
    legacy = made.write_legacy(path, obj, {"0": (4, bytes(16))}).read_bytes()
    for data in (zipped, legacy):
        for size in range(0, len(data), 3):
            path.write_bytes(data[:size])
            made.refusal(path)
