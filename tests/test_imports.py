import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "deeplab_jax"
HEAVY = ("jax", "fsspec", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "rich", "torch")

# From the bottom up: a room imports from itself and from those of earlier lines alone. A file at
# the top of the package is a room of its own; commands, the last line, are imported by none.
ORDER = (
    {"errors"},
    {"utils"},
    {"config", "models"},
    {"data", "distributed"},
    {"checkpoint"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"dry_run", "doctor", "demo"},
    {"account", "benchmark", "selftest"},
    {"report"},
    {"preview", "export"},
    {"verify"},
    {"serve"},
    {"cli"},
    {"convert"},
    {
        "train",
        "evaluate",
        "predict",
        "compare",
        "goodput",
        "reproduce",
        "bench",
        "prepare",
        "recipes",
        "checkpoint_verbs",
        "__main__",
    },
)
FLOOR = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
# Rooms that take less than the order would let them.
ONLY = {
    "models": {"errors", "utils"},
    "distributed": {"errors", "utils", "config"},
    "doctor": {"errors", "utils", "config", "data"},
    "demo": {"errors", "utils"},
}
MOST_FILES, MOST_LINES = 14, 500


def imported(source, with_types=True):
    """Returns the full names of all that a source file imports, also inside functions.

    Without types, what is imported under `if TYPE_CHECKING` does not count.
    """
    names, nodes = set(), [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if is_typing and not with_types:
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules():
    """Returns {full name: source} of the package's and convert's files."""
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "convert").glob("*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {
        name.removesuffix(".__init__"): path.read_text()
        for name, path in zip(names, paths, strict=True)
    }


def room_of(name):
    """Returns the room that a module lies in, or None."""
    top, _, rest = name.partition(".")
    if name.endswith(".__main__"):
        return "__main__"
    room = top if top == "convert" else rest.partition(".")[0]
    return room if top in ("convert", "deeplab_jax") and room in FLOOR else None


def broken_lines(sources):
    """Returns "room: module -> room" for each import that the order of rooms forbids."""
    found = set()
    for module, source in sources.items():
        own = room_of(module)
        for name in imported(source, with_types=False) if own else ():
            other = room_of(name)
            is_inside = other is not None and other in (own, *module.split(".")[-2:-1])
            if other is None or is_inside:
                continue
            if FLOOR[other] >= FLOOR[own] or other not in ONLY.get(own, FLOOR):
                found.add(f"{own}: {module} -> {other}")
    return sorted(found)


def circles(sources):
    """Returns the modules that import themselves through others, types and functions included."""
    graph = {}
    for module, source in sources.items():
        is_package = module == "deeplab_jax"  # its public names, imported when used, are types here
        graph[module] = {
            next((n for n in (name, name.rpartition(".")[0]) if n in sources), "")
            for name in imported(source, with_types=not is_package)
        } - {"", module}
    waiting = set(graph)
    while True:  # what leads nowhere, or comes from nowhere, is in no circle
        reached = {other for module in waiting for other in graph[module]}
        left = {module for module in waiting if graph[module] & waiting and module in reached}
        if left == waiting:
            break
        waiting = left
    return sorted(waiting)


def offenders(files, modules):
    """Returns "file: module" for each import of one of the modules or of what lies in them."""
    found = []
    files = list(files)
    assert files
    for path in files:
        for name in sorted(imported(path.read_text())):
            if any(name == module or name.startswith(f"{module}.") for module in modules):
                found.append(f"{path.relative_to(ROOT)}: {name}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "import numpy, torch.nn as nn",
        "from torch import nn",
        "from torch.nn import functional as F",
        "def f():\n    if x:\n        import torch",
    ],
)
def test_every_way_to_import_is_seen(source):
    assert any(name.split(".")[0] == "torch" for name in imported(source))
    assert "deeplab_jax.checkpoint" in imported("from deeplab_jax import checkpoint as c")


def test_only_tests_and_one_module_import_torch_or_tensorflow():
    files = [
        path
        for path in ROOT.rglob("*.py")
        if not {"tests", "build"} & set(path.relative_to(ROOT).parts)
        and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    assert {"deeplab_jax", "configs"} <= {path.relative_to(ROOT).parts[0] for path in files}
    own = PACKAGE / "benchmark" / "pytorch.py"
    assert offenders({*files} - {own}, ["torch", "tensorflow"]) == []
    assert offenders([own], ["torch", "tensorflow"])


def test_every_module_lies_in_a_room():
    assert [module for module in modules() if room_of(module) is None] == ["deeplab_jax"]
    assert room_of("deeplab_jax.quick_idea") is None


def test_rooms_import_from_earlier_ones_alone():
    assert broken_lines(modules()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("deeplab_jax.data.pipeline", "from deeplab_jax.distributed import hosts"),
        ("deeplab_jax.models.ops", "from deeplab_jax.config import Config"),
        ("deeplab_jax.distributed.mesh", "import deeplab_jax.models.ops"),
        ("deeplab_jax.inference.engine", "def f():\n    from deeplab_jax.training import loop"),
        ("deeplab_jax.doctor.rules", "from deeplab_jax import checkpoint"),
        ("deeplab_jax.checkpoint", "from convert import keymap"),
        ("deeplab_jax.training.loop", "from deeplab_jax.train import main"),
    ],
)
def test_a_line_against_the_order_is_seen(module, line):
    assert len(broken_lines({module: line})) == 1


def test_types_alone_are_no_import():
    line = "if TYPE_CHECKING:\n    from deeplab_jax.config import ModelConfig"
    assert broken_lines({"deeplab_jax.models": line}) == []


