import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from deeplab_jax.data import open_dataset
from deeplab_jax.data.writers import archives
from deeplab_jax.data.writers.cache import write_cache
from deeplab_jax.errors import ConfigError, DataError, ResourceError

CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19, "folder": 4}


@pytest.fixture
def cached(make_tree, data_config, tmp_path):
    """Returns cached(dataset, **fields) -> (config.data of the folder, of its cache)."""

    def make(name, **fields):
        data = data_config(name, make_tree(name), **fields)
        write_cache(data, CLASSES[name], tmp_path / "cache", False)
        return data, data_config(name, tmp_path / "cache", source="cache", **fields)

    return make


@pytest.mark.parametrize("name", CLASSES)
def test_cache_gives_the_folders_samples(cached, name):
    folder, data = cached(name)
    for split in (folder.train_split, folder.val_split):
        expected = open_dataset(folder, CLASSES[name], split)
        dataset = open_dataset(data, CLASSES[name], split)
        assert (dataset.name, dataset.split, dataset.ids) == (name, split, expected.ids)
        assert dataset.class_names == expected.class_names
        np.testing.assert_array_equal(dataset.palette, expected.palette)
        for index in range(len(expected)):
            for value, other in zip(dataset.read(index), expected.read(index), strict=True):
                assert value.dtype == np.uint8
                np.testing.assert_array_equal(value, other)


def test_cache_of_16_bits_is_of_one_range(open_error, tmp_path, make_tree, data_config):
    root, output = make_tree("folder"), tmp_path / "cache"
    for path in root.rglob("images/*/*"):
        wide = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 9
        path.unlink()
        assert cv2.imwrite(str(path.with_suffix(".png")), wide)
    folder = data_config("folder", root, value_range=(0, 2295))
    write_cache(folder, 4, output, False)
    data = data_config("folder", output, source="cache", value_range=(0, 2295))
    expected, dataset = (open_dataset(d, 4, "train") for d in (folder, data))
    np.testing.assert_array_equal(dataset.read(0)[0], expected.read(0)[0])
    for value_range in ((), (0, 65535)):
        changed = dataclasses.replace(data, value_range=value_range)
        text = open_error(changed, 4, "train", ConfigError)
        words = f"is {list(value_range)}, but the cache at {output} was written with [0, 2295]"
        assert text.startswith(f"config.data.value_range: {words}")
        changed = dataclasses.replace(folder, value_range=value_range)
        with pytest.raises(DataError, match="differs from the files in labels"):
            write_cache(changed, 4, output, False)
    with pytest.raises(DataError, match="has 16 bits a channel"):
        write_cache(dataclasses.replace(folder, value_range=()), 4, tmp_path / "other", False)


def test_cache_from_before_value_range_is_of_8_bits(cached, tmp_path):
    folder, data = cached("folder")
    for path in (tmp_path / "cache").glob("*.json"):
        index = json.loads(path.read_text())
        if "labels" in index:
            assert index["labels"].pop("value_range") == []
            path.write_text(json.dumps(index))
    assert len(open_dataset(data, 4, "train"))
    write_cache(folder, 4, tmp_path / "cache", True)


@pytest.mark.parametrize(
    ("scale_range", "num_workers"),
    [((0.5, 2.0), 0), ((0.5, 2.0), 2), ((1.0, 1.0), 0)],  # 1: nothing is resized
)
def test_cache_gives_the_folders_batches(cached, scale_range, num_workers, read, assert_equal):
    folder, data = cached("cityscapes")
    options = {"resize_base": (97, 65), "scale_range": scale_range}
    expected = read(open_dataset(folder, 19, "train"), **options)
    dataset = open_dataset(data, 19, "train")
    assert_equal(read(dataset, num_workers=num_workers, **options), expected)


def test_images_are_views_of_the_file(cached):
    dataset = open_dataset(cached("cityscapes")[1], 19, "train")
    image, label = dataset.source.read(3)
    assert not image.flags.owndata
    assert not image.flags.writeable
    assert label.base is not None


