"""Reads and writes PyTorch's checkpoint files without PyTorch, and safetensors files.

Nothing in a file is executed (`unpickler`), every zip member's CRC is checked and every size too
(`containers`); whatever is wrong with a file ends as one CheckpointError that names it.
"""

import difflib
import io
import json
import math
import os
import re
import shlex
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from convert import shown
from convert.containers import LimitedFile, is_safetensors, read_checkpoint
from convert.rebuild import DAMAGED, DTYPES, Malformed, check_bools
from deeplab_jax.errors import CheckpointError, ResourceError, shorten
from deeplab_jax.utils.steps import latest_step

MAX_HEADER = 8 << 20  # bytes of a safetensors header: 100 000 tensors

_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")
_INDEX = ".index.json"
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(safetensors|bin|pth|pt)")  # no other folder
_ALIGNMENT = 64  # of storages in a zip, as PyTorch's own
_FLOATS = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16"}
_OTHERS = {"I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
_READ = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "U16": "u2", "U32": "u4",
         "U64": "u8"}  # and not written  # fmt: skip
_SAFETENSORS_DTYPES = {name: np.dtype(code) for name, code in (_FLOATS | _OTHERS).items()}
_READABLE = _SAFETENSORS_DTYPES | {name: np.dtype(code) for name, code in _READ.items()}
_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}  # of PyTorch's storages


def read_weights(path: str | os.PathLike) -> object:
    """Returns `read_pth`, `read_safetensors` or `read_shards`; content decides, not a file's name.

    A folder stands for the only index of shards in it.
    """
    path = find_index(path) or path
    with _opened(path) as (file, size):
        head = file.read(9)
    if head.startswith(b"{") and int.from_bytes(head[:8], "little") > size:  # no length of a header
        return read_shards(path)
    return read_safetensors(path) if is_safetensors(head) else read_pth(path)


def find_index(path: str | os.PathLike) -> str | None:
    """Returns the index of the shards in a folder; None if this is none, or holds none or many."""
    names = os.listdir(path) if os.path.isdir(path) else []
    found = [name for name in names if name.endswith(_INDEX)]
    return os.path.join(path, found[0]) if len(found) == 1 else None


