"""Multiply-adds (MACs) and parameters of the network, by part.

MACs of convolutions and matrix products are counted in the jaxpr; 1 MAC is 2 FLOP, and a depthwise
3x3 convolution has nine an output. Elementwise operations (norms, ReLU, resizing, the loss) are
bound by bandwidth and not counted.
"""

from collections.abc import Iterable, Iterator
from math import prod
from typing import cast

import jax
import jax.numpy as jnp
from jax.extend import core

from deeplab_jax.config import Config
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.utils.trees import PyTree, divide

PARTS = ("stem", "layer1", "layer2", "layer3", "layer4", "ASPP branches", "ASPP merge", "decoder",
         "classifier", "auxiliary head")  # fmt: skip
TRAINING = 3  # passes of equal arithmetic: forward, gradients of inputs, gradients of kernels
_HEADS = {"classifier": "classifier", "aux_head": "auxiliary head",
          "aux_classifier": "auxiliary head", "decoder": "decoder"}  # fmt: skip


def count_macs(config: Config) -> dict[str, int]:
    """Returns {part: MACs of one training image, forward}, in the order of `PARTS`."""
    # The plainest forms; rematerialised blocks lose their names.
    model = build_model(config.model, "tpu").clone(remat=())
    variables = jax.eval_shape(lambda: init_variables(model, 0))
    image = jax.ShapeDtypeStruct((1, *config.data.crop_size, 3), jnp.float32)
    forward = jax.make_jaxpr(model.apply)(variables, image).jaxpr
    macs = dict.fromkeys(PARTS, 0)
    for scope, number in products(forward):
        macs[part_of(scope.split("/")[1:])] += number
    # The image mean's maps cost less, as they are constant; published counts have them like others.
    pixels = prod(-(-size // config.model.output_stride) for size in config.data.crop_size)
    branches = len(config.model.atrous_rates) + 2
    macs["ASPP merge"] = pixels * 9 * branches * config.model.head_channels**2
    return macs


def step_macs(config: Config, macs: dict[str, int]) -> int:
    """Returns the MACs of a training step from `count_macs`; `model.remat` runs forward again.

    A frozen part has no gradient of kernels, and before all that learns none at all.
    """
    again = {f"layer{layer}" for layer in config.model.remat}
    learning = {part_of(path) for path in _paths(_learning(config))}
    begun, image = False, 0
    for part, number in macs.items():
        begun |= part in learning
        passes = TRAINING if part in learning else 2 if begun else 1
        image += number * (passes + (part in again and begun))
    return image * config.train.batch_size


def count_learning(config: Config) -> int:
    """Returns the number of parameters that are not frozen."""
    return sum(leaf.size for leaf in jax.tree.leaves(_learning(config)))


def _learning(config: Config) -> PyTree:
    return divide(_abstract_params(config), config.train.freeze)[0]


def _abstract_params(config: Config) -> PyTree:
    return jax.eval_shape(lambda: init_variables(build_model(config.model), 0))["params"]


def _paths(tree: PyTree) -> list[list[str]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [[entry.key for entry in path] for path, _ in leaves]


def count_parameters(config: Config) -> dict[str, int]:
    """Returns {part: number of parameters}, in the order of `PARTS`."""
    params = _abstract_params(config)
    numbers = dict.fromkeys(PARTS, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        numbers[part_of([entry.key for entry in path])] += leaf.size
    return numbers


def part_of(path: list[str]) -> str:
    """Returns the part that the path of a module, such as backbone/layer3_0, belongs to."""
    if path[0] == "backbone":
        return path[1].partition("_")[0]
    if path[0] == "aspp":
        return "ASPP merge" if path[1] == "merge" else "ASPP branches"
    return _HEADS[path[0]]


def products(jaxpr: core.Jaxpr, outer: str = "", times: int = 1) -> Iterator[tuple[str, int]]:
    """Yields (scope, MACs) of each convolution and matrix product, also of inner jaxprs.

    `outer` is the scope of the equation that calls `jaxpr`, `times` how often it runs.
    """
    for equation in jaxpr.eqns:
        scope = outer or str(equation.source_info.name_stack)
        if number := _macs(equation, scope):
            yield scope, times * number
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        within = scope if "/" in scope else ""
        for inner in core.jaxprs_in_params(equation.params):
            yield from products(inner, within, times * turns)


def arrays(variables: Iterable[core.Var | core.Literal]) -> list[jax.core.ShapedArray]:
    """Returns shapes and types of the variables of a jaxpr."""
    return [cast(jax.core.ShapedArray, variable.aval) for variable in variables]


def _macs(equation: core.JaxprEqn, scope: str) -> int:
    name = equation.primitive.name
    operands, results = arrays(equation.invars), arrays(equation.outvars)
    if name == "dot_general":
        ((contracted, _), _) = equation.params["dimension_numbers"]
        return results[0].size * prod(operands[0].shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = operands[1]
        outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        return results[0].size * kernel.size // outputs
    # A depthwise convolution is a sum of nine products with one factor per channel.
    return results[0].size if name == "mul" and scope.endswith("depthwise/conv") else 0
