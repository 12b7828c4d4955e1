import os

import jax
import numpy as np
import pth_files as made
import pytest

from convert import keymap
from convert.pth import read_pth, read_safetensors
from deeplab_jax import checkpoint
from deeplab_jax.config import freeze, get_config
from deeplab_jax.data.colors import safe_palette


@pytest.fixture
def make_checkpoint(convert, make_tensors):
    """Returns make_checkpoint(dialect, **options) -> (its path, the state dict it is made of)."""

    def make(dialect, depth=18, **options):
        tensors = make_tensors(dialect, depth, **options)
        flags = ["--output-stride=16"] if keymap.DIALECTS[dialect].heads else []
        code, _, err, out = convert(tensors, *flags)
        assert (code, err) == (0, "")
        return out, tensors

    return make


def _assert_equal(got, wanted):
    wanted = {key: value for key, value in wanted.items() if not key.startswith("fc.")}
    assert list(got) == list(wanted)
    for key, value in wanted.items():
        assert (got[key].dtype, got[key].shape) == (value.dtype, value.shape), key
        assert got[key].tobytes() == value.tobytes(), key


def _tensors_of(path, dialect):
    obj = read_pth(path)
    level = {"sssegmentation": "model", "mmsegmentation": "state_dict"}.get(dialect)
    return obj[level] if level else obj


_DEEP = pytest.mark.parity("ResNet-50; ResNet-18 goes there and back in the first tier")


@pytest.mark.parametrize("dialect", keymap.DIALECTS)
@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=_DEEP)])
def test_there_and_back_gives_equal_bytes_in_order(make_checkpoint, export, dialect, depth):
    directory, tensors = make_checkpoint(dialect, depth)
    code, text, err, path = export(directory, "--dialect", dialect)
    assert (code, err) == (0, "")
    assert f"step 0: {keymap.describe(dialect, depth)}\n" in text
    _assert_equal(_tensors_of(path, dialect), tensors)


@pytest.mark.parametrize("dialect", ["sssegmentation", "v1c"])
def test_file_without_counters_comes_back_without(convert, make_tensors, export, dialect):
    tensors = {k: v for k, v in make_tensors(dialect).items() if not k.endswith(keymap.COUNTER)}
    flags = ["--output-stride=16"] if dialect == "sssegmentation" else []
    code, *_, directory = convert(tensors, *flags)
    assert code == 0
    *_, path = export(directory)
    _assert_equal(_tensors_of(path, dialect), tensors)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_there_and_back_keeps_types(make_checkpoint, export, dtype):
    directory, tensors = make_checkpoint("sssegmentation", dtype=dtype)
    *_, path = export(directory)
    _assert_equal(read_pth(path)["model"], tensors)


@pytest.mark.parametrize(
    ("dialect", "default"),
    [
        ("sssegmentation", "sssegmentation"),
        ("mmsegmentation", "sssegmentation"),
        ("v1c", "v1c"),
        ("torchvision", "torchvision"),
    ],
)
def test_default_dialect_is_the_first_that_fits(make_checkpoint, export, dialect, default):
    directory, _ = make_checkpoint(dialect)
    code, text, _, path = export(directory)
    assert code == 0
    assert f": {default}'s " in text
    obj = read_pth(path)
    if default == "sssegmentation":
        assert list(obj) == ["cur_epoch", "cur_iter", "model"]


def test_safetensors_by_suffix(make_checkpoint, export):
    directory, tensors = make_checkpoint("sssegmentation")
    code, _, _, path = export(directory, name="back.safetensors")
    got = read_safetensors(path)
    assert code == 0
    _assert_equal({key: got[key] for key in tensors}, tensors)
    assert len(got) == len(tensors)


def test_mmsegmentations_envelope_names_the_classes(make_checkpoint, export):
    directory, _ = make_checkpoint("mmsegmentation")
    *_, path = export(directory, "--dialect=mmsegmentation")
    obj, names = read_pth(path), [f"class_{i}" for i in range(5)]
    assert list(obj) == ["meta", "state_dict"]
    assert obj["meta"]["CLASSES"] == obj["meta"]["dataset_meta"]["classes"] == names
    assert obj["meta"]["PALETTE"] == safe_palette(5).tolist()


@pytest.fixture
def run_directory(make_variables, tmp_path):
    """A run's two steps: 4, the best, and 7."""
    config, path = freeze(get_config("folder", depth=18)), tmp_path / "run"
    info = checkpoint.Info(kind="run", config=config, class_names=("a",) * config.model.num_classes)
    with checkpoint.Saver(path) as saver:
        for step, score in ((4, 0.5), (7, 0.4)):
            # As training has them: on a device.
            items = jax.device_put(make_variables(seed=step))
            saver.save(step, {**items, "opt_state": {"a": jax.numpy.zeros(3)}}, info,
                       {"mean_iou": score})  # fmt: skip
    return path


