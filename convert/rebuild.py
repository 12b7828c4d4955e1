"""What a pickle may call: the functions behind the few names that tensors and their envelopes use.

None of them is the function of that name: each is our own, checks every argument, and makes plain
values or views. `unpickler` runs the pickles.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "Float": np.dtype(np.float32),
    "Double": np.dtype(np.float64),
    "Half": np.dtype(np.float16),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Byte": np.dtype(np.uint8),
    "Char": np.dtype(np.int8),
    "Short": np.dtype(np.int16),
    "Int": np.dtype(np.int32),
    "Long": np.dtype(np.int64),
    "Bool": np.dtype(np.bool_),
}  # of PyTorch's storages: torch.FloatStorage holds float32

MAX_STEPS = 1_000_000  # opcodes, and objects in the result; ResNet-101 with momentum needs 60 000
MAX_DIMS = 64  # NumPy's
MAX_NUMBERS = 10_000  # keys that are numbers: anyone can find some that collide; texts are salted
MAX_KEY_BITS = 60  # of a number that is a key; beyond, different ones have equal hashes
MAX_EXPANDED = 256 << 20  # bytes that views may have beyond their storages'

DAMAGED = "copy or download the file again"
UNTRUSTED = "get the weights from a source you trust, or save the state dict alone"


class Malformed(Exception):
    """A file that cannot be used; `CheckpointError` without the file's name.

    Attributes:
      what: what is wrong with it.
      fix: what to do about it.
    """

    def __init__(self, what: str, fix: str = DAMAGED):
        super().__init__(what, fix)
        self.what, self.fix = what, fix


class ForbiddenGlobal(Malformed):
    """A pickle that asks for a function or class beyond the few that tensors need."""

    def __init__(self, name: str):
        super().__init__(f"its pickle asks for `{shown(name)}`, which no tensor needs", UNTRUSTED)


def shown(value: Any) -> str:
    """Returns text from a file fit for one line: ASCII, at most 80 characters."""
    text = value.encode("unicode_escape").decode() if isinstance(value, str) else ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Budget:
    """What one pickle may still use up; a small one can describe an endless object.

    Attributes:
      steps: work and objects.
      numbers: keys that are numbers.
      text: bytes that may be made from text: a pickle holds each text once.
      expanded: bytes that views may have beyond their storages'.
    """

    def __init__(self, size: int):
        self.steps, self.numbers = MAX_STEPS, MAX_NUMBERS
        self.text, self.expanded = size, MAX_EXPANDED

    def spend(self, steps: int) -> None:
        """Takes from the steps.

        Raises:
          Malformed: none are left.
        """
        self.steps -= steps
        if self.steps < 0:
            raise Malformed(f"its pickle takes more than {MAX_STEPS} steps", UNTRUSTED)


@dataclass(frozen=True, slots=True)
class Global:
    """The name of an allowed function or class; never the thing itself."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """The memory of one or more tensors.

    Attributes:
      dtype: of the elements.
      numel: how many there are.
      data: uint8 (numel * itemsize,), read-only; None while only checking.
    """

    dtype: np.dtype
    numel: int
    data: np.ndarray | None


class Ordered(dict):
    """An OrderedDict, which alone may carry attributes (PyTorch's `_metadata`)."""


@dataclass(slots=True)
class Record:
    """An object whose fields become a dict."""

    fields: dict


@dataclass(frozen=True, slots=True)
class Dtype:
    """A NumPy dtype."""

    dtype: np.dtype


@dataclass(slots=True)
class Array:
    """A NumPy array, whose content arrives later."""

    array: np.ndarray | None = None


def checked_key(budget: Budget, key: Any) -> Any:
    """Returns a dict's key or a set's element; every use of a number as one counts.

    Numbers with equal hashes, or with equal steps through a table, make each look-up walk through
    all of them.

    Raises:
      Malformed: it is no scalar, or there are too many numbers.
    """
    if type(key) not in (str, int, float, bool, bytes, type(None)):
        raise Malformed(f"its pickle uses a {type(key).__name__} as a key", UNTRUSTED)
    if type(key) in (int, float):
        budget.numbers -= 1
        if budget.numbers < 0:
            raise Malformed(f"its pickle has more than {MAX_NUMBERS} numbers as keys", UNTRUSTED)
    if type(key) is int and key.bit_length() > MAX_KEY_BITS:
        raise Malformed(f"its pickle has a key of {key.bit_length()} bits", UNTRUSTED)
    return key


def check_bools(dtype: np.dtype, data: np.ndarray | bytes | bytearray) -> None:
    """Refuses booleans that are neither 0 nor 1, which NumPy takes for granted."""
    if dtype == np.bool_ and len(data) and np.frombuffer(data, np.uint8).max() > 1:
        raise Malformed("holds booleans other than 0 and 1")


def tensor_view(
    budget: Budget,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> np.ndarray:
    """Returns a tensor of a storage, read-only and without a copy (_rebuild_tensor_v2).

    Args:
      budget: of the pickle.
      storage: a `Storage`.
      offset: of the first element, in elements.
      shape: sizes.
      strides: as many, in elements; 0 repeats.
      requires_grad: ignored.
      hooks: ignored.
      metadata: must be empty: it tells of negation or conjugation still to be done.

    Raises:
      Malformed: an element would lie outside the storage, or too much repeats.
    """
    if not isinstance(storage, Storage):
        raise Malformed("a tensor has no storage")
    if metadata is not None and metadata != {}:
        raise Malformed("a tensor is stored negated or conjugated", "save its `resolve_neg()`")
    if len(shape) != len(strides) or len(shape) > MAX_DIMS:
        raise Malformed(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
    _check_counts((offset, *shape, *strides))
    numel = math.prod(shape)
    steps = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    end = offset + (steps + 1 if numel else 0)
    if end > storage.numel:
        what = f"a tensor of shape {shown(tuple(shape))} needs {shown(end)} elements of a storage"
        raise Malformed(f"{what} that holds {storage.numel}")
    item = storage.dtype.itemsize
    budget.expanded -= max(0, numel - storage.numel) * item
    if budget.expanded < 0:
        what = f"a tensor of shape {shown(tuple(shape))} repeats {storage.numel} elements"
        raise Malformed(f"{what} into {shown(numel * item)} bytes", UNTRUSTED)
    if storage.data is None or not numel:
        return np.empty(0 if numel else shape, storage.dtype)
    byte_strides = [
        # The stride of a single element is never used, and may be any number.
        stride * item if size > 1 else item
        for size, stride in zip(shape, strides, strict=True)
    ]
    return np.ndarray(shape, storage.dtype, storage.data, offset * item, byte_strides)


def numpy_array(
    budget: Budget, shape: tuple, dtype: np.dtype, fortran: bool, data: bytes
) -> np.ndarray:
    """Returns a NumPy array of its pickled state, read-only and without a copy.

    Raises:
      Malformed: its bytes are not what its shape needs.
    """
    _check_counts(shape)
    size = math.prod(shape) * dtype.itemsize
    if size != len(data):
        what = f"a NumPy array of shape {shown(shape)} needs {shown(size)} bytes"
        raise Malformed(f"{what}, not {len(data)}")
    budget.spend(len(data) >> 12)  # the same bytes can be asked for again and again
    check_bools(dtype, data)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _check_counts(numbers: tuple) -> None:
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise Malformed("an array has sizes, strides or an offset that are no counts")


def _parameter(budget: Budget, data: Any, requires_grad: Any, hooks: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise Malformed("a parameter is no tensor")
    return data


def _ordered_dict(budget: Budget, pairs: Any = ()) -> Ordered:
    budget.spend(len(pairs))
    return Ordered((checked_key(budget, key), value) for key, value in pairs)


def _counter(budget: Budget, counts: Any) -> dict:
    if not isinstance(counts, dict):
        raise Malformed("a Counter is made of something other than a dict")
    budget.spend(len(counts))
    return {checked_key(budget, key): count for key, count in counts.items()}


def _set(budget: Budget, items: Any = ()) -> set:
    budget.spend(len(items))
    return {checked_key(budget, item) for item in items}


def _frozenset(budget: Budget, items: Any = ()) -> frozenset:
    return frozenset(_set(budget, items))


def _size(budget: Budget, sizes: Any) -> tuple:
    budget.spend(len(sizes))
    return tuple(sizes)


def _empty_bytes(budget: Budget) -> bytes:
    """How protocol 2 writes them."""
    return b""


def _encode(budget: Budget, text: Any, codec: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if type(text) is not str or codec not in ("latin1", "latin-1"):
        raise Malformed("its pickle encodes something other than bytes", UNTRUSTED)
    budget.text -= len(text)
    if budget.text < 0:
        raise Malformed("its pickle makes more bytes than it holds", UNTRUSTED)
    return text.encode("latin-1")


def _history_method(budget: Budget, owner: Any, name: Any) -> str:
    """Every HistoryBuffer lists its methods."""
    if owner != Global(HISTORY) or type(name) is not str or len(name) > 80:
        raise ForbiddenGlobal("builtins.getattr")
    return f"HistoryBuffer.{name}"


def _numpy_dtype(budget: Budget, code: Any, align: Any, copy: Any) -> Dtype:
    if code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        raise Malformed(f"holds a NumPy array of type {shown(code)}", UNTRUSTED)
    return Dtype(np.dtype(code))


def _numpy_scalar(budget: Budget, dtype: Any, data: Any) -> bool | int | float:
    if not isinstance(dtype, Dtype) or type(data) is not bytes:
        raise Malformed("holds a NumPy scalar without type or content")
    return numpy_array(budget, (1,), dtype.dtype, False, data)[0].item()


def _numpy_blank(budget: Budget, kind: Any, shape: Any, code: Any) -> Array:
    if kind != Global("numpy.ndarray"):
        raise Malformed("holds a kind of NumPy array that no checkpoint needs", UNTRUSTED)
    return Array()


HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"

# Wrong numbers of arguments and the like end as TypeError, which the reader of the file catches.
CALLS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": tensor_view,
    "torch._utils._rebuild_tensor_v2": tensor_view,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.bytes": _empty_bytes,
    "builtins.getattr": _history_method,
    "_codecs.encode": _encode,
    "numpy.dtype": _numpy_dtype,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray._reconstruct": _numpy_blank,
}
STORAGES = {f"torch.{kind}Storage": dtype for kind, dtype in DTYPES.items()}
STORAGES["torch.storage.UntypedStorage"] = np.dtype(np.uint8)
TORCH_DTYPES = {f"torch.{dtype.name}" for dtype in DTYPES.values()}
GLOBALS = {*CALLS, *STORAGES, *TORCH_DTYPES, HISTORY, "numpy.ndarray"}
MODULES = {
    "__builtin__": "builtins",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "torch.cuda": "torch",  # storages saved from a GPU by old versions
}
