"""Reads every error that the source can raise, for docs/write_errors.py.

Read by `ast`: each call of an error class of `deeplab_jax.errors` has where, what and fix. A name
is followed to the texts that the function assigned to it, a parameter to the calls of the function,
a helper to the texts that it returns, a loop to what it runs through, a constant to its value. What
is known only at run time is a word in braces.
"""

import ast
import builtins
import importlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_jax import errors

ROOT = Path(__file__).resolve().parents[1]
_SOURCES = ("deeplab_jax", "convert")
_MOST = 12  # texts of one cell; fewer would drop some that users meet
_DEPTH = 5  # helpers that are followed
# Functions and defaults of fields that constants are computed with.
_PURE = ("LossConfig", "TrainConfig", "DataConfig", "as_text", "fields", "getattr", "len", "list",
         "map", "max", "min", "repr", "shorten", "sorted", "str", "sum", "tuple")  # fmt: skip
_MANY = (tuple, list, dict, set, frozenset)
# Functions whose errors `write_errors.py` takes from the tables of fields and transforms.
_BY_TABLE = ("validate", "_wrong_field", "_values")
_Loops = tuple[ast.For, ...]
# Words in braces: names of the source that a reader understands, and what others stand for.
_PLAIN = (
    "address cause checkpoint command data dialect example extra fault field file flag flags folder"
    " found function host image images kind layout line mask mode module name names nearest"
    " number output package path paths place places platform port program protocol reader"
    " recipe root run runs seconds seed seeds shape source split step steps suffix target text"
    " value version workdir"
)
_MEANT = {
    "address": "coordinator match",
    "advice": "fix fixes kept windows_fix",
    "cause": "describe_cause error problem reason reasons strerror told unparsable why",
    "bucket": "self",  # alone
    "checkpoint": "as_place lacking",
    "command": "again commands convert_command evaluate install_command prog",
    "data set": "dataset find",
    "difference": "changes differences phrases problems",
    "fault": "faults what",
    "file": "filename files model several with_name with_suffix",
    "flag": "option_strings override overrides unused",
    "flags": "rest",
    "folder": "dir directory folder_of inside parent sbd",
    "format": "file_format",
    "function": "name_of",
    "image": "image_name",
    "layout": "describe",
    "line": "lineno",
    "list": "list_file",
    "mask": "mask_name",
    "module": "module_name",
    "name": "bare chosen first glob index key level local one other part sample_name stem verb"
    " wanted wrong",
    "names": "CASES archives bad blind changed class_names copy differing divisors fields fitting"
    " foreign inner kinds known links listed lossy missing odd others outside own platforms"
    " present seen sets shown splits stems strange unequal unexpected unknown unread ways",
    "nearest": "close near",
    "number": "IGNORE_INDEX batch batch_size beyond bit_length blocks bytes common count depth end"
    " environ epochs errors every file_size free gradient_accumulation groups half height"
    " held high image_height image_width iteration len length limit low max_pixels memory"
    " most needed num_classes num_devices num_pictures num_processes num_samples numel"
    " output_stride parameters parts patience pixels process_id size spatial st_size sum"
    " total total_steps unit usable usable_high width",
    "path": "normpath",
    "pattern": "template",
    "place": "where",
    "process": "who",
    "seconds": "within",
    "start of the file": "head",
    "step": "last latest older saved start",
    "step folder": "step_path",
    "target": "readlink",
    "text": "family message texts title words",
    "type": "__name__ code dtype entry",
    "value": "accepted args asked before both content ends expected factor getattr given got label"
    " loss mask_suffix masks mine new now only ours plain scale_range theirs usual"
    " val_fraction value_ranges values weights written",
    "version": "jaxlib_version written_by",
}  # fmt: skip
_WORD = {name: name for name in _PLAIN.split()} | {
    name: word for word, names in _MEANT.items() for name in names.split()
}
# What an element of several is.
_ONE = {f"{one}s": one for one in ("flag", "image", "name", "path", "place", "seed", "step")}
_ONE["shape"] = "number"
_SECTIONS = ("data", "eval", "init", "loss", "model", "protocol", "train")  # of fields
# Exceptions, and a tuple, of (what, fix) that become an error: its exit code and place.
_CARRIED = {"_UnusableError": (3, "{list}"), "Malformed": (4, "{file}"), "Words": (6, "{workdir}")}