def test_stamps_follow_the_stored_samples(cached, tmp_path):
    folder, data = cached("folder")
    before = open_dataset(data, 4, "val").source
    mask = next(Path(folder.root, "labels/val").iterdir())
    cv2.imwrite(str(mask), np.zeros((65, 97), np.uint8))
    shutil.rmtree(tmp_path / "cache")
    write_cache(folder, 4, tmp_path / "cache", False)
    after = open_dataset(data, 4, "val").source
    same = [before.stamp(index) == after.stamp(index) for index in range(4)]
    assert same.count(False) == 1


def test_an_open_cache_is_small_to_send(cached):
    dataset = open_dataset(cached("cityscapes")[1], 19, "train")
    before = dataset.read(1)
    small = pickle.dumps(dataset.source)
    assert len(small) < 2000
    for value, other in zip(pickle.loads(small).read(1), before, strict=False):
        assert value.shape == other.shape


def test_labels_are_stored_as_classes(cached):
    dataset = open_dataset(cached("cityscapes")[1], 19, "train")
    assert set(np.unique(dataset.source.read(0)[1])) == {*range(19), 255}


def test_wide_masks_and_class_values_are_cached(make_tree, data_config, tmp_path):
    root = make_tree("folder")
    for path in root.glob("labels/*/*.png"):
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16)
        assert cv2.imwrite(str(path), np.where(label == 255, 65535, label * 300))
    fields = {"class_values": (0, 300, 600, 900), "ignore_values": (65535,)}
    data = data_config("folder", root, **fields)
    write_cache(data, 4, tmp_path / "cache", False)
    cache_data = data_config("folder", tmp_path / "cache", source="cache", **fields)
    expected = open_dataset(data, 4, "val").read(0)
    for value, other in zip(open_dataset(cache_data, 4, "val").read(0), expected, strict=True):
        np.testing.assert_array_equal(value, other)
    for key, value in (("class_values", (0, 600, 300, 900)), ("ignore_values", (255,))):
        other = data_config("folder", tmp_path / "cache", source="cache", **(fields | {key: value}))
        with pytest.raises(ConfigError, match=rf"config.data.{key}: is .* was written with"):
            open_dataset(other, 4, "val")


# Stale and damaged caches


def test_another_number_of_classes_is_refused(cached):
    _, data = cached("folder")
    with pytest.raises(ConfigError, match=r"is 5, but .*classes.json has 4 classes"):
        open_dataset(data, 5, "train")


def test_other_names_or_data_sets_are_refused(cached, data_config):
    _, data = cached("folder", class_names=("a", "b", "c", "d"))
    assert open_dataset(data, 4, "train").class_names == ("a", "b", "c", "d")
    data = dataclasses.replace(data, class_names=("a", "b", "c", "e"))
    with pytest.raises(ConfigError, match="class_names: its values differ"):
        open_dataset(data, 4, "train")
    other = data_config("voc", data.root, source="cache", train_split="train")
    with pytest.raises(ConfigError, match=r"data.dataset: is voc, but .* written with folder"):
        open_dataset(other, 21, "train")


def test_a_changed_list_of_samples_is_refused(cached):
    folder, data = cached("folder")
    (path,) = Path(folder.root).glob("images/train/003.jpg")
    path.unlink()
    open_dataset(data, 4, "train")  # half a folder says nothing
    Path(folder.root, "labels/train/003.png").unlink()
    with pytest.raises(DataError, match="the ids of split 'train' have changed since"):
        open_dataset(data, 4, "train")
    open_dataset(data, 4, "val")


def test_changed_classes_are_refused(cached):
    folder, data = cached("folder")
    Path(folder.root, "classes.json").write_text('["b", "a", "c", "d"]')
    with pytest.raises(DataError, match=r"the classes of .* have changed since"):
        open_dataset(data, 4, "train")
    shutil.rmtree(folder.root)
    Path(data.root, "classes.json").write_text('["b", "a", "c", "d"]')
    with pytest.raises(DataError, match=r"the classes of .* have changed since"):
        open_dataset(data, 4, "train")


