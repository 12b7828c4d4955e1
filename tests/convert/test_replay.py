import argparse
import json
import zipfile
from pathlib import Path

import numpy as np
import pth_files as made
import pytest

from convert import keymap
from convert import replay as replay_command
from convert.pth import read_pth, write_pth
from deeplab_jax.config.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("compile_quickly")

# The step that test_momentum.py compiles too: so are recipe, schedule and batches.
STEP = ["--config.model.dtype=float64", "--config.train.loss_groups=2"]
FIELDS = ["step", "lr", "loss_main", "loss_aux", "loss", "grad_norm"]


@pytest.fixture
def recipe_file(make_recipe):
    return make_recipe("model.atrous_rates = (1, 2, 3)", dataset="voc")


def _draw(size=(33, 49), batches=2, batch=4, classes=5):
    rng = np.random.default_rng(3)
    images = rng.standard_normal((batches, batch, *size, 3)).astype(np.float32)
    labels = rng.integers(0, classes, images.shape[:-1])
    labels[:, 1:, :9] = 255
    return {"images": images, "labels": labels}


@pytest.fixture
def replay(call, make_tensors, recipe_file, tmp_path):
    """Returns replay(*flags, tensors or file, recipe, batches) -> (code, output, error, the file).

    By default 3 steps of 12 from random weights.
    """

    def replay(*flags, checkpoint=None, recipe=recipe_file, batches=None, steps=3, total=12):
        paths = {
            "checkpoint": tmp_path / "x.pth",
            "batches": tmp_path / "b.npz",
            "output": tmp_path / "y.pth",
        }
        if isinstance(checkpoint, Path):
            paths["checkpoint"] = checkpoint
        else:
            write_pth(paths["checkpoint"], checkpoint or make_tensors("sssegmentation"))
        if isinstance(batches, Path):
            paths["batches"] = batches
        else:
            np.savez(paths["batches"], **(batches or _draw()))
        argv = [f"--{name}={path}" for name, path in paths.items()]
        argv += [f"--config={recipe}", f"--steps={steps}", f"--total-steps={total}", *flags]
        return *call("convert", "replay", *argv), paths["output"]

    return replay


@pytest.mark.process("a second replay; the first tier compares one with PyTorch's")
def test_standard_output_is_a_json_line_a_step(replay, make_tensors):
    tensors = make_tensors("mmsegmentation", dtype="float64")
    obj = {"meta": {"iter": 90}, "state_dict": tensors}
    code, text, err, path = replay(*STEP, checkpoint=obj)
    origin = "taken from ckpt['state_dict']\n"
    assert (code, err) == (0, f"{origin}written: {path} ({len(tensors)} tensors)\n")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all(list(line) == FIELDS for line in lines)
    assert [line["lr"] for line in lines] == pytest.approx(
        [0.0099 * (1 - step / 12) ** 0.9 + 1e-4 for step in range(3)], rel=1e-6
    )
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss_main"] + line["loss_aux"], rel=1e-6)
    obj = read_pth(path)
    assert list(obj) == ["meta", "state_dict"]  # the dialect is the source's
    assert obj["meta"]["iter"] == 3
    got = obj["state_dict"]
    assert list(got) == list(tensors)
    for key, value in tensors.items():
        assert (got[key].dtype, got[key].shape) == (value.dtype, value.shape)
        if key.endswith(keymap.COUNTER):
            assert got[key] == value + 3
        else:
            assert not np.array_equal(got[key], value)


