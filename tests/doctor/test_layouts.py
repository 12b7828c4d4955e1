import dataclasses
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.config import freeze, get_config
from deeplab_jax.doctor.layouts import guess
from deeplab_jax.errors import DataError

SPLITS = {"train": ("a", "b", "c"), "val": ("d", "e")}


def write(root, *names):
    """Writes tiny pictures; masks are told by their place alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def write_all(root, image, mask):
    """Writes every sample's image and mask to these places, {split} and {name} filled in."""
    for split, names in SPLITS.items():
        for name in names:
            write(root, *(place.format(split=split, name=name) for place in (image, mask)))


def template(root, **fields):
    """Returns `config.data` of a folder with images/{split} and labels/{split}, changed."""
    return dataclasses.replace(freeze(get_config("folder")).data, root=str(root), **fields)


@pytest.mark.parametrize(
    ("image", "mask", "fields"),
    [
        ("images/{split}/{name}.jpg", "labels/{split}/{name}.png", {}),
        ("images/{split}/{name}.jpg", "masks/{split}/{name}.png", {"masks": "masks/{split}"}),
        (
            "img/{split}/{name}.tif",
            "annotations/{split}/{name}.png",
            {"images": "img/{split}", "masks": "annotations/{split}"},
        ),
        (
            "{split}/images/{name}.jpg",
            "{split}/labels/{name}.png",
            {"images": "{split}/images", "masks": "{split}/labels"},
        ),
        (
            "{split}/{name}.png",
            "{split}annot/{name}.png",
            {"images": "{split}", "masks": "{split}annot", "ignore_values": (11,)},
        ),
        (
            "{split}/{name}.jpg",
            "{split}_labels/{name}.png",
            {"images": "{split}", "masks": "{split}_labels"},
        ),
        ("images/{split}/rome/{name}.jpg", "labels/{split}/rome/{name}.png", {}),
        (
            "data/x/images/{split}/{name}.jpg",
            "data/x/labels/{split}/{name}.png",
            {"images": "data/x/images/{split}", "masks": "data/x/labels/{split}"},
        ),
        (
            "{split}/{name}.jpg",
            "{split}/{name}_mask.png",
            {"images": "{split}", "masks": "{split}", "mask_suffix": "_mask"},
        ),
        ("images/{split}/{name}.jpg", "labels/{split}/{name}_L.png", {"mask_suffix": "_L"}),
        ("images/{split}/ground_floor/{name}.jpg", "labels/{split}/ground_floor/{name}.png", {}),
        ("images/{split}/colorado/{name}.jpg", "labels/{split}/colorado/{name}.png", {}),
        ("images/{split}/edges/y/{name}.jpg", "labels/{split}/edges/y/{name}.png", {}),
        (
            "target/{split}/color/{name}.jpg",
            "target/{split}/groundTruth/{name}.png",
            {"images": "target/{split}/color", "masks": "target/{split}/groundTruth"},
        ),
        (
            "{split}/unlabeled_vision/{name}.jpg",
            "{split}/pngmasks/{name}.png",
            {"images": "{split}/unlabeled_vision", "masks": "{split}/pngmasks"},
        ),
    ],
)
def test_layouts_with_a_split(tmp_path, image, mask, fields):
    write_all(tmp_path, image, mask)
    layout = guess(tmp_path)
    assert layout.data == template(tmp_path, **fields)
    assert (layout.splits, layout.is_split) == (("train", "val"), True)


@pytest.mark.parametrize(
    ("image", "mask", "fields"),
    [
        ("images/{name}.jpg", "masks/{name}.png", {"images": "images", "masks": "masks"}),
        (
            "{name}.jpg",
            "{name}_mask.png",
            {"images": ".", "masks": ".", "mask_suffix": "_mask"},
        ),
        ("{name}.jpg", "{name}.png", {"images": ".", "masks": "."}),
    ],
)
def test_layouts_without_a_split(tmp_path, image, mask, fields):
    write_all(tmp_path, image, mask)
    layout = guess(tmp_path)
    assert layout.data == template(tmp_path, train_split="all", val_split="all", **fields)
    assert not layout.is_split


def test_numbered_files_are_paired_with_the_nearest_folder(tmp_path):
    for city, number in (("rome", 4), ("milan", 6)):
        write(tmp_path, *(f"images/train/{city}/{i}.jpg" for i in range(6)))
        write(tmp_path, *(f"labels/train/{city}/{i}.png" for i in range(number)))
    assert (guess(tmp_path).data.masks, guess(tmp_path).splits) == ("labels/train", ("train",))


def test_folder_of_a_colouring_is_neither_images_nor_masks(tmp_path):
    for name in "abc":
        write(tmp_path, f"images/{name}.jpg", f"vis/{name}.png", f"masks_color/{name}.png",
              f"masks/{name}.png")  # fmt: skip
    data = guess(tmp_path).data
    assert (data.images, data.masks) == ("images", "masks")


def test_training_images_alone_are_no_split(tmp_path):
    write(tmp_path, *(f"images/train/{i}.jpg" for i in range(3)))
    write(tmp_path, *(f"labels/train/{i}.png" for i in range(3)))
    layout = guess(tmp_path)
    assert layout.data.images == "images/train"
    assert (layout.splits, layout.is_split) == (("train",), False)