class Row(NamedTuple):
    """One error: texts for its three parts."""

    code: int
    room: str
    where: tuple[str, ...]
    what: tuple[str, ...]
    fix: tuple[str, ...]


class Scope(NamedTuple):
    """A module and the function in it (None at its top), where names have their values."""

    module: ast.Module
    function: ast.FunctionDef | None
    known: dict[str, tuple[ast.expr, "Scope"]]  # parameters and loops' names, where known


def read_rows() -> Iterator[Row]:
    """Yields the errors of the source, in the order of files and lines."""
    modules = {path: ast.parse(path.read_text()) for top in _SOURCES
               for path in sorted((ROOT / top).rglob("*.py"))}  # fmt: skip
    reader = _Reader(modules)
    for path, module in modules.items():
        parts = path.relative_to(ROOT).parts[:-1]
        room = "verbs" if parts == ("deeplab_jax",) else parts[min(1, len(parts) - 1)]
        for kind, call, scope in reader.calls(module):
            for where, what, fix in reader.rows(call, scope):
                is_passed_on = all(re.match(r"(\{[a-z ]+\} )?\{fault\}", text) for text in what)
                if not (is_passed_on and all(map(is_word, fix))):
                    yield Row(reader.kinds[kind], room, where, what, fix)


def is_word(text: str) -> bool:
    """Tells whether a text is one word in braces."""
    return re.fullmatch(r"\{[a-z ]+\}", text) is not None


