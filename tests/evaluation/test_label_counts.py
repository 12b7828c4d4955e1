import json
import os
import re

import numpy as np
import pytest

from deeplab_jax.data import open_dataset
from deeplab_jax.data.images import read_label, write_png
from deeplab_jax.data.sources.given import open_given
from deeplab_jax.errors import DataError
from deeplab_jax.evaluation import label_counts


@pytest.fixture
def opened(make_tree, narrow_config):
    """Returns opened() -> (training split, config.data) of one tree, listed anew at each call."""
    root = make_tree("folder")

    def opened():
        config = narrow_config(f"data.root={root}", "model.num_classes=4")
        return open_dataset(config.data, 4, "train"), config.data

    return opened


def test_counts_equal_plain_ones_and_are_kept(opened, tmp_path, monkeypatch):
    dataset, _ = opened()
    values = np.concatenate([read_label(path).ravel() for path in dataset.source.label_paths])
    expected = [*((values == c).sum() for c in range(4)), (values == 255).sum()]
    assert label_counts.count_labels(dataset, tmp_path).tolist() == expected
    monkeypatch.setattr(label_counts, "_count", None)  # what is kept is not counted again
    assert label_counts.count_labels(opened()[0], tmp_path).tolist() == expected


def test_changed_files_are_counted_again(opened, tmp_path):
    dataset, _ = opened()
    before = label_counts.count_labels(dataset, tmp_path)
    mask = dataset.source.label_paths[3]
    label = read_label(mask)
    write_png(mask, np.zeros_like(label))
    os.utime(mask, ns=(1, 1))
    after = label_counts.count_labels(dataset, tmp_path)
    assert after[0] - before[0] == (label != 0).sum()
    assert after.sum() == before.sum()


def test_given_data_without_a_fingerprint_are_counted_anew(tmp_path):
    class Mine:
        ids, class_names = ("a",), ("x", "y")

        def __init__(self, value):
            self.read = lambda index: (np.zeros((2, 3, 3), np.uint8), np.full((2, 3), value))

        def __len__(self):
            return 1

    sets = [open_given(Mine(value), "train_data", 2, "train") for value in (0, 1)]
    counts = [label_counts.count_labels(one, tmp_path).tolist() for one in sets]
    assert counts == [[6, 0, 0], [0, 6, 0]]
    Mine.fingerprint = lambda self: "1"
    label_counts.count_labels(open_given(Mine(0), "train_data", 2, "train"), tmp_path)
    assert len(json.loads((tmp_path / label_counts.FILE).read_text())["train"]) == 1


def test_one_split_with_and_without_samples_is_counted_once_each(opened, tmp_path, monkeypatch):
    whole = opened()[0]
    part = whole.select(range(len(whole) - 1))
    counts = [label_counts.count_labels(one, tmp_path).tolist() for one in (part, whole)]
    monkeypatch.setattr(label_counts, "_count", None)
    for _ in range(2):
        for one, count in zip((part, whole), counts, strict=True):
            assert label_counts.count_labels(one, tmp_path).tolist() == count


def test_split_without_a_pixel_to_score_is_refused(opened):
    dataset, data_config = opened()
    label_counts.refuse_none(np.array([0, 1, 0, 0, 9]), dataset, data_config)
    with pytest.raises(DataError, match=r"'train' has no pixel to be scored: all 9 are ignored - "):
        label_counts.refuse_none(np.array([0, 0, 0, 0, 9]), dataset, data_config)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"train": 3}', '{"train": {"stamp": 1}}'])
def test_what_is_kept_may_be_damaged(opened, tmp_path, text):
    (tmp_path / label_counts.FILE).write_text(text)
    assert label_counts.count_labels(opened()[0], tmp_path).all()
    kept = json.loads((tmp_path / label_counts.FILE).read_text())
    assert kept.keys() == {"train"}


def test_a_mask_that_cannot_be_used_is_named(opened, tmp_path):
    dataset, _ = opened()
    write_png(dataset.source.label_paths[1], np.full((65, 97), 9, np.uint8))
    with pytest.raises(DataError) as caught:
        label_counts.count_labels(dataset, tmp_path)
    assert caught.value.where == dataset.source.label_paths[1]
    assert not (tmp_path / label_counts.FILE).exists()


@pytest.mark.parametrize(
    ("pixels", "is_training", "lines"),
    [
        ([5, 5, 5, 5, 9], True, []),
        ([5, 0, 5, 0, 0], True, ["2 of 4 classes .* split train, and cannot be learnt: 1 .*, 3 "]),
        ([5, 0, 5, 5, 0], False, ["1 of 4 classes has .* is left out of the mean IoU if not pred"]),
        ([1, 2, 1, 1, 46], True, ["90.2 % of the pixels of split train are ignored"]),
        ([0, 0, 0, 0, 9], True, ["split train has no pixel that counts: all 9 are ignored"]),
    ],
)
def test_what_counts_say_against_a_split(opened, pixels, is_training, lines):
    dataset, data_config = opened()
    got = label_counts.warnings(np.array(pixels), dataset, data_config, is_training)
    assert len(got) == len(lines)
    for line, pattern in zip(got, lines, strict=True):
        assert re.search(pattern, line)


def test_black_and_white_read_as_indices_is_told(make_tree, narrow_config):
    config = narrow_config(f"data.root={make_tree('folder', num_classes=2)}", "model.num_classes=2")
    dataset = open_dataset(config.data, 2, "train")
    first, second = label_counts.warnings(np.array([70, 0, 30]), dataset, config.data, True)
    assert "1 of 2 classes" in first
    assert second.endswith("--config.data.mask_format=binary")
