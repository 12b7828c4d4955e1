"""The functions that a pickle may call, and how much it may use up.

Each is our own, not the function of that name: it checks every argument and makes plain values or
views. `unpickler` runs the pickles.
"""

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import ml_dtypes  # noqa: F401  # gives NumPy the name "bfloat16"
import numpy as np

from convert import shown
from convert.harmless import PASSED_OVER, why_refused

# Of PyTorch's storages: torch.FloatStorage holds float32.
_FLOATS = {"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "bfloat16"}
_OTHERS = {"Byte": "u1", "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8", "Bool": "?"}
DTYPES = {kind: np.dtype(code) for kind, code in (_FLOATS | _OTHERS).items()}
# Of newer types, which PyTorch keeps in storages of bytes: torch.float8_e5m2.
_EIGHT_BITS = ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
_NEWER = ("uint16", "uint32", "uint64", *(f"float8_{name}" for name in _EIGHT_BITS))
NEWER_DTYPES = {f"torch.{name}": np.dtype(name) for name in _NEWER}

MAX_STEPS = 1_000_000  # opcodes, and objects in the result; ResNet-101 with momentum needs 60 000
MAX_DIMS = 64  # NumPy's
MAX_NUMBERS = 10_000  # numeric keys: colliding ones are easy to find; hashes of texts are salted
MAX_KEY_BITS = 60  # of a number that is a key; beyond, different ones have equal hashes
MAX_EXPANDED = 256 << 20  # bytes that views may have beyond their storages'

DAMAGED = "copy or download the file again"
UNTRUSTED = "get the weights from a source you trust, or save the state dict alone"

Key: TypeAlias = str | int | float | bytes | None


class Malformed(Exception):
    """A file that cannot be used; a `CheckpointError` that does not know the file's name."""

    def __init__(self, what: str, fix: str = DAMAGED):
        super().__init__(what, fix)
        self.what, self.fix = what, fix


class ForbiddenGlobal(Malformed):
    """A pickle that asks for a function or class beyond the few that tensors need."""

    def __init__(self, name: str):
        reason, fix = why_refused(name, UNTRUSTED)
        super().__init__(f"its pickle asks for `{shown(name)}`, {reason}", fix)


class Budget:
    """What a pickle of `size` bytes may use up: a small one can describe an endless object."""

    def __init__(self, size: int):
        self.steps = MAX_STEPS
        self.numbers = MAX_NUMBERS
        self.text = size  # bytes that may be made from text: a pickle holds each text once
        self.expanded = MAX_EXPANDED
        self.passed_over = 0  # keys that were something passed over

    def spend(self, steps: int) -> None:
        """Takes from the steps; raises `Malformed` when none are left."""
        self.steps -= steps
        if self.steps < 0:
            raise Malformed(f"its pickle takes more than {MAX_STEPS} steps", UNTRUSTED)


@dataclass(frozen=True, slots=True)
class Global:
    """The name of an allowed function or class; never the thing itself."""

    name: str


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Stands where a pickle has something harmless that is not read (`harmless`)."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Memory of one or more tensors; `data` is uint8 (numel * itemsize,), None while checking."""

    dtype: np.dtype
    numel: int
    data: np.ndarray | None


@dataclass(slots=True)
class Array:
    """A NumPy array, whose content arrives later; a PassedOver if it holds no numbers."""

    array: np.ndarray | PassedOver | None = None


class Ordered(dict):
    """An OrderedDict, which alone may carry attributes (PyTorch's `_metadata`)."""


class Record(dict):
    """The fields of an object (mmengine's HistoryBuffer)."""


def checked_key(budget: Budget, key: object) -> Key:
    """Returns a dict's key or a set's element if it is a scalar, and spends from `numbers`.

    Numbers with equal hashes, or with equal steps through a table, make each look-up walk through
    all of them.
    """
    if isinstance(key, PassedOver):
        budget.passed_over += 1
        return f"{key.name} {budget.passed_over}"
    if not isinstance(key, str | int | float | bytes | None):
        raise Malformed(f"its pickle uses a {type(key).__name__} as a key", UNTRUSTED)
    if type(key) in (int, float):
        budget.numbers -= 1
        if budget.numbers < 0:
            raise Malformed(f"its pickle has more than {MAX_NUMBERS} numbers as keys", UNTRUSTED)
    if isinstance(key, int) and key.bit_length() > MAX_KEY_BITS:
        raise Malformed(f"its pickle has a key of {key.bit_length()} bits", UNTRUSTED)
    return key


def check_bools(dtype: np.dtype, data: np.ndarray | bytes | bytearray) -> None:
    """Refuses booleans that are neither 0 nor 1, which NumPy takes for granted."""
    if dtype == np.bool_ and len(data) and np.frombuffer(data, np.uint8).max() > 1:
        raise Malformed("holds booleans other than 0 and 1")


def tensor_view(
    budget: Budget, storage: object, offset: int, shape: Sequence[int], strides: Sequence[int],
    requires_grad: object = False, hooks: object = None, metadata: object = None,
) -> np.ndarray:  # fmt: skip
    """Returns a read-only view of a storage, without a copy (_rebuild_tensor_v2).

    Offset and strides count elements; stride 0 repeats. A storage without data gives an empty
    array. `metadata` tells of negation or conjugation still to be done, and must be empty.

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
    # The stride of a single element is never used, and may be any number.
    places = zip(shape, strides, strict=True)
    byte_strides = [stride * item if size > 1 else item for size, stride in places]
    return np.ndarray(shape, storage.dtype, storage.data, offset * item, byte_strides)


def _tensor_of_bytes(budget: Budget, *args: object) -> np.ndarray:
    """Returns a tensor of a newer type (_rebuild_tensor_v3)."""
    match args:
        case (
            Storage(dtype, numel, data), int(offset), tuple(shape), tuple(strides), bool(), hooks,
            Global(name), *metadata,
        ) if dtype == np.uint8 and name in NEWER_DTYPES and len(metadata) < 2:  # fmt: skip
            kind = NEWER_DTYPES[name]
            storage = Storage(kind, numel // kind.itemsize, data)
            return tensor_view(budget, storage, offset, shape, strides, False, hooks, *metadata)
    what = "its pickle calls `torch._utils._rebuild_tensor_v3` for a type that is not read"
    raise Malformed(what, "convert the tensors to float32")


def _tensor_with_attributes(
    budget: Budget, rebuild: object, kind: object, args: Collection[object], state: object
) -> np.ndarray:
    """Returns a tensor without the attributes that Python code gave it (_rebuild_from_type_v2)."""
    if not isinstance(rebuild, Global) or rebuild.name not in _TENSORS:
        raise Malformed("a tensor is rebuilt by something other than PyTorch", UNTRUSTED)
    if not isinstance(kind, Global) or kind.name not in _PLAIN_TENSORS:
        raise Malformed("holds a tensor of a subclass", "save plain tensors")
    result: np.ndarray = _TENSORS[rebuild.name](budget, *args)
    return result


def _moved(budget: Budget, data: object, *rest: object) -> np.ndarray:
    """Returns a tensor of an accelerator that was saved from the host's memory."""
    if not isinstance(data, np.ndarray | Array):
        raise Malformed("a tensor of an accelerator has no content")
    array = data.array if isinstance(data, Array) else data
    if not isinstance(array, np.ndarray):
        raise Malformed("a tensor of an accelerator has no content")
    return array


def numpy_array(
    budget: Budget, shape: Sequence[int], dtype: np.dtype, fortran: bool, data: bytes
) -> np.ndarray:
    """Returns a NumPy array of its pickled state, read-only and without a copy."""
    _check_counts(shape)
    size = math.prod(shape) * dtype.itemsize
    if size != len(data):
        what = f"a NumPy array of shape {shown(shape)} needs {shown(size)} bytes"
        raise Malformed(f"{what}, not {len(data)}")
    budget.spend(len(data) >> 12)  # the same bytes can be asked for again and again
    check_bools(dtype, data)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _check_counts(numbers: Sequence[int]) -> None:
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise Malformed("an array has sizes, strides or an offset that are no counts")


def _parameter(
    budget: Budget, data: object, requires_grad: object, hooks: object, state: object = None
) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise Malformed("a parameter is no tensor")
    return data


def _ordered_dict(budget: Budget, pairs: Collection[tuple[object, object]] = ()) -> Ordered:
    budget.spend(len(pairs))
    return Ordered((checked_key(budget, key), value) for key, value in pairs)


def _default_dict(
    budget: Budget, factory: object = None, pairs: Collection[tuple[object, object]] = ()
) -> Ordered:
    return _ordered_dict(budget, pairs)


def _reconstructor(budget: Budget, kind: object, base: object, state: object) -> PassedOver:
    """How protocols 0 and 1 write an object; what it is made of follows as its state."""
    if not isinstance(kind, Global) or kind.name not in PASSED_OVER:
        raise Malformed("its pickle makes an object that no tensor needs", UNTRUSTED)
    return PassedOver(kind.name)


def _counter(budget: Budget, counts: object) -> dict[Key, object]:
    if not isinstance(counts, dict):
        raise Malformed("a Counter is made of something other than a dict")
    return dict(_ordered_dict(budget, counts.items()))


def _tuple(budget: Budget, items: Collection[object]) -> tuple[object, ...]:
    budget.spend(len(items))
    return tuple(items)


def _set(budget: Budget, items: Collection[object] = ()) -> set[Key]:
    return {checked_key(budget, item) for item in _tuple(budget, items)}


def _encode(budget: Budget, text: object, codec: object) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise Malformed("its pickle encodes something other than bytes", UNTRUSTED)
    budget.text -= len(text)
    if budget.text < 0:
        raise Malformed("its pickle makes more bytes than it holds", UNTRUSTED)
    return text.encode("latin-1")


def _history_method(budget: Budget, owner: object, name: object) -> str:
    """Every HistoryBuffer lists its methods."""
    if owner != Global(HISTORY) or not isinstance(name, str) or len(name) > 80:
        raise ForbiddenGlobal("builtins.getattr")
    return f"HistoryBuffer.{name}"


def _numpy_dtype(
    budget: Budget, code: object, align: object, copy: object
) -> np.dtype | PassedOver:
    if isinstance(code, str) and re.fullmatch(r"[US]\d{1,6}|c8|c16|[Mm]8", code, re.ASCII):
        return PassedOver("numpy.dtype")  # text, complex numbers, dates
    if code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        raise Malformed(f"holds a NumPy array of type {shown(code)}", UNTRUSTED)
    return np.dtype(str(code))


def _numpy_scalar(budget: Budget, dtype: object, data: object) -> bool | int | float | PassedOver:
    if isinstance(dtype, PassedOver):
        return PassedOver("numpy.generic")
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
        raise Malformed("holds a NumPy scalar without type or content")
    return numpy_array(budget, (1,), dtype, False, data)[0].item()


def _numpy_blank(budget: Budget, kind: object, shape: object, code: object) -> Array:
    if kind != Global("numpy.ndarray"):
        raise Malformed("holds a kind of NumPy array that no checkpoint needs", UNTRUSTED)
    return Array()


HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"

_PLAIN_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
_TENSORS: dict[str, Callable[..., np.ndarray]] = {
    "torch._utils._rebuild_tensor": tensor_view,
    "torch._utils._rebuild_tensor_v2": tensor_view,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
# Wrong numbers of arguments and the like end as TypeError, which the reader of the file catches.
CALLS: dict[str, Callable[..., object]] = {
    **_TENSORS,
    "torch._utils._rebuild_device_tensor_from_numpy": _moved,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _moved,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch.Size": _tuple,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "collections.defaultdict": _default_dict,
    "copyreg._reconstructor": _reconstructor,
    "builtins.set": _set,
    "builtins.frozenset": lambda budget, items=(): frozenset(_set(budget, items)),
    "builtins.bytes": lambda budget: b"",  # how protocol 2 writes an empty one
    "builtins.getattr": _history_method,
    "_codecs.encode": _encode,
    "numpy.dtype": _numpy_dtype,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray._reconstruct": _numpy_blank,
}
STORAGES = {f"torch.{kind}Storage": dtype for kind, dtype in DTYPES.items()}
STORAGES["torch.storage.UntypedStorage"] = np.dtype(np.uint8)
STORAGES["torch.ComplexFloatStorage"] = np.dtype(np.complex64)
STORAGES["torch.ComplexDoubleStorage"] = np.dtype(np.complex128)
GLOBALS = {*CALLS, *STORAGES, *PASSED_OVER, HISTORY, "numpy.ndarray"}
MODULES = {  # torch.cuda: storages saved from a GPU by old versions
    "__builtin__": "builtins", "copy_reg": "copyreg", "torch.cuda": "torch",
    "numpy.core.multiarray": "numpy._core.multiarray",
}  # fmt: skip
