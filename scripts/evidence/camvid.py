"""Three runs of CamVid from scratch, seeds 0 to 2: the protocol measured with the reference.

In five seeds the PyTorch reference has a mean IoU of 0.2140, standard deviation 0.0170, after the
same 300 steps of batch 4 (docs/results/learning.md).
"""

import json
import shutil
from pathlib import Path

import numpy as np

from evidence.commands import deeplab, read_json
from evidence.networks import NARROW
from evidence.record import Box, Item, Result

SEEDS = (0, 1, 2)
_TINY = ("--config.train.steps=4", "--config.train.batch_size=2", "--config.data.crop_size=64,64",
         "--config.eval.resize_base=97,65", *NARROW)  # fmt: skip
_CLASSES = 11


def items(box: Box) -> list[Item]:
    """Returns one run a seed; a rehearsal draws its own data."""
    return [Item(f"seed {seed}", lambda s=seed: _train(box, s), 100) for seed in SEEDS]


def _train(box: Box, seed: int) -> Result:
    root = box.camvid or str(_draw(box.output / "pictures"))
    workdir = box.output / "runs" / f"camvid_seed{seed}"
    if box.is_rehearsal:
        shutil.rmtree(workdir, ignore_errors=True)
    # A run that was ended goes on from its last saved step.
    argv = ["train", "--config", "camvid_r50_os16_short", f"--config.data.root={root}"]
    argv += [f"--config.seed={seed}", "--workdir", str(workdir), *box.pick((), _TINY)]
    if box.is_rehearsal:
        argv += [f"--config.model.num_classes={_CLASSES}"]
    done = deeplab(box, argv, box.left)
    if done.code:
        raise ValueError(f"deeplab train ended with {done.code}: {done.text[-200:]}")
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    scores = [line["mean_iou"] for line in lines if line["event"] == "eval"]
    losses = [line["loss"] for line in lines if line["event"] == "train"]
    account = deeplab(box, ["goodput", str(workdir)], 60)
    return {
        "mean_iou": scores[-1],
        "last_loss": losses[-1],
        "goodput": account.text.splitlines(),
        "config": read_json(workdir / "config.json"),
        "line": f"mean IoU {100 * scores[-1]:.2f} %",
    }


def _draw(root: Path) -> Path:
    """Draws a few pictures of blocks, in CamVid's layout."""
    import cv2

    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for kind, suffix in (("images", "jpg"), ("labels", "png")):
            folder = root / kind / split
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shape = (9, 13, 3) if kind == "images" else (9, 13)
                blocks = rng.integers(0, 256 if kind == "images" else _CLASSES, shape, np.uint8)
                picture = blocks.repeat(8, 0).repeat(8, 1)
                cv2.imwrite(str(folder / f"{number:03d}.{suffix}"), picture)
    return root
