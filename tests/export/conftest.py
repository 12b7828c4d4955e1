"""Exported folders of a tiny network."""

import shutil
from types import SimpleNamespace

import pytest

from deeplab_jax import cli


@pytest.fixture(scope="module")
def exports(saved_run, tmp_path_factory, compile_quickly):
    """Folders of `saved_run`: "labels" in all formats for 65 x 97 pixels, "logits" in ONNX."""
    pytest.importorskip("onnxruntime")
    root = tmp_path_factory.mktemp("exports")
    wanted = {"labels": "onnx,stablehlo,safetensors", "logits": "onnx"}
    for kind, formats in wanted.items():
        size = ["--size", "65x97"] if "stablehlo" in formats else []
        command = ["export", "--checkpoint", str(saved_run.path), "--step", "best", "--format"]
        cli.dispatch(
            [*command, formats, *size, "--output-kind", kind, "--output", f"{root}/{kind}"]
        )
    return SimpleNamespace(labels=root / "labels", logits=root / "logits")


@pytest.fixture
def copy_of(tmp_path):
    """Returns copy_of(folder) -> a copy that a test may change."""

    def copy_of(folder):
        return shutil.copytree(folder, tmp_path / folder.name)

    return copy_of
