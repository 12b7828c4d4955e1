import json

import numpy as np
import pytest

import deeplab_jax

pytestmark = pytest.mark.usefixtures("compile_once")


def confusion_of(prediction, label):
    """Counts with NumPy; row = truth, column = prediction."""
    counts = np.zeros((4, 4), np.int64)
    np.add.at(counts, (label[label != 255], prediction[label != 255]), 1)
    return counts


@pytest.mark.process("evaluates and predicts")
def test_evaluate_counts_what_predict_says(saved_run, call, tmp_path):
    argv = ["--checkpoint", saved_run.path, "--json", tmp_path / "numbers.json"]
    code, out, err = call("evaluate", *argv)
    assert (code, err) == (0, "")
    model = deeplab_jax.load(saved_run.path)
    counts = sum(
        confusion_of(model(image).labels, saved_run.validation.read(index)[1])
        for index, image in enumerate(saved_run.images)
    )
    got = json.loads((tmp_path / "numbers.json").read_text())
    assert got["confusion"] == counts.tolist()
    assert (np.array(counts).sum(0) > 0).sum() > 1  # not one class everywhere

    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    iou = counts.diagonal() / union
    np.testing.assert_allclose(got["iou"], iou)
    np.testing.assert_allclose(got["mean_iou"], iou.mean())
    np.testing.assert_allclose(got["pixel_accuracy"], counts.trace() / counts.sum())
    truth = counts.sum(1)
    np.testing.assert_allclose(got["best_constant_mean_iou"], truth.max() / truth.sum() / 4)
    assert (got["num_images"], got["step"], got["split"]) == (3, 7, "val")
    for name, value in zip(saved_run.validation.class_names, iou, strict=True):
        (line,) = [line for line in out.splitlines() if f" {name} " in line]
        assert f" {100 * value:.2f} " in line
    assert f"mean IoU {100 * iou.mean():.2f} %" in out
    assert "\nAn interval from 3 images is too narrow: evaluate 50 or more.\n" in out


@pytest.mark.process("evaluates three times")
def test_evaluate_obeys_step_and_overrides(saved_run, call):
    argv = ["--checkpoint", saved_run.path, "--step", "best", "--config.eval.resize_base="]
    assert call("evaluate", *argv)[0] == 0
    got = json.loads((saved_run.path / "evaluation.json").read_text())
    at_own_size = deeplab_jax.load(saved_run.path, 3, ["--config.eval.resize_base="])
    assert at_own_size.config.eval.resize_base == ()
    counts = sum(
        confusion_of(at_own_size(image).labels, saved_run.validation.read(index)[1])
        for index, image in enumerate(saved_run.images)
    )
    assert got["step"] == 3
    assert got["confusion"] == counts.tolist()


@pytest.mark.parametrize("place", ["nowhere/numbers.json", ""])
def test_numbers_that_cannot_be_written_are_told_before_anything_is_loaded(call, tmp_path, place):
    argv = ["--checkpoint", "nowhere", "--json", tmp_path / place]
    code, out, err = call("evaluate", *argv)
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert err.startswith(f"error: {tmp_path / place}: ")


def test_numbers_go_through_a_link_and_replace_a_file(saved_run, call, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "numbers.json")  # as /dev/stdout is
    for name in ("numbers.json", "link"):
        argv = ["--checkpoint", saved_run.path, "--json", tmp_path / name]
        (tmp_path / "numbers.json").write_text("old")
        file = (tmp_path / "numbers.json").stat().st_ino
        assert call("evaluate", *argv)[0] == 0
        assert json.loads((tmp_path / "numbers.json").read_text())["step"] == 7
        assert ((tmp_path / "numbers.json").stat().st_ino == file) == (name == "link")
    assert (tmp_path / "link").is_symlink()


def test_override_of_the_network_does_not_fit(saved_run, call):
    code, _, err = call("evaluate", "--checkpoint", saved_run.path, "--config.model.width=16")
    assert (code, err.count("\n")) == (4, 1)
    assert "does not fit" in err


def test_public_function_returns_what_it_writes(saved_run, capsys):
    (saved_run.path / "report.html").unlink(missing_ok=True)
    got = deeplab_jax.evaluate(saved_run.path, step=3, overrides=["--config.eval.resize_base="])
    assert got == json.loads((saved_run.path / "evaluation.json").read_text())
    assert (got["step"], got["overrides"]) == (3, ["--config.eval.resize_base="])
    assert f"mean IoU {100 * got['mean_iou']:.2f} %" in capsys.readouterr().out
    assert not (saved_run.path / "report.html").exists()
