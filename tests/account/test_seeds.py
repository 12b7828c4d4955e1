"""Several seeds of one recipe in one folder."""

import json

import numpy as np
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.account.seeds import render, summarize
from deeplab_jax.config import freeze, get_config

CHANGES = "train.steps = 2\nlog.every_steps = 1\ncheckpoint.keep = 1"


def test_mean_and_deviation_are_of_the_last_and_the_best_steps(tmp_path):
    items = {"params": {"w": np.zeros(3, np.float32)}}
    info = checkpoint.Info(kind="run", config=freeze(get_config("folder")))
    scores = {0: [(10, 0.5, 1.0), (20, 0.4, 2.0)], 3: [(10, 0.2, 1.0), (20, 0.6, 4.0)]}
    for seed, found in scores.items():
        with checkpoint.Saver(tmp_path / f"seed_{seed}") as saver:
            for step, mean_iou, loss in found:
                saver.save(
                    step, items, info, {"mean_iou": mean_iou, "loss": loss, "num_classes": 2}
                )
    got = summarize(tmp_path, [0, 3])
    assert got == json.loads((tmp_path / "seeds.json").read_text())
    assert got["runs"][0] == {
        "seed": 0,
        "last": {"step": 20, "mean_iou": 0.4, "loss": 2.0},
        "best": {"step": 10, "mean_iou": 0.5, "loss": 1.0},
    }
    np.testing.assert_allclose(
        list(got["last"]["mean_iou"].values()), [0.5, np.std([0, 0.2], ddof=1)]
    )
    np.testing.assert_allclose(list(got["best"]["mean_iou"].values()), [0.55, 0.1 / np.sqrt(2)])
    assert render(got)[:2] == [
        "mean_iou 50.00 +- 14.14 % over 2 seeds, last step of each",
        "loss 3.000 +- 1.414 over 2 seeds, last step of each",
    ]
    assert render(summarize(tmp_path, [3]))[0] == "mean_iou 60.00 % over 1 seed, last step of each"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ["--seeds", "1,x"],
            "--seeds: must be different whole numbers, 0 to 4294967295, got '1,x'",
        ),
        (["--seeds", "1,1"], "--seeds: must be different whole numbers"),
        (["--seeds", ""], "--seeds: must be different whole numbers"),
        (
            ["--seeds", "1,2", "--config.seed=3"],
            "--config.seed: is what --seeds set - leave it out",
        ),
        (["--seeds", "4,2", "--step", "7"], "--workdir DIR/seed_4 --config.seed=4 without --seeds"),
        (["--seeds", "1,2", "--dry-run"], "--dry-run: is about one run, and --seeds are several"),
    ],
)
def test_wrong_use_of_seeds_is_one_line(call, flags, text):
    code, _, error = call("train", "--config", "quickstart", *flags)
    assert code == 2
    assert text in error


@pytest.mark.slow("trains twice, and starts twice; scores of seeds are above")
def test_seeds_are_trained_one_after_the_other_and_not_again(
    call, make_tree, tiny_recipe, tmp_path, compile_quickly
):
    root = make_tree("folder", num_train=4, num_val=1)
    (root / "tiny.py").write_text(tiny_recipe(CHANGES))
    command = ["train", "--config", root / "tiny.py", f"--config.data.root={root}"]
    command += ["--workdir", tmp_path / "runs"]
    code, out, error = call(*command, "--seeds", "5")
    assert (code, error) == (0, "")
    code, out, _ = call(*command, "--seeds", "5,6")
    assert code == 0
    assert f"already finished: {tmp_path}/runs/seed_5 holds step 2 of 2" in out
    got = json.loads((tmp_path / "runs" / "seeds.json").read_text())
    assert [run["seed"] for run in got["runs"]] == [5, 6]
    assert checkpoint.read_info(tmp_path / "runs" / "seed_6").config.seed == 6
    assert "over 2 seeds, last step of each" in out
    assert out.splitlines()[-1] == f"next: deeplab evaluate --checkpoint {tmp_path}/runs/seed_5"