def test_no_module_imports_itself_through_others():
    assert circles(modules()) == []
    assert circles({"a": "import b", "b": "from c import x", "c": "def f():\n    import a"}) == [
        "a", "b", "c"
    ]  # fmt: skip


def test_rooms_and_files_are_small():
    folders = {path.parent for path in PACKAGE.rglob("*.py")} | {ROOT / "convert"}
    files = {folder: list(folder.glob("*.py")) for folder in folders}
    assert [f"{folder}" for folder, found in files.items() if len(found) > MOST_FILES] == []
    lines = {path: path.read_text().count("\n") for found in files.values() for path in found}
    assert [f"{path}: {count}" for path, count in lines.items() if count > MOST_LINES] == []


def test_only_one_room_imports_orbax():
    files = {*PACKAGE.rglob("*.py"), *(ROOT / "convert").glob("*.py")}
    own = set((PACKAGE / "checkpoint").glob("*.py"))
    assert offenders(files - own, ["orbax"]) == []
    assert offenders(own, ["orbax"])


def test_loggers_are_imported_on_use_alone():
    log, names = PACKAGE / "training" / "log", ("tensorboard", "wandb")
    own = {log / f"{name}.py" for name in names}
    files = {p for p in PACKAGE.rglob("*.py") if any(n in p.read_text() for n in names)} - own
    assert offenders(files, names) == []
    assert len({line.split(":")[0] for line in offenders(own, names)}) == 2
    users = offenders(files, [f"deeplab_jax.training.log.{name}" for name in names])
    assert {line.split(":")[0] for line in users} == {"deeplab_jax/training/log/curves.py"}
    nodes = ast.parse((log / "curves.py").read_text()).body  # outside functions
    top = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not top & {f"deeplab_jax.training.log.{name}" for name in names}


def test_data_needs_no_jax():
    assert offenders((PACKAGE / "data").rglob("*.py"), ("jax", "flax", "optax")) == []


def test_configuration_needs_ml_collections_alone():
    files = (PACKAGE / "config").glob("*.py")
    names = {name.split(".")[0] for path in files for name in imported(path.read_text())}
    assert names - sys.stdlib_module_names == {"ml_collections", "deeplab_jax"}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (["deeplab_jax"], [*HEAVY, "numpy", "ml_collections"]),
        (["deeplab_jax.cli", "deeplab_jax.config.recipe"], [*HEAVY, "cv2"]),
        (["deeplab_jax.data"], HEAVY),  # what a reading process loads
    ],
)
def test_import_leaves_the_slow_packages_alone(modules, absent):
    code = f"import sys, {', '.join(modules)}; print([m for m in {absent!r} if m in sys.modules])"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"


def test_public_names_come_from_the_package():
    import deeplab_jax

    names = ["DeepLabV3Plus", "__version__", "evaluate", "get_config", "load", "load_recipe"]
    assert dir(deeplab_jax) == [*names, "train"]
    assert all(callable(getattr(deeplab_jax, name)) for name in names if name != "__version__")
    assert deeplab_jax.get_config("voc").model.num_classes == 21
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = deeplab_jax.nothing


@pytest.mark.parametrize("name", ["train", "evaluate"])
@pytest.mark.parametrize("is_module_first", [True, False])
def test_public_function_stays_where_a_module_has_its_name(monkeypatch, name, is_module_first):
    import deeplab_jax

    monkeypatch.delitem(sys.modules, f"deeplab_jax.{name}", raising=False)
    if not is_module_first:
        assert getattr(deeplab_jax, name).__module__ != f"deeplab_jax.{name}"
    module = importlib.import_module(f"deeplab_jax.{name}")
    function = getattr(deeplab_jax, name)
    assert (module.__name__, callable(module.main)) == (f"deeplab_jax.{name}", True)
    assert (function.__name__, callable(function)) == (name, True)
    assert function.__module__ != module.__name__


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_command_of_a_public_function_runs_as_a_module(name):
    command = [sys.executable, "-W", "error", "-m", f"deeplab_jax.{name}", "--help"]
    got = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (got.stdout.split()[:3], got.stderr) == (["usage:", "deeplab", name], "")


USER = """
import numpy as np
import deeplab_jax
from deeplab_jax import train
from deeplab_jax.train import main

model = deeplab_jax.load("runs/a", step=3)
reveal_type(model("a.jpg").shares)
reveal_type(model(["a.jpg", "b.jpg"]))
reveal_type(model((np.zeros((2, 2), np.uint8), b"")))
reveal_type(model("a.jpg").probabilities)
reveal_type(model("a.jpg").overlay(legend=True))
reveal_type(deeplab_jax.evaluate("runs/a", step="best")["iou"])
reveal_type(train(deeplab_jax.load_recipe("a.py"), "runs/a"))
deeplab_jax.train(deeplab_jax.get_config("folder"), "runs/a")
main([])
deeplab_jax.train("a.py")
"""
REVEALED = (
    "dict[str, float]",
    "list[Prediction]",
    "list[Prediction]",
    "ndarray[",
    "Image",
    "list[float | None]",
    "dict[str, int | str]",
)


@pytest.mark.process("type-checks a user's program")
def test_type_checkers_see_the_public_functions(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", str(tmp_path / "user.py")]
    got = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in got.stdout.splitlines() if "Revealed type" in line]
    for line, kind in zip(lines, REVEALED, strict=True):
        assert kind in line.replace("builtins.", "").replace(
            "deeplab_jax.inference.prediction.", ""
        )
    errors = [line for line in got.stdout.splitlines() if ": error:" in line]
    assert [error.partition(": error: ")[2].split("  [")[0] for error in errors] == [
        'Missing positional argument "workdir" in call to "train"'
    ]
