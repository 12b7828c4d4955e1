import json

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.demo import shapes

COUNTS = {"train": 15, "val": 10}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    shapes.draw(root, seed=3, **COUNTS)
    return root


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_files_are_those_that_are_drawn(drawn):
    assert contents(drawn).keys() == shapes.files(**COUNTS)


def labels(root, split):
    return [np.array(Image.open(path)) for path in sorted((root / "labels" / split).iterdir())]


def test_same_seed_gives_same_bytes(drawn, tmp_path):
    shapes.draw(tmp_path / "again", seed=3, **COUNTS)
    assert contents(tmp_path / "again") == contents(drawn)


def test_other_seed_gives_other_images(drawn, tmp_path):
    shapes.draw(tmp_path / "other", seed=4, **COUNTS)
    ours, theirs = contents(drawn), contents(tmp_path / "other")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] != theirs[name] for name in ours if name.endswith((".jpg", ".png")))


def test_more_images_leave_the_first_ones_alone(drawn, tmp_path):
    shapes.draw(tmp_path / "more", seed=3, train=16, val=10)
    ours, theirs = contents(drawn), contents(tmp_path / "more")
    assert theirs.keys() - ours.keys() == {"images/train/0015.jpg", "labels/train/0015.png"}
    assert all(ours[name] == theirs[name] for name in ours if name != "shapes.json")


@pytest.mark.parametrize("split", COUNTS)
def test_every_image_has_a_label_of_its_size(drawn, split):
    images = sorted((drawn / "images" / split).iterdir())
    names = [path.stem for path in (drawn / "labels" / split).iterdir()]
    assert [path.stem for path in images] == sorted(names)
    assert len(images) == COUNTS[split]
    sizes = set()
    for path, label in zip(images, labels(drawn, split), strict=True):
        image = np.array(Image.open(path))
        assert image.shape == (*label.shape, 3)
        assert label.dtype == np.uint8
        sizes.add(label.shape)
    assert sizes == set(shapes.SIZES)


@pytest.mark.parametrize("split", COUNTS)
def test_every_class_is_there_and_few_pixels_are_void(drawn, split):
    pixels = np.concatenate([label.ravel() for label in labels(drawn, split)])
    assert set(np.unique(pixels)) == {*range(len(shapes.CLASSES)), shapes.VOID}
    assert 0.005 < np.mean(pixels == shapes.VOID) < 0.10


def test_the_front_object_is_in_the_label():
    for seed in range(20):
        for front in range(len(shapes.SHAPES)):
            _, label = shapes.draw_sample(np.random.default_rng(seed), front)
            assert np.sum(label == front + 1) > 100


def test_classes_have_names_and_distinct_colours(drawn):
    classes = json.loads((drawn / "classes.json").read_text())
    assert [entry["name"] for entry in classes] == list(shapes.CLASSES)
    colours = [tuple(entry["color"]) for entry in classes]
    assert len(set(colours)) == len(classes)
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)
