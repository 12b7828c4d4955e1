import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from deeplab_jax.data import SampleOrder, TrainBatch, eval_examples, open_dataset
from deeplab_jax.errors import DataError


@pytest.fixture
def dataset(make_tree, data_config):
    return open_dataset(data_config("folder", make_tree("folder", num_train=12)), 4, "train")


# Order


def test_order_wraps_within_an_epoch_and_reshuffles_after_it():
    order = SampleOrder(num_samples=5, seed=7, batch_size=2, steps_per_epoch=3)  # 6 of 5
    for epoch in range(3):
        permutation = np.random.default_rng([7, epoch]).permutation(5)
        indices = [order.locate(3 * epoch + k // 2, k % 2)[0] for k in range(6)]
        assert indices == [*permutation, permutation[0]]


def test_cityscapes_epochs_do_not_drift():
    order = SampleOrder(num_samples=2975, seed=0, batch_size=8, steps_per_epoch=372)
    last = [order.locate(371, row)[0] for row in range(8)]
    first = np.random.default_rng([0, 0]).permutation(2975)
    assert last == [*first[-7:], first[0]]
    assert order.locate(372, 0)[0] == np.random.default_rng([0, 1]).permutation(2975)[0]


def test_an_epoch_may_leave_samples_out():
    order = SampleOrder(num_samples=11, seed=0, batch_size=4, steps_per_epoch=2)
    epoch = [order.locate(k // 4, k % 4)[0] for k in range(8)]
    assert len(set(epoch)) == 8
    assert epoch == np.random.default_rng([0, 0]).permutation(11)[:8].tolist()


def test_every_draw_of_a_sample_has_its_own_augmentation():
    order = SampleOrder(num_samples=5, seed=7, batch_size=2, steps_per_epoch=3)
    draws = [order.locate(k // 2, k % 2)[1].random() for k in range(18)]
    shuffles = [np.random.default_rng([7, epoch]).random() for epoch in range(3)]
    assert len({*draws, *shuffles}) == 21  # nor is one the stream of a permutation
    assert order.locate(4, 1)[1].random() == draws[9]


# Batches


def test_batch_has_the_documented_arrays(dataset, read):
    batch = read(dataset, stop=1)[0]
    assert batch.index.dtype == np.int64
    assert batch.index.shape == (4,)
    assert (batch.image.dtype, batch.image.shape) == (np.uint8, (4, 48, 64, 3))
    assert (batch.label.dtype, batch.label.shape) == (np.uint8, (4, 48, 64))
    assert (batch.box.dtype, batch.box.shape) == (np.int32, (4, 4))
    assert set(np.unique(batch.label)) <= {0, 1, 2, 3, 255}


def test_batches_follow_the_order(dataset, read):
    order = SampleOrder(len(dataset), seed=3, batch_size=4, steps_per_epoch=3)
    batches = read(dataset)
    assert len(batches) == 5
    for step, batch in enumerate(batches):
        assert batch.index.tolist() == [order.locate(step, row)[0] for row in range(4)]
    assert len(np.unique([batch.index for batch in batches[:3]])) == 12
    assert (batches[0].image != read(dataset, seed=4)[0].image).any()


def test_resuming_in_mid_epoch_continues(dataset, read, assert_equal):
    whole = read(dataset)
    assert_equal(read(dataset, start=2), whole[2:])
    assert_equal(read(dataset, start=4), whole[4:])


def test_rows_are_those_of_the_whole_batch_in_the_order_asked(dataset, read, assert_equal):
    whole = read(dataset)
    for rows in ([0, 1], [2, 3], [3, 0]):
        part = [TrainBatch(*(field[rows] for field in batch)) for batch in whole]
        assert_equal(read(dataset, rows=rows), part)


def test_nothing_is_read_beyond_the_last_step(dataset, read):
    assert read(dataset, start=5) == []


def test_worker_processes_change_nothing_and_carry_errors(dataset, read, assert_equal):
    whole = read(dataset)
    flags.FLAGS.unparse_flags()  # as in a script without absl.app
    assert_equal(read(dataset, num_workers=1), whole)
    assert_equal(read(dataset, num_workers=2, start=1), whole[1:])
    check_error(dataset, read, num_workers=1)


def test_unusable_sample_is_named(dataset, read):
    check_error(dataset, read, num_workers=0)


def check_error(dataset, read, num_workers):
    path = dataset.source.label_paths[5]
    with open(path, "wb") as file:
        file.write(b"nonsense")
    with pytest.raises(DataError) as caught:
        read(dataset, num_workers=num_workers)
    assert caught.value.where == path
    assert "not an image" in caught.value.what
    assert str(caught.value) == f"{path}: {caught.value.what} - {caught.value.fix}"


# Evaluation


def test_eval_examples_are_in_order_and_keep_their_labels(dataset):
    indices = [7, 0, *range(12)]  # more than are read ahead
    examples = list(eval_examples(dataset, indices, (128, 80)))
    assert [example.index for example in examples] == indices
    for example in examples:
        image, label = dataset.read(example.index)
        np.testing.assert_array_equal(example.label, label)
        # 65 x 97: min(128 / 97, 80 / 65) = 1.2308
        assert example.image.shape == ((80, 119, 3) if image.shape[0] == 65 else (119, 80, 3))


def test_eval_examples_keep_their_size_without_a_base(dataset):
    example = next(eval_examples(dataset, [2], ()))
    image, _ = dataset.read(2)
    np.testing.assert_array_equal(example.image, image)


def test_eval_examples_name_what_is_unusable(dataset):
    with open(dataset.source.image_paths[1], "wb"):
        pass
    examples = eval_examples(dataset, range(12), ())
    assert next(examples).index == 0
    with pytest.raises(DataError, match="is an empty file"):
        next(examples)


def test_importing_the_package_loads_neither_jax_nor_grain():
    code = "import sys, deeplab_jax.data; print([m for m in ('jax', 'grain') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "[]"
