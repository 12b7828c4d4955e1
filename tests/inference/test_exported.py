import importlib.util

import numpy as np
import pytest

import deeplab_jax
from deeplab_jax import cli
from deeplab_jax.errors import CheckpointError, ConfigError, DataError

pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.usefixtures("compile_once"),
    pytest.mark.parity("exports a network three times"),
]


@pytest.fixture(scope="module")
def exports(saved_run, tmp_path_factory, compile_once):
    """Returns exports(kind): a folder of `saved_run`, ONNX and, of labels, StableHLO."""
    root, flags = tmp_path_factory.mktemp("exports"), {"logits": ["--format", "onnx"]}
    flags["labels"] = ["--format", "onnx,stablehlo", "--size", "65x97"]
    for kind, own in flags.items():
        words = ["--checkpoint", str(saved_run.path), "--output-kind", kind, *own]
        cli.dispatch(["export", *words, "--output", str(root / kind)])
    return root.joinpath


@pytest.mark.parametrize("kind", ["labels", "logits"])
def test_results_are_those_of_the_checkpoint(saved_run, exports, model, kind, tmp_path):
    exported = deeplab_jax.load(exports(kind))
    assert exported.class_names == model.class_names
    for got, wanted in zip(exported(saved_run.images), model(saved_run.images), strict=True):
        np.testing.assert_array_equal(got.labels, wanted.labels)
        np.testing.assert_allclose(got.confidence, wanted.confidence, atol=1e-5)
        assert got.shares == wanted.shares
        assert got.overlay().size == wanted.overlay().size
    assert [path.name for path in got.save(tmp_path)] == ["002.png", "002_overlay.jpg", "002.json"]
    if kind == "logits":
        np.testing.assert_allclose(got.probabilities, wanted.probabilities, atol=1e-5)
        assert exported.logits(saved_run.validation.read(0)[0][None]).shape == (1, 14, 20, 4)
        return
    for use in (lambda: got.probabilities, lambda: exported.logits(np.zeros((1, 8, 8, 3), "u1"))):
        with pytest.raises(ConfigError, match=r"labels and confidence alone - export .* logits"):
            use()


def test_jax_runs_stablehlo_where_onnxruntime_is_not(saved_run, exports, model, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    exported = deeplab_jax.load(exports("labels"))
    got, other, _ = exported.segment(saved_run.images)
    np.testing.assert_array_equal(got.labels, model(saved_run.images[0]).labels)
    assert isinstance(other, DataError)
    assert "97 x 65 pixels, and the StableHLO file takes 65 x 97" in str(other)


def test_command_predicts_with_an_exported_folder(call, saved_run, exports, tmp_path):
    got = call(
        "predict", "--checkpoint", exports("labels"), saved_run.images[0], "--output", tmp_path
    )
    assert (got.code, got.err) == (0, "")
    assert f"next: deeplab verify {exports('labels')}" in got.out


def test_what_is_fixed_cannot_be_chosen(exports):
    for words in ({"step": 3}, {"weights": "raw"}, {"overrides": ["--config.eval.flip=true"]}):
        with pytest.raises(ConfigError, match="leave that out, or export the checkpoint again"):
            deeplab_jax.load(exports("labels"), **words)


def test_folder_that_was_changed_is_not_loaded(exports):
    (exports("labels") / "more").write_text("")
    try:
        with pytest.raises(CheckpointError, match=r"is not as exported: more was added"):
            deeplab_jax.load(exports("labels"))
    finally:
        (exports("labels") / "more").unlink()
