"""Layouts of one's own, by configuration alone."""

import dataclasses
import itertools
import os
import shlex
import shutil

import cv2
import numpy as np
import pytest

from deeplab_jax.data import open_dataset
from deeplab_jax.data.classes import colormap
from deeplab_jax.data.files import find_files, official_top
from deeplab_jax.data.images import write_png_indices
from deeplab_jax.errors import DataError

IMAGE = np.full((4, 6, 3), 90, np.uint8)
LABEL = np.array([[0, 1, 2, 3, 255, 0]] * 4, np.uint8)


def write(root, *names, label=LABEL):
    """Writes images, and masks where the name says so."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_mask = any(word in name for word in ("mask", "annot", "label", "Class"))
        assert cv2.imwrite(str(path), label if is_mask else IMAGE)


@pytest.fixture
def opened(data_config, tmp_path):
    """Returns opened(split, **fields) -> the data set under tmp_path, which is read once."""

    def opened(split="train", **fields):
        dataset = open_dataset(data_config("folder", tmp_path, **fields), 4, split)
        for index in range(len(dataset)):
            image, label = dataset.read(index)
            assert image.shape == (4, 6, 3)
            np.testing.assert_array_equal(label, LABEL)
        return dataset

    return opened


def names(dataset, root):
    pairs = [dataset.source.names(i) for i in range(len(dataset))]
    return [tuple(os.path.relpath(path, root) for path in pair) for pair in pairs]


def test_camvids_public_layout(opened, tmp_path):
    label = np.where(LABEL == 255, 11, LABEL)
    for split in ("train", "val"):
        write(tmp_path, f"{split}/0001TP.png", f"{split}annot/0001TP.png", label=label)
    dataset = opened("val", images="{split}", masks="{split}annot", ignore_values=(11,))
    assert names(dataset, tmp_path) == [("val/0001TP.png", "valannot/0001TP.png")]


def test_voc_like_folders_with_palette_masks_and_lists(opened, tmp_path):
    for name in ("2007_1", "2007_2", "2007_3"):
        write(tmp_path, f"JPEGImages/{name}.jpg")
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        write_png_indices(tmp_path / f"SegmentationClass/{name}.png", LABEL, colormap(256))
    folder = tmp_path / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("2007_3\n2007_1\n")
    fields = {"images": "JPEGImages", "masks": "SegmentationClass"}
    fields["split_file"] = "ImageSets/Segmentation/{split}.txt"
    assert opened(**fields).ids == ("2007_3", "2007_1")


@pytest.mark.parametrize("is_absolute", [False, True])
def test_flat_folders_with_lists_of_names_or_files(opened, tmp_path, is_absolute):
    write(tmp_path, *[f"{kind}/{i}.{end}" for kind, end in (("i", "jpg"), ("mask", "png"))
                      for i in "abc"])  # fmt: skip
    (tmp_path / "train.txt").write_bytes("\ufeffb\r\n\r\na.jpg  \r\n".encode())
    split_file = f"{tmp_path}/{{split}}.txt" if is_absolute else "{split}.txt"
    assert opened(images="i", masks="mask", split_file=split_file).ids == ("b", "a")


def test_image_and_mask_in_one_folder(opened, tmp_path):
    write(tmp_path, "train/a.png", "train/a_mask.png", "train/b.JPG", "train/b_mask.tif")
    fields = {"images": "{split}", "masks": "{split}", "mask_suffix": "_mask"}
    assert names(opened(**fields), tmp_path) == [
        ("train/a.png", "train/a_mask.png"),
        ("train/b.JPG", "train/b_mask.tif"),
    ]
    write(tmp_path, "val/label/a.png")
    (tmp_path / "val/label/a.png").rename(tmp_path / "val/a.png")
    write(tmp_path, "val/a.jpg")
    dataset = opened("val", images="{split}", masks="{split}")
    assert names(dataset, tmp_path) == [("val/a.jpg", "val/a.png")]


def test_nested_folders_give_relative_ids(opened, tmp_path):
    write(tmp_path, "images/train/x/y/a.bmp", "images/train/b.webp")
    write(tmp_path, "labels/train/x/y/a_gt.png", "labels/train/b_gt.bmp")
    assert opened(mask_suffix="_gt").ids == ("b", "x/y/a")


def test_masks_in_a_folder_of_the_images(opened, tmp_path):
    write(tmp_path, "train/a.png", "train/masks/a.png", "train/sub/b.png", "train/masks/sub/b.png")
    assert opened(images="{split}", masks="{split}/masks").ids == ("a", "sub/b")


def test_lossy_pictures_beside_masks_do_no_harm(opened, tmp_path):
    write(tmp_path, "images/train/a.png", "labels/train/a.png", "labels/train/a.jpg")
    assert names(opened(), tmp_path) == [("images/train/a.png", "labels/train/a.png")]


def test_links_within_the_root_are_followed(opened, tmp_path):
    write(tmp_path, "pool/s/a.png", "pool/masks/a.png")
    for folder, target in (("images", "s"), ("labels", "masks")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train").mkdir()
        (tmp_path / folder / "train" / "all").symlink_to(tmp_path / "pool" / target)
    assert opened().ids == ("all/a",)


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_links_in_a_circle_are_refused(data_config, tmp_path, target):
    write(tmp_path, "images/train/a.png", "labels/train/a.png")
    (tmp_path / "images/train/again").symlink_to(target)
    with pytest.raises(DataError, match="is a link to a folder it lies in"):
        find_files(data_config("folder", tmp_path), "train")


def test_what_cannot_be_listed_is_named(data_config, tmp_path, monkeypatch):
    write(tmp_path, "images/train/a.png", "images/train/sub/b.png", "labels/train/a.png")
    loop = tmp_path / "images/train/again.png"
    loop.symlink_to("again.png")
    with pytest.raises(
        DataError, match=r"again\.png: cannot be read \(Too many levels of symbolic"
    ):
        find_files(data_config("folder", tmp_path), "train")
    loop.unlink()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"train/sub: cannot be read \(Permission denied\)"):
        find_files(data_config("folder", tmp_path), "train")


def test_what_is_incomplete_is_still_listed(data_config, tmp_path):
    write(tmp_path, "images/train/a.png", "images/train/b.png", "labels/train/b.png")
    write(tmp_path, "labels/train/c.jpg")
    files = find_files(data_config("folder", tmp_path), "train")
    assert files.stems == ["a", "b", "c"]
    assert (sorted(files.images), sorted(files.masks)) == (["a", "b"], ["b", "c"])
    (tmp_path / "train.txt").write_text("b\n../b\n")
    files = find_files(data_config("folder", tmp_path, split_file="{split}.txt"), "train")
    assert files.stems == ["b", "../b"]


LIST = {"images": "images", "masks": "labels", "split_file": "{split}.txt"}


def test_ids_of_a_list_are_matched_as_they_stand_first(opened, tmp_path):
    ids = ("a\u2028b", "c\x0bd", " e ", "f", "g")
    write(tmp_path, *[f"{kind}/{i}.png" for kind in ("images", "labels") for i in ids])
    lines = ["\ufeffa\u2028b", "c\x0bd.png", " e ", "  f\t", "././g.png", "   "]
    (tmp_path / "train.txt").write_bytes("\r\n".join(lines).encode())
    assert opened(**LIST).ids == ids


def test_missing_names_with_spaces_are_no_columns(data_config, tmp_path):
    write(tmp_path, "images/a.png", "labels/a.png")
    (tmp_path / "train.txt").write_text(f"a and b\n{'x' * 5000}\nc\0d\n")
    with pytest.raises(DataError) as caught:
        open_dataset(data_config("folder", tmp_path, **LIST), 4, "train")
    assert f"3 images missing (a and b, c\\x00d, {'x' * 77}...); 3 masks" in str(caught.value)


def test_what_is_no_list(data_config, tmp_path):
    root = tmp_path / "root"
    write(root, "images/a.png", "labels/a.png")
    path, other = root / "train.txt", tmp_path / "other.txt"
    other.write_text("a\n")
    data = data_config("folder", root, **LIST)

    def refused(what):
        with pytest.raises(DataError, match=what):
            find_files(data, "train")
        path.unlink(missing_ok=True)

    refused(r"train\.txt: is missing")
    os.mkfifo(path)
    refused(r"train\.txt: is no file")
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    refused(r"train\.txt: is too large for a list")
    path.symlink_to("train.txt")
    refused(r"train\.txt: cannot be read")
    path.symlink_to(other)
    refused(r"train\.txt: is a link that leads out of .* \(to .*other\.txt\)")
    data = dataclasses.replace(data, split_file=str(other))
    assert find_files(data, "train").stems == ["a"]
    other.rename(root / "other.txt")
    path.symlink_to("other.txt")
    data = dataclasses.replace(data, split_file="{split}.txt")
    assert find_files(data, "train").stems == ["a"]
    root.rename(tmp_path / "moved")  # a root that is a link itself
    root.symlink_to("moved")
    assert find_files(data, "train").stems == ["a"]


def test_cityscapes_by_train_ids(make_tree, data_config):
    root = make_tree("cityscapes")
    for path in root.glob("CityScapes/gtFine/val/*/*_labelIds.png"):
        ids = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        target = path.with_name(path.name.replace("labelIds", "labelTrainIds"))
        cv2.imwrite(str(target), np.where(ids == 7, 0, 255).astype(np.uint8))
    data = data_config("cityscapes", root, mask_suffix="_gtFine_labelTrainIds")
    own = open_dataset(data_config("cityscapes", root), 19, "val").read(0)[1]
    label = open_dataset(data, 19, "val").read(0)[1]
    np.testing.assert_array_equal(label == 0, own == 0)
    assert set(np.unique(label)) == {0, 255}


def test_16_bit_masks_and_values_of_classes(data_config, tmp_path):
    wide = np.array([[1000, 7, 40000, 300, 65535, 1000]] * 4, np.uint16)
    write(tmp_path, "images/train/a.png", "labels/train/a.png", label=wide)
    fields = {"class_values": (1000, 7, 40000, 300), "ignore_values": (65535,)}
    data = data_config("folder", tmp_path, **fields)
    np.testing.assert_array_equal(open_dataset(data, 4, "train").read(0)[1], LABEL)
    data = dataclasses.replace(data, class_values=(1000, 7, 40000, 301))
    with pytest.raises(DataError, match="has values 300; accepted are 7, 301, 1000, 40000, 65535"):
        open_dataset(data, 4, "train").read(0)


def test_binary_masks(data_config, tmp_path):
    mask = np.where(LABEL == 1, 255, 0).astype(np.uint8)
    write(tmp_path, "images/train/a.png", "labels/train/a.png", label=mask)
    data = data_config("folder", tmp_path, mask_format="binary")
    label = open_dataset(data, 2, "train").read(0)[1]
    np.testing.assert_array_equal(label, LABEL == 1)
    write(tmp_path, "labels/train/a.png", label=mask // 255)
    with pytest.raises(DataError, match="has values 1; accepted are 0, 255"):
        open_dataset(data, 2, "train").read(0)


@pytest.mark.parametrize("is_palette", [False, True])
def test_colour_masks(data_config, tmp_path, is_palette):
    colors = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9], [9, 9, 9], [1, 2, 3]], np.uint8)
    (tmp_path / "classes.json").write_text(
        """[{"name": "void", "color": [1, 2, 3], "ignore": true}, {"name": "a", "color": [9, 0, 0]},
            {"name": "b", "color": [0, 9, 0]}, {"name": "c", "color": [0, 0, 9]},
            {"name": "d", "color": [9, 9, 9]}]"""
    )
    indices = np.where(LABEL == 255, 4, LABEL)
    write(tmp_path, "images/train/a.png", "labels/train/a.png")
    path = tmp_path / "labels/train/a.png"
    data = data_config("folder", tmp_path, mask_format="color")
    if is_palette:
        write_png_indices(path, indices, colors)
    else:
        cv2.imwrite(str(path), colors[indices][..., ::-1])
    dataset = open_dataset(data, 4, "train")
    assert dataset.class_names == ("a", "b", "c", "d")
    np.testing.assert_array_equal(dataset.read(0)[1], LABEL)
    pixels = colors[indices]
    pixels[0, 0], pixels[1, 1] = (0, 8, 1), (200, 0, 0)
    cv2.imwrite(str(path), pixels[..., ::-1])
    with pytest.raises(DataError) as caught:
        dataset.read(0)
    what = r"has 2 colours that are no class, such as (0, 8, 1); nearest is b, (0, 9, 0) - "
    assert str(caught.value).startswith(f"{path}: {what}")


def typed(fix):
    """Returns the fields that a fix names."""
    words = (word.rstrip(";,") for word in shlex.split(fix) if word.startswith("--config.data."))
    return dict(word.removeprefix("--config.data.").split("=", 1) for word in words)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"images": "images", "masks": "labels", "split_file": "{split}.txt"},
        {"images": "images/{split}/*.*", "masks": "labels/{split}/*.*"},
        {"images": "images/*.jpg", "masks": "labels/*.*", "split_file": "{split}.txt"},
    ],
)
def test_links_out_of_the_root_name_fields_that_read_them(data_config, tmp_path, fields):
    """As in the caches of Hugging Face, DVC and git-annex."""
    blobs, snapshot = tmp_path / "my blobs", tmp_path / "snap shots/1"
    for kind, split, stem in itertools.product(("images", "labels"), ("train", "val"), "ab"):
        is_flat, end = "split_file" in fields, ".jpg" if kind == "images" else ".png"
        write(tmp_path, f"my blobs/{kind}_{split}{stem}{end}")
        name = f"{kind}/{split}{stem}{end}" if is_flat else f"{kind}/{split}/{stem}{end}"
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blobs / f"{kind}_{split}{stem}{end}")
        (blobs / f"{split}_list").write_text(f"{split}a\n{split}b\n")
    for split in ("train", "val"):
        (snapshot / f"{split}.txt").symlink_to(blobs / f"{split}_list")
    with pytest.raises(DataError) as caught:
        find_files(data_config("folder", snapshot, **fields), "train")
    count = 8 if "split_file" in fields else 4
    assert caught.value.what.startswith(f"all {count} files are links that lead out of {snapshot}/")
    fix = typed(caught.value.fix.partition("; or copy")[0])
    data = data_config("folder", fix.pop("root"), **fix)
    assert len(open_dataset(data, 4, "train")) == len(open_dataset(data, 4, "val")) == 2
    copy = caught.value.fix.partition("cp -rL ")[2].partition(", and set")[0]
    shutil.copytree(*shlex.split(copy))  # which copies what links lead to
    data = data_config("folder", shlex.split(copy)[1], **fields)
    assert len(open_dataset(data, 4, "train")) == 2


def test_links_to_what_is_not_there_say_to_fetch_it(data_config, tmp_path):
    root = tmp_path / "root"
    write(root, "images/train/a.png", "labels/train/a.png")
    (root / "images/train/b.png").symlink_to(tmp_path / "gone.png")
    data = data_config("folder", root)
    with pytest.raises(DataError, match=r"which is not there\) - fetch the files first"):
        find_files(data, "train")
    for path in root.glob("*/train/a.png"):
        path.unlink()
        path.symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"all 3 files are links .*, to files that are not there"):
        find_files(data, "train")


@pytest.mark.parametrize("name", ["voc", "cityscapes", "classes.json"])
def test_what_no_field_can_name_is_copied(data_config, make_tree, tmp_path, name):
    root = make_tree("folder" if name == "classes.json" else name, num_train=1, num_val=1)
    for path in root.rglob("*.*"):
        if path.suffix in (".png", ".jpg"):
            path.rename(tmp_path / path.name)
            path.symlink_to(tmp_path / path.name)
    (root / name).touch()
    data = data_config("folder" if name == "classes.json" else name, root)
    with pytest.raises(DataError) as caught:
        find_files(data, "val")
    assert caught.value.fix == f"copy the files themselves: cp -rL {root} {root}-copy, and set" + (
        f" --config.data.root={root}-copy"
    )


def test_a_linked_list_is_read_where_it_is_named_in_full(data_config, tmp_path):
    root = tmp_path / "root"
    write(root, "images/a.png", "labels/a.png")
    (tmp_path / "list").write_text("a\n")
    (root / "train.txt").symlink_to(tmp_path / "list")
    with pytest.raises(DataError, match="leads out of") as caught:
        find_files(data_config("folder", root, **LIST), "train")
    fields = LIST | typed(caught.value.fix)
    assert find_files(data_config("folder", root, **fields), "train").stems == ["a"]


PLACES = {
    "voc": ("VOCdevkit/VOC2012", "VOC2012", "."),
    "ade20k": ("ADE20k/ADEChallengeData2016", "ADEChallengeData2016", "."),
    "cityscapes": ("CityScapes", "cityscapes", "Cityscapes", "."),
}


@pytest.mark.parametrize(("name", "place"), [(n, p) for n in PLACES for p in PLACES[n]])
def test_official_data_sets_below_their_usual_folders(
    make_tree, data_config, tmp_path, name, place
):
    root, published = make_tree(name, num_train=1, num_val=1), PLACES[name][0]
    new = tmp_path / "new"
    (new / place).parent.mkdir(parents=True, exist_ok=True)
    (root / published).rename(new / place)
    data = data_config(name, new)
    assert official_top(name, new) == place
    classes = {"voc": 21, "ade20k": 150, "cityscapes": 19}[name]
    dataset = open_dataset(data, classes, "val")
    assert len(dataset) == 1
    assert dataset.source.image_paths[0].startswith(f"{new / place}/")
    (new / published).mkdir(parents=True, exist_ok=True)  # goes first, also where it is empty
    assert official_top(name, new) == published
    if place != published:
        (new / published).rmdir()
        (new / place).rename(tmp_path / "elsewhere")
        with pytest.raises(
            DataError, match=f"{name} is looked for in {', '.join(PLACES[name])} of"
        ):
            find_files(data, "val")


def test_masks_of_sbd_may_lie_beside_those_of_voc(make_tree, data_config):
    root = make_tree("voc", num_train=2, num_val=1)
    top = root / "VOCdevkit/VOC2012"
    (top / "SegmentationClassAug").mkdir()
    mask = top / "SegmentationClass/train_000001.png"
    mask.rename(top / "SegmentationClassAug" / mask.name)
    dataset = open_dataset(data_config("voc", root), 21, "trainaug")
    assert [path.split("/")[-2] for path in dataset.source.label_paths] == [
        "SegmentationClass", "SegmentationClassAug",
    ]  # fmt: skip
    lists = top / "ImageSets/Segmentation/trainaug.txt"
    lists.write_text("/JPEGImages/train_000001.jpg /SegmentationClassAug/train_000001.png\n")
    assert open_dataset(data_config("voc", root), 21, "trainaug").ids == ("train_000001",)
