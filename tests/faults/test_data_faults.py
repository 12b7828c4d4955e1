"""Faults of a data set: each ends a command with one line, before anything depends on it."""

import json
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

_OTHER_SEEDS = pytest.mark.slow("one seed of three is in the first tier")
SEEDS = pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=_OTHER_SEEDS) for seed in (1, 2))]
)
NUM_TRAIN = 4


@pytest.fixture
def tree(make_tree):
    return make_tree("folder", num_train=NUM_TRAIN, num_val=2)


def image_of(root, seed, split="train"):
    return root / "images" / split / f"{seed:03d}.jpg"


def mask_of(root, seed, split="train"):
    return root / "labels" / split / f"{seed:03d}.png"


def losses(workdir):
    lines = (workdir / "log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if entry["event"] == "train"]


@pytest.mark.process(
    "trains several times; losses/test_plain.py holds a group without a valid pixel"
)
def test_ignored_pixels_alone_cost_nothing(tree, train, call, tmp_path):
    for index in range(NUM_TRAIN):
        mask = cv2.imread(str(mask_of(tree, index)), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(mask_of(tree, index)), np.full_like(mask, 255))
    code, _, err = call(*train(tree))
    assert code == 0, err
    assert losses(tmp_path / "run") == [0, 0]


@SEEDS
def test_label_out_of_range(tree, train, fails, trained, seed):
    path = mask_of(tree, seed)
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    mask[tuple(np.random.default_rng(seed).integers(0, 60, 2))] = 200
    cv2.imwrite(str(path), mask)
    fails(train(tree), f"{path}: has values 200; accepted are 0..3, 255")
    if seed == 0:
        path.replace(mask_of(tree, 0, "val"))
        image_of(tree, seed).replace(image_of(tree, 0, "val"))
        evaluate = ["evaluate", "--checkpoint", trained, f"--config.data.root={tree}"]
        fails(evaluate, f"{mask_of(tree, 0, 'val')}: has values 200")


@SEEDS
def test_mask_of_another_size(tree, train, fails, seed):
    path = mask_of(tree, seed)
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(path), mask[:-1] if seed % 2 else mask[:, :-1])
    size, cut = ((65, 97), (65, 96)) if seed % 2 == 0 else ((97, 65), (96, 65))
    parts = [f"{path}: is {cut[0]} x {cut[1]} pixels", f"{image_of(tree, seed)} is {size[0]}"]
    assert "EXIF" not in fails(train(tree), *parts)


@SEEDS
def test_image_that_only_exif_turns(tree, train, fails, seed):
    path, exif = image_of(tree, seed), Image.Exif()
    exif[0x0112] = (5, 6, 8)[seed]
    Image.open(path).save(path, exif=exif)
    fails(train(tree), f"{mask_of(tree, seed)}: is ", "EXIF orientation")


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "jpeg": (image_of, halve, "is damaged or cut short"),
    "png": (mask_of, halve, "is damaged or cut short"),
    "empty": (image_of, lambda path: path.write_bytes(b""), "is an empty file"),
    "html": (image_of, lambda path: path.write_text("<html>404"), "looks like an HTML page"),
    "text": (mask_of, lambda path: path.write_text("nothing\n"), "looks like text"),
}

_WHOLE = ("jpeg", "png")
_TOLD_ALIKE = pytest.mark.process("runs three commands for each; two kinds are in the first tier")


@SEEDS
@pytest.mark.parametrize(
    "name",
    [*_WHOLE, *(pytest.param(name, marks=_TOLD_ALIKE) for name in DAMAGE if name not in _WHOLE)],
)
def test_damaged_file(tree, train, fails, trained, name, seed):
    where, damage, what = DAMAGE[name]
    path = where(tree, seed)
    damage(path)
    fails(train(tree), f"{path}: {what}")
    if seed == 0:
        path = where(tree, 1, "val")
        damage(path)
        evaluate = ["evaluate", "--checkpoint", trained, f"--config.data.root={tree}"]
        fails(evaluate, f"{path}: {what}")
        predict = ["predict", "--checkpoint", trained, "--output", tree / "out", path]
        fails(predict, f"{path}: {what}")
        assert not list(tree.glob("out/*"))