class _Reader:
    def __init__(self, modules: dict[Path, ast.Module]):
        classes = [c for c in vars(errors).values() if isinstance(c, type)]
        self.kinds = {c.__name__: c.exit_code for c in classes
                      if issubclass(c, errors.DeepLabError)}  # fmt: skip
        self.kinds |= {"Interrupted": 130, **{name: code for name, (code, _) in _CARRIED.items()}}
        self._paths = {module: path for path, module in modules.items()}
        self._nodes: dict[ast.Module, list[tuple[ast.Call, ast.FunctionDef | None, _Loops]]] = {}
        self.defaults: dict[str, list[ast.expr]] = {name: [] for name in _CARRIED}
        self.constants: dict[str, list[ast.expr]] = {}  # also those that a function imports
        self.functions: dict[str, list[tuple[ast.FunctionDef, ast.Module]]] = {}
        for module in modules.values():
            for node in module.body:
                if isinstance(node, ast.Assign) and _is_text(node.value):
                    self.constants.setdefault(_name(node.targets[0]), []).append(node.value)
            for node in ast.walk(module):
                if isinstance(node, ast.FunctionDef):
                    self.functions.setdefault(node.name, []).append((node, module))
                if isinstance(node, ast.ClassDef) and node.name in _CARRIED:
                    methods = [f for f in node.body if isinstance(f, ast.FunctionDef)]
                    self.defaults[node.name] = [d for f in methods for d in f.args.defaults]
                if isinstance(node, ast.ClassDef) and node.bases:
                    base = _name(node.bases[0])
                    if base in self.kinds and base not in _CARRIED:
                        self.kinds.setdefault(node.name, self.kinds[base])

    def nodes(self, module: ast.Module) -> list[tuple[ast.Call, ast.FunctionDef | None, _Loops]]:
        """Returns the calls of a module, each with the function and the loops it stands in."""
        if module not in self._nodes:
            found: list[tuple[ast.AST, ast.FunctionDef | None, _Loops]] = [(module, None, ())]
            for node, function, loops in found:  # which grows
                if isinstance(node, ast.FunctionDef):
                    function, loops = node, ()
                if isinstance(node, ast.For):
                    loops = (*loops, node)
                found += [(child, function, loops) for child in ast.iter_child_nodes(node)]
            self._nodes[module] = [(n, f, ls) for n, f, ls in found if isinstance(n, ast.Call)]
        return self._nodes[module]

    def _rounds(self, loops: _Loops, scope: Scope) -> Iterator[Scope]:
        """Yields the scope of each round of loops, where what they run through is written out."""
        elements = self._elements(loops[0].iter, scope) if loops else []
        if not elements:
            yield from self._rounds(loops[1:], scope) if loops else [scope]
            return
        target = loops[0].target
        names = [_name(part) for part in getattr(target, "elts", [target])]
        for element in elements:
            known = {name: _parts(target, [(element, scope)], name) for name in names}
            found = {name: parts[0] for name, parts in known.items() if parts}
            yield from self._rounds(loops[1:], scope._replace(known=scope.known | found))

    def calls(self, module: ast.Module) -> Iterator[tuple[str, ast.Call, Scope]]:
        """Yields (class, call, scope) of each error that a module makes."""
        for node, function, loops in self.nodes(module):
            kind = "Malformed" if _is_subclass_text(node) else _name(node.func)
            if kind in self.kinds and node.args and _name(function) not in _BY_TABLE:
                for scope in self._rounds(loops, Scope(module, function, {})):
                    yield kind, node, scope

    def rows(self, call: ast.Call, scope: Scope) -> Iterator[tuple[tuple[str, ...], ...]]:
        """Yields (where, what, fix), each with its possible texts, of one call."""
        for arguments, inner in self._arguments(call, scope):
            yield tuple(tuple(dict.fromkeys(self.texts(part, inner)))[:_MOST] for part in arguments)

    def _arguments(self, call: ast.Call, scope: Scope) -> Iterator[tuple[list[ast.expr], Scope]]:
        given = [*call.args, *(k.value for k in call.keywords)]
        kind = "Malformed" if _is_subclass_text(call) else _name(call.func)
        if kind in _CARRIED:
            place = ast.Constant(_CARRIED[kind][1])
            given = [place, *[*given[-2:], *self.defaults[kind]][:2]]
        if isinstance(given[-1], ast.Starred):  # of a helper that returns (what, fix)
            value = given.pop().value
            assigned = (
                [(value, scope)] if isinstance(value, ast.Call) else self._values(value, scope)
            )
            for pair, inner in self._returned(assigned[0][0] if assigned else None, scope):
                if isinstance(pair, ast.Tuple):
                    where = self.texts(given[0], scope)[0]
                    yield [ast.Constant(where), *pair.elts], inner
            return
        wanted = {n.id for part in given for n in ast.walk(part) if isinstance(n, ast.Name)}
        function = scope.function
        names = [a.arg for a in function.args.args] if function else []
        if function is None or not wanted & set(names[-2:]) & {"what", "fix"}:
            yield given[:3], scope
            return
        callers = [(node, caller) for node, inside, loops in self.nodes(scope.module)
                   if _name(node.func) == function.name and _name(inside) not in _BY_TABLE
                   for caller in self._rounds(loops, Scope(scope.module, inside, {}))]  # fmt: skip
        if not callers:
            yield given[:3], scope
        for node, caller in callers:
            own = names[1:] if names[0] == "self" else names
            defaults = function.args.defaults
            arguments = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
            arguments |= dict(zip(own, node.args, strict=False))
            arguments |= {k.arg: k.value for k in node.keywords if k.arg}
            known = {name: (value, caller) for name, value in arguments.items()}
            yield given[:3], scope._replace(known=known)

    def _values(self, name: ast.expr, scope: Scope) -> list[tuple[ast.expr, Scope]]:
        """Returns what a name may hold where it is used; `+=` is written as a sum."""
        if not isinstance(name, ast.Name):
            return []
        line = getattr(name, "lineno", 0)
        body = scope.function.body if scope.function else []
        found = _flow(body, name.id, line, []) or _flow(scope.module.body, name.id, 10**6, [])
        constants = self.constants.get(name.id, [])
        found = found or constants * (len(constants) == 1)
        return [pair for node in found for pair in self._unpacked(node, name.id, scope)]

    def _unpacked(self, node: ast.AST, name: str, scope: Scope) -> list[tuple[ast.expr, Scope]]:
        """Returns what an assignment of a call's results gives to a name."""
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            table = self._value(node.value.value, scope)
            rows = [ast.Constant(row) for row in table.values()] if isinstance(table, dict) else []
            return _parts(node.targets[0], [(row, scope) for row in rows], name)
        if isinstance(node, ast.Assign):
            return _parts(node.targets[0], self._returned(node.value, scope), name)
        return [(node, scope)] if isinstance(node, ast.expr) else []

    def _elements(self, node: ast.expr, scope: Scope) -> list[ast.expr]:
        """Returns the elements that a loop runs through, where they are written out."""
        if isinstance(node, ast.Tuple | ast.List):
            return node.elts
        value = self._value(node, scope)
        return [] if value is None else [ast.Constant(element) for element in value]

    def _value(self, node: ast.expr, scope: Scope, depth: int = 0) -> Any:
        """Returns the value of an expression of constants; None for any other."""
        loaded = {n.id: n for n in ast.walk(node) if isinstance(n, ast.Name)}
        inner = {n.id for n in ast.walk(node)
                 if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}  # fmt: skip
        values: dict[str, Any] = {}
        for name in loaded.keys() - inner:
            values[name] = self._named(loaded[name], scope, depth + 1)
            if values[name] is None:
                return None
        try:
            code = compile(ast.fix_missing_locations(ast.Expression(node)), "a constant", "eval")
            return eval(code, values)
        except Exception:  # such as an attribute that a constant has not
            return None

    def _named(self, name: ast.Name, scope: Scope, depth: int) -> Any:
        if depth > _DEPTH:  # such as of a name that holds its own sum
            return None
        if name.id in scope.known:
            return self._value(*scope.known[name.id], depth)
        if scope.function:
            local = _flow(scope.function.body, name.id, name.lineno, [])
            if local or name.id in [a.arg for a in scope.function.args.args]:
                is_one = len(local) == 1 and isinstance(local[0], ast.expr)
                value = self._value(local[0], scope, depth) if is_one else None
                return None if isinstance(value, list | dict | set) else value  # may be filled
        if name.id in _PURE and hasattr(builtins, name.id):
            return getattr(builtins, name.id)
        found = getattr(self._imported(scope.module), name.id, None)
        is_ours = getattr(found, "__name__", "").startswith(_SOURCES) and not callable(found)
        return found if name.id.isupper() or name.id in _PURE or is_ours else None

    def _imported(self, module: ast.Module) -> Any:
        parts = self._paths[module].relative_to(ROOT).with_suffix("").parts
        try:
            return importlib.import_module(".".join(parts))
        except ImportError:
            return None

    def _returned(self, call: ast.expr | None, scope: Scope) -> list[tuple[ast.expr, Scope]]:
        """Returns what a function of the source may return, of a call of it."""
        if not isinstance(call, ast.Call) or _name(call.func) in _PURE:
            return []
        found = self.functions.get(_name(call.func), [])
        own = [pair for pair in found if pair[1] is scope.module] or found
        if len(own) != 1:
            return []
        function, module = own[0]
        names = [a.arg for a in function.args.args]
        known = {name: (value, scope) for name, value in zip(names, call.args, strict=False)}
        inner = Scope(module, function, known)
        return [(node.value, inner) for node in ast.walk(function)
                if isinstance(node, ast.Return) and node.value is not None]  # fmt: skip

    def texts(self, node: ast.expr, scope: Scope, depth: int = 0) -> list[str]:
        """Returns the possible texts of an expression; a word in braces where it is no text."""
        value = self._value(node, scope)
        if value is not None and not isinstance(value, Path):
            return [errors.shorten(value) if isinstance(value, _MANY) else str(value)]
        if depth > _DEPTH:
            return [_placeholder(node)]
        if isinstance(node, ast.JoinedStr):
            return _combined([self._part(part, scope, depth) for part in node.values])
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            both = [self.texts(part, scope, depth) for part in (node.left, node.right)]
            return _combined(both)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            if isinstance(self._value(node.right, scope), int | float):
                return [_placeholder(node.left)]
            both = [self.texts(part, scope, depth) for part in (node.left, node.right)]
            return _combined([both[0], ["/"], both[1]])  # of paths
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and _is_text(node.left):
            return ["", *self.texts(node.left, scope, depth)]
        if isinstance(node, ast.IfExp):
            chosen = self._value(node.test, scope)
            parts = [node.body, node.orelse] if chosen is None else [
                node.body if chosen else node.orelse]  # fmt: skip
            return [text for part in parts for text in self.texts(part, scope, depth)]
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            return [text for part in node.values for text in self.texts(part, scope, depth) if text]
        if isinstance(node, ast.Name):
            if node.id in scope.known:
                return self.texts(*scope.known[node.id], depth + 1)
            values = [(v, s) for v, s in self._values(node, scope) if _is_text(v) or _is_helper(v)]
        elif isinstance(node, ast.Call) and _name(node.func) in ("str", "clip") and node.args:
            return self.texts(node.args[0], scope, depth + 1)
        else:
            values = [pair for pair in self._returned(node, scope) if _is_text(pair[0])]
        texts = [text for v, inner in values for text in self.texts(v, inner, depth + 1)]
        return texts[:_MOST] or [_placeholder(node)]

    def _part(self, part: ast.expr, scope: Scope, depth: int) -> list[str]:
        """Returns the texts of a part of an f-string; of calls, those that return texts alone."""
        if not isinstance(part, ast.FormattedValue):
            return self.texts(part, scope, depth + 1)
        whole, value = self._value(ast.JoinedStr([part]), scope), part.value
        if whole is not None:
            return [whole]
        if isinstance(value, ast.Name) and value.id not in scope.known:
            # A helper's "" tells that nothing is wrong.
            known = [pair for pair in self._values(value, scope) if self._is_known(*pair)]
            texts = [text for v, inner in known for text in self.texts(v, inner, depth + 1)
                     if text or _is_text(v)]  # fmt: skip
            return texts or [_placeholder(value)]
        is_known = not isinstance(value, ast.Call) or self._is_known(value, scope)
        return self.texts(value, scope, depth + 1) if is_known else [_placeholder(value)]

    def _is_known(self, node: ast.expr, scope: Scope) -> bool:
        """Tells whether an expression is a text, or a call that returns texts alone."""
        returned = [_is_text(text) for text, _ in self._returned(node, scope)]
        return _is_text(node) or all(returned or [False])


