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
def quick_compile():
    """Compiles without the costly optimisations."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture
def make_config(make_tree):
    """Returns make_config() of a tiny network in float64 with dropout, and its data."""
    root = make_tree("folder", num_train=13, num_val=1)

    def make():
        c = config.get_config("folder", depth=18, output_stride=16)
        c.model.num_classes = 4
        c.model.atrous_rates = (1, 2, 3)
        c.model.width, c.model.head_channels = 8, 16
        c.model.low_level_channels, c.model.aux_channels = 4, 8
        c.model.dropout_rate = 0.5
        c.model.dtype = "float64"
        c.data.root = str(root)
        c.data.crop_size = (64, 64)
        c.data.resize_base = (97, 65)
        c.train.batch_size = BATCH
        c.train.loss_groups = 2
        return c

    return make


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


def test_same_samples_in_the_same_rows_on_any_number_of_devices(make_config):
    c = make_config()
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


def test_losses_do_not_depend_on_the_number_of_devices(make_config, quick_compile):
    c = make_config()
    losses = {}
    with jax.enable_x64(True):
        model = build_model(c.model)
        optimizer, _ = build_optimizer(c.train, 5)
        start = jax.device_get(jax.jit(lambda: init_state(model, optimizer, c.seed))())
        assert {leaf.dtype for leaf in jax.tree.leaves(start["params"])} == {np.dtype("float64")}
        for count in COUNTS:
            mesh = mesh_of(count)
            train_step = make_train_step(c, 5, mesh)
            state = jax.device_put(start, mesh_lib.replicated(mesh))
            losses[count] = []
            for _, on_device in batches(c, mesh, 5):
                state, metrics = train_step(state, *on_device[1:])
                losses[count].append(metrics["loss"].item())
    assert len(set(losses[1])) == 5
    for count in COUNTS[1:]:
        np.testing.assert_allclose(losses[count][0], losses[1][0], rtol=1e-12)
        np.testing.assert_allclose(losses[count], losses[1], rtol=1e-9)


def test_mesh_is_over_the_devices_given_or_all():
    assert mesh_lib.make_mesh(8).shape == {"data": 4, "spatial": 1}
    assert mesh_of(2).shape == {"data": 2, "spatial": 1}


def test_advised_batch_also_divides_into_the_losses_groups():
    c = config.get_config("voc", 50, 16)
    c.train.batch_size, c.train.loss_groups = 20, 8
    with pytest.raises(ConfigError, match="use 24, or fewer devices"):
        mesh_lib.mesh_of(c, jax.devices()[:3])


@pytest.mark.parametrize(("height", "advice"), [(360, ""), (384, "config.mesh.spatial=2 .*, ")])
def test_advised_split_of_rows_is_one_that_the_height_allows(height, advice):
    c = config.get_config("voc", 50, 16)
    c.train.batch_size, c.train.loss_groups = 4, 4
    c.data.crop_size = (height, 64)
    with pytest.raises(ConfigError, match=f"use 8, {advice}or fewer devices"):
        mesh_lib.mesh_shape(c, 8)


@pytest.mark.parametrize(
    ("batch", "count", "nearest", "space"),
    [(6, 4, 8, 2), (5, 4, 4, 4), (3, 4, 4, 4), (1, 2, 2, 2), (9, 4, 8, 4)],
)
def test_batch_that_does_not_divide_over_the_devices_names_the_nearest(
    batch, count, nearest, space
):
    with pytest.raises(ConfigError) as error:
        mesh_of(count, batch)
    assert str(error.value) == (
        f"config.train.batch_size: {batch} does not divide over {count} devices - "
        f"use {nearest}, config.mesh.spatial={space} (which keeps the result), or fewer devices"
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
