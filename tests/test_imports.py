import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "deeplab_jax"
HEAVY = ("jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "rich", "torch")


def imported(source):
    """Returns the full names of all that a source file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


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


def test_only_tests_import_torch_or_tensorflow():
    files = [
        path
        for path in ROOT.rglob("*.py")
        if not {"tests", "build"} & set(path.relative_to(ROOT).parts)
        and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    assert {"deeplab_jax", "configs"} <= {path.relative_to(ROOT).parts[0] for path in files}
    assert offenders(files, ["torch", "tensorflow"]) == []


def test_the_package_never_imports_convert():
    assert offenders(PACKAGE.rglob("*.py"), ["convert"]) == []


def test_only_one_module_imports_orbax():
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "checkpoint.py"]
    assert offenders(files, ["orbax"]) == []
    assert offenders([PACKAGE / "checkpoint.py"], ["orbax"])


def test_data_needs_no_jax():
    modules = ("jax", "flax", "optax", "deeplab_jax.models", "deeplab_jax.checkpoint")
    assert offenders((PACKAGE / "data").rglob("*.py"), modules) == []


def test_models_know_neither_data_nor_configuration():
    modules = ("deeplab_jax.data", "deeplab_jax.config", "ml_collections")
    assert offenders((PACKAGE / "models").rglob("*.py"), modules) == []


def test_configuration_needs_ml_collections_alone():
    names = {
        name.split(".")[0] for name in imported((PACKAGE / "config" / "__init__.py").read_text())
    }
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

    assert dir(deeplab_jax) == ["DeepLabV3Plus", "__version__", "get_config", "load"]
    assert deeplab_jax.get_config("voc").model.num_classes == 21
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = deeplab_jax.nothing