def test_steps_of_two_processes_equal_pytorchs(replay, torch_reference, recipe_file, tmp_path):
    config = load_recipe(str(recipe_file), STEP)
    torch = torch_reference.torch
    torch.manual_seed(1)
    net = torch_reference.network(config.model, torch.float64)
    torch.save(net.state_dict(), tmp_path / "start.pth")
    batches = _draw()
    batches["labels"] = batches["labels"].astype(np.uint8)
    code, text, _, path = replay(*STEP, checkpoint=tmp_path / "start.pth", batches=batches)
    assert code == 0
    expected = torch_reference.train(
        net, torch_reference.sgd(net), **batches, steps=3, total=12, processes=2
    )
    for line, record in zip(text.splitlines(), expected, strict=True):
        assert json.loads(line) == pytest.approx(record, rel=1e-6)
    got = read_pth(path)
    assert (list(got), got["cur_iter"]) == (["cur_epoch", "cur_iter", "model"], 3)
    for key, value in torch_reference.tensors(net).items():
        np.testing.assert_allclose(got["model"][key], value, rtol=1e-6, atol=1e-12, err_msg=key)


@pytest.mark.slow("minutes of ResNet-50; narrow networks are replayed above")
@pytest.mark.parametrize("name", ["r50_d16_c21", "r50_d8_c21"])
def test_golden_training_is_replayed(repository, replay, measure, recipe, name):
    facts = measure.facts("train.json")[name]
    batch, _, height, width = facts["input_shape"]
    images = measure.draw_images(facts["name"], facts["input_shape"])
    labels = recipe.draw_labels(facts["name"], (batch, height, width), 21)
    before = recipe.draw_weights(name)
    code, text, err, path = replay(
        "--dtype=float64",
        checkpoint={"model": before},
        recipe=repository / "configs" / f"voc_r50_os{measure.parse(name)[1]}.py",
        batches={"images": images[None], "labels": labels[None].astype(np.int64)},
        steps=5,
    )
    assert code == 0, err
    lines = [json.loads(line) for line in text.splitlines()]
    for ours, theirs in {"loss_main": "loss_cls", "loss_aux": "loss_aux", "loss": "loss_total",
                         "lr": "lr"}.items():  # fmt: skip
        assert [line[ours] for line in lines] == pytest.approx(facts[theirs], rel=1e-6)
    assert lines[0]["grad_norm"] == pytest.approx(facts["grad_l2_total"], rel=1e-6)
    after = read_pth(path)["model"]
    norms = [np.linalg.norm(after[key] - before[key]) for key in facts["parameters"]]
    expected = np.load(recipe.FOLDER / f"train_{name}.npz")["delta_after_5/l2"]
    np.testing.assert_allclose(norms, expected, rtol=1e-6)


# --- Errors


def _with(**changes):
    return _draw(size=(5, 7)) | changes


