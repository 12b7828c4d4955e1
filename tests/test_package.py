"""What an installed package holds and does, outside the checkout."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from types import SimpleNamespace

import pytest

from deeplab_jax import __version__

SOURCES = ("deeplab_jax", "convert", "configs")
RECIPES = "deeplab_jax.config.recipes"  # configs/ in the checkout
TINY = {  # ade20k_r50_os16, for 8 images on a processor
    "data.num_workers": 0, "data.crop_size": "64,64", "data.resize_base": "128,64",
    "eval.resize_base": "128,64", "init.backbone": "none", "model.depth": 18, "model.width": 4,
    "model.head_channels": 10, "model.low_level_channels": 3, "model.aux_channels": 7,
    "train.batch_size": 8, "train.steps": 1,
}  # fmt: skip


def test_every_folder_of_the_packages_is_listed(repository):
    listed = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for name in SOURCES[:2] for path in (repository / name).rglob("*.py")}
    names = {".".join(folder.relative_to(repository).parts) for folder in folders}
    assert sorted(listed["packages"]) == sorted({*names, RECIPES})
    assert listed["package-dir"] == {RECIPES: "configs"}


def test_no_message_leads_to_a_page_that_is_not_installed(repository):
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in (path for name in SOURCES[:2] for path in (repository / name).rglob("*.py")):
        nodes = [*ast.walk(ast.parse(path.read_text("utf-8")))]
        docstrings = {id(node.body[0].value) for node in nodes
                      if isinstance(node, documented) and ast.get_docstring(node)}  # fmt: skip
        for node in nodes:
            if isinstance(node, ast.Constant) and id(node) not in docstrings:
                assert "docs/" not in str(node.value), f"{path}:{node.lineno}"


@pytest.fixture(scope="module")
def installed(repository, tmp_path_factory, compile_quickly):
    """A wheel, and run(*argv) -> what `deeplab ...` of its installation prints, beside no files."""
    top = tmp_path_factory.mktemp("wheel")
    source, site, empty = (top / name for name in ("source", "site", "empty"))
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:  # a copy, because building leaves files behind
        shutil.copytree(repository / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    empty.mkdir()

    def run(*command, env=os.environ):
        words = [str(word) for word in command]
        got = subprocess.run(words, cwd=empty, env=env, capture_output=True, text=True)
        assert got.returncode == 0, got.stderr
        return got.stdout

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", top, source)
    (wheel,) = top.glob("*.whl")
    run(*pip, "install", "--no-index", "--no-deps", "--target", site, wheel)
    env = compile_quickly | {"PYTHONPATH": str(site), "XLA_FLAGS": ""}
    code = "import convert, deeplab_jax; print(convert.__file__, deeplab_jax.__file__)"
    assert run(sys.executable, "-c", code, env=env).count(f"{site}/") == 2
    return SimpleNamespace(
        wheel=wheel,
        folder=empty,
        run=lambda *argv: run(sys.executable, site / "bin" / "deeplab", *argv, env=env),
    )


@pytest.mark.process("builds and installs a wheel")
def test_wheel_holds_the_packages_and_their_data_alone(repository, installed):
    assert installed.wheel.name == f"deeplab_jax-{__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    recipes = f"{RECIPES.replace('.', '/')}/"
    expected = {f"{recipes}{path.name}" for path in (repository / "configs").glob("*.py")}
    for top in SOURCES[:2]:
        files = (path for path in (repository / top).rglob("*") if path.is_file())
        expected |= {
            str(path.relative_to(repository)) for path in files if path.suffix != ".pyc"
        }  # py.typed and the report's files too
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"deeplab_jax/py.typed", "deeplab_jax/report/frame.html"} <= names


@pytest.mark.process("trains, evaluates and predicts from an installed wheel")
def test_installed_package_runs_the_demo(installed):
    small = ("train.steps=2", "model.width=8", "model.head_channels=16", "model.aux_channels=8")
    out = installed.run("demo", *(f"--config.{text}" for text in small))
    assert "\nresults: runs/demo/run/report.html\n" in out
    assert (installed.folder / "runs" / "demo" / "run" / "report.html").is_file()


@pytest.mark.process("trains from an installed wheel")
def test_installed_package_needs_no_checkout(repository, installed, make_tree):
    rows = [line.split()[0] for line in installed.run("recipes").splitlines() if line]
    assert {path.stem for path in (repository / "configs").glob("*.py")} <= set(rows)
    installed.run("recipes", "--copy", "camvid_r18_os16", "mine.py")
    copied = (installed.folder / "mine.py").read_text()
    assert copied == (repository / "configs" / "camvid_r18_os16.py").read_text()
    root = make_tree("ade20k", num_train=8, num_val=1)
    changes = [f"--config.{name}={value}" for name, value in {**TINY, "data.root": root}.items()]
    out = installed.run("train", "--config", "ade20k_r50_os16", *changes)
    assert "ade20k_r50_os16: 8 training and 1 validation images" in out
    assert (installed.folder / "runs" / "ade20k_r50_os16" / "checkpoints" / "1").is_dir()