def test_a_cache_outlives_its_folder(cached, tmp_path):
    folder, data = cached("folder")
    expected = open_dataset(folder, 4, "train").read(2)
    Path(folder.root).rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(open_dataset(data, 4, "train").read(2)[0], expected[0])


def test_splits_may_be_folders(make_tree, data_config, tmp_path):
    root = make_tree("folder")
    for kind in ("images", "labels"):
        (root / kind / "a").mkdir()
        (root / kind / "train").rename(root / kind / "a" / "train")
    data = data_config("folder", root, train_split="a/train")
    write_cache(data, 4, tmp_path / "cache", False)
    data = data_config("folder", tmp_path / "cache", source="cache")
    assert len(open_dataset(data, 4, "a/train")) == 12
    with pytest.raises(DataError, match=r"no cached split '\.\./train'"):
        open_dataset(data, 4, "../train")


def test_an_unknown_split_is_named(cached):
    _, data = cached("folder")
    with pytest.raises(DataError, match=r"no cached split 'test' \(there are train, val\)"):
        open_dataset(data, 4, "test")
    data = dataclasses.replace(data, root="nowhere")
    with pytest.raises(DataError, match=r"nowhere: .*no cache"):
        open_dataset(data, 4, "train")


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", None])
def test_another_size_is_refused(cached, change):
    _, data = cached("folder")
    path = Path(data.root, "train.bin")
    size = path.stat().st_size
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    with pytest.raises(DataError, match=rf"train.bin: has \d+ bytes, not {size}"):
        open_dataset(data, 4, "train")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"ids": 3, "table": "x"}'])
def test_a_damaged_index_is_one_line(cached, text):
    _, data = cached("folder")
    Path(data.root, "train.json").write_text(text)
    with pytest.raises(DataError, match=r"train.json: is no index of a cache"):
        open_dataset(data, 4, "train")


def test_another_version_is_refused(cached):
    _, data = cached("folder")
    path = Path(data.root, "train.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(DataError, match="of another version"):
        open_dataset(data, 4, "train")


def test_verify_finds_a_changed_byte(cached):
    folder, data = cached("folder")
    output = Path(data.root)
    write_cache(folder, 4, output, True)
    content = bytearray((output / "val.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (output / "val.bin").write_bytes(content)
    write_cache(folder, 4, output, False)  # sizes alone
    with pytest.raises(DataError, match=r"val.bin: 00\d has changed since it was written"):
        write_cache(folder, 4, output, True)


# Writing


def test_a_second_run_writes_nothing_and_notices_changes(cached):
    folder, data = cached("folder")
    output = Path(data.root)
    times = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    write_cache(folder, 4, output, False)
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == times
    path = Path(folder.root, "labels/val/002.png")
    assert cv2.imwrite(str(path), np.zeros((65, 97), np.uint8))
    with pytest.raises(DataError, match="split 'val' differs from the files in source"):
        write_cache(folder, 4, output, False)
    with pytest.raises(ConfigError, match=r"config.data.source"):
        write_cache(data, 4, output, False)


def test_an_unusable_sample_leaves_nothing(make_tree, data_config, tmp_path):
    root = make_tree("folder")
    path = root / "labels/train/007.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"007.png: is damaged"):
        write_cache(data_config("folder", root), 4, tmp_path / "in" / "cache", False)
    assert not list((tmp_path / "in").iterdir())


def test_room_is_checked_first(make_tree, data_config, tmp_path, monkeypatch):
    data = data_config("folder", make_tree("folder"))
    needed = 16 * 65 * 97 * 4
    monkeypatch.setattr(archives.shutil, "disk_usage",
                        lambda path: type("Usage", (), {"free": 1000}))  # fmt: skip
    with pytest.raises(ResourceError, match=f"{needed} bytes are needed and 1000 are free"):
        write_cache(data, 4, tmp_path / "cache", False)
