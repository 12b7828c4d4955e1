import os
import shutil

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data import open_dataset
from deeplab_jax.data.classes import colormap
from deeplab_jax.doctor import propose
from deeplab_jax.doctor.hours import Machine
from deeplab_jax.errors import DataError


def redraw(folder, change):
    """Replaces each mask under a folder by change(mask)."""
    for path in folder.rglob("*.png"):
        Image.fromarray(change(np.array(Image.open(path)))).save(path)


def test_proposal_says_what_was_seen(make_tree, recipe_of):
    root = make_tree("folder")
    config = recipe_of(root)
    assert config.data.root == str(root.resolve())
    assert config.model.num_classes == len(config.data.class_names) == 4
    assert (config.data.train_split, config.data.val_split) == ("train", "val")
    assert config.data.resize_base == config.eval.resize_base == (97, 65)
    assert config.data.crop_size == (96, 96)  # square: half of the images stand
    assert config.model.atrous_rates == (1, 3, 5)  # below the crop's map of 6
    assert config.train.batch_size == 8  # of 12
    assert config.init.backbone == "none"


@pytest.mark.parametrize(
    ("has_accelerator", "file"),
    [(False, "resnet18_v1c-b5776b93.pth"), (True, "resnet50_v1c-2cccc1ad.pth")],
)
def test_the_way_to_imagenet_weights_is_told(make_tree, recipe_of, tmp_path, has_accelerator, file):
    recipe_of(make_tree("folder"), here=Machine(has_accelerator, 2, 1e11))
    words = " ".join((tmp_path / "mine.py").read_text().replace("#", "").split())
    assert (
        " random weights; ImageNet's learn faster: give the folder that `deeplab convert"
        f' from-pytorch` makes of a file such as {file} c.init.backbone = "none" '
    ) in words


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (lambda m: m, {}),
        (lambda m: np.where(m < 255, m + 1, m).astype(np.uint8), {"reduce_zero_label": True}),
        (lambda m: np.where(m < 255, 60 * m, m), {"class_values": (0, 60, 120, 180)}),
        (lambda m: colormap(256)[m], {"mask_format": "color"}),
    ],
    ids=["index", "from one", "spread", "colours"],
)
def test_proposed_recipe_reads_the_masks(make_tree, recipe_of, change, fields):
    root = make_tree("folder", num_train=6, num_val=2)
    redraw(root, change)
    config = recipe_of(root)
    for key, value in fields.items():
        assert getattr(config.data, key) == value
    for name in ("train", "val"):
        dataset = open_dataset(config.data, config.model.num_classes, name)
        seen = {int(v) for i in range(len(dataset)) for v in np.unique(dataset.read(i)[1])}
        # Nobody can tell that a colour is to be ignored: it becomes a class.
        assert seen == ({0, 1, 2, 3, 4} if "mask_format" in fields else {0, 1, 2, 3, 255})


def test_binary_masks_are_declared(make_tree, recipe_of):
    root = make_tree("folder", num_train=6, num_val=2)
    redraw(root, lambda m: (m == 1).astype(np.uint8) * 255)
    config = recipe_of(root)
    assert (config.data.mask_format, config.model.num_classes) == ("binary", 2)


def as_rgba(values, alpha):
    return np.dstack((values, np.full(values.shape[:2], alpha, np.uint8)))


def one_channel(mask, channel):
    colors = np.zeros((*mask.shape, 3), np.uint8)
    colors[..., channel] = np.where(mask == 255, 40, mask)
    return colors


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: np.stack([m] * 3, -1), ("index", 4)),
        (lambda m: as_rgba(np.stack([m] * 3, -1), 255), ("index", 4)),
        (lambda m: as_rgba(m[..., None], 255), ("index", 4)),
        (lambda m: one_channel(m, 0), ("index", 5)),  # as CARLA does; 40 is a class
        (lambda m: one_channel(m, 2), ("index", 5)),
        (lambda m: np.stack([(m == 1) * np.uint8(255)] * 3, -1), ("binary", 2)),
        (lambda m: np.stack([85 * np.minimum(m, 3)] * 3, -1), ("index", 3)),  # and void
    ],
    ids=["rgb", "rgba", "la", "red", "blue", "white", "spread"],
)
def test_an_index_stored_in_colour_keeps_its_order(make_tree, recipe_of, change, expected):
    root = make_tree("folder", num_train=6, num_val=2)
    redraw(root, change)
    config = recipe_of(root)
    assert (config.data.mask_format, config.model.num_classes) == expected
    dataset = open_dataset(config.data, config.model.num_classes, "train")
    values = dataset.source.read_mask(0)
    order = config.data.class_values or range(len(np.unique(values)))
    if expected[0] == "index":
        for number, value in enumerate(order):
            if value != 255:
                assert (dataset.read(0)[1][values == value] == number).all()