def _combined(parts: list[list[str]]) -> list[str]:
    return ["".join(texts) for texts in itertools.islice(itertools.product(*parts), _MOST)]


def _flow(body: list[ast.stmt], name: str, line: int, values: list[ast.expr]) -> list[ast.expr]:
    """Returns what a name may hold at a line, or after statements that end before it."""
    for node in body:
        is_inside = line <= (node.end_lineno or node.lineno)
        named = [n.value for n in ast.walk(getattr(node, "test", ast.Pass()))
                 if isinstance(n, ast.NamedExpr) and n.target.id == name]  # fmt: skip
        values = named or values
        blocks = [getattr(node, part, []) for part in ("body", "orelse", "finalbody")]
        for part in ("handlers", "cases"):
            blocks += [inner.body for inner in getattr(node, part, [])]
        blocks = [block for block in blocks if block]
        if is_inside:  # an assignment's own value has the names as they were before
            block = next((b for b in blocks if b[0].lineno <= line <= (b[-1].end_lineno or 0)), [])
            return _flow(block, name, line, values)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) or not blocks:
            values = _assign(node, name, values)
        else:
            kept = [] if isinstance(node, ast.With) or getattr(node, "orelse", []) else values
            for block in blocks:
                if not isinstance(block[-1], ast.Return | ast.Raise | ast.Continue | ast.Break):
                    after = _flow(block, name, line, values)
                    kept = [*kept, *(value for value in after if value not in kept)]
            values = kept
    return values