_IMAGES, _LABELS = _draw(size=(5, 7)).values()
_NAN = np.where(np.arange(7).reshape(7, 1) == 3, np.float32(np.nan), _IMAGES)


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ({"images": _IMAGES}, "lacks the array `images` or `labels` - save it with np.savez"),
        ({"labels": _LABELS}, "lacks the array `images` or `labels`"),
        (_with(labels=_LABELS.astype(object)), "cannot be read (ValueError: Object arrays cannot"),
        (_with(images=_IMAGES.astype(float)), "`images` is float64 (2, 4, 5, 7, 3), float32 (S, B"),
        (_with(images=_IMAGES[0]), "`images` is float32 (4, 5, 7, 3), float32 (S, B, H, W, 3)"),
        (_with(images=_IMAGES[..., :2]), "`images` is float32 (2, 4, 5, 7, 2)"),
        (_with(labels=_LABELS.astype(float)), "`labels` is float64 (2, 4, 5, 7), integers (2, 4,"),
        (_with(labels=_LABELS == 1), "`labels` is bool"),
        (_with(labels=_LABELS[:1]), "`labels` is int64 (1, 4, 5, 7), integers (2, 4, 5, 7)"),
        (_with(labels=_LABELS[..., 1:]), "`labels` is int64 (2, 4, 5, 6)"),
        ({"images": _IMAGES[:0], "labels": _LABELS[:0]}, "is empty, (0, 4, 5, 7, 3) - give at"),
        ({"images": _IMAGES[:, :1], "labels": _LABELS[:, :1]}, "has batches of one image"),
        (_with(labels=np.where(_LABELS == 3, 5, _LABELS)), "holds 5 in batch 0, with 5 classes"),
        (_with(labels=_LABELS - 1), "holds -1 in batch 0, with 5 classes - use 0 to 4, and 255"),
        (_with(labels=np.full_like(_LABELS, 2**40)), "holds 1099511627776 in batch 0"),
        (_with(images=_NAN), "`images` holds values that are not finite"),
    ],
)  # fmt: skip
def test_batches_that_cannot_be_used_are_told(replay, tmp_path, batches, text):
    result = replay(batches=batches)
    made.assert_refused(result, 3, f"error: {tmp_path / 'b.npz'}: ", text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "does not exist"),
        (b"", "cannot be read (EOFError: No data left in file)"),
        (b"text", "cannot be read ("),
        (b"PK\3\4" + b"\0" * 99, "cannot be read (BadZipFile"),
        ("array", "cannot be read ("),
        ("huge", "cannot be read ("),
        ("folder", "cannot be read (IsADirectoryError"),
    ],
)
def test_file_that_is_no_npz_is_told(replay, tmp_path, content, text):
    path = tmp_path / "other.npz"
    if content == "array":
        with path.open("wb") as file:
            np.save(file, _IMAGES)
    elif content == "folder":
        path.mkdir()
    elif content == "huge":
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**45, 4)}
        with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, header)
    elif content is not None:
        path.write_bytes(content)
    made.assert_refused(replay(batches=path), 3, f"error: {path}: ", text)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"steps": 0}, "--steps: must be 1 or more, got 0"),
        ({"steps": -1}, "--steps: must be 1 or more, got -1"),
        ({"steps": 13}, "--total-steps: is 12, and these steps end at 13"),
        ({"total": 10**12}, "--total-steps: must be at most 2147483647, got 1000000000000"),
        ({"total": 0}, "--total-steps: is 0, and these steps end at 3"),
        ({"recipe": "nowhere.py"}, "nowhere.py: there is no such recipe file"),
    ],
)
def test_flags_that_cannot_be_used_are_told(replay, flags, text):
    made.assert_refused(replay(**flags), 2, f"error: {text}")


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--steps=x", "invalid int value"),
        ("--dtype=float16", "invalid choice: 'float16'"),
        ("--dialect=mmseg", "did you mean mmsegmentation?"),
        ("--iteration=3", "--iteration: is given without --optimizer"),
        ("--config.train.batch_size=8", "_size: is 8, and the batches hold 4 images each - leave"),
        ("--config.train.loss_groups=3", "4 does not divide into "),
        ("--step=3", "--step: there is no such argument - did you mean --steps?"),
        ("--output=y.onnx", "the suffix '.onnx'"),
    ],
)
def test_arguments_that_cannot_be_used_are_told(replay, flag, text):
    made.assert_refused(replay(flag), 2, text)


def test_flags_that_contradict_are_told(replay, call):
    result = replay("--dtype=float64", "--config.model.dtype=float64")
    made.assert_refused(result, 2, "error: --dtype: is given beside --config.model.dtype")
    result = replay("--optimizer", "--iteration=-3")
    made.assert_refused(result, 2, "error: --iteration: must be from 0 to 2147483647, got -3")
    argv = ["--checkpoint=x", "--batches=x", "--config=x", "--steps=1", "--total-steps=1"]
    code, _, err = call("convert", "replay", *argv, "--dialect=v1c")
    assert (code, err) == (
        2,
        "error: --dialect: is given without --output - give both or none\n",
    )


