import json
import pickle

import cv2
import numpy as np
import pytest

from deeplab_jax.data import open_dataset
from deeplab_jax.data.classes import CLASS_NAMES, colormap
from deeplab_jax.data.labels import label_map
from deeplab_jax.errors import ConfigError, DataError

CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19, "folder": 4}
VOC = "VOCdevkit/VOC2012"
ADE = "ADE20k/ADEChallengeData2016"


def open_error(data, num_classes, split, kind=DataError):
    """Returns the one line of the error that opening gives."""
    with pytest.raises(kind) as caught:
        open_dataset(data, num_classes, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Layouts


@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize(("split", "count"), [("train", 12), ("val", 4)])
def test_every_layout_opens_and_reads(make_tree, data_config, name, split, count):
    split = "trainaug" if (name, split) == ("voc", "train") else split
    dataset = open_dataset(data_config(name, make_tree(name)), CLASSES[name], split)
    assert len(dataset) == len(dataset.ids) == count
    assert (dataset.name, dataset.split) == (name, split)
    assert len(dataset.class_names) == len(dataset.palette) == CLASSES[name]
    seen = set()
    for i in range(count):
        image, label = dataset.read(i)
        assert image.dtype == label.dtype == np.uint8
        assert image.shape == (*label.shape, 3)
        seen |= set(np.unique(label).tolist())
    assert seen == {*range(CLASSES[name]), 255}


def test_classes_of_a_layout_are_those_drawn(make_tree, data_config):
    """All layouts are drawn from one seed: after mapping, one class looks alike in each."""
    for name in CLASSES:
        dataset = open_dataset(data_config(name, make_tree(name)), CLASSES[name], "val")
        image, label = dataset.read(0)
        assert (label[5:12, 20:31] == 255).all()
        colors = colormap(CLASSES[name] + 1)
        inside = cv2.erode((label == 1).astype(np.uint8), np.ones((5, 5))) > 0
        assert np.abs(image[inside].mean(0) - np.clip(colors[2], 10, 245)).max() < 30


def test_ids_and_paths_follow_the_official_names(make_tree, data_config):
    root = make_tree("voc")
    voc = open_dataset(data_config("voc", root), 21, "val")
    assert voc.ids[1] == "val_000001"
    assert voc.source.image_paths[1] == str(root / VOC / "JPEGImages/val_000001.jpg")
    assert voc.source.label_paths[1] == str(root / VOC / "SegmentationClass/val_000001.png")

    root = make_tree("ade20k")
    ade20k = open_dataset(data_config("ade20k", root), 150, "train")
    assert ade20k.source.image_paths[0] == str(
        root / ADE / "images/training/ADE_train_00000000.jpg"
    )
    assert ade20k.source.label_paths[0] == str(
        root / ADE / "annotations/training/ADE_train_00000000.png"
    )

    root = make_tree("cityscapes")
    city = open_dataset(data_config("cityscapes", root), 19, "val")
    assert city.ids[0] == "aachen/aachen_000000_000019_leftImg8bit"
    top = root / "CityScapes"
    assert city.source.image_paths[0] == str(top / f"leftImg8bit/val/{city.ids[0]}.png")
    label = "gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds.png"
    assert city.source.label_paths[0] == str(top / label)
    assert list(city.ids) == sorted(city.ids)


@pytest.mark.parametrize(
    ("name", "list_file", "ids"),
    [
        ("voc", f"{VOC}/ImageSets/Segmentation/val.txt", ["val_000002", "val_000000"]),
        ("ade20k", f"{ADE}/val.txt", ["ADE_val_00000003", "ADE_val_00000001"]),
        ("cityscapes", "CityScapes/val.txt", ["bochum/bochum_000001_000019_leftImg8bit"]),
    ],
)
def test_list_file_says_which_samples_in_which_order(make_tree, data_config, name, list_file, ids):
    root = make_tree(name)
    (root / list_file).write_text("\n".join(ids) + "\r\n\n")
    assert open_dataset(data_config(name, root), CLASSES[name], "val").ids == tuple(ids)


def test_voc_needs_its_list(make_tree, data_config):
    root = make_tree("voc")
    message = open_error(data_config("voc", root), 21, "train")
    assert message.startswith(f"{root / VOC}/ImageSets/Segmentation/train.txt: is missing")


def test_folder_is_sorted_and_takes_any_case_but_no_hidden_files(make_tree, data_config):
    root = make_tree("folder", num_train=3)
    images = root / "images" / "train"
    (images / "002.jpg").rename(images / "002.JPG")
    (images / "._000.jpg").write_bytes(b"")
    (images / "notes.txt").write_text("x")
    cv2.imwrite(str(images / "001.png"), cv2.imread(str(images / "001.jpg")))
    (images / "001.jpg").unlink()
    dataset = open_dataset(data_config("folder", root), 4, "train")
    assert dataset.ids == ("000", "001", "002")
    assert [path.rsplit(".")[-1] for path in dataset.source.image_paths] == ["jpg", "png", "JPG"]


def test_dataset_survives_pickling(make_tree, data_config):
    dataset = open_dataset(data_config("folder", make_tree("folder")), 4, "val")
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.ids == dataset.ids
    for ours, theirs in zip(dataset.read(0), copy.read(0), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# What is missing


def test_missing_files_are_counted_in_one_error(make_tree, data_config):
    root = make_tree("voc")
    for i in range(11):
        (root / VOC / "SegmentationClass" / f"train_{i:06d}.png").unlink()
    (root / VOC / "JPEGImages" / "train_000003.jpg").unlink()
    message = open_error(data_config("voc", root), 21, "trainaug")
    assert message.startswith(
        f"{root}: split 'trainaug' of 12 samples: 1 images missing (train_000003); "
        "11 masks missing (train_000000, train_000001, "
    )
    assert "train_000009, ... (1 more)" in message


def test_folder_misses_what_has_only_one_of_its_two_files(make_tree, data_config):
    root = make_tree("folder")
    (root / "images" / "val" / "001.jpg").unlink()
    (root / "labels" / "val" / "002.png").unlink()
    message = open_error(data_config("folder", root), 4, "val")
    assert "1 images missing (001); 1 masks missing (002)" in message


def test_ids_cannot_leave_the_root(make_tree, data_config, tmp_path):
    root = make_tree("voc")
    cv2.imwrite(str(tmp_path / "x.jpg"), np.zeros((4, 4, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((4, 4), np.uint8))
    for name in (f"../../../../{tmp_path.name}/x", str(tmp_path / "x")):
        (root / VOC / "ImageSets/Segmentation/val.txt").write_text(name)
        assert f"lists what lies outside ({name})" in open_error(
            data_config("voc", root), 21, "val"
        )


def test_empty_split_and_missing_folder_are_named(make_tree, data_config, tmp_path):
    root = make_tree("voc")
    (root / VOC / "ImageSets/Segmentation/val.txt").write_text("\n")
    assert "split 'val' has no images" in open_error(data_config("voc", root), 21, "val")
    message = open_error(data_config("folder", tmp_path), 4, "val")
    assert message.startswith(f"{tmp_path}/images/val: is not a folder")


def test_two_images_of_one_name_are_refused(make_tree, data_config):
    root = make_tree("folder")
    (root / "images" / "val" / "000.png").write_bytes(b"")
    assert "has the same name as" in open_error(data_config("folder", root), 4, "val")


# Labels


@pytest.mark.parametrize("name", ["voc", "ade20k", "cityscapes"])
def test_label_map_is_the_references(expected, data_config, name):
    golden = expected["label_map"][name]
    want = np.full(256, -1)
    want[golden["ids"]] = [255 if label < 0 else label for label in golden["labels"]]
    ours = label_map(data_config(name, "data"), CLASSES[name])
    assert ours.dtype == np.int16
    np.testing.assert_array_equal(ours[:256], want)
    assert (ours[256:] == -1).all()


@pytest.mark.parametrize(
    ("name", "fields", "classes"),
    [
        ("folder", {}, {0: 0, 2: 2, 3: -1, 254: -1, 255: 255, 256: -1}),
        ("folder", {"reduce_zero_label": True}, {0: 255, 1: 0, 3: 2, 4: -1, 255: 255}),
        ("folder", {"ignore_values": (11, 65535)}, {2: 2, 3: -1, 11: 255, 255: -1, 65535: 255}),
        ("folder", {"ignore_values": ()}, {2: 2, 255: -1}),
        ("folder", {"class_values": (7, 300, 0)}, {7: 0, 300: 1, 0: 2, 1: -1, 255: 255}),
        ("ade20k", {}, {0: 255, 1: 0, 3: 2, 4: -1, 255: -1}),
        ("cityscapes", {"mask_suffix": "_gtFine_labelTrainIds"}, {0: 0, 2: 2, 3: -1, 255: 255}),
    ],
)
def test_label_map_by_hand(data_config, name, fields, classes):
    ours = label_map(data_config(name, "data", **fields), 3)
    assert {value: ours[value] for value in classes} == classes


def test_label_map_of_binary_masks_and_cityscapes(data_config):
    ours = label_map(data_config("folder", "data", mask_format="binary"), 2)
    assert ours[[0, 1, 254, 255]].tolist() == [0, -1, -1, 1]
    ours = label_map(data_config("cityscapes", "data"), 19)
    assert ours[[0, 7, 9, 33, 34, 255]].tolist() == [255, 0, 255, 18, -1, -1]


def test_values_outside_the_classes_are_named(make_tree, data_config):
    root = make_tree("folder")
    path = root / "labels" / "val" / "001.png"
    label = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    label[0, :4] = 5, 6, 7, 200
    cv2.imwrite(str(path), label)
    dataset = open_dataset(data_config("folder", root), 4, "val")
    dataset.read(0)
    with pytest.raises(DataError) as caught:
        dataset.read(1)
    assert str(caught.value).startswith(f"{path}: has values 5..7, 200; accepted are 0..3, 255 - ")


def test_sizes_that_differ_are_both_named(make_tree, data_config):
    root = make_tree("folder")
    path = root / "labels" / "val" / "000.png"
    cv2.imwrite(str(path), np.zeros((65, 96), np.uint8))
    with pytest.raises(DataError) as caught:
        open_dataset(data_config("folder", root), 4, "val").read(0)
    assert str(caught.value).startswith(f"{path}: is 65 x 96 pixels")
    assert f"{root}/images/val/000.jpg is 65 x 97" in str(caught.value)


# Classes


def test_table_data_sets_have_their_own_classes(make_tree, data_config):
    data = data_config("voc", make_tree("voc"))
    assert open_dataset(data, 21, "val").class_names == CLASS_NAMES["voc"]
    message = open_error(data, 20, "val", ConfigError)
    assert message == "config.model.num_classes: is 20, but voc has 21 classes - set it to 21"


def test_folder_takes_names_from_json_then_config_then_numbers(make_tree, data_config):
    root = make_tree("folder")
    assert open_dataset(data_config("folder", root), 4, "val").class_names[3] == "class_3"

    data = data_config("folder", root, class_names=("a", "b", "c", "d"))
    dataset = open_dataset(data, 4, "val")
    assert dataset.class_names == ("a", "b", "c", "d")
    np.testing.assert_array_equal(dataset.palette, colormap(4))

    entries = ["sky", {"name": "road", "color": [1, 2, 3]}, "tree", {"name": "car"}]
    (root / "classes.json").write_text(json.dumps(entries))
    assert "its values differ from those of" in open_error(data, 4, "val", ConfigError)
    data = data_config("folder", root)
    dataset = open_dataset(data, 4, "val")
    assert dataset.class_names == ("sky", "road", "tree", "car")
    assert dataset.palette.tolist() == [[0, 0, 0], [1, 2, 3], [0, 128, 0], [128, 128, 0]]
    assert "classes.json has 4 classes" in open_error(data, 5, "val", ConfigError)


@pytest.mark.parametrize(
    "text",
    ["{", '{"name": "a"}', "[1, 2, 3, 4]", '[{"color": [1, 2, 3]}]', "3",
     '[{"name": "a", "color": [1, 2]}]', '[{"name": "a", "color": [1, 2, 300]}]',
     pytest.param("[" * 100_000, id="deep")],
)  # fmt: skip
def test_unusable_classes_json_is_named(make_tree, data_config, text):
    root = make_tree("folder")
    (root / "classes.json").write_text(text)
    message = open_error(data_config("folder", root), 4, "val")
    assert message.startswith(f"{root}/classes.json: is no list of classes")
