import jax
import jax.numpy as jnp
import pytest

from deeplab_jax.config import freeze, get_config
from deeplab_jax.dry_run import estimate, flops

_DEEPER = pytest.mark.slow("ResNet-50 is counted in the first tier")


@pytest.mark.parametrize(
    ("depth", "stride", "gmacs", "millions"),
    [
        (50, 16, 59.6, 41.2),
        (50, 8, 176.2, 41.2),
        pytest.param(101, 16, 79.0, 60.2, marks=_DEEPER),
        pytest.param(101, 8, 253.8, 60.2, marks=_DEEPER),
    ],
)
def test_the_published_networks_at_512x512(depth, stride, gmacs, millions):
    config = freeze(get_config("voc", depth, stride))
    macs, numbers = flops.count_macs(config), flops.count_parameters(config)
    aux = "auxiliary head"
    assert (sum(macs.values()) - macs[aux]) / 1e9 == pytest.approx(gmacs, abs=0.06)
    assert (sum(numbers.values()) - numbers[aux]) / 1e6 == pytest.approx(millions, abs=0.06)
    assert numbers[aux] / 1e6 == pytest.approx(4.7, abs=0.06)


def test_parts_of_the_network_at_output_stride_16():
    config = freeze(get_config("voc", 50, 16))
    macs = flops.count_macs(config)
    assert tuple(macs) == tuple(flops.count_parameters(config)) == flops.PARTS
    size = 32 * 32
    merge, rate = size * 9 * 5 * 512 * 512, 9  # a depthwise kernel's products an output
    assert macs["ASPP merge"] == merge
    pooled = 2048 * 512
    branch = size * 2048 * (rate + 512)
    assert macs["ASPP branches"] == size * 2048 * 512 + 3 * branch + pooled
    assert macs["classifier"] == 128 * 128 * 512 * 21
    assert macs["auxiliary head"] == size * (9 * 1024 * 512 + 512 * 21)


def test_what_a_loop_does_counts_every_turn():
    def body(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=5)[0]

    jaxpr = jax.make_jaxpr(jax.jit(body))(jnp.ones((4, 4))).jaxpr
    assert sum(number for _, number in flops.products(jaxpr)) == 5 * 4**3


@pytest.mark.parity("traces a training step twice; the first tier counts the published networks")
def test_layers_that_are_computed_again_count_once_more():
    recipe = get_config("folder", 18, 16)
    recipe.model.num_classes, recipe.data.crop_size = 4, (64, 64)
    config = freeze(recipe)
    recipe.model.remat = (2, 4)
    again = freeze(recipe)

    def products_of_a_gradient(config):
        loss, arguments = estimate.traced_loss(config, "tpu")
        jaxpr = jax.make_jaxpr(jax.grad(loss, has_aux=True))(*arguments).jaxpr
        return sum(number for _, number in flops.products(jaxpr))

    macs, batch = flops.count_macs(config), config.train.batch_size
    plain = flops.step_macs(config, macs)
    assert plain == batch * flops.TRAINING * sum(macs.values())
    assert flops.count_macs(again) == macs
    more = macs["layer2"] + macs["layer4"]
    assert flops.step_macs(again, macs) - plain == batch * more
    difference = products_of_a_gradient(again) - products_of_a_gradient(config)
    assert difference == estimate.TRACED_IMAGES * more