@SEEDS
def test_missing_files_are_one_message(make_tree, train, fails, seed):
    root = make_tree("folder", num_train=12, num_val=1)
    gone = np.random.default_rng(seed).permutation(12)[:7]
    for index in gone:
        (image_of if seed == 0 else mask_of)(root, index).unlink()
    kind = "images" if seed == 0 else "masks"
    names = ", ".join(f"{index:03d}" for index in sorted(gone)[:5])
    fails(train(root), f"{root}: split 'train' of 12 samples: 7 {kind} missing ({names}, ")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_samples(make_tree, train, fails, count):
    root = make_tree("folder", num_train=count, num_val=1)
    if count:
        fails(train(root), f"{root}: {count} images do not fill one batch of 4")
    else:
        (root / "images" / "train").mkdir()
        (root / "labels" / "train").mkdir()
        fails(train(root), f"{root}: split 'train' has no images")


def test_empty_list_and_empty_validation(tree, train, fails):
    for split in ("train", "val"):
        (tree / f"{split}.txt").write_text("000\n001\n002\n003\n" if split == "train" else "\n")
    flags = ["split_file={split}.txt"]
    fails(train(tree, *flags), "split 'val' has no images")
    (tree / "train.txt").write_text("")
    fails(train(tree, *flags), "split 'train' has no images")


@SEEDS
def test_mask_in_colours(tree, train, fails, seed):
    path = mask_of(tree, seed)
    colors = cv2.imread(str(path), cv2.IMREAD_COLOR)
    colors[..., 0] = 255 - colors[..., 0]  # equal channels would be an index
    cv2.imwrite(str(path), colors)
    fails(train(tree), f"{path}: holds colours (mode RGB)", "config.data.mask_format=color")


@SEEDS
def test_lossy_mask(tree, train, fails, seed):
    path = mask_of(tree, seed)
    Image.open(path).save(path, "JPEG")
    fails(train(tree), f"{path}: is a JPEG", "store masks as PNG")
    path = path.rename(path.with_suffix(".jpg"))
    fails(train(tree), f"{path}: is a JPEG", "store masks as PNG")


OPENED = []  # by an audit hook, which stays: only once
IS_WATCHED = []


def watch(event, arguments):
    if IS_WATCHED and event in ("open", "os.scandir", "os.listdir"):
        OPENED.append(str(arguments[0]))


@pytest.mark.parametrize("name", ["../../x", "{outside}/x", "sub/../../../outside/x", "link"])
def test_lists_cannot_leave_the_root(make_tree, train, fails, tmp_path, name):
    root = make_tree("folder", num_train=NUM_TRAIN, num_val=1)
    outside = root.parent / "outside"
    outside.mkdir(exist_ok=True)
    for suffix, folder in ((".jpg", "images"), (".png", "labels")):
        cv2.imwrite(str(outside / f"x{suffix}"), np.zeros((65, 97), np.uint8))
        cv2.imwrite(str(root.parent / f"x{suffix}"), np.zeros((65, 97), np.uint8))
        if name == "link":
            (root / folder / "train" / f"link{suffix}").symlink_to(outside / f"x{suffix}")
    (root / "val.txt").write_text("000\n")
    (root / "train.txt").write_text(f"000\n001\n002\n{name.format(outside=outside)}\n")
    if watch not in IS_WATCHED:
        sys.addaudithook(watch)
    IS_WATCHED.append(watch)
    OPENED.clear()
    flags = ["split_file={split}.txt"]
    fails(
        train(root, *flags), "link that leads out" if name == "link" else "lists what lies outside"
    )
    IS_WATCHED.clear()
    assert name == "link" or any(path.endswith("train.txt") for path in OPENED)
    assert not [path for path in OPENED if path.endswith(("x.jpg", "x.png", "outside"))]
