import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data import open_dataset
from deeplab_jax.data.classes import colormap
from deeplab_jax.errors import DataError

CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19, "folder": 4}


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


def test_dataset_survives_pickling(make_tree, data_config):
    dataset = open_dataset(data_config("folder", make_tree("folder")), 4, "val")
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.ids == dataset.ids
    for ours, theirs in zip(dataset.read(0), copy.read(0), strict=True):
        np.testing.assert_array_equal(ours, theirs)


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


@pytest.mark.parametrize("fields", [{}, {"mask_format": "binary"}, {"class_values": (255, 0)}])
def test_transparent_pixels_are_ignored_whatever_255_means(make_tree, data_config, fields):
    root = make_tree("folder", num_train=1, num_val=1)
    path = next((root / "labels" / "val").iterdir())
    label = np.array(Image.open(path))
    values = np.where(label % 2, 255 if fields else 1, 0).astype(np.uint8)
    alpha = np.where(label == 2, 0, 255).astype(np.uint8)
    Image.merge("LA", [Image.fromarray(values), Image.fromarray(alpha)]).save(path)
    dataset = open_dataset(data_config("folder", root, **fields), 2, "val")
    expected = (1, 0) if "class_values" in fields else (0, 1)
    got = dataset.read(0)[1]
    np.testing.assert_array_equal(got, np.where(label == 2, 255, np.array(expected)[label % 2]))