def _assign(node: ast.AST, name: str, before: list[ast.expr]) -> list[ast.expr]:
    """Returns the values that a name may have after a statement."""
    if isinstance(node, ast.AugAssign) and _name(node.target) == name:
        return [ast.BinOp(value, ast.Add(), node.value) for value in before]
    if not isinstance(node, ast.Assign):
        return before
    for target in node.targets:
        if isinstance(target, ast.Name) and target.id == name:
            return [node.value]
        if isinstance(target, ast.Tuple):
            names = [_name(part) for part in target.elts]
            if name in names:
                if isinstance(node.value, ast.Call | ast.Subscript):
                    return [node]
                pairs = [value for value in _branches(node.value) if isinstance(value, ast.Tuple)]
                place = names.index(name)
                return [pair.elts[place] for pair in pairs if len(pair.elts) == len(names)]
    return before


def _parts(
    target: ast.expr, pairs: list[tuple[ast.expr, Scope]], name: str
) -> list[tuple[ast.expr, Scope]]:
    """Returns what unpacking values into a target gives to one of its names."""
    if isinstance(target, ast.Name):
        return pairs
    names = [_name(part) for part in getattr(target, "elts", [])]
    return [(_elements(value)[names.index(name)], scope) for value, scope in pairs
            if name in names and len(_elements(value)) == len(names)]  # fmt: skip