def read_shards(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays of all shards beside an index (JSON), in its order.

    Raises:
      CheckpointError: the index or a shard cannot be read, a shard is missing or lies elsewhere, or
        an array is not in exactly the shard that the index names.
    """
    with _opened(path) as (file, size):
        if size > MAX_HEADER:
            raise Malformed(f"is an index of more than {MAX_HEADER} bytes")
        index = json.loads(file.read(size), object_pairs_hook=_unique)
        places = index.get("weight_map")
        if not isinstance(places, dict) or not places:
            raise Malformed("is JSON, but no index of shards", "give a .pth or .safetensors file")
        shards = dict.fromkeys(places.values())  # in order
        folder = os.path.dirname(os.fspath(path))
        for name in shards:
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise Malformed(f"names the shard {shown(name)}, which is no file beside it")
            if not os.path.isfile(os.path.join(folder, name)):
                what = f"names the shard {shown(name)}, which is not beside it"
                raise Malformed(what, "copy or download that file too")
    tensors: dict[str, np.ndarray] = {}
    for name in shards:
        shard = os.path.join(folder, name)
        with _opened(shard) as (file, _):
            is_plain = is_safetensors(file.read(9))
        held = read_safetensors(shard) if is_plain else read_pth(shard)
        wanted = [key for key, place in places.items() if place == name]
        held = held if isinstance(held, dict) else {}
        keys = set(held)
        if keys != set(wanted):
            lost = shorten((shown(key) for key in set(wanted) - keys), 3)
            what = f"does not hold what {os.path.basename(path)} says (missing: {lost or 'none'}"
            more = shorten((shown(str(key)) for key in keys - set(wanted)), 3)
            raise CheckpointError(shard, f"{what}; beyond it: {more or 'none'})", DAMAGED)
        tensors |= held
    return {key: tensors[key] for key in places}


def read_pth(path: str | os.PathLike) -> object:
    """Returns what `torch.save` wrote to a file, in the zip format or the one before 2020.

    See `unpickler.unpickle` for the types; bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
      CheckpointError: the file is missing, damaged, of another kind, claims more than it holds, or
        its pickle asks for anything beyond tensors and plain containers.
    """
    with _opened(path) as (file, size):
        return read_checkpoint(file, size)


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns a safetensors file's arrays in the order of its header.

    Raises:
      CheckpointError: the file is missing or damaged, or its header lies.
    """
    with _opened(path) as (file, size):
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_HEADER):
            raise Malformed(f"claims a header of {length} bytes in a file of {size}")
        # The library takes the last of two equal keys, and allows headers of 100 MB.
        header = json.loads(file.read(length), object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        for key, entry in header.items():
            if entry["dtype"] not in _READABLE:
                what = f"tensor {shown(key)} has the type {shown(entry['dtype'])}"
                raise Malformed(what, f"convert it to one of {', '.join(_READABLE)}")
            if entry["dtype"] in _READ:  # whose sizes the library does not know in every version
                start, end = entry["data_offsets"]
                needed = math.prod(entry["shape"]) * _READABLE[entry["dtype"]].itemsize
                if end - start != needed:
                    what = f"tensor {shown(key)} of type {entry['dtype']} needs {shown(needed)}"
                    raise Malformed(f"{what} bytes, not {shown(end - start)}")
        file.seek(0)
        tensors = {}
        for key, entry in safetensors.deserialize(file.read()):
            dtype = _READABLE[entry["dtype"]]
            check_bools(dtype, entry["data"])
            tensors[key] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
        return {key: tensors[key] for key in header}


def write_pth(path: str | os.PathLike, obj: object) -> None:
    """Writes a file that `torch.load(weights_only=True)` reads, in the zip format.

    It appears at the path only once it is complete, is the same bytes for the same object, and
    takes no second copy of the arrays. NumPy arrays and scalars become contiguous tensors.

    Raises:
      CheckpointError: the object holds what `pickle_state` does not accept.
      ResourceError: the file cannot be written.
    """
    try:
        data, arrays = pickle_state(obj)
    except Malformed as error:
        raise CheckpointError(str(path), error.what, error.fix) from error
    with _replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        _write_member(archive, "data.pkl", data)
        _write_member(archive, "byteorder", b"little")
        for index, array in enumerate(arrays):
            _write_member(archive, f"data/{index}", _bytes(array))
        _write_member(archive, "version", b"3\n")
        checksum = sum(info.CRC for info in archive.infolist())
        _write_member(archive, ".data/serialization_id", b"%040d" % checksum)


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file, which sorts arrays by the size of their type, then by name.

    It appears only once it is complete. Raises as `write_pth`.
    """
    for key, array in tensors.items():
        if array.dtype.newbyteorder("=") not in _SAFETENSORS_DTYPES.values():
            what = f"tensor {shown(key)} has the type {array.dtype}, which is not saved"
            raise CheckpointError(str(path), what, "convert it to float32")
    with _replacing(path) as partial:
        arrays = {key: _contiguous(array) for key, array in tensors.items()}
        safetensors.numpy.save_file(arrays, partial.name)


def check_file(path: str) -> None:
    """Refuses what is no file or folder of shards (CheckpointError); names a file that is near."""
    if os.path.isfile(path) or find_index(path):
        return
    if os.path.isdir(path) and latest_step(path) is not None:
        fix = f"use it as it is, such as in deeplab predict --checkpoint {shlex.quote(path)}"
        raise CheckpointError(path, "is a checkpoint already, no file of PyTorch", fix)
    what = "is no file" if os.path.exists(path) else "does not exist"
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    names = os.listdir(folder) if os.path.isdir(folder) else []
    files = [name for name in names if name.endswith(_SUFFIXES)]
    close = difflib.get_close_matches(os.path.basename(path), sorted(files), 1, 0)
    fix = f"did you mean {os.path.normpath(f'{folder}/{close[0]}')}?" if close else "give a .pth"
    raise CheckpointError(path, what, fix)


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[LimitedFile, int]]:
    """Yields the open file and its size; every failure inside becomes a CheckpointError."""
    where = os.fspath(path)
    check_file(where)
    try:
        with LimitedFile(io.FileIO(where)) as file:
            yield file, os.fstat(file.fileno()).st_size
    except Malformed as error:
        raise CheckpointError(where, error.what, error.fix) from error
    except MemoryError as error:
        raise CheckpointError(where, "needs more memory than there is", DAMAGED) from error
    except PermissionError as error:
        raise CheckpointError(where, "may not be read", "change its permissions") from error
    except Exception as error:  # whatever a file's bytes provoke is the file's fault
        what = f"is damaged or cut short ({type(error).__name__}: {shown(str(error))})"
        raise CheckpointError(where, what, DAMAGED) from error


@contextmanager
def _replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Yields a file beside the path, which takes the path's place if all goes well."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode
            yield file
        with partial.open("rb") as file:  # by name: safetensors puts a private file in its place
            os.chmod(partial, mode & 0o777)
            os.fsync(file.fileno())
        os.replace(partial, target)
    except (OSError, safetensors.SafetensorError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        fix = "free some space or choose another folder"
        raise ResourceError(str(target), f"cannot be written: {cause.lower()}", fix) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _write_member(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")  # dated 1980, so equal objects give equal bytes
    start = archive.start_dir + 30 + len(info.filename) + 4
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    archive.writestr(info, data)  # type: ignore[arg-type]  # any buffer will do
    info.extra = b""  # not once more in the list of members


def _bytes(array: np.ndarray) -> memoryview:
    """Returns the array's elements in C order, without a copy where they lie so."""
    return _contiguous(array).reshape(-1).view(np.uint8).data


def _contiguous(array: np.ndarray) -> np.ndarray:
    """Returns the array in C order and little endian; itself if it is so already."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Returns a JSON object; refuses one that names a key twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise Malformed("names a key twice in its header")
    return entries


def pickle_state(obj: object) -> tuple[bytes, list[np.ndarray]]:
    """Returns the pickle of an object, and the arrays that it refers to as storages "0", "1", ...

    The object consists of dict, list, tuple, str, bytes, int, float, bool, None, NumPy arrays and
    scalars. The protocol is 2, as in `torch.save`; the names in the pickle are not imported here.

    Raises:
      Malformed: it holds anything else, or itself.
    """
    arrays: list[np.ndarray] = []
    try:
        return b"\x80\x02" + _pickled(obj, "", arrays) + b".", arrays
    except RecursionError:
        raise Malformed("is nested too deeply to be saved", "save tensors alone") from None
    except UnicodeEncodeError as error:
        raise Malformed(f"holds text that is no Unicode: {shown(str(error))}", "mend it") from None


def _pickled(value: object, where: str, arrays: list[np.ndarray]) -> bytes:
    """Returns the opcodes that make a value; `where` leads to it from the top."""
    match value:
        case None:
            return b"N"
        case np.ndarray() | np.generic():  # before float: np.float64 is one
            return _tensor(np.asarray(value), where, arrays)
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            if len(data) <= 255:
                return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            data = value.encode()
            return b"X" + struct.pack("<I", len(data)) + data
        case bytes():
            text = _pickled(value.decode("latin-1"), where, arrays)
            return b"c_codecs\nencode\n" + text + _pickled("latin1", where, arrays) + b"\x86R"
        case Mapping():
            items = [
                _pickled(key, where, arrays) + _pickled(item, f"{where}.{key}", arrays)
                for key, item in value.items()
            ]
            return b"}(" + b"".join(items) + b"u"
        case list() | tuple():
            items = [_pickled(item, f"{where}.{i}", arrays) for i, item in enumerate(value)]
            begin, end = (b"(", b"t") if isinstance(value, tuple) else (b"](", b"e")
            return begin + b"".join(items) + end
    what = f"`{shown(where[1:])}` is a {type(value).__name__}, which is not saved"
    raise Malformed(what, "leave it out")


def _tensor(array: np.ndarray, where: str, arrays: list[np.ndarray]) -> bytes:
    """Returns the call that rebuilds an array as a contiguous tensor; appends it to `arrays`."""
    kind = _KINDS.get(array.dtype.newbyteorder("="))
    if kind is None:
        what = f"`{shown(where[1:])}` is of type {array.dtype}, which is not saved"
        raise Malformed(what, f"convert it to one of {', '.join(map(str, _KINDS))}")
    sizes = [max(size, 1) for size in array.shape]
    strides = tuple(math.prod(sizes[axis + 1 :]) for axis in range(array.ndim))

    def plain(item: object) -> bytes:
        return _pickled(item, where, arrays)

    storage = plain("storage") + f"ctorch\n{kind}Storage\n".encode()
    storage += plain(str(len(arrays))) + plain("cpu") + plain(array.size)
    arrays.append(array)
    arguments = b"(" + storage + b"tQ" + plain(0) + plain(array.shape)
    arguments += plain(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
