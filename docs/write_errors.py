"""Writes docs/errors/: every error that the source can raise, a page for each exit code.

    python docs/write_errors.py

Read from the source by `ast`: each call of an error class of `deeplab_jax.errors` has where, what
and fix. A name is followed to the texts that the function assigned to it, a parameter to the calls
of the function, a helper to the texts that it returns, a loop to what it runs through. What is
known only at run time is a word in braces.
"""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deeplab_jax import errors

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "errors"
_SOURCES = ("deeplab_jax", "convert")
_MOST = 6  # texts of one cell
_DEPTH = 4  # helpers that are followed
# Functions that show a value: the word in braces is that of their first argument.
_WORDS = ("str", "shorten", "clip", "sorted", "len", "map", "repr", "quote", "fspath", "realpath",
          "relpath", "Path", "as_text", "basename", "join", "format", "get", "list", "set", "tuple",
          "min", "max", "sum", "int", "dirname", "absolute", "type", "shown", "name")  # fmt: skip
# Exceptions of (what, fix) that become an error about the file being read; its exit code.
_CARRIED = {"_UnusableError": 3, "Malformed": 4}
# Words in braces for names that tell a reader nothing.
_SHOWN = {
    "...": "names", "accepted": "what it accepts", "as_place": "run", "bad": "count",
    "close": "nearest", "describe": "layout", "describe_cause": "cause", "environ": "count",
    "evaluate": "deeplab evaluate", "find": "data set", "fix": "what to do", "fixes": "what to do",
    "folder_of": "folder", "getattr": "value", "key": "field", "match": "address",
    "next": "reason", "normpath": "path", "notes": "count", "numel": "count", "prog": "command",
    "option_strings": "flag", "readlink": "target", "self": "bucket", "st_size": "size",
    "strerror": "cause", "told": "cause", "what": "what is wrong", "where": "file or field",
    "with_name": "file", "with_suffix": "file",
}  # fmt: skip
_PAGES = {
    2: ("usage", "Flags, fields and places",
        "The command itself: a flag, a field of the configuration, a file that is there already. "
        "Nothing was read or written."),
    3: ("data", "Data", "Images, masks, lists, caches and archives."),
    4: ("checkpoints", "Checkpoints and weights",
        "Saved steps, PyTorch's files and exported folders."),
    5: ("machine", "Memory, disks, devices, hosts",
        "What the machine could not give. The command itself is right."),
    6: ("numbers", "Numbers", "A value that is not finite, or differs from what it must be."),
    130: ("stopped", "Stopped",
          "130 after Ctrl-C, 143 after SIGTERM, 141 where the reader of an output went away. Work "
          "that is saved at a stop is saved."),
}  # fmt: skip
_ROOMS = {
    "account": "Goodput, reproduce, seeds", "checkpoint": "Saved steps",
    "config": "Recipes and fields", "convert": "Convert", "data": "Data sets and batches",
    "demo": "Demo", "distributed": "Devices and hosts", "doctor": "Doctor", "dry_run": "Dry run",
    "evaluation": "Evaluation", "export": "Export", "inference": "Prediction", "models": "Network",
    "report": "Reports and compare", "selftest": "Self-test", "serve": "Serve",
    "training": "Training", "utils": "Files, locks, buckets", "verbs": "Other commands",
    "verify": "Verify",
}  # fmt: skip
_NOTE = "<!-- Written by docs/write_errors.py; a test compares. -->\n"
_HEAD = f"""# Every error, its cause and its fix

{_NOTE}
An error is one line, `error: WHERE: WHAT - FIX`, and its kind is the command's
[exit code](../when-something-goes-wrong.md#exit-codes):

| exit code | page |
| --- | --- |
@PAGES@

To find yours, search for words of WHAT that are neither a path nor a number. Braces stand for what
is known at run time: a path, a field, a number. Of several texts in a cell one is printed.

Errors about one host of several name it, `on HOST`. An error that passes through several parts of
the program may name a further command at its end. What to do in common cases, with whole lines:
[when something goes wrong](../when-something-goes-wrong.md). What a field accepts:
[fields](../config.md).

```{{toctree}}
:hidden:

@TOCTREE@
```
"""


class Scope(NamedTuple):
    """A module and the function in it (None at its top), where names have their values."""

    module: ast.Module
    function: ast.FunctionDef | None
    known: dict[str, tuple[ast.expr, "Scope"]]  # parameters whose argument is known


