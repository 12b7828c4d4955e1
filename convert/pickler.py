"""Writes the pickle of a PyTorch checkpoint: plain containers, and references to tensors.

Protocol 2, like `torch.save`, and without importing the names it refers to.
"""

import math
import struct
from collections.abc import Mapping

import numpy as np

from convert import shown
from convert.rebuild import DTYPES, Malformed

_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}


def pickle_state(obj: object) -> tuple[bytes, list[np.ndarray]]:
    """Returns the pickle of an object, and the arrays that it refers to as storages "0", "1", ...

    Args:
      obj: dict, list, tuple, str, bytes, int, float, bool, None, NumPy arrays and scalars.

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