def _elements(node: ast.expr) -> list[ast.expr]:
    """Returns the elements of a tuple, written out or a constant."""
    if isinstance(node, ast.Constant) and isinstance(node.value, tuple):
        return [ast.Constant(value) for value in node.value]
    return node.elts if isinstance(node, ast.Tuple) else []


def _branches(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.IfExp):
        return [*_branches(node.body), *_branches(node.orelse)]
    return [node]


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) or _is_text(node.orelse)
    if isinstance(node, ast.BoolOp):
        return any(map(_is_text, node.values))
    return isinstance(node, ast.JoinedStr)


def _is_subclass_text(node: ast.AST) -> bool:
    """Tells whether a subclass of a carried exception gives its text to it."""
    is_init = isinstance(node, ast.Call) and _name(node.func) == "__init__"
    return is_init and len(node.args) == 2 and _is_text(node.args[0])


def _is_helper(node: ast.expr) -> bool:
    return isinstance(node, ast.Call | ast.Name | ast.IfExp)


def _name(node: ast.AST | None) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.FunctionDef):
        return node.name
    return node.attr if isinstance(node, ast.Attribute) else ""


def _placeholder(node: ast.expr) -> str:
    """Returns the word in braces for a value that is known at run time alone."""
    is_field = isinstance(node, ast.Attribute) and _name(node.value) in _SECTIONS
    if is_field and node.attr != "root":
        return "{value}"
    methods = [n.func for n in ast.walk(node)
               if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
               and hasattr(str, n.func.attr) and n.func.attr != "count"]  # fmt: skip
    names = [_name(n) for n in ast.walk(node) if n not in methods]
    names = [name if name[:2] == "__" else name.strip("_") for name in names if name]
    names = [name for name in names if name != "self" or isinstance(node, ast.Name)]
    word = next((_WORD[name] for name in names if name in _WORD), None)
    if word is None:
        raise LookupError(f"a reader needs a word for one of {names}: add it to _PLAIN or _MEANT")
    is_one = isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice)
    return f"{{{_ONE.get(word, word) if is_one else word}}}"
