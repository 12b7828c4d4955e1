"""Estimates a training step's memory and communication where the compiler is not installed.

Counted in the jaxpr: arrays that the forward pass keeps for the backward pass, gradients that
devices sum, rows that neighbours exchange. The share of the kept arrays that a compiler really
stores was fitted to the compilers' figures of several recipes; docs/hardware.md shows both.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from deeplab_jax.config import Config
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.dry_run.flops import arrays
from deeplab_jax.dry_run.hardware import Hardware
from deeplab_jax.models import build_model
from deeplab_jax.training.losses.class_weights import resolved
from deeplab_jax.training.state import State, abstract_state
from deeplab_jax.training.step import make_loss
from deeplab_jax.utils.trees import divide, merged

TRACED_IMAGES = 2  # with one image, a norm over pooled features would see a single value
_SUMS_PER_NORM = 1.7  # all-reduces: one forward, one backward; parallel branches share theirs
# Shares that a compiler stores of the kept maps, of the kept pictures, and of the parameters'
# gradients beside them; it computes the rest again.
SHARES = {"gpu": (0.66, 0.95, 0.0), "tpu": (1.0, 1.0, 1.0)}


class Kept(NamedTuple):
    """Bytes that the forward pass keeps for the backward pass."""

    maps: int  # feature maps of one image
    pictures: int  # arrays of the crop's size, of one image
    kernels: int  # kernels in the computation's type, once for all images


@dataclass(frozen=True)
class Estimate:
    """Estimated figures of a step, for one device; fields as in `compiled.CompiledStep`."""

    arguments: int
    temporaries: int
    collectives: dict[str, tuple[int, int]]

    @property
    def needed(self) -> int:
        """Bytes that must fit on a device."""
        return self.arguments + self.temporaries


def estimate(config: Config, hardware: Hardware) -> Estimate:
    """Estimates what a training step needs of each device of a TPU slice or of GPUs.

    Raises:
      ConfigError: the batch does not divide over the devices.
    """
    train, (height, width) = config.train, config.data.crop_size
    data, spatial = mesh_lib.mesh_shape(config, hardware.num_devices)
    images = train.batch_size / data / spatial  # per device; its bands of rows put together
    state = item_bytes(abstract_state(config))
    kept, (maps, pictures, gradients) = kept_bytes(config, hardware.kind), SHARES[hardware.kind]
    temporaries = maps * kept.maps + pictures * kept.pictures
    temporaries *= images / train.gradient_accumulation
    temporaries += kept.kernels if hardware.kind == "gpu" else 0
    learning = item_bytes(divide(abstract_state(config)["params"], train.freeze)[0])
    temporaries += gradients * sum(learning.values())
    if train.gradient_accumulation > 1:  # the sum over parts
        temporaries += sum(learning.values())
    collectives = {}
    if hardware.num_devices > 1:
        collectives["all-reduce"] = _sums(config, is_split=data > 1 and spatial > 1)
    if spatial > 1:
        collectives["collective-permute"] = _halos(config, hardware.kind, data, spatial)
    arguments = sum(state.values()) + round(images * height * width * 4)  # bytes of RGB and label
    return Estimate(arguments, round(temporaries), collectives)


def item_bytes(state: State) -> dict[str, int]:
    """Returns the bytes of each item of a state."""
    return {
        name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(item))
        for name, item in state.items()
    }


def kept_bytes(config: Config, kind: str) -> Kept:
    """Returns what the forward pass of a training step keeps on hardware of a kind.

    Boolean masks are left out: compilers compute them again.
    """
    loss, (params, *rest) = traced_loss(config, kind)

    def forward(params: Any, *rest: Any) -> Callable[..., Any]:
        return jax.vjp(lambda params: loss(params, *rest), params, has_aux=True)[1]

    jaxpr = jax.make_jaxpr(forward)(params, *rest).jaxpr
    given = set(map(id, jaxpr.invars))
    kept = {id(variable): variable for variable in jaxpr.outvars if id(variable) not in given}
    groups = dict.fromkeys(Kept._fields, 0)
    for array in arrays(kept.values()):
        if jnp.issubdtype(array.dtype, jnp.floating):
            groups[_group(config, array)] += array.size * array.dtype.itemsize
    maps, pictures = groups["maps"] // TRACED_IMAGES, groups["pictures"] // TRACED_IMAGES
    return Kept(maps, pictures, groups["kernels"])


def _group(config: Config, array: jax.core.ShapedArray) -> str:
    """Returns the field of `Kept` that an array counts in."""
    if array.ndim < 3 or array.shape[0] != TRACED_IMAGES:
        return "kernels"
    is_cropped = array.shape[1:3] == config.data.crop_size
    return "pictures" if is_cropped and array.shape[-1] != 3 else "maps"  # 3: the input itself


def traced_loss(config: Config, kind: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the training loss of `TRACED_IMAGES` images, and abstract arguments for it.

    The first argument holds the parameters that learn, the second the frozen ones.
    """
    model = build_model(config.model, kind).clone(frozen=config.train.freeze)
    loss = make_loss(model, resolved(config), use_dropout=True)
    state = abstract_state(config)
    learning, frozen = divide(state["params"], config.train.freeze)
    size = (TRACED_IMAGES, *config.data.crop_size)
    images = jax.ShapeDtypeStruct((*size, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct(size, jnp.int32)
    weights = jax.ShapeDtypeStruct((TRACED_IMAGES,), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def of_parts(learning: Any, frozen: Any, *rest: Any) -> Any:
        return loss(merged(learning, frozen), *rest)

    return of_parts, (learning, frozen, state["batch_stats"], (images, labels, weights), key)


def _sums(config: Config, is_split: bool) -> tuple[int, int]:
    """Returns (number, bytes) of all-reduces: gradients and the norms' statistics.

    Where both axes of the mesh split the work, compilers sum kernels' gradients once per axis.
    """
    item = jnp.dtype(config.model.dtype).itemsize
    norms = size = 0
    learning, _ = divide(abstract_state(config)["params"], config.train.freeze)
    for path, leaf in jax.tree_util.tree_leaves_with_path(learning):
        is_norm = path[-1].key == "scale"
        norms += is_norm
        size += 4 * leaf.size * leaf.dtype.itemsize if is_norm else 0  # two sums each way
        if leaf.ndim == 4:
            size += leaf.size * item * (2 if is_split and leaf.shape[0] > 1 else 1)
    return round(_SUMS_PER_NORM * norms), size


def _halos(config: Config, kind: str, data: int, spatial: int) -> tuple[int, int]:
    """Returns (number, bytes) of permutes: rows that a band needs of its neighbours."""
    loss, arguments = traced_loss(config, kind)
    gradient = jax.make_jaxpr(jax.grad(loss, has_aux=True))(*arguments).jaxpr
    parts = config.train.gradient_accumulation
    images = config.train.batch_size / data / parts
    number = size = 0.0
    for rows, array in _neighbours(gradient):
        band = max(1, array.shape[1] // spatial)
        number += 1 if rows <= band else 2  # a far shift takes from two other bands
        row = array.size // array.shape[1] * array.dtype.itemsize / TRACED_IMAGES
        size += min(rows, band) * row * images
    return round(number) * parts, round(size) * parts


def _neighbours(jaxpr: core.Jaxpr) -> Iterator[tuple[int, jax.core.ShapedArray]]:
    """Yields (rows, array) where an operation reads so many rows above or below its own."""
    for equation in jaxpr.eqns:
        operands = arrays(equation.invars)
        yield from ((rows, operands[0]) for rows in _reach(equation, operands) if rows > 0)
        for inner in core.jaxprs_in_params(equation.params):
            yield from _neighbours(inner)


def _reach(equation: core.JaxprEqn, operands: list[jax.core.ShapedArray]) -> tuple[int, ...]:
    name, params = equation.primitive.name, equation.params
    if not operands or getattr(operands[0], "ndim", 0) != 4:
        return ()
    if name == "pad":
        low, high, _ = params["padding_config"][1]
        return (abs(low),) if low == -high else ()
    return params["padding"][0] if name == "conv_general_dilated" else ()
