"""Chains of transforms, and batches that are made with them."""

import dataclasses
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from deeplab_jax.config import freeze, get_config, transforms
from deeplab_jax.data import TrainBatch, open_dataset
from deeplab_jax.data.augment.chain import Chain, check_transforms
from deeplab_jax.errors import ConfigError, DataError

ALL = (
    "scale", "copy_paste(classes=[2, 1], chance=0.9)", "crop(max_share=0.9)", "flip",
    "vertical_flip", "rotate", "photometric", "blur", "jpeg", "erase",
)  # fmt: skip
SIZES = (48, 64), (96, 64), (0.5, 2.0)  # crop, resize base, scales


@pytest.fixture(scope="module")
def dataset(make_tree):
    data = dataclasses.replace(freeze(get_config("folder")).data, root=str(make_tree("folder")))
    return open_dataset(data, 4, "train")


def darken(image, label, rng):
    image[: rng.integers(1, 10)] = 0
    return image[:, ::-1], label[:, ::-1]


def mark(image, label, rng):
    image[:] = 7
    return image, label


@pytest.fixture
def whole(dataset, read):
    return read(dataset, names=ALL)


def test_the_reference_by_its_names_is_the_reference(dataset, read, assert_equal):
    names = ("scale", "crop", "flip", "photometric")
    assert_equal(read(dataset, names=names), read(dataset))
    # Apart, scale and crop compute the same from more pixels.
    apart = Chain(dataset, ("scale", "vertical_flip(chance=1e-9)", "crop"), None, *SIZES)
    together = Chain(dataset, ("scale", "crop"), None, *SIZES)

    class Skipping:
        """A generator without the draw of the coin between the two."""

        def __init__(self, seed):
            self.rng, self.number = np.random.default_rng(seed), 0
            self.integers = self.rng.integers

        def random(self):
            self.number += 1
            return 0.5 if self.number == 2 else self.rng.random()

    for index in range(6):
        sample = dataset.read(index)
        got = apart(sample, Skipping(index), index)
        for one, two in zip(got, together(sample, Skipping(index), index), strict=True):
            np.testing.assert_array_equal(one, two)


def test_batches_are_a_function_of_seed_and_step(dataset, read, assert_equal, whole):
    assert_equal(read(dataset, names=ALL, start=2), whole[2:])
    for rows in ([0, 1], [3, 2]):
        part = [TrainBatch(*(field[rows] for field in batch)) for batch in whole]
        assert_equal(read(dataset, names=ALL, rows=rows), part)
    assert (read(dataset, names=ALL, seed=4)[0].image != whole[0].image).any()
    plain = read(dataset)
    assert all((a.index == b.index).all() for a, b in zip(plain, whole, strict=True))
    values = {int(value) for batch in whole for value in np.unique(batch.label)}
    assert values <= {0, 1, 2, 3, 255}


