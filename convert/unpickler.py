"""A pickle machine that builds plain containers and tensors, and can do nothing else.

Python's own unpickler imports and calls what a file names. This one steps through the opcodes
(`pickletools.genops`, which only parses): a global becomes an inert `Global` or is refused, and a
call is a look-up in `rebuild.CALLS`. Work, nesting and bytes are bounded.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from convert.rebuild import (
    CALLS,
    GLOBALS,
    HISTORY,
    MAX_STEPS,
    MODULES,
    STORAGES,
    TORCH_DTYPES,
    UNTRUSTED,
    Array,
    Budget,
    Dtype,
    ForbiddenGlobal,
    Global,
    Malformed,
    Ordered,
    Record,
    Storage,
    check_bools,
    checked_key,
    numpy_array,
    shown,
    tensor_view,
)

MAX_DEPTH = 100  # of nested containers
MAX_INT_BITS = 512

LoadStorage = Callable[[str, np.dtype, int], np.ndarray | None]


def unpickle(stream: io.BytesIO, load_storage: LoadStorage) -> Any:
    """Returns what the pickle at the stream's position holds, and leaves the stream behind it.

    Args:
      stream: pickle of any protocol.
      load_storage: (key, dtype, numel) -> the storage, uint8 (numel * itemsize,) and read-only; or
        None to check sizes against that claim alone, which gives empty tensors.

    Returns:
      dict, list, tuple, set, frozenset, str, int, float, bool, None or bytes; tensors are NumPy
      views, read-only and without copies, of their storages. OrderedDict and Counter are dict,
      NumPy scalars are Python's, mmengine's HistoryBuffer is the dict of its fields, and a dtype
      is its name.

    Raises:
      ForbiddenGlobal: anything else is named.
      Malformed: a tensor that its storage cannot hold, or too much work.
      Exception: any kind, from damaged pickles.
    """
    machine = _Machine(load_storage, stream.getbuffer().nbytes)
    for opcode, arg, _ in pickletools.genops(stream):
        machine.step(opcode.name, arg)
    machine.budget = Budget(0)  # as much again for what comes out
    return machine.finish(machine.stack.pop())


class _Machine:
    """Stack, memo and budget of one pickle."""

    def __init__(self, load_storage: LoadStorage, size: int):
        self.load_storage = load_storage
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.budget = Budget(size)

    def step(self, name: str, arg: Any) -> None:
        """Runs one opcode."""
        self.budget.spend(1)
        if name in _LITERALS:
            self.stack.append(_checked_literal(arg))
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _OPCODES:
            _OPCODES[name](self, arg)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Malformed(f"its pickle uses the opcode {name}, which no tensor needs", UNTRUSTED)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list:
        """Returns the uppermost values, the top last."""
        items = self.stack[-count:]
        if len(items) < count:
            raise Malformed("its pickle is damaged (too few values)")
        del self.stack[-count:]
        return items

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list:
        """Returns the values since the mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop_or_unmark(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def append(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise Malformed("its pickle appends to something other than a list")
        self.stack[-1].extend(items)

    def add(self, items: list) -> None:
        if type(self.stack[-1]) is not set:
            raise Malformed("its pickle adds to something other than a set")
        self.stack[-1].update(self.keys(items))

    def set_items(self, items: list) -> None:
        if type(self.stack[-1]) not in (dict, Ordered):
            raise Malformed("its pickle sets items of something other than a dict")
        self.stack[-1].update(self.pairs(items))

    def keys(self, items: list) -> list:
        return [checked_key(self.budget, item) for item in items]

    def pairs(self, items: list) -> dict:
        """Returns a dict of keys and values in turn."""
        return dict(zip(self.keys(items[::2]), items[1::2], strict=True))

    def memorise(self, index: int) -> None:
        if not 0 <= index < MAX_STEPS:
            raise Malformed("its pickle numbers its objects beyond all that it may have", UNTRUSTED)
        self.memo[index] = self.stack[-1]

    def find_global(self, module: Any, name: Any) -> None:
        """Puts the inert name, if it is allowed."""
        parts = f"{module}.{name}".split(".")
        if not all(part.isidentifier() for part in parts):
            raise Malformed("its pickle is damaged (no name where one is due)")
        full = f"{MODULES.get(module, module)}.{name}"
        if full not in GLOBALS:
            raise ForbiddenGlobal(f"{module}.{name}")
        self.push(Global(full))

    def reduce(self) -> None:
        """Calls: only functions of `CALLS`."""
        function, args = self.pop(2)
        if type(args) is not tuple or not isinstance(function, Global):
            raise Malformed("its pickle calls something that is no function", UNTRUSTED)
        if function.name not in CALLS:
            raise Malformed(f"its pickle calls `{function.name}`, which is a name only", UNTRUSTED)
        self.push(CALLS[function.name](self.budget, *args))

    def new(self) -> None:
        kind, args = self.pop(2)
        if not isinstance(kind, Global) or kind.name != HISTORY or args != ():
            raise Malformed("its pickle makes an object that no tensor needs", UNTRUSTED)
        self.push(Record({}))

    def build(self) -> None:
        """Gives an object its state."""
        target, state = self.pop(2)
        match target, state:
            case Ordered(), dict():
                pass  # attributes: PyTorch's version numbers of the modules
            case Record(), dict():
                target.fields = state
            case Dtype(), (int(), "<" | "|", None, None, None, -1, -1, 0):
                pass  # the types that are allowed are little endian already
            case Array(), (int(), tuple(shape), Dtype(dtype), bool(fortran), bytes(data)):
                target.array = numpy_array(self.budget, shape, dtype, fortran, data)
            case _:
                raise Malformed("its pickle sets a state that no tensor needs", UNTRUSTED)
        self.push(target)

    def load_persistent(self) -> None:
        """Puts the storage in the place of ("storage", type, key, device, numel[, None])."""
        match self.stack.pop():
            case ("storage", Global(kind), str(key), str(), int(numel), *rest) if (
                kind in STORAGES and type(numel) is int and numel >= 0
            ):
                if any(view is not None for view in rest):
                    fix = "load and save it again with a newer PyTorch"
                    raise Malformed("has storages that are views of others (before 0.4)", fix)
                self.push(self.storage(key, STORAGES[kind], numel))
            case _:
                raise Malformed("its pickle refers to something other than a tensor's storage")

    def storage(self, key: str, dtype: np.dtype, numel: int) -> Storage:
        """Returns the storage of a key, loaded once."""
        known = self.storages.get(key)
        if known is None:
            data = self.load_storage(key, dtype, numel)
            if data is not None:
                check_bools(dtype, data)
            known = self.storages[key] = Storage(dtype, numel, data)
        if (known.dtype, known.numel) != (dtype, numel):
            raise Malformed(f"storage {shown(key)} is given two sizes or types")
        return known

    def finish(self, value: Any, depth: int = 0) -> Any:
        """Returns the value with plain containers alone; refuses cycles and endless sharing."""
        self.budget.spend(1)
        if depth > MAX_DEPTH:
            raise Malformed(f"its containers are nested more than {MAX_DEPTH} deep", UNTRUSTED)
        match value:
            case dict():
                return {
                    checked_key(self.budget, key): self.finish(item, depth + 1)
                    for key, item in value.items()
                }
            case list() | tuple():
                return type(value)([self.finish(item, depth + 1) for item in value])
            case Record(fields):
                return self.finish(fields, depth + 1)
            case Array(None):
                raise Malformed("its pickle holds an array without content")
            case Array(array):
                return array
            case Storage():
                return tensor_view(self.budget, value, 0, (value.numel,), (1,))
            case Dtype(dtype):
                return str(dtype)
            case Global(name) if name not in TORCH_DTYPES:
                raise Malformed(f"its pickle stores `{name}` as a value", UNTRUSTED)
            case Global(name):
                return name
        return value


def _checked_literal(value: Any) -> Any:
    if type(value) is int and value.bit_length() > MAX_INT_BITS:
        raise Malformed(f"its pickle holds an integer of {value.bit_length()} bits", UNTRUSTED)
    if type(value) is str and not value.isascii():
        value.encode()  # raises for lone surrogates, which nothing could print
    return value


_INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE")
_OTHERS = ("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "FLOAT", "BINFLOAT")
_LITERALS = {*_INTEGERS, *_TEXTS, *_OTHERS}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_OPCODES: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop_or_unmark(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "DICT": lambda m, _: m.push(m.pairs(m.pop_mark())),
    "FROZENSET": lambda m, _: m.push(frozenset(m.keys(m.pop_mark()))),
    "APPEND": lambda m, _: m.append(m.pop(1)),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.add(m.pop_mark()),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "GLOBAL": lambda m, names: m.find_global(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.find_global(*m.pop(2)),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.new(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.load_persistent(),
    "MEMOIZE": lambda m, _: m.memorise(len(m.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, index: m.memorise(index)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, i: m.push(m.memo[i])),
}