class Row(NamedTuple):
    """One error: texts for its three parts."""

    code: int
    room: str
    kind: str
    where: tuple[str, ...]
    what: tuple[str, ...]
    fix: tuple[str, ...]


def main() -> None:
    """Writes the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def pages() -> dict[str, str]:
    """Returns {file name: text} of the pages."""
    rows = sorted(dict.fromkeys(read_rows()), key=lambda row: (row.code, _ROOMS[row.room]))
    made = {
        f"{_PAGES[code][0]}.md": _page(code, list(group))
        for code, group in itertools.groupby(rows, lambda row: row.code)
    }
    lines = [f"| {_codes(code)} | [{title}]({name}.md) |"
             for code, (name, title, _) in _PAGES.items()]  # fmt: skip
    index = _HEAD.replace("@PAGES@", "\n".join(lines))
    return made | {
        "index.md": index.replace("@TOCTREE@", "\n".join(name for name, _, _ in _PAGES.values()))
    }


def _page(code: int, rows: list[Row]) -> str:
    """Returns the page of one exit code: a table for each room, by what is wrong."""
    _, title, about = _PAGES[code]
    text = f"# Exit code {_codes(code)}: {title.lower()}\n\n{_NOTE}\n{about}\n"
    for room, group in itertools.groupby(rows, lambda row: row.room):
        text += f"\n## {_ROOMS[room]}\n\n| where | what | fix |\n| --- | --- | --- |\n"
        text += "".join(sorted({_line(row) for row in group}, key=str.lower))
    return f"{text}\n[All exit codes](index.md)\n"


def _codes(code: int) -> str:
    return "130, 143, 141" if code == 130 else str(code)


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
                if all(re.fullmatch(r"\{[\w ]+\}", text) for text in (*what, *fix)):
                    continue  # an error that is passed on
                yield Row(reader.kinds[kind], room, kind, where, what, fix)


class _Reader:
    def __init__(self, modules: dict[Path, ast.Module]):
        classes = [c for c in vars(errors).values() if isinstance(c, type)]
        self.kinds = {c.__name__: c.exit_code for c in classes
                      if issubclass(c, errors.DeepLabError)}  # fmt: skip
        self.kinds |= {"Interrupted": 130, **_CARRIED}
        self._nodes: dict[ast.Module, list[tuple[ast.Call, ast.FunctionDef | None]]] = {}
        self.defaults: dict[str, list[ast.expr]] = {name: [] for name in _CARRIED}
        self.constants: dict[str, list[ast.expr]] = {}
        self.functions: dict[str, list[tuple[ast.FunctionDef, ast.Module]]] = {}
        for module in modules.values():
            for node in module.body:
                if isinstance(node, ast.Assign) and _is_text(node.value):
                    self.constants.setdefault(_name(node.targets[0]), []).append(node.value)
            for node in ast.walk(module):
                if isinstance(node, ast.FunctionDef):
                    self.functions.setdefault(node.name, []).append((node, module))
                if isinstance(node, ast.ClassDef) and node.name in _CARRIED:
                    self.defaults[node.name] = [
                        d
                        for f in node.body
                        if isinstance(f, ast.FunctionDef)
                        for d in f.args.defaults
                    ]
                if isinstance(node, ast.ClassDef) and node.bases:
                    base = _name(node.bases[0])
                    if base in self.kinds and base not in _CARRIED:
                        self.kinds.setdefault(node.name, self.kinds[base])

    def nodes(self, module: ast.Module) -> list[tuple[ast.Call, ast.FunctionDef | None]]:
        """Returns the calls of a module, each with the function that it stands in."""
        if module not in self._nodes:
            pairs: list[tuple[ast.AST, ast.FunctionDef | None]] = [(module, None)]
            for node, function in pairs:  # which grows
                inside = node if isinstance(node, ast.FunctionDef) else function
                pairs += [(child, inside) for child in ast.iter_child_nodes(node)]
            self._nodes[module] = [(n, f) for n, f in pairs if isinstance(n, ast.Call)]
        return self._nodes[module]

    def calls(self, module: ast.Module) -> Iterator[tuple[str, ast.Call, Scope]]:
        """Yields (class, call, scope) of each error that a module makes."""
        for node, function in self.nodes(module):
            if _name(node.func) in self.kinds and node.args:
                yield _name(node.func), node, Scope(module, function, {})
            elif _is_subclass_text(node):
                yield "Malformed", node, Scope(module, function, {})

    def rows(self, call: ast.Call, scope: Scope) -> Iterator[tuple[tuple[str, ...], ...]]:
        """Yields (where, what, fix), each with its possible texts, of one call."""
        for arguments, inner in self._arguments(call, scope):
            yield tuple(tuple(dict.fromkeys(self.texts(part, inner)))[:_MOST] for part in arguments)

    def _arguments(self, call: ast.Call, scope: Scope) -> Iterator[tuple[list[ast.expr], Scope]]:
        given = [*call.args, *(k.value for k in call.keywords)]
        if _name(call.func) in _CARRIED or _is_subclass_text(call):
            given.insert(0, ast.Constant("{file}"))
            if len(given) == 2:  # the class has a default
                given.append(next((d for d in self.defaults[_name(call.func)]), given[1]))
        if isinstance(given[-1], ast.Starred):  # of a helper that returns (what, fix)
            value = given.pop().value
            helper = value if isinstance(value, ast.Call) else self._assigned(value, scope)
            for pair, inner in self._returned(helper, scope):
                if isinstance(pair, ast.Tuple):
                    where = self.texts(given[0], scope)[0]
                    yield [ast.Constant(where), *pair.elts], inner
            return
        wanted = {part.id for part in given if isinstance(part, ast.Name)}
        function = scope.function
        names = [a.arg for a in function.args.args] if function else []
        if function is None or not wanted & set(names[-2:]) & {"what", "fix"}:
            yield given[:3], scope
            return
        callers = [(node, Scope(scope.module, inside, {}))
                   for node, inside in self.nodes(scope.module)
                   if _name(node.func) == function.name]  # fmt: skip
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

    def _assigned(self, name: ast.expr, scope: Scope) -> ast.expr | None:
        found = self._values(name, scope)
        return found[0][0] if found else None

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
        """Returns what a loop, or an assignment of a call's results, gives to a name."""
        if isinstance(node, ast.For):
            pairs = [(element, scope) for element in self._elements(node.iter, scope)]
            return _parts(node.target, pairs, name)
        if isinstance(node, ast.Assign):
            return _parts(node.targets[0], self._returned(node.value, scope), name)
        return [(node, scope)] if isinstance(node, ast.expr) else []

    def _elements(self, node: ast.expr, scope: Scope) -> list[ast.expr]:
        """Returns the elements that a loop runs through, where they are written out."""
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return node.elts
        if isinstance(node, ast.Dict):
            return node.keys if None not in node.keys else []
        if isinstance(node, ast.Call) and _name(node.func) == "items":
            known = [v for v, _ in self._values(node.func.value, scope)]
            return [ast.Tuple([key, value]) for v in known if isinstance(v, ast.Dict)
                    for key, value in zip(v.keys, v.values, strict=True) if key]  # fmt: skip
        return [e for v, _ in self._values(node, scope) for e in self._elements(v, scope)]

    def _returned(self, call: ast.expr | None, scope: Scope) -> list[tuple[ast.expr, Scope]]:
        """Returns what a function of the source may return, of a call of it."""
        if not isinstance(call, ast.Call):
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
        if isinstance(node, ast.Constant):
            return [str(node.value)]
        if depth > _DEPTH:
            return [_placeholder(node)]
        if isinstance(node, ast.JoinedStr):
            parts = [self._part(part, scope, depth) for part in node.values]
            return ["".join(c) for c in itertools.islice(itertools.product(*parts), _MOST)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Div):
            both = (self.texts(part, scope, depth) for part in (node.left, node.right))
            between = "/" if isinstance(node.op, ast.Div) else ""
            return [between.join(c) for c in itertools.islice(itertools.product(*both), _MOST)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and _is_text(node.left):
            return ["", *self.texts(node.left, scope, depth)]
        if isinstance(node, ast.IfExp):
            return [*self.texts(node.body, scope, depth), *self.texts(node.orelse, scope, depth)]
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            return [text for part in node.values for text in self.texts(part, scope, depth) if text]
        if isinstance(node, ast.Name):
            if node.id in scope.known:
                value, outer = scope.known[node.id]
                return self.texts(value, outer, depth + 1)
            values = [(v, s) for v, s in self._values(node, scope) if _is_text(v) or _is_helper(v)]
            texts = [text for v, inner in values for text in self.texts(v, inner, depth + 1)]
            return texts or [_placeholder(node)]
        if isinstance(node, ast.Call):
            if _name(node.func) in ("str", "clip") and node.args:
                return self.texts(node.args[0], scope, depth + 1)
            if _name(node.func) in _WORDS:
                return [_placeholder(node)]
            returned = [pair for pair in self._returned(node, scope) if _is_text(pair[0])]
            texts = [text for v, inner in returned for text in self.texts(v, inner, depth + 1)]
            return texts[:_MOST] or [_placeholder(node)]
        return [_placeholder(node)]

    def _part(self, part: ast.expr, scope: Scope, depth: int) -> list[str]:
        """Returns the texts of a part of an f-string; calls in it are known at run time alone."""
        if not isinstance(part, ast.FormattedValue):
            return self.texts(part, scope, depth + 1)
        value = part.value
        if isinstance(value, ast.Call) or (
            isinstance(value, ast.Name) and value.id not in scope.known
        ):
            known = [(v, inner) for v, inner in self._values(value, scope) if _is_text(v)]
            return [t for v, inner in known for t in self.texts(v, inner, depth + 1)] or [
                _placeholder(value)
            ]
        return self.texts(value, scope, depth + 1)


def _flow(body: list[ast.stmt], name: str, line: int, values: list[ast.expr]) -> list[ast.expr]:
    """Returns what a name may hold at a line, or after statements that end before it."""
    for node in body:
        is_inside = line <= (node.end_lineno or node.lineno)
        if isinstance(node, ast.For) and name in map(_name, ast.walk(node.target)):
            values = [node]
        named = [n.value for n in ast.walk(getattr(node, "test", ast.Pass()))
                 if isinstance(n, ast.NamedExpr) and n.target.id == name]  # fmt: skip
        values = named or values
        blocks = [getattr(node, part, []) for part in ("body", "orelse", "finalbody")]
        blocks += [handler.body for handler in getattr(node, "handlers", [])]
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
                if isinstance(node.value, ast.Call):
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
    names = [_name(part) for part in target.elts] if isinstance(target, ast.Tuple) else []
    tuples = [(v, s) for v, s in pairs if isinstance(v, ast.Tuple) and len(v.elts) == len(names)]
    return [(value.elts[names.index(name)], scope) for value, scope in tuples if name in names]


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
    return isinstance(node, ast.Call | ast.Name)


def _name(node: ast.AST | None) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _placeholder(node: ast.expr) -> str:
    """Returns the word in braces for a value that is known at run time alone."""
    word = _word(node)
    if isinstance(word, ast.Constant):
        return str(word.value)
    return f"{{{_SHOWN.get(word, word).replace('_', ' ').lower()}}}"


def _word(node: ast.expr) -> str | ast.Constant:
    """Returns the name of a value, or of what it is computed from; a constant as it is."""
    while True:
        if isinstance(node, ast.Call):
            name = _name(node.func)
            if name not in _WORDS or not node.args:
                if isinstance(node.func, ast.Attribute) and not node.args:
                    node = node.func.value
                    continue
                return name.strip("_") or "..."
            node = node.args[-1] if name == "map" else node.args[0]
        elif isinstance(node, ast.Subscript | ast.Starred | ast.FormattedValue):
            node = node.value
        elif isinstance(node, ast.GeneratorExp | ast.ListComp):
            node = node.generators[0].iter
        elif isinstance(node, ast.Name | ast.Attribute):
            return _name(node).strip("_")
        elif isinstance(node, ast.Constant):
            return node
        elif isinstance(node, ast.BinOp | ast.Compare):
            node = node.left
        elif isinstance(node, ast.BoolOp):
            node = node.values[0]
        elif isinstance(node, ast.IfExp | ast.Lambda):
            node = node.body
        else:
            return "..."


def _line(row: Row) -> str:
    return f"| {' | '.join(_cell(part) for part in (row.where, row.what, row.fix))} |\n"


def _cell(texts: tuple[str, ...]) -> str:
    """Returns texts as code; a longer one that begins as another stands alone."""
    kept = [" ".join(text.split()) for text in texts]
    return " or ".join(map(_code, dict.fromkeys(text for text in kept if text)))


def _code(text: str) -> str:
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")


if __name__ == "__main__":
    main()