@pytest.mark.parametrize(
    ("dtype", "overrides", "expected"),
    [
        (None, [], ("float32", 1, 4)),
        ("bfloat16", [], ("bfloat16", 1, 4)),
        (None, STEP, ("float64", 2, 4)),
    ],
)
def test_it_computes_in_float32_as_one_process_by_default(recipe_file, dtype, overrides, expected):
    args = argparse.Namespace(config=str(recipe_file), dtype=dtype)
    config = replay_command.read_config(args, overrides, 4)
    got = (config.model.dtype, config.train.loss_groups, config.train.batch_size)
    assert got == expected


def test_output_without_a_folder_is_refused_before_anything_is_read(call, tmp_path):
    output = tmp_path / "nowhere" / "x.pth"
    argv = ["--checkpoint=x", "--batches=x", "--config=x", "--steps=1", "--total-steps=1"]
    code, _, err = call("convert", "replay", *argv, "--output", output)
    what = f"there is no folder {output.parent} - choose another --output, or create its folder"
    assert (code, err) == (5, f"error: {output}: {what}\n")


def test_existing_output_is_refused_before_anything_is_read(replay, tmp_path):
    (tmp_path / "y.pth").write_text("mine")
    code, text, err, path = replay(batches=tmp_path / "nowhere.npz")
    assert (code, text, path.read_text()) == (4, "", "mine")
    assert "exists already" in err


def test_weights_that_do_not_fit_are_told(replay, make_tensors, tmp_path):
    made.assert_refused(
        replay(checkpoint=tmp_path / "nowhere.pth"), 4, "nowhere.pth: does not exist"
    )
    code, text, err, _ = replay(checkpoint=make_tensors("sssegmentation", classes=6))
    assert (code, text) == (4, "")
    assert "  differs     decoder.3.weight" in err
    assert "small.py" in err.splitlines()[-1]
    made.assert_refused(replay(checkpoint=make_tensors("v1c")), 4, "is an ImageNet classifier (v1c")


def test_dialect_that_cannot_hold_the_network_is_told_before_it_trains(replay):
    made.assert_refused(replay("--dialect=v1c"), 4, "is a DeepLabV3+ with the deep stem, which v1c")


def test_optimizer_needs_a_files_and_steps_left(replay, make_tensors):
    made.assert_refused(replay("--optimizer"), 4, "holds no state of a PyTorch optimiser")
    group = {"momentum": 0.9, "weight_decay": 5e-4, "params": list(range(115))}
    state = {"state": {}, "param_groups": [group]}
    obj = {"model": make_tensors("sssegmentation"), "optimizer": state, "cur_iter": 0}
    result = replay("--optimizer", "--iteration=8", checkpoint=obj)
    made.assert_refused(result, 4, "has no momentum after 8 iterations")
    state["state"] = {
        i: {"momentum_buffer": np.zeros_like(obj["model"][key])}
        for i, key in enumerate(key for kind, _, key in keymap.leaves(18) if kind == "params")
    }
    result = replay("--optimizer", "--iteration=10", checkpoint=obj)
    made.assert_refused(result, 2, "--total-steps: is 12, and these steps end at 13")


@pytest.mark.process("a second replay; the first tier compares one with PyTorch's")
def test_step_that_is_not_finite_ends_it_without_an_output(replay, make_tensors):
    tensors = make_tensors("sssegmentation", dtype="float64")
    tensors["decoder.3.bias"] = 1.7e308 * np.array([1, -1, 1, -1, 1])
    made.assert_refused(
        replay(*STEP, checkpoint=tensors), 6, "error: step 0: is not finite: loss inf"
    )


def test_weights_beyond_float32_are_refused(replay, make_tensors):
    tensors = make_tensors("sssegmentation", dtype="float64")
    tensors["decoder.3.bias"] = np.full(5, 1e300)
    text = "x.pth: 1 tensors hold values beyond float32 (params/classifier/bias)"
    made.assert_refused(replay(checkpoint=tensors), 4, text)


def test_help_is_fast(call):
    code, text, _ = call("convert", "replay", "--help")
    assert code == 0
    assert "--total-steps T" in text
    assert "batch s mod S" in text