@pytest.mark.parametrize(("flags", "step"), [([], 7), (["--step=best"], 4), (["--step", "4"], 4)])
def test_a_run_gives_the_step_asked_for(run_directory, export, make_variables, flags, step):
    code, text, err, path = export(run_directory, *flags)
    assert (code, err) == (0, "")
    assert f"step {step}: " in text
    obj = read_pth(path)
    assert obj["cur_iter"] == step
    expected = keymap.to_tensors(make_variables(seed=step), {"any": 0}, 18)
    for key, value in obj["model"].items():
        # PyTorch's norms count their steps.
        wanted = np.asarray(step) if key.endswith(keymap.COUNTER) else expected[key]
        np.testing.assert_array_equal(value, wanted, err_msg=key)
    assert list(obj["model"]) == list(expected)


# --- Errors


@pytest.mark.parametrize(
    ("dialect", "other", "text"),
    [
        ("sssegmentation", "v1c", "is a DeepLabV3+ with the deep stem, which v1c has no names for"),
        ("v1c", "torchvision", "is a backbone with the deep stem, which torchvision has no"),
        ("torchvision", "v1c", "use --dialect torchvision"),
        ("torchvision", "sssegmentation", "is a backbone with the 7x7 stem, which sssegmentation"),
    ],
)
def test_dialect_that_cannot_hold_the_weights_is_refused(
    make_checkpoint, export, dialect, other, text
):
    directory, _ = make_checkpoint(dialect)
    made.assert_refused(export(directory, "--dialect", other), 4, text)


@pytest.mark.parametrize("flags", [[], ["--dialect=sssegmentation"], ["--dialect=mmsegmentation"]])
def test_network_with_the_other_stem_has_no_dialect(make_variables, export, tmp_path, flags):
    info = checkpoint.Info(kind="weights", config=freeze(get_config("folder", depth=18)))
    checkpoint.save_once(tmp_path / "c", make_variables(stem="7x7"), info)
    result = export(tmp_path / "c", *flags)
    made.assert_refused(result, 4, "is a DeepLabV3+ with the 7x7 stem", "no dialect holds it")


def test_unknown_dialect_is_told(export, tmp_path):
    result = export(tmp_path / "c", "--dialect=mmseg")
    made.assert_refused(result, 2, "--dialect: 'mmseg' is not known - did you mean mmsegmentation?")


def test_suffix_that_names_no_format_is_told(export, tmp_path):
    made.assert_refused(
        export(tmp_path / "c", name="x.onnx"), 2, "the suffix '.onnx'", ".safetensors"
    )


@pytest.mark.parametrize(
    ("output", "code", "text"),
    [
        ("", 2, "error: --output: is empty - give a path"),
        ("missing/x.pth", 5, "/missing - choose another --output, or create its folder"),
        ("locked/x.pth", 5, "is not writable - choose another --output, or its mode"),
    ],
)
def test_output_that_cannot_be_written_is_told_first(
    call, tmp_path, monkeypatch, output, code, text
):
    (tmp_path / "locked").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, m: "locked" not in str(p) and access(p, m))
    path = tmp_path / output if output else ""
    got, _, err = call("convert", "to-pytorch", "--checkpoint", tmp_path, "--output", path)
    assert (got, err.count("\n"), text in err) == (code, 1, True), err


def test_existing_output_is_refused_before_anything_is_read(export, tmp_path):
    (tmp_path / "back.pth").write_text("mine")
    code, _, err, path = export(tmp_path / "nowhere")
    assert (code, path.read_text()) == (4, "mine")
    assert err.startswith(f"error: {path}: exists already")


def test_missing_checkpoint_and_step_are_told(export, run_directory, tmp_path):
    made.assert_refused(export(tmp_path / "nowhere"), 4, "there is no such directory")
    made.assert_refused(
        export(run_directory, "--step=5"), 4, "there is no step 5", "4, 7, latest, best"
    )


def test_override_is_no_argument_here(export, run_directory):
    result = export(run_directory, "--config.model.depth=50")
    made.assert_refused(result, 2, "--config.model.depth=50: there is no such argument")


def test_damaged_checkpoint_is_told(export, run_directory):
    for name in ("params", "batch_stats"):
        for file in (run_directory / "checkpoints" / "7" / name).rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    made.assert_refused(export(run_directory), 4, "is damaged", "use --step 4; good steps: 4")