@pytest.mark.process("starts reading processes")
def test_worker_processes_change_nothing(dataset, read, assert_equal, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(transforms, "FOLDERS", [str(tmp_path)])
    text = "def shade(image, label, rng):\n    return image // 2, label\n"
    (tmp_path / "own_chain.py").write_text(text)  # which the processes import, too
    own = {"names": (*ALL, "own_chain:shade"), "transform": darken, "stop": 3}
    assert_equal(read(dataset, **own, num_workers=2), read(dataset, **own))
    del sys.modules["own_chain"]


def test_a_function_that_is_handed_over_comes_last(dataset, read):
    for batch in read(dataset, transform=mark):
        for image, box in zip(batch.image, batch.box, strict=True):
            top, left, bottom, right = box
            assert (image[top:bottom, left:right] == 7).all()
            assert image.sum() == 7 * 3 * (bottom - top) * (right - left)
    reference = [batch.label for batch in read(dataset)]
    np.testing.assert_array_equal([batch.label for batch in read(dataset, transform=mark)],
                                  reference)  # fmt: skip


def test_a_sample_that_is_kept_in_memory_is_not_written_to(dataset):
    chain = Chain(dataset, ("copy_paste(classes=[1], chance=1)", "erase(chance=1)"), mark, *SIZES)
    image, label = dataset.read(0)
    before = image.copy(), label.copy()
    image.flags.writeable = label.flags.writeable = False
    chain((image, label), np.random.default_rng(0), 0)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_pasting_does_not_depend_on_what_was_read_before(dataset):
    names = ("scale", "copy_paste(classes=[3, 1], chance=1)")
    used = Chain(dataset, names, None, *SIZES)
    changed = 0
    for index in range(12):
        fresh, plain = Chain(dataset, names, None, *SIZES), Chain(dataset, names[:1], None, *SIZES)
        sample = dataset.read(index)
        results = [c(sample, np.random.default_rng(index), index) for c in (used, fresh, plain)]
        for one, two in zip(*results[:2], strict=True):
            np.testing.assert_array_equal(one, two)
        changed += (results[0][1] != results[2][1]).any()
    assert changed > 8


class Masks:
    """A data set of which one sample in ten holds class 1; it counts what is read."""

    class_names = ("ground", "pole")

    def __init__(self):
        self.source = self
        self.masks = self.reads = 0

    def __len__(self):
        return 40

    def names(self, index):
        return f"{index}.png", f"{index}_mask.png"

    def read_mask(self, index):
        self.masks += 1
        return np.full((8, 9), index % 10 == 0, np.uint8)

    def to_classes(self, index, mask):
        return mask

    def read(self, index):
        self.reads += 1
        return np.full((8, 9, 3), index, np.uint8), self.read_mask(index)


def test_pasting_searches_a_sample_with_the_class():
    masks = Masks()
    chain = Chain(masks, ("copy_paste(classes=['pole'], chance=1)",), None, *SIZES)
    sample = np.full((8, 9, 3), 99, np.uint8), np.zeros((8, 9), np.uint8)
    found = [chain(sample, np.random.default_rng(seed), 0) for seed in range(60)]
    pasted = [image for image, label in found if label.any()]
    assert len(pasted) > 45  # twenty tries find one in ten with chance 0.88
    assert {int(image[label == 1][0, 0]) for image, label in found if label.any()} == {
        0,
        10,
        20,
        30,
    }
    assert masks.reads == len(pasted)
    assert masks.masks - masks.reads <= 40  # each once


def test_a_class_by_a_wrong_name_is_refused(dataset):
    with pytest.raises(ConfigError, match=r"copy_paste: there is no class 'pol' - did you mean po"):
        Chain(Masks(), ("copy_paste(classes=['pol'])",), None, *SIZES)
    with pytest.raises(ConfigError, match="the classes are ground, pole"):
        Chain(Masks(), ("copy_paste(classes=['x'])",), None, *SIZES)


# What a run checks before it starts


def config(**fields):
    defaults = {"transforms": (), "num_workers": 0, "max_bad_samples": 0, "crop_size": (48, 64),
                "resize_base": (96, 64), "scale_range": (0.5, 2.0)}  # fmt: skip
    return SimpleNamespace(**defaults | fields)


def test_functions_are_tried_on_a_sample_that_can_be_read(dataset):
    class Broken(Masks):
        def read(self, index):
            if index < 2:
                raise DataError(f"{index}.png", "is cut off", "copy it again")
            return super().read(index)

    def wrong(image, label, rng):
        return image, label + 2

    with pytest.raises(DataError, match="is cut off"):
        check_transforms(Broken(), config(), wrong)
    with pytest.raises(ConfigError, match=r"on 2.png its label has the value 2; accepted are 0 to"):
        check_transforms(Broken(), config(max_bad_samples=2), wrong)
    assert check_transforms(Broken(), config(max_bad_samples=1), wrong) == {}  # leaving out tells
    assert check_transforms(Broken(), config()) == {}
    assert check_transforms(dataset, config(transforms=ALL)) == {}


def test_a_function_that_cannot_be_sent_to_processes_is_refused(dataset):
    lock = threading.Lock()

    def locks(image, label, rng):
        return (image, label) if lock else None

    assert check_transforms(dataset, config(), locks) == {}
    with pytest.raises(ConfigError, match=r"cannot be sent to worker processes.*num_workers=0"):
        check_transforms(dataset, config(num_workers=1), locks)