def test_few_odd_colours_do_not_turn_an_index_into_colours(make_tree, recipe_of):
    root = make_tree("folder", num_train=10, num_val=2)
    redraw(root, lambda m: np.stack([m] * 3, -1))
    redraw(root / "labels" / "val", lambda m: np.dstack((m[..., 0], m[..., 0], 90 + m[..., 0])))
    assert recipe_of(root).data.mask_format == "color"  # 2 of 12
    redraw(root / "labels" / "val", lambda m: np.stack([m[..., 0]] * 3, -1))
    path = root / "labels" / "val" / "000.png"
    Image.fromarray(np.dstack((np.array(Image.open(path))[..., :2], np.full((65, 97), 9)))
                    .astype(np.uint8)).save(path)  # fmt: skip
    assert recipe_of(root, "again.py").data.mask_format == "index"


def test_classes_of_colours_are_those_of_the_table(make_tree, recipe_of, doctor):
    root = make_tree("folder", num_train=6, num_val=2)
    redraw(root, lambda m: colormap(8)[np.where(m == 3, 0, np.where(m == 255, 5, m + 1))])
    config = recipe_of(root)
    dataset = open_dataset(config.data, config.model.num_classes, "train")
    pixels = np.bincount(np.concatenate([dataset.read(i)[1].ravel() for i in range(6)]))
    *_, report = doctor("--data", root)
    val = open_dataset(config.data, config.model.num_classes, "val")
    pixels += np.bincount(np.concatenate([val.read(i)[1].ravel() for i in range(2)]))
    shares = [row["pixel_share"] for row in report["classes"]]
    np.testing.assert_allclose(shares, pixels / pixels.sum())
    assert [row["name"] for row in report["classes"]] == list(config.data.class_names)


def test_classes_of_values_with_a_gap_are_those_of_the_table(make_tree, recipe_of, doctor):
    root = make_tree("folder", num_train=6, num_val=2)
    redraw(root, lambda m: np.where(m == 3, 4, m))
    config = recipe_of(root)
    assert (config.data.class_values, config.model.num_classes) == ((), 5)
    code, _, _, report = doctor("--data", root)
    assert code == 0
    assert [(r["class"], r["values"], r["name"]) for r in report["classes"]][3:] == [
        (3, [3], "class_3"), (4, [4], "class_4")
    ]  # fmt: skip


def test_names_come_from_classes_json(make_tree, recipe_of):
    root = make_tree("folder", num_train=6, num_val=2)
    (root / "classes.json").write_text('["a", "b", "c", "d"]')
    config = recipe_of(root)
    assert (config.data.class_names, config.model.num_classes) == ((), 4)


def test_official_layout_gets_its_row(make_tree, recipe_of):
    config = recipe_of(make_tree("ade20k"))
    assert (config.data.dataset, config.model.num_classes) == ("ade20k", 150)
    assert config.train.batch_size == 8
    assert config.train.loss_groups == 1


@pytest.mark.parametrize(
    ("name", "what"),
    [(b"caf\xe9", "UTF-8"), (b" a", "outer spaces"), (b"a\nb", "line breaks"),
     ("a\u2028b".encode(), "line breaks"), ("\ufeffa".encode(), "no list carries")],
)  # fmt: skip
def test_name_that_a_list_does_not_carry_is_refused(make_tree, recipe_of, tmp_path, name, what):
    root = make_tree("folder", num_train=4)
    for kind, suffix in (("images", ".jpg"), ("labels", ".png")):
        shutil.rmtree(root / kind / "val")
        old = root / kind / "train" / f"001{suffix}"
        old.rename(old.with_name(os.fsdecode(name) + suffix))
    with pytest.raises(DataError, match=what) as error:
        recipe_of(root)
    assert error.value.where == f"images/train/{os.fsdecode(name)}.jpg"
    assert not list(tmp_path.glob("mine*"))


def test_folder_that_is_no_name_in_utf8_is_refused(make_tree, recipe_of):
    root = make_tree("folder", num_train=4)
    root = root.rename(root.with_name(os.fsdecode(b"caf\xe9")))
    with pytest.raises(DataError, match="rename the folder"):
        recipe_of(root)


@pytest.mark.parametrize(
    ("side", "crop"),
    [(65, 96), (288, 288), (289, 320), (320, 320), (360, 320), (400, 384), (480, 448), (2000, 512)],
)
def test_crop_trains_the_largest_rate_where_the_image_allows(side, crop):
    assert propose._crop(side, 512) == crop


def test_too_little_to_train_on_is_said(make_tree, recipe_of):
    root = make_tree("folder", num_train=1, num_val=1)
    with pytest.raises(DataError, match="1 usable training images"):
        recipe_of(root)
    root = make_tree("folder", num_train=4, num_val=1)
    for value in (0, 255):
        redraw(root, lambda m, value=value: np.full_like(m, value))
        with pytest.raises(DataError, match="a network needs two"):
            recipe_of(root, "other.py")
