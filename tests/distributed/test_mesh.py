import jax
import numpy as np
import pytest

from deeplab_jax import config
from deeplab_jax.data import SampleOrder, open_dataset, train_batches
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.errors import ConfigError
from deeplab_jax.models import build_model
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.state import init_state
from deeplab_jax.training.step import make_train_step

COUNTS = (1, 2, 4)  # devices
BATCH, PER_EPOCH = 4, 3


@pytest.fixture
def tiny_config(narrow_config, make_tree):
    """A tiny network in float64 with dropout, and its data."""
    return narrow_config(
        "model.num_classes=4",
        "model.atrous_rates=1,2,3",
        "model.dropout_rate=0.5",
        "model.dtype=float64",
        f"data.root={make_tree('folder', num_train=13, num_val=1)}",
        "data.crop_size=64,64",
        "data.resize_base=97,65",
        f"train.batch_size={BATCH}",
        "train.loss_groups=2",
    )


def mesh_of(count, batch=BATCH):
    return mesh_lib.make_mesh(batch, devices=jax.devices()[:count])


def batches(c, mesh, stop):
    """Yields what `Run` trains on: (batch of this host, batch on the devices)."""
    local = train_batches(
        open_dataset(c.data, c.model.num_classes, "train"),
        seed=c.seed,
        batch_size=BATCH,
        steps_per_epoch=PER_EPOCH,
        start=0,
        stop=stop,
        rows=mesh_lib.local_rows(mesh, BATCH),
        crop_size=c.data.crop_size,
        resize_base=c.data.resize_base,
        scale_range=c.data.scale_range,
        num_workers=0,
    )
    return mesh_lib.to_devices(local, mesh, BATCH)


def test_same_samples_in_the_same_rows_on_any_number_of_devices(tiny_config):
    c = tiny_config
    order = SampleOrder(13, c.seed, BATCH, PER_EPOCH)
    expected = [[order.locate(step, row)[0] for row in range(BATCH)] for step in range(20)]
    images = {}
    for count in COUNTS:
        steps = [on_device for _, on_device in batches(c, mesh_of(count), 20)]
        assert all(len(batch.image.sharding.device_set) == count for batch in steps)
        assert [batch.index.tolist() for batch in steps] == expected
        images[count] = [np.asarray(batch.image) for batch in steps]
    for count in COUNTS[1:]:
        np.testing.assert_array_equal(images[count], images[1])


@pytest.fixture
def train_on(tiny_config, compile_quickly):
    """Returns train_on(number of devices) -> losses of five steps."""
    c, total = tiny_config, 5

    def train_on(count):
        mesh = mesh_of(count)
        train_step = make_train_step(c, total, mesh)
        model = build_model(c.model)
        optimizer, _ = build_optimizer(c.train, total)
        start = jax.device_get(jax.jit(lambda: init_state(model, optimizer, c.seed))())
        assert {leaf.dtype for leaf in jax.tree.leaves(start["params"])} == {np.dtype("float64")}
        state, losses = jax.device_put(start, mesh_lib.replicated(mesh)), []
        for _, on_device in batches(c, mesh, total):
            state, metrics = train_step(state, *on_device[1:])
            losses.append(metrics["loss"].item())
        return losses

    with jax.enable_x64(True):
        yield train_on


_TWO = pytest.mark.slow("one program more; four devices are in the first tier")


@pytest.mark.parametrize("count", [4, pytest.param(2, marks=_TWO)])
def test_losses_do_not_depend_on_the_number_of_devices(train_on, count):
    alone, losses = train_on(1), train_on(count)
    assert len(set(alone)) == 5
    np.testing.assert_allclose(losses[0], alone[0], rtol=1e-12)
    np.testing.assert_allclose(losses, alone, rtol=1e-9)


def test_mesh_is_over_the_devices_given_or_all():
    assert mesh_lib.make_mesh(8).shape == {"data": 4, "spatial": 1}
    assert mesh_of(2).shape == {"data": 2, "spatial": 1}


def test_advised_batch_also_divides_into_the_losses_groups():
    c = config.get_config("voc", 50, 16)
    c.train.batch_size, c.train.loss_groups = 20, 8
    with pytest.raises(ConfigError, match="use 24, or fewer devices"):
        mesh_lib.mesh_of(c, jax.devices()[:3])


def test_checker_of_tpus_is_refused_elsewhere():
    c = config.get_config("voc", 50, 16)
    c.mesh.check_hardware = True
    with pytest.raises(ConfigError, match="these devices are cpu - leave it out: --config"):
        mesh_lib.mesh_of(c, jax.devices()[:1])


@pytest.mark.parametrize(("height", "advice"), [(360, ""), (384, "config.mesh.spatial=2 .*, ")])
def test_advised_split_of_rows_is_one_that_the_height_allows(height, advice):
    c = config.get_config("voc", 50, 16)
    c.train.batch_size, c.train.loss_groups = 4, 4
    c.data.crop_size = (height, 64)
    with pytest.raises(ConfigError, match=f"use 8, {advice}or fewer devices"):
        mesh_lib.mesh_shape(c, 8)


@pytest.mark.parametrize(
    ("batch", "count", "nearest", "spatial"),
    [(6, 4, 8, 2), (5, 4, 4, 4), (3, 4, 4, 4), (1, 2, 2, 2), (9, 4, 8, 4)],
)
def test_batch_that_does_not_divide_over_the_devices_names_the_nearest(
    batch, count, nearest, spatial
):
    with pytest.raises(ConfigError) as error:
        mesh_of(count, batch)
    assert str(error.value) == (
        f"config.train.batch_size: {batch} does not divide over {count} devices - "
        f"use {nearest}, config.mesh.spatial={spatial} (which keeps the result), or fewer devices"
    )


def test_rows_lie_in_order_over_the_devices():
    mesh = mesh_of(4)
    (batch,) = [on_device for _, on_device in mesh_lib.to_devices(iter([(np.arange(8),)]), mesh, 8)]
    shards = sorted(batch[0].addressable_shards, key=lambda shard: shard.device.id)
    assert [shard.data.tolist() for shard in shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert mesh_lib.local_rows(mesh, 8) == list(range(8))


def test_batches_are_copied_two_ahead_and_come_in_order():
    taken = []

    def source():
        for number in range(6):
            taken.append(number)
            yield (np.full(4, number),)

    stream = mesh_lib.to_devices(source(), mesh_of(2), 4)
    batch, on_device = next(stream)
    assert taken == [0, 1, 2]
    assert batch[0][0] == on_device[0][0] == 0
    assert [int(batch[0][0]) for batch, _ in stream] == [1, 2, 3, 4, 5]
