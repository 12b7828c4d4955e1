"""The arithmetic of the network, counted in its program, and the parameters, both by part.

Counted are the multiplications of convolutions and matrix products, each with its addition ("1 MAC
= 2 FLOP"); a depthwise convolution has nine an output. What works on each element alone (norms,
ReLU, resizing, the loss) is bandwidth rather than arithmetic, and is not counted.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from deeplab_jax.config import Config
from deeplab_jax.models import build_model, init_variables

PARTS = ("stem", "layer1", "layer2", "layer3", "layer4", "ASPP branches", "ASPP merge", "decoder",
         "classifier", "auxiliary head")  # fmt: skip
TRAINING = 3  # passes of the forward one's arithmetic: itself, gradients of inputs and of kernels
_HEADS = {"classifier": "classifier", "aux_head": "auxiliary head",
          "aux_classifier": "auxiliary head", "decoder": "decoder"}  # fmt: skip


def count_macs(config: Config) -> dict[str, int]:
    """Returns {part: multiply-adds of one training image, forward}, as `PARTS` are ordered."""
    model = build_model(config.model).clone(remat=())  # whose blocks' names are not in its program
    variables = jax.eval_shape(lambda: init_variables(model, 0))
    image = jax.ShapeDtypeStruct((1, *config.data.crop_size, 3), jnp.float32)
    program = jax.make_jaxpr(model.apply)(variables, image)
    macs = dict.fromkeys(PARTS, 0)
    for scope, number in products(program.jaxpr):
        macs[part_of(scope.split("/")[1:])] += number
    return macs


def step_macs(config: Config, macs: dict[str, int]) -> int:
    """Returns the multiply-adds of a training step.

    Args:
      config: the run's; what `model.remat` names is computed forward once more.
      macs: of `count_macs`.
    """
    again = {f"layer{layer}" for layer in config.model.remat}
    image = sum(number * (TRAINING + (part in again)) for part, number in macs.items())
    return image * config.train.batch_size


def count_parameters(config: Config) -> dict[str, int]:
    """Returns {part: parameters}, as `PARTS` are ordered."""
    model = build_model(config.model)
    params = jax.eval_shape(lambda: init_variables(model, 0))["params"]
    numbers = dict.fromkeys(PARTS, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        numbers[part_of([entry.key for entry in path])] += leaf.size
    return numbers


def part_of(path: list[str]) -> str:
    """Returns the part of the network that a module's path, such as backbone/layer3_0, lies in."""
    if path[0] == "backbone":
        return path[1].partition("_")[0]
    if path[0] == "aspp":
        return "ASPP merge" if path[1] == "merge" else "ASPP branches"
    return _HEADS[path[0]]


def products(program: core.Jaxpr, outer: str = "", times: int = 1) -> Iterator[tuple[str, int]]:
    """Yields (scope, multiply-adds) of each convolution and product, inner ones too."""
    for equation in program.eqns:
        scope = outer or str(equation.source_info.name_stack)
        number = _macs(equation, scope)
        if number:
            yield scope, times * number
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in subprograms(equation):
            within = scope if "/" in scope else ""
            yield from products(inner, within, times * turns)


def _macs(equation: core.JaxprEqn, scope: str) -> int:
    name = equation.primitive.name
    out: Any = equation.outvars[0].aval if equation.outvars else None
    operands: Any = [variable.aval for variable in equation.invars]
    if name == "dot_general":
        ((contracted, _), _) = equation.params["dimension_numbers"]
        return out.size * prod(operands[0].shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = operands[1]
        outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        return out.size * kernel.size // outputs
    # A depthwise convolution is a sum of nine products with a number for each channel.
    return out.size if name == "mul" and scope.endswith("depthwise/conv") else 0


def subprograms(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """Yields the programs that an equation calls."""
    for value in equation.params.values():
        items: Any = value if isinstance(value, tuple | list) else (value,)
        for item in items:
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
