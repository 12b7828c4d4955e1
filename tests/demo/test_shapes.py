import json

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.errors import ConfigError

COUNTS = {"train": 15, "val": 10}


@pytest.fixture(scope="module")
def draw_shapes(load_script):
    return load_script("draw_shapes")


@pytest.fixture(scope="module")
def drawn(draw_shapes, tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    draw_shapes.draw(root, seed=3, **COUNTS)
    return root


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def labels(root, split):
    return [np.array(Image.open(path)) for path in sorted((root / "labels" / split).iterdir())]


def test_same_seed_gives_same_bytes(draw_shapes, drawn, tmp_path):
    draw_shapes.draw(tmp_path / "again", seed=3, **COUNTS)
    assert contents(tmp_path / "again") == contents(drawn)


def test_other_seed_gives_other_images(draw_shapes, drawn, tmp_path):
    draw_shapes.draw(tmp_path / "other", seed=4, **COUNTS)
    ours, theirs = contents(drawn), contents(tmp_path / "other")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] != theirs[name] for name in ours if name.endswith((".jpg", ".png")))


def test_more_images_leave_the_first_ones_alone(draw_shapes, drawn, tmp_path):
    draw_shapes.draw(tmp_path / "more", seed=3, train=16, val=10)
    ours, theirs = contents(drawn), contents(tmp_path / "more")
    assert theirs.keys() - ours.keys() == {"images/train/0015.jpg", "labels/train/0015.png"}
    assert all(ours[name] == theirs[name] for name in ours if name != "shapes.json")


@pytest.mark.parametrize("split", COUNTS)
def test_every_image_has_a_label_of_its_size(draw_shapes, drawn, split):
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
    assert sizes == set(draw_shapes.SIZES)


@pytest.mark.parametrize("split", COUNTS)
def test_every_class_is_there_and_few_pixels_are_void(draw_shapes, drawn, split):
    pixels = np.concatenate([label.ravel() for label in labels(drawn, split)])
    assert set(np.unique(pixels)) == {*range(len(draw_shapes.CLASSES)), draw_shapes.VOID}
    assert 0.005 < np.mean(pixels == draw_shapes.VOID) < 0.10


def test_the_front_object_is_in_the_label(draw_shapes):
    for seed in range(20):
        for front in range(len(draw_shapes.SHAPES)):
            _, label = draw_shapes.draw_sample(np.random.default_rng(seed), front)
            assert np.sum(label == front + 1) > 100


def test_classes_have_names_and_distinct_colours(draw_shapes, drawn):
    classes = json.loads((drawn / "classes.json").read_text())
    assert [entry["name"] for entry in classes] == list(draw_shapes.CLASSES)
    colours = [tuple(entry["color"]) for entry in classes]
    assert len(set(colours)) == len(classes)
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


def test_drawing_again_mends_the_same_set(draw_shapes, tmp_path):
    draw_shapes.draw(tmp_path, train=5, val=5)
    before = contents(tmp_path)
    (tmp_path / "labels" / "val" / "0002.png").unlink()
    draw_shapes.draw(tmp_path, train=5, val=5)
    assert contents(tmp_path) == before


def test_another_set_is_left_alone(draw_shapes, tmp_path):
    draw_shapes.draw(tmp_path, train=5, val=5)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="neither an empty folder nor this very set"):
        draw_shapes.draw(tmp_path, seed=1, train=5, val=5)
    assert contents(tmp_path) == before


def test_a_users_folder_is_refused_in_one_line(draw_shapes, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    assert draw_shapes.main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path}: ")
    assert message.count("\n") == 1
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_a_file_is_refused(draw_shapes, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert draw_shapes.main([str(tmp_path / "file")]) == 2
    assert "neither an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--seed=-1", "--train=4", "--val=0"])
def test_values_out_of_range_name_the_flag(draw_shapes, tmp_path, capsys, flag):
    assert draw_shapes.main([str(tmp_path / "set"), flag]) == 2
    assert capsys.readouterr().err.startswith(f"error: {flag.partition('=')[0]}: must be ")
    assert not (tmp_path / "set").exists()
