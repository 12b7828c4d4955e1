"""Rows about data: each fault ends a command with one line, or is left out on request."""

import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from faults.harness import TRAIN, Box, check, draw, losses, row, tool


def _trained(box: Box) -> list[str]:
    """Returns the command that evaluates the finished run on this row's data."""
    return ["evaluate", "--checkpoint", str(box.control), f"--config.data.root={box.data}"]


def _predict(box: Box, path: Path) -> list[str]:
    output = box.folder / "predictions"
    return ["predict", "--checkpoint", str(box.control), str(path), "--output", str(output)]


def _doctor(box: Box) -> list[str]:
    root = f"--config.data.root={box.data}"
    return ["doctor", "--config", str(box.shared / "tiny.py"), root]


@row(18)
def all_ignored(box: Box) -> None:
    """Crops in which every pixel is ignored."""
    for index in range(TRAIN):
        size = Image.open(box.mask(index)).size
        Image.new("L", size, 255).save(box.mask(index))
    box.succeeds(box.train("--config.train.steps=3"))
    found = losses(box.workdir)
    check(len(found) == 3 and all(map(math.isfinite, found.values())), f"losses {found}")


@row(19)
def label_out_of_range(box: Box) -> None:
    """A label that is no class."""
    path = box.mask(box.rng.randrange(TRAIN))
    mask = np.array(Image.open(path))
    mask[box.rng.randrange(60), box.rng.randrange(60)] = 200
    Image.fromarray(mask).save(path)
    box.refuses(box.train(), 3, f"{path}: has values 200; accepted are 0..4, 255")
    done = box.run(_doctor(box))
    check(done.code == 3 and path.name in done.out + done.err, f"doctor: {done.code}, {done.last}")


@row(20)
def mask_of_another_size(box: Box) -> None:
    """A mask of another size."""
    index = box.rng.randrange(TRAIN)
    mask = np.array(Image.open(box.mask(index)))
    Image.fromarray(mask[:-1]).save(box.mask(index))
    height, width = mask.shape
    parts = f"{box.mask(index)}: is {height - 1} x {width}", f"{box.image(index)} is {height} x"
    box.refuses(box.train(), 3, *parts)


def _damage(box: Box, damage: Callable[[Path], object], what: str, is_mask: bool) -> None:
    """Damages a file of each split and tries the commands that read it."""
    index = box.rng.randrange(TRAIN)
    path, validation = (box.mask if is_mask else box.image)(index), box.image(0, "val")
    damage(path)
    box.refuses(box.train(), 3, f"{path}: {what}")
    budget = ["--config.data.max_bad_samples=1", "--config.train.steps=2"]
    shutil.rmtree(box.workdir, ignore_errors=True)  # the first may have begun
    box.succeeds(box.train(*budget))
    listed = (box.workdir / "bad_samples.txt").read_text()
    check(path.stem in listed, f"bad_samples.txt says {listed}")
    damage(validation)
    box.refuses(_trained(box), 3, f"{validation}: {what}")
    box.refuses(_predict(box, validation), 3, f"{validation}: {what}")
    check(not list(box.folder.glob("predictions/*.png")), "a prediction was written")


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@row(21)
def truncated(box: Box) -> None:
    """An image or mask cut short."""
    _damage(box, _halve, "is damaged or cut short", is_mask=box.seed % 2 == 1)


@row(22)
def no_picture(box: Box) -> None:
    """Files that are no pictures: empty, HTML, text."""
    kinds = (
        (lambda path: path.write_bytes(b""), "is an empty file"),
        (lambda path: path.write_text("<html>404"), "looks like an HTML page"),
        (lambda path: path.write_text("nothing\n"), "looks like text"),
    )
    _damage(box, *kinds[box.seed % 3], is_mask=False)
    for damage, what in kinds:
        path = box.mask(box.rng.randrange(TRAIN))
        content = path.read_bytes()
        damage(path)
        box.refuses(box.train(workdir=box.folder / "other"), 3, f"{path}: {what}")
        path.write_bytes(content)


@row(23)
def missing(box: Box) -> None:
    """Masks or images that are missing."""
    gone = sorted(box.rng.sample(range(TRAIN), 7))
    path, kind = ((box.image, "images"), (box.mask, "masks"))[box.seed % 2]
    for index in gone:
        path(index).unlink()
    names = ", ".join(f"{index:03d}" for index in gone[:5])
    box.refuses(box.train(), 3, f"7 {kind} missing ({names}, ")


@row(24)
def too_few(box: Box) -> None:
    """An empty split, one image, less than a batch."""
    for split in ("train", "val"):
        (box.data / f"{split}.txt").write_text("000\n")
    flag = "--config.data.split_file={split}.txt"
    box.refuses(box.train(flag), 3, "1 images do not fill one batch of 4")
    (box.data / "train.txt").write_text("000\n001\n002\n")
    box.refuses(box.train(flag), 3, "3 images do not fill one batch of 4")
    (box.data / "train.txt").write_text("")
    box.refuses(box.train(flag), 3, "split 'train' has no images")
    (box.data / "val.txt").write_text("")
    box.refuses([*_trained(box), flag], 3, "split 'val' has no images")


@row(25)
def mask_in_colours(box: Box) -> None:
    """A mask in colours."""
    path = box.mask(box.rng.randrange(TRAIN))
    mask = np.array(Image.open(path))
    colors = np.stack([mask, 255 - mask, mask // 2], axis=-1)
    Image.fromarray(colors).save(path)
    box.refuses(box.train(), 3, f"{path}: holds colours", "config.data.mask_format=color")


@row(26)
def lossy_mask(box: Box) -> None:
    """A mask that is a JPEG."""
    path = box.mask(box.rng.randrange(TRAIN))
    Image.open(path).save(path, "JPEG")
    box.refuses(box.train(), 3, f"{path}: is a JPEG", "PNG")


@row(33)
def list_that_leads_out(box: Box) -> None:
    """A list that names what lies outside."""
    for kind, suffix in (("images", "jpg"), ("labels", "png")):
        draw(box.folder / "outside", "train", 0)
        (box.folder / f"outside/{kind}/train/000.{suffix}").rename(box.folder / f"x.{suffix}")
    (box.data / "train.txt").write_text("000\n001\n002\n../../../x\n")
    (box.data / "val.txt").write_text("000\n")
    command = box.train("--config.data.split_file={split}.txt")
    box.refuses(command, 3, "lists what lies outside")
    trace = box.folder / "trace"
    prefix = tool("strace", "-f", "-e", "trace=open,openat", "-o", str(trace))
    box.refuses(command, 3, "lists what lies outside", prefix=prefix)
    check(not re.search(r"/x\.(jpg|png)\"", trace.read_text()), "the file outside was opened")
