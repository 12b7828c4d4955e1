"""A pickle machine that builds plain containers and tensors, and can do nothing else.

Python's own unpickler imports and calls what a file names, and cannot be stopped between two
opcodes. This one steps through them (`pickletools.genops`, which only parses): a global becomes an
inert `Global` or is refused, and a call is a look-up in `rebuild.CALLS`. Work, nesting and bytes
are bounded.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from convert import rebuild, shown
from convert.harmless import PASSED_OVER
from convert.rebuild import (
    UNTRUSTED,
    Array,
    Global,
    Key,
    Malformed,
    Ordered,
    PassedOver,
    Record,
    Storage,
)

MAX_DEPTH = 100  # of nested containers
MAX_INT_BITS = 512

LoadStorage = Callable[[str, np.dtype, int], np.ndarray | None]


def unpickle(stream: io.BytesIO, load_storage: LoadStorage) -> object:
    """Returns what the pickle at the stream's position holds, and leaves the stream behind it.

    Args:
      stream: pickle of any protocol.
      load_storage: (key, dtype, numel) -> the storage, uint8 (numel * itemsize,) and read-only; or
        None to check sizes against that claim alone, which gives empty tensors.

    Returns:
      dict, list, tuple, set, frozenset, str, int, float, bool, None or bytes; tensors are NumPy
      views, read-only and without copies, of their storages. OrderedDict, defaultdict and Counter
      are dict, NumPy scalars are Python's, mmengine's HistoryBuffer is the dict of its fields, and
      a dtype is its name. What `harmless` passes over is the text of its name.

    Raises:
      Malformed: anything else is named, a storage cannot hold its tensor, or it is too much work.
      Exception: any kind, from damaged pickles.
    """
    machine = _Machine(load_storage, stream.getbuffer().nbytes)
    for opcode, arg, _ in pickletools.genops(stream):
        machine.step(opcode.name, arg)
    machine.budget = rebuild.Budget(0)  # the result has its own
    return machine.finish(machine.stack.pop())


class _Machine:
    """Stack, memo and budget of one pickle."""

    def __init__(self, load_storage: LoadStorage, size: int):
        self.load_storage = load_storage
        self.stack: list[object] = []
        self.marks: list[list[object]] = []  # the stacks below the marks
        self.memo: dict[int, object] = {}
        self.storages: dict[str, Storage] = {}
        self.budget = rebuild.Budget(size)

    def step(self, name: str, arg: object) -> None:
        self.budget.spend(1)
        if name not in _OPCODES:
            raise Malformed(f"its pickle uses the opcode {name}, which no tensor needs", UNTRUSTED)
        _OPCODES[name](self, arg)

    def push(self, value: object) -> None:
        self.stack.append(value)

    def push_literal(self, value: object) -> None:
        if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise Malformed(f"its pickle holds an integer of {value.bit_length()} bits", UNTRUSTED)
        if isinstance(value, str) and not value.isascii():
            value.encode()  # raises for lone surrogates, which nothing could print
        self.push(value)

    def pop(self, count: int) -> list[object]:
        items = self.stack[-count:]
        if len(items) < count:
            raise Malformed("its pickle is damaged (too few values)")
        del self.stack[-count:]
        return items

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[object]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def append(self, items: list[object]) -> None:
        top = self.stack[-1]
        if isinstance(top, PassedOver):
            return
        if not isinstance(top, list):
            raise Malformed("its pickle appends to something other than a list")
        top.extend(items)

    def add(self, items: list[object]) -> None:
        top = self.stack[-1]
        if isinstance(top, PassedOver):
            return
        if not isinstance(top, set):
            raise Malformed("its pickle adds to something other than a set")
        top.update(self.keys(items))

    def set_items(self, items: list[object]) -> None:
        top = self.stack[-1]
        if isinstance(top, PassedOver):
            return
        if not isinstance(top, dict) or isinstance(top, Record):
            raise Malformed("its pickle sets items of something other than a dict")
        top.update(self.pairs(items))

    def keys(self, items: list[object]) -> list[Key]:
        return [rebuild.checked_key(self.budget, item) for item in items]

    def pairs(self, items: list[object]) -> dict[Key, object]:
        return dict(zip(self.keys(items[::2]), items[1::2], strict=True))

    def memorise(self, index: int) -> None:
        if not 0 <= index < rebuild.MAX_STEPS:
            raise Malformed("its pickle numbers its objects beyond all that it may have", UNTRUSTED)
        self.memo[index] = self.stack[-1]

    def find_global(self, module: object, name: object) -> None:
        """Pushes the inert name, if it is allowed."""
        if not all(part.isidentifier() for part in f"{module}.{name}".split(".")):
            raise Malformed("its pickle is damaged (no name where one is due)")
        full = f"{rebuild.MODULES.get(str(module), module)}.{name}"
        if full not in rebuild.GLOBALS:
            raise rebuild.ForbiddenGlobal(f"{module}.{name}")
        self.push(Global(full))

    def reduce(self) -> None:
        """Calls: only functions of `CALLS`; what is passed over is not called."""
        function, args = self.pop(2)
        if not isinstance(args, tuple) or not isinstance(function, Global):
            raise Malformed("its pickle calls something that is no function", UNTRUSTED)
        if function.name in PASSED_OVER:
            self.push(PassedOver(function.name))
            return
        if function.name not in rebuild.CALLS:
            raise Malformed(f"its pickle calls `{function.name}`, which is a name only", UNTRUSTED)
        self.push(rebuild.CALLS[function.name](self.budget, *args))

    def new(self) -> None:
        kind, args = self.pop(2)
        if isinstance(kind, Global) and kind.name in PASSED_OVER:
            self.push(PassedOver(kind.name))
            return
        if not isinstance(kind, Global) or kind.name != rebuild.HISTORY or args != ():
            raise Malformed("its pickle makes an object that no tensor needs", UNTRUSTED)
        self.push(Record())

    def build(self) -> None:
        """Gives an object its state."""
        target, state = self.pop(2)
        match target, state:
            case PassedOver(), _:
                pass
            case Ordered(), dict():
                pass  # attributes: PyTorch's version numbers of the modules
            case Record(), dict():
                self.budget.spend(len(state))
                target.update(state)
            case np.dtype(), (int(), "<" | "|", None, None, None, -1, -1, 0):
                pass  # the types that are allowed are little endian already
            case Array(), (int(), tuple(), PassedOver(), bool(), _):
                target.array = PassedOver("numpy.ndarray")
            case Array(), (int(), tuple(shape), np.dtype() as dtype, bool(fortran), bytes(data)):
                target.array = rebuild.numpy_array(self.budget, shape, dtype, fortran, data)
            case _:
                raise Malformed("its pickle sets a state that no tensor needs", UNTRUSTED)
        self.push(target)

    def load_persistent(self) -> None:
        """Replaces ("storage", type, key, device, numel[, None]) by the storage."""
        match self.stack.pop():
            case ("storage", Global(kind), str(key), str(), int(numel), *rest) if (
                kind in rebuild.STORAGES and type(numel) is int and numel >= 0
            ):
                if any(view is not None for view in rest):
                    fix = "load and save it again with a newer PyTorch"
                    raise Malformed("has storages that are views of others (before 0.4)", fix)
                self.push(self.storage(key, rebuild.STORAGES[kind], numel))
            case _:
                raise Malformed("its pickle refers to something other than a tensor's storage")

    def storage(self, key: str, dtype: np.dtype, numel: int) -> Storage:
        """Returns the storage of a key, loaded once."""
        known = self.storages.get(key)
        if known is None:
            data = self.load_storage(key, dtype, numel)
            if data is not None:
                rebuild.check_bools(dtype, data)
            known = self.storages[key] = Storage(dtype, numel, data)
        if (known.dtype, known.numel) != (dtype, numel):
            raise Malformed(f"storage {shown(key)} is given two sizes or types")
        return known

    def finish(self, value: object, depth: int = 0) -> object:
        """Returns the value with plain containers alone; refuses cycles and endless sharing."""
        self.budget.spend(1)
        if depth > MAX_DEPTH:
            raise Malformed(f"its containers are nested more than {MAX_DEPTH} deep", UNTRUSTED)
        match value:
            case dict():
                return {
                    rebuild.checked_key(self.budget, key): self.finish(item, depth + 1)
                    for key, item in value.items()
                }
            case list() | tuple():
                return type(value)([self.finish(item, depth + 1) for item in value])
            case Array(None):
                raise Malformed("its pickle holds an array without content")
            case Array(PassedOver(name)) | PassedOver(name):
                return name
            case Array(array):
                return array
            case Storage():
                return rebuild.tensor_view(self.budget, value, 0, (value.numel,), (1,))
            case np.dtype():
                return str(value)
            case Global(name) if name not in PASSED_OVER:
                raise Malformed(f"its pickle stores `{name}` as a value", UNTRUSTED)
            case Global(name):
                return name
        return value


_LITERALS = """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8"""
_OPCODES: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    **dict.fromkeys(_LITERALS.split(), _Machine.push_literal),
    "BYTEARRAY8": lambda m, data: m.push(bytes(data)),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(1) if m.stack else m.pop_mark(),
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
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.memorise),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, i: m.push(m.memo[i])),
}
