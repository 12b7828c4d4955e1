import jax
import jax.numpy as jnp
import pytest

from deeplab_jax.models import ComputePolicy
from deeplab_jax.models.resnet import ResNet


def _shapes(depth, output_stride, size):
    net = ResNet(depth, output_stride, ComputePolicy(), width=64)
    x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    maps, _ = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, False), x)
    return [m.shape[1:] for m in maps]


@pytest.mark.parametrize(
    ("output_stride", "sizes"),
    [(16, [(17, 25), (9, 13), (5, 7), (5, 7)]), (8, [(17, 25), (9, 13), (9, 13), (9, 13)])],
)
def test_map_sizes_follow_the_output_stride(output_stride, sizes):
    shapes = _shapes(50, output_stride, (65, 97))
    assert [s[:2] for s in shapes] == sizes
    assert [s[2] for s in shapes] == [256, 512, 1024, 2048]


def test_basic_blocks_have_a_quarter_of_the_channels():
    assert [s[2] for s in _shapes(18, 16, (64, 64))] == [64, 128, 256, 512]


def _dilations(depth, output_stride):
    """Returns the dilation of every 3x3 convolution of layers 3 and 4, read from the program."""
    net = ResNet(depth, output_stride, ComputePolicy(platform="tpu"), width=4)
    x = jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), x, False))
    jaxpr = jax.make_jaxpr(lambda v: net.apply(v, x, False))(variables)
    wanted = {"layer3": [], "layer4": []}
    convolutions = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    for eqn in convolutions:
        layer = str(eqn.source_info.name_stack).split("/")[1].split("_")[0]
        if layer in wanted:
            wanted[layer].append(eqn.params["rhs_dilation"][0])
    return wanted


def test_first_block_of_a_dilated_layer_has_half_the_dilation():
    assert _dilations(50, 16) == {"layer3": [1] * 6, "layer4": [1, 2, 2]}
    assert _dilations(50, 8) == {"layer3": [1, 2, 2, 2, 2, 2], "layer4": [2, 4, 4]}
