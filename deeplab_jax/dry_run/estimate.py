"""What a training step needs of each device, where the device's compiler is not here to say.

Made from the program: the arrays that the forward pass keeps for the backward one, what the loss
holds at the picture's size, the gradients that devices add up, and the rows that neighbours need
of each other. What share of that a compiler really keeps was fitted to what compilers say of
several recipes; docs/pods.md shows both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from deeplab_jax.config import Config
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.dry_run.flops import subprograms
from deeplab_jax.dry_run.hardware import Hardware
from deeplab_jax.models import build_model
from deeplab_jax.training.state import abstract_state
from deeplab_jax.training.step import make_loss

_TRACED = 2  # images of the traced batch: with one, a norm would see a single value
_SUMS_PER_NORM = 1.7  # all-reduces: one each way, and parallel branches share theirs


class Shares(NamedTuple):
    """How much of what the program keeps a compiler does; the rest is computed again.

    Attributes:
      maps: of feature maps.
      pictures: of what has the size of the picture, such as the loss's logits.
      gradients: of the parameters' gradients, beside the maps.
    """

    maps: float
    pictures: float
    gradients: float


SHARES = {"gpu": Shares(0.66, 0.95, 0.0), "tpu": Shares(1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class Kept:
    """Bytes that the forward pass keeps for the backward one.

    Attributes:
      maps: feature maps, of one image.
      pictures: arrays of the picture's size, of one image.
      kernels: in the type of the computation, for all images.
    """

    maps: int
    pictures: int
    kernels: int


@dataclass(frozen=True)
class Estimate:
    """As `program.Program`, of one device: bytes, and {kind: (how many, bytes)}."""

    arguments: int
    temporaries: int
    collectives: dict[str, tuple[int, int]]

    @property
    def needed(self) -> int:
        """Bytes that must fit on a device."""
        return self.arguments + self.temporaries


def estimate(config: Config, target: Hardware) -> Estimate:
    """Estimates what a training step of a run needs of each device of a target.

    Args:
      config: the run's.
      target: a TPU slice or GPUs; for processors the compiler is always here.

    Raises:
      ConfigError: the batch does not divide over the devices.
    """
    train, (height, width) = config.train, config.data.crop_size
    data, spatial = mesh_lib.mesh_shape(config, target.num_devices)
    images = train.batch_size / data / spatial  # a device's, bands of rows put together
    state = sizes(abstract_state(config))
    kept, shares = kept_bytes(config, target.kind), SHARES[target.kind]
    temporaries = shares.maps * kept.maps + shares.pictures * kept.pictures
    temporaries *= images / train.gradient_accumulation
    temporaries += kept.kernels if target.kind == "gpu" else 0
    temporaries += shares.gradients * state["params"]
    if train.gradient_accumulation > 1:  # the sum over parts
        temporaries += state["params"]
    collectives = {}
    if target.num_devices > 1:
        collectives["all-reduce"] = _sums(config, is_split=data > 1 and spatial > 1)
    if spatial > 1:
        collectives["collective-permute"] = _halos(config, target.kind, data, spatial)
    arguments = sum(state.values()) + round(images * height * width * 4)  # bytes of RGB and label
    return Estimate(arguments, round(temporaries), collectives)


def sizes(state: dict[str, Any]) -> dict[str, int]:
    """Returns the bytes of each item of a state."""
    return {
        name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(item))
        for name, item in state.items()
    }


def kept_bytes(config: Config, kind: str) -> Kept:
    """Returns what the forward pass of a training step keeps, on a "gpu" or "tpu".

    Masks are left out: compilers find them again from what they were made of.
    """
    loss, arguments = _loss(config, kind)
    params = arguments[0]

    def forward(params: Any, *rest: Any) -> Any:
        return jax.vjp(lambda params: loss(params, *rest), params, has_aux=True)[1]

    program = jax.make_jaxpr(forward)(params, *arguments[1:]).jaxpr
    given = set(map(id, program.invars))
    arrays = {id(var): var.aval for var in program.outvars if id(var) not in given}
    groups = {"maps": 0, "pictures": 0, "kernels": 0}
    for array in arrays.values():
        if jnp.issubdtype(array.dtype, jnp.floating):
            groups[_group(config, array)] += array.size * array.dtype.itemsize
    return Kept(groups["maps"] // _TRACED, groups["pictures"] // _TRACED, groups["kernels"])


def _group(config: Config, array: Any) -> str:
    if array.ndim < 3 or array.shape[0] != _TRACED:
        return "kernels"
    is_input = array.shape[-1] == 3
    is_picture = array.shape[1:3] == tuple(config.data.crop_size) and not is_input
    return "pictures" if is_picture else "maps"


def _loss(config: Config, kind: str) -> tuple[Any, tuple[Any, ...]]:
    """Returns the training loss of a few images, and shapes and types of its arguments."""
    loss = make_loss(build_model(config.model, kind), config.train.aux_weight, use_dropout=True)
    state = abstract_state(config)
    size = (_TRACED, *config.data.crop_size)
    images = jax.ShapeDtypeStruct((*size, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct(size, jnp.int32)
    weights = jax.ShapeDtypeStruct((_TRACED,), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return loss, (state["params"], state["batch_stats"], (images, labels, weights), key)


def _sums(config: Config, is_split: bool) -> tuple[int, int]:
    """Returns how many all-reduces of how many bytes: gradients, and statistics of the norms.

    Args:
      config: the run's.
      is_split: over batch and rows; then compilers add up kernels' gradients once for each.
    """
    item = jnp.dtype(config.model.dtype).itemsize
    norms = size = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state(config)["params"]):
        is_norm = path[-1].key == "scale"
        norms += is_norm
        size += 4 * leaf.size * leaf.dtype.itemsize if is_norm else 0  # two sums each way
        if leaf.ndim == 4:
            size += leaf.size * item * (2 if is_split and leaf.shape[0] > 1 else 1)
    return round(_SUMS_PER_NORM * norms), size


def _halos(config: Config, kind: str, data: int, spatial: int) -> tuple[int, int]:
    """Returns how many permutes of how many bytes: the rows that bands need of their neighbours."""
    loss, arguments = _loss(config, kind)
    program = jax.make_jaxpr(jax.grad(loss, has_aux=True))(*arguments).jaxpr
    images = config.train.batch_size / data / config.train.gradient_accumulation
    number = size = 0.0
    for rows, array in _neighbours(program):
        band = max(1, array.shape[1] // spatial)
        number += 1 if rows <= band else 2  # a far shift takes from two other bands
        row = array.size // array.shape[1] * array.dtype.itemsize / _TRACED
        size += min(rows, band) * row * images
    parts = config.train.gradient_accumulation
    return round(number) * parts, round(size) * parts


def _neighbours(program: core.Jaxpr) -> Iterator[tuple[int, Any]]:
    """Yields (rows, array) where a step reads so many rows above or below its own."""
    for equation in program.eqns:
        operands: Any = [variable.aval for variable in equation.invars]
        for rows in _reach(equation, operands):
            if rows > 0:
                yield rows, operands[0]
        for inner in subprograms(equation):
            yield from _neighbours(inner)


def _reach(equation: core.JaxprEqn, operands: list[Any]) -> tuple[int, ...]:
    name, params = equation.primitive.name, equation.params
    if not operands or getattr(operands[0], "ndim", 0) != 4:
        return ()
    if name == "pad":
        low, high, _ = params["padding_config"][1]
        return (abs(low),) if low == -high else ()
    if name == "conv_general_dilated":
        return params["padding"][0]
    return ()