@pytest.mark.parametrize("folder", ["", "ImageSets/Segmentation", "splits"])
def test_lists_make_a_split(tmp_path, folder):
    write_all(tmp_path, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png")
    write(tmp_path, *(f"SegmentationObject/{name}.png" for name in "abcde"))
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for split, names in SPLITS.items():
        (tmp_path / folder / f"{split}.txt").write_text("\n".join(names))
    (tmp_path / folder / "test.txt").write_text("not\nof\nthese")
    layout = guess(tmp_path)
    assert layout.data.masks == "SegmentationClass"
    assert layout.data.split_file == f"{folder}/{{split}}.txt".lstrip("/")
    assert layout.splits == ("train", "val")


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_small_folder_laid_out_as_voc_is_one_of_its_own(make_tree, below):
    root = make_tree("voc")
    data = guess(root / below).data
    assert data.dataset == "folder"
    assert data.train_split == "trainaug"


def test_voc_is_known_by_its_number_of_images(make_tree):
    root = make_tree("voc")
    lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "val.txt").write_text("".join(f"{i}\n" for i in range(1449)))
    for below in ("", "VOCdevkit", "VOCdevkit/VOC2012"):
        layout = guess(root / below)
        assert (layout.data.root, layout.data.dataset) == (str(root.resolve()), "voc")


@pytest.mark.parametrize(
    ("name", "below"), [("ade20k", "ADE20k/ADEChallengeData2016"), ("cityscapes", "CityScapes")]
)
def test_official_layouts_are_known_from_above_and_inside(make_tree, name, below):
    root = make_tree(name)
    for start in ("", below):
        layout = guess(root / start)
        assert (layout.data.root, layout.data.dataset) == (str(root.resolve()), name)
        assert layout.splits == ("train", "val")


def test_more_splits_come_after_the_two(tmp_path):
    write_all(tmp_path, "images/{split}/{name}.jpg", "labels/{split}/{name}.png")
    shutil.copytree(tmp_path / "images/val", tmp_path / "images/test")
    shutil.copytree(tmp_path / "labels/val", tmp_path / "labels/test")
    assert guess(tmp_path).splits == ("train", "val", "test")


@pytest.mark.parametrize("names", [[], ["images/a.jpg"], ["a/b.jpg", "c/d.png"]])
def test_folder_that_is_no_data_set_says_what_is_expected(tmp_path, names):
    write(tmp_path, *names)
    with pytest.raises(DataError, match=r"labels/train/NAME\.png"):
        guess(tmp_path)
    with pytest.raises(DataError) as error:
        guess(tmp_path)
    seen = {path.rsplit("/", 1)[0] for path in names}
    assert all(f"{folder} (1)" in error.value.what for folder in seen)
    with pytest.raises(DataError, match="is not a folder"):
        guess(tmp_path / "nothing")


def test_list_that_is_a_pipe_or_huge_is_no_list(tmp_path):
    write_all(tmp_path, "images/{name}.jpg", "masks/{name}.png")
    (tmp_path / "train.txt").write_text("a")
    os.mkfifo(tmp_path / "val.txt")
    with (tmp_path / "test.txt").open("w") as file:
        file.write("d")
        file.truncate((1 << 26) + 1)
    assert guess(tmp_path).data.split_file == ""


def test_pairs_that_no_list_names_and_lists_elsewhere_are_told(tmp_path):
    write(tmp_path, *(f"images/{n}.jpg" for n in "abcdef"), *(f"masks/{n}.png" for n in "abcdef"))
    for folder, train, val in (("splits/1", "a\nb\n", "c\n"), ("splits/2", "d\n", "e\n")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "train.txt").write_text(train)
        (tmp_path / folder / "val.txt").write_text(val)
    layout = guess(tmp_path)
    assert layout.data.split_file == "splits/1/{split}.txt"
    others, unnamed = layout.findings
    assert others.severity == "note"
    assert others.items == ('data.split_file="splits/2/{split}.txt"',)
    assert unnamed.title == "3 of 6 pairs are in no list of splits/1/{split}.txt"


def test_folders_that_are_links_out_of_the_root_are_named(tmp_path):
    root, far = tmp_path / "root", tmp_path / "far"
    write(root, *(f"a/{kind}/{n}.png" for kind in ("images", "masks") for n in "abc"))
    write(far, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in "de"))
    (root / "b").symlink_to(far)
    (root / "c").symlink_to(root / "a")  # inside: the same pictures
    (finding,) = guess(root).findings
    assert (finding.severity, finding.items) == ("warning", ("b",))
    shutil.rmtree(root / "a")
    with pytest.raises(DataError, match="not looked into, for they are links that lead out: b"):
        guess(root)


def test_ade20k_is_known_by_its_table_of_classes(tmp_path):
    for split in ("training", "validation"):
        write(tmp_path, *(f"my/ade/{kind}/{split}/0.png" for kind in ("images", "annotations")))
    assert guess(tmp_path).data.dataset == "folder"
    (tmp_path / "my/ade/objectInfo150.txt").write_text("Idx\tRatio\n")
    data = guess(tmp_path).data
    assert (data.dataset, data.root) == ("ade20k", str(tmp_path / "my/ade"))


@pytest.mark.parametrize("has_folder", [True, False])
def test_validation_images_without_masks_are_named_and_not_validated_on(tmp_path, has_folder):
    write(tmp_path, *(f"images/{split}/{n}.jpg" for split in ("train", "val") for n in "abc"))
    write(tmp_path, *(f"masks/train/{n}.png" for n in "abc"))
    if has_folder:
        (tmp_path / "masks" / "val").mkdir()
    layout = guess(tmp_path)
    assert (layout.is_split, layout.data.images) == (False, "images/train")
    (finding,) = layout.findings
    assert finding.severity == "warning"
    assert finding.title == "split val has 3 images without masks, and is not used"
