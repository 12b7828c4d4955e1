"""Operators one by one in bfloat16: our form against plain lax against PyTorch.

"ours" is what the network takes on this platform. Results and gradients of all forms are compared
before they are timed.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplab_jax.models import layers, ops
from deeplab_jax.training.losses import row_weights, segmentation_loss
from evidence.environment import torch_wait
from evidence.networks import exact_torch, pytorch
from evidence.record import Box, Item, Result
from evidence.timing import Way, alternate

Function = Callable[..., Any]
_LIMIT = 3e-2  # relative difference of bfloat16 results; beyond it a row is marked
_COPIES = 4  # computations a call, so that a launch from Python costs little


class Operator(NamedTuple):
    """One row: forms of one operation.

    Attributes:
      shapes: of the arrays that take a gradient, pictures NHWC and kernels HWIO.
      forms: {name: function of JAX arrays}.
      torch: function of the same arrays as PyTorch's, pictures NHWC views.
      fixed: further arrays, without gradient, behind the others.
      copies: computations a call.
    """

    shapes: Sequence[tuple[int, ...]]
    forms: dict[str, Function]
    torch: Function
    fixed: Sequence[Any] = ()
    copies: int = _COPIES


def items(box: Box) -> list[Item]:
    """Returns each operator, forward alone and with its gradients."""
    return [
        Item(f"{name}, {kind}", partial(_measure, box, make, kind == "backward"), 45)
        for name, make in _operators(box).items()
        for kind in ("forward", "backward")
    ]


def _operators(box: Box) -> dict[str, Callable[[], Operator]]:
    """Returns {row: what makes it}; sizes are those of R-50 at 512 x 512, batch 16."""

    def of(*numbers: int) -> tuple[int, ...]:
        return box.pick(numbers, tuple(min(number, 8) for number in numbers))

    dense, depthwise = partial(_dense, box), partial(_depthwise, box)
    return {
        "3x3 d1 32>64 at 256": lambda: dense(*of(256, 32, 64), 1),
        "3x3 d1 64>64 at 128": lambda: dense(*of(128, 64, 64), 1),
        "3x3 d1 256>256 at 64": lambda: dense(*of(64, 256, 256), 1),
        "3x3 d2 256>256 at 64": lambda: dense(*of(64, 256, 256), 2),
        "3x3 d4 512>512 at 64": lambda: dense(*of(64, 512, 512), 4),
        "3x3 d1 2048>512 at 32": lambda: dense(*of(32, 2048, 512), 1),
        "depthwise d1 560 at 128": lambda: depthwise(*of(128, 560), 1),
        "depthwise d6 2048 at 32": lambda: depthwise(*of(32, 2048), 6),
        "depthwise d12 2048 at 32": lambda: depthwise(*of(32, 2048), 12),
        "depthwise d18 2048 at 32": lambda: depthwise(*of(32, 2048), 18),
        "max pool 64 at 256": lambda: _max_pool(box, *of(256, 64)),
        "resize 512, 32 to 128": lambda: _resize(box, *of(32, 512)),
        "BN and ReLU 256 at 128": lambda: _norm(box, *of(128, 256)),
        "loss, 150 classes, 128 to 512": lambda: _loss(box, *of(128, 150)),
    }


def _batch(box: Box) -> int:
    return box.pick(16, 2)


def _policy() -> layers.ComputePolicy:
    return layers.ComputePolicy(jnp.dtype("bfloat16"), jax.default_backend())


def _dense(box: Box, side: int, inputs: int, outputs: int, dilation: int) -> Operator:
    functional = pytorch().nn.functional

    policy = _policy()
    ours = layers.Conv(outputs, 3, policy, dilation=dilation)
    return Operator(
        shapes=[(_batch(box), side, side, inputs), (3, 3, inputs, outputs)],
        forms={
            "ours": lambda x, w: ours.apply({"params": {"kernel": w}}, x),
            "by products": lambda x, w: ops.conv3x3_by_products(x, w, dilation, policy.precision),
            "lax": partial(_lax_conv, dilation=dilation, groups=1),
        },
        torch=lambda x, w: functional.conv2d(
            x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), padding=dilation, dilation=dilation
        ).permute(0, 2, 3, 1),
    )


def _depthwise(box: Box, side: int, channels: int, dilation: int) -> Operator:
    functional = pytorch().nn.functional

    ours = layers.Conv(channels, 3, _policy(), dilation=dilation, is_depthwise=True)
    return Operator(
        shapes=[(_batch(box), side, side, channels), (3, 3, 1, channels)],
        forms={
            "ours": lambda x, w: ours.apply({"params": {"kernel": w}}, x),
            "lax": partial(_lax_conv, dilation=dilation, groups=channels),
        },
        torch=lambda x, w: functional.conv2d(
            x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), None, 1, dilation, dilation, channels
        ).permute(0, 2, 3, 1),
    )


def _lax_conv(x: jax.Array, w: jax.Array, dilation: int, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, w, (1, 1), [(dilation, dilation)] * 2, rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def _max_pool(box: Box, side: int, channels: int) -> Operator:
    functional = pytorch().nn.functional

    def plain(x: jax.Array) -> jax.Array:
        edges = [(0, 0), (1, 1), (1, 1), (0, 0)]
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges)

    return Operator(
        shapes=[(_batch(box), side, side, channels)],
        forms={"ours": ops.max_pool3x3, "lax": plain},
        torch=lambda x: functional.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1),
    )


def _resize(box: Box, side: int, channels: int) -> Operator:
    functional = pytorch().nn.functional

    size, shape = (4 * side, 4 * side), (_batch(box), side, side, channels)
    return Operator(
        shapes=[shape],
        forms={
            "ours": lambda x: ops.resize_bilinear(x, size, _policy().platform),
            "lax": lambda x: jax.image.resize(
                x, (shape[0], *size, channels), "linear", antialias=False
            ),
        },
        torch=lambda x: functional.interpolate(
            x.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False
        ).permute(0, 2, 3, 1),
    )


def _norm(box: Box, side: int, channels: int) -> Operator:
    functional = pytorch().nn.functional

    def ours(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        scale, bias = scale.astype(jnp.float32), bias.astype(jnp.float32)
        centre, platform = jnp.zeros(channels), _policy().platform
        return jax.nn.relu(ops.normalize(x, scale, bias, centre, platform)[0])

    def plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        factor = lax.rsqrt(jnp.var(wide, (0, 1, 2)) + ops.BN_EPSILON) * scale
        normal = (wide - ops.per_channel(jnp.mean(wide, (0, 1, 2)))) * ops.per_channel(factor)
        return jax.nn.relu(normal + ops.per_channel(bias)).astype(x.dtype)

    def torch(x: Any, scale: Any, bias: Any) -> Any:
        x = x.permute(0, 3, 1, 2)
        y = functional.batch_norm(x, None, None, scale.float(), bias.float(), training=True)
        return y.relu().permute(0, 2, 3, 1)

    return Operator(
        shapes=[(_batch(box), side, side, channels), (channels,), (channels,)],
        forms={"ours": ours, "lax": plain},
        torch=torch,
    )


def _loss(box: Box, side: int, classes: int) -> Operator:
    """The float32 loss of both heads, whose logits have a quarter and a sixteenth of the size."""
    functional = pytorch().nn.functional

    batch, size = _batch(box), (4 * side, 4 * side)
    labels = jax.random.randint(jax.random.key(1), (batch, *size), 0, classes)

    def ours(logits: jax.Array, aux: jax.Array, labels: jax.Array) -> jax.Array:
        weights, platform = row_weights(labels, 1), _policy().platform
        maps = logits.astype(jnp.float32), aux.astype(jnp.float32)
        return segmentation_loss(*maps, labels, weights=weights, platform=platform)["loss"]

    def plain(logits: jax.Array, aux: jax.Array, labels: jax.Array) -> jax.Array:
        def entropy(x: jax.Array) -> jax.Array:
            shape = (batch, *size, classes)
            wide = jax.image.resize(x.astype(jnp.float32), shape, "linear", antialias=False)
            picked = jnp.take_along_axis(jax.nn.log_softmax(wide), labels[..., None], -1)
            return -jnp.mean(picked)

        return entropy(logits) + 0.4 * entropy(aux)

    def torch(logits: Any, aux: Any, labels: Any) -> Any:
        def entropy(x: Any) -> Any:
            x = x.permute(0, 3, 1, 2).float()
            wide = functional.interpolate(x, size, mode="bilinear", align_corners=False)
            return functional.cross_entropy(wide, labels.long())

        return entropy(logits) + 0.4 * entropy(aux)

    low = max(side // 4, 2)
    return Operator(
        shapes=[(batch, side, side, classes), (batch, low, low, classes)],
        forms={"ours": ours, "lax": plain},
        torch=torch,
        fixed=[labels],
        copies=1,
    )


def _measure(box: Box, make: Callable[[], Operator], is_backward: bool) -> Result:
    """Compares and times the forms of one operator."""
    torch = pytorch()

    exact_torch(torch)
    operator = make()
    copies = box.pick(operator.copies, 1)
    inputs = [list(_draw(operator.shapes, jnp.bfloat16, number)) for number in range(copies)]
    result = jax.eval_shape(operator.forms["ours"], *inputs[0], *operator.fixed)
    # As an argument: a compiler would simplify what follows from a constant.
    [cotangent] = _draw([result.shape], result.dtype, -1)
    ways, results = {}, {}
    for name, form in operator.forms.items():
        if name == "by products" and not is_backward:
            continue  # the same program as "lax"
        call = jax.jit(_repeated(form, is_backward))
        arguments = inputs, operator.fixed, cotangent
        ways[name] = Way(partial(call, *arguments), jax.block_until_ready)
        results[name] = jax.tree.leaves(ways[name].call()[0])
    theirs = [[torch.from_dlpack(x) for x in copy] for copy in inputs]
    fixed = [torch.from_dlpack(x) for x in operator.fixed]
    pulled = torch.from_dlpack(cotangent) if is_backward else None
    compute = partial(_torch_copies, torch, operator.torch, theirs, fixed, pulled)
    ways["torch"] = Way(compute, torch_wait(torch))
    expected = [_array(y) for y in compute()[0]]
    errors = {
        name: max(
            _relative(np.asarray(y, np.float32), z) for y, z in zip(ys, expected, strict=True)
        )
        for name, ys in results.items()
    }
    results.clear()
    times = alternate(box, ways)
    torch.cuda.empty_cache()  # JAX's next operator needs it
    for way in times.values():
        for key in ("median", "low", "high"):
            way[key] /= copies
    ratio = times["ours"]["median"] / times["torch"]["median"]
    bad = [name for name, error in errors.items() if not error <= _LIMIT]
    line = f"{1e3 * times['ours']['median']:.3g} ms, {ratio:.2f} of torch"
    return {
        "times": times,
        "errors": errors,
        "copies": copies,
        "line": line + (f", differs: {', '.join(bad)}" if bad else ""),
    }


def _draw(shapes: Sequence[tuple[int, ...]], dtype: Any, seed: int) -> Iterator[jax.Array]:
    for k, shape in enumerate(shapes):
        yield jax.random.normal(jax.random.fold_in(jax.random.key(seed), k), shape, dtype)


def _repeated(form: Function, is_backward: bool) -> Function:
    """Returns the form applied to each copy of its inputs, with gradients if asked for."""

    def one(arrays: list[jax.Array], fixed: list[jax.Array], cotangent: jax.Array) -> tuple:
        if not is_backward:
            return (form(*arrays, *fixed),)
        y, pull = jax.vjp(lambda *xs: form(*xs, *fixed), *arrays)
        return (y, *pull(cotangent))

    return lambda inputs, fixed, cotangent: [one(xs, fixed, cotangent) for xs in inputs]


def _torch_copies(
    torch: Any, form: Function, inputs: list, fixed: list, cotangent: Any
) -> list[tuple]:
    found = []
    for arrays in inputs:
        if cotangent is None:
            with torch.no_grad():
                found.append((form(*arrays, *fixed),))
            continue
        leaves = [x.detach().requires_grad_() for x in arrays]
        y = form(*leaves, *fixed)
        found.append((y.detach(), *torch.autograd.grad(y, leaves, cotangent)))
    return found


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _relative(ours: jax.Array, theirs: np.ndarray) -> float:
    difference = np.asarray(ours, np.float32) - theirs
    return float(np.linalg.norm(difference.ravel()) / max(np.linalg.norm(theirs.ravel()), 1e-30))
