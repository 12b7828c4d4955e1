"""The checks of the self-test: numbers, determinism, devices, and known faults of compilers.

The step is the one that `deeplab train` compiles, with its mesh; the logits are those of the folded
network of `deeplab evaluate` and `predict`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from deeplab_jax.config import Config
from deeplab_jax.distributed import compiler_faults
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.models import Output, build_model, fold_batch_norm, ops
from deeplab_jax.models.preprocess import preprocess
from deeplab_jax.selftest import network
from deeplab_jax.training.losses import row_weights, segmentation_loss
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.state import State, initial_state
from deeplab_jax.training.step import Metrics, make_train_step
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.trees import by_path, placed


class Tolerance(NamedTuple):
    """Largest relative errors that rounding explains, by dtype."""

    logits: float
    loss: float
    gradient: float  # of all parameters together
    leaf: float  # of the gradient of one parameter
    statistics: float  # of one running mean or variance
    change: float  # of the parameters' change in three steps
    least: float  # share of the whole's norm that the error of a smaller array is relative to


# In float32 PyTorch's own numbers for this network differ from its float64 ones by 3e-7 (logits),
# 7e-8 (loss), 7e-7 (gradient), 2e-4 (one parameter's gradient) and 6e-5 (change, a difference of
# float32 numbers), ours on a processor by as much. Other devices add in another order: the limits
# are 5 to 100 times that. Bfloat16 has 8 bits instead of 24, so 65,000 times the rounding; ours on
# a processor are 8e-3, 3e-4, 4e-3, 1e-1 (a gradient that is itself a small difference) and 3e-3.
TOLERANCES = {
    "float64": Tolerance(1e-9, 1e-9, 1e-9, 1e-8, 1e-9, 1e-9, 1e-3),
    "float32": Tolerance(5e-6, 1e-6, 5e-5, 5e-3, 2e-5, 1e-3, 1e-3),
    "bfloat16": Tolerance(5e-2, 3e-3, 5e-2, 3e-1, 5e-2, 5e-2, 1e-2),
}


class Result(NamedTuple):
    """The result of a check.

    Attributes:
      name: what was checked, such as "gradient".
      is_good: whether it passed.
      text: what was measured, or expected and found.
      fix: what to do about a failure.
    """

    name: str
    is_good: bool
    text: str
    fix: str = ""


def golden() -> dict[str, Any]:
    """Returns PyTorch's numbers; `tests/golden/write_selftest.py` writes them."""
    return json.loads(Path(__file__).with_name("golden.json").read_text("utf-8"))


def choose_devices(spatial: int) -> list[jax.Device]:
    """Returns the most devices that the batch divides over, `spatial` of them to a picture."""
    groups = len(jax.devices()) // spatial
    count = max((k for k in range(1, network.BATCH + 1) if network.BATCH % k == 0 and k <= groups),
                default=0)  # fmt: skip
    return jax.devices()[: count * spatial] if count else jax.devices()


def where(mesh: Mesh) -> str:
    """Returns the devices of a mesh in words, such as "4 x cpu (data 2, spatial 2)"."""
    data, spatial = mesh.devices.shape
    shape = f" (data {data}, spatial {spatial})" if mesh.size > 1 else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{shape}"


class Programs:
    """The compiled programs of the self-test on a mesh."""

    def __init__(self, config: Config, mesh: Mesh):
        """Compiles them."""
        self.mesh, self.dtype, self.train = mesh, config.model.dtype, config.train
        self.variables = jax.tree.map(
            lambda x: x.astype(jnp.promote_types(config.model.dtype, jnp.float32)),
            network.weights(),
        )
        self.optimizer, _ = build_optimizer(config.train, network.TOTAL)
        self.batch = mesh_lib.put_batch(network.batch(), mesh, network.BATCH)
        whole, rows = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh)
        pictures = mesh_lib.batch_sharding(mesh, has_rows=True)
        model = build_model(config.model, mesh_lib.platform(mesh))
        folded = model.clone(policy=model.policy._replace(is_folded=True))
        self.folded = fold_batch_norm(self.variables)

        def logits(variables: Any, image: jax.Array, label: jax.Array, box: jax.Array) -> jax.Array:
            output = cast(Output, folded.apply(variables, preprocess(image, label, box)[0]))
            return output.logits

        network_of = jax.jit(
            logits, in_shardings=(whole, pictures, pictures, rows), out_shardings=whole
        )
        with compile_cache.compiling("the network"):
            self.logits = network_of.lower(self.folded, *self.batch).compile()
        state = placed(jax.eval_shape(self._state), whole)
        step = make_train_step(config, network.TOTAL, mesh)
        with compile_cache.compiling("the training step"):
            self.step = step.lower(state, *self.batch).compile()  # type: ignore[attr-defined]

    def _state(self) -> State:
        return initial_state(jax.tree.map(jnp.asarray, self.variables), self.optimizer)

    def start(self) -> State:
        """Returns the state before the first step."""
        return jax.device_put(self._state(), mesh_lib.replicated(self.mesh), may_alias=False)

    def texts(self) -> dict[str, str]:
        """Returns the programs as the compiler has left them."""
        programs = {"the training step": self.step, "the network": self.logits}
        return {name: program.as_text() for name, program in programs.items()}


def run(programs: Programs) -> Iterator[Result]:
    """Yields the result of each check, as it is done."""
    expected, limit = golden(), TOLERANCES[programs.dtype]
    drawn = network.checksum()
    is_drawn = drawn == expected["checksum"]
    text = f"checksum of weights and batch {drawn}, expected {expected['checksum']}"
    yield Result("weights", is_drawn, text, "install the numpy that pyproject.toml names")
    yield from known_faults(programs)
    yield fused_operations(mesh_lib.platform(programs.mesh))
    logits = np.asarray(programs.logits(programs.folded, *programs.batch))
    yield _compare("logits", expected["logits"], network.sketch("logits", logits), limit.logits)

    state, records = programs.start(), list[Metrics]()
    state, first = programs.step(state, *programs.batch)
    records.append(first)
    once = jax.device_get(state)
    again, second = programs.step(programs.start(), *programs.batch)
    is_same = determinism(once | {"metrics": first}, again | {"metrics": second})
    yield from _gradients(programs, once, expected, limit)
    statistics = network.sketches(once["batch_stats"])
    known = expected["statistics"]
    yield _worst("statistics", known, statistics, limit.statistics, limit.least)
    while len(records) < network.STEPS:
        state, metrics = programs.step(state, *programs.batch)
        records.append(metrics)
    for name in ("loss_main", "loss_aux"):
        yield _loss(name, expected[name], [float(record[name]) for record in records], limit.loss)
    change = flat(jax.device_get(state["params"])) - flat(programs.variables["params"])
    yield _compare(
        "three steps", expected["change"], network.sketch("change", change), limit.change
    )
    yield is_same
    if programs.mesh.size > 1:
        yield devices_agree(programs.mesh, state)


def known_faults(programs: Programs) -> Iterator[Result]:
    """Yields a result for each known fault of this platform's compiler."""
    for fault in compiler_faults.of_platform(programs.mesh.devices.flat[0].platform):
        expected, got = fault.shows()
        name = f"compiler, {fault.source}"
        if not compiler_faults.is_wrong(expected, got):
            yield Result(name, True, f"{fault.name} is right")
            continue
        text = f"{fault.name}: expected {expected:.10g}, got {got:.10g}"
        found = [what for what, program in programs.texts().items() if fault.is_in(program)]
        if found:
            yield Result(
                name,
                False,
                f"{text}; {' and '.join(found)} contain{'s' * (len(found) == 1)} it",
                fault.fix,
            )
        else:
            yield Result(name, True, f"note: {text}; no program of deeplab contains it")


def fused_operations(platform: str) -> Result:
    """Compares products over three channels, their norm, their mean and the loss with unfused ones.

    The maps have more rows than a block of the library that the fault is in. Norm and loss have
    the forms of the training step; `platform` is as in `ComputePolicy`.
    """
    rng = np.random.default_rng(0)
    shape, classes = (2, 136, 136), 3
    shapes = (*shape, classes), (1, 1, classes, classes), (classes,), (classes,)
    arrays = tuple(rng.standard_normal(wanted).astype(np.float32) for wanted in shapes)
    labels = jnp.asarray(rng.integers(0, classes, shape, np.int32))

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return ops.conv1x1(x, kernel, 1, lax.Precision.HIGHEST, platform)

    def loss(x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        centre = jnp.zeros_like(bias)
        y, _, _ = ops.normalize(product(x, kernel), scale, bias, centre, platform)
        pooled = product(jnp.mean(y, (1, 2), keepdims=True), kernel)
        weights = row_weights(labels, 1)
        maps = y + pooled, pooled
        return segmentation_loss(*maps, labels, weights=weights, platform=platform)["loss"]

    both = jax.value_and_grad(loss, (0, 1, 2, 3))
    fused = jax.device_get(jax.jit(both)(*arrays))
    with jax.disable_jit():
        expected = jax.device_get(both(*map(jnp.asarray, arrays)))
    pairs = zip(jax.tree.leaves(fused), jax.tree.leaves(expected), strict=True)
    found = max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)
    limit = 1e-4  # float32, sums over 36992 rows
    text = f"relative error {found:.1e} against single operations, allowed {limit:.0e}"
    return Result("fused operations", bool(found <= limit), text, _WRONG)


def devices_agree(mesh: Mesh, state: State) -> Result:
    """Compares the copies of the state that the devices of this host hold, bit for bit."""
    odd = dict[str, str]()
    for path, leaf in by_path(state).items():
        first, *others = leaf.addressable_shards
        bits = np.asarray(first.data).tobytes()
        for shard in others:
            if np.asarray(shard.data).tobytes() != bits:
                odd.setdefault(str(shard.device), path)
    text = f"all {mesh.size} hold the same state"
    if odd:
        told = ", ".join(f"{device} ({path})" for device, path in odd.items())
        text = f"expected one state on all, got another on {told}"
    return Result("devices", not odd, text, _WRONG)


_DETERMINISM = (
    "on a GPU set XLA_FLAGS=--xla_gpu_deterministic_ops=true; elsewhere look for bad memory"
)
_WRONG = "do not train with this jax on this device; install another, or report this line"


def flat(tree: Mapping[str, Any]) -> np.ndarray:
    """Returns all values of a tree, in the order of their paths."""
    leaves = by_path(tree)
    return np.concatenate([np.ravel(leaves[path]).astype(np.float64) for path in sorted(leaves)])


def error(expected: list[float], got: list[float], least: float = 1e-30) -> float:
    """Returns the error that two sketches show; infinite if not finite.

    It is relative to the expected norm, or to `least` where that is greater.
    """
    scale = max(expected[0], least)
    by_norm = abs(got[0] - expected[0])
    by_signs = np.sqrt(np.mean(np.square(np.subtract(got[1:], expected[1:]))))
    found = max(by_norm, float(by_signs)) / scale
    return found if np.isfinite(found) else float("inf")


def _compare(name: str, expected: list[float], got: list[float], limit: float) -> Result:
    found = error(expected, got)
    text = f"relative error {found:.1e}, allowed {limit:.0e}"
    if found > limit:
        text += f": expected norm {expected[0]:.6g}, got {got[0]:.6g}"
    return Result(name, found <= limit, text, _WRONG)


def _worst(
    name: str,
    expected: Mapping[str, list[float]],
    got: Mapping[str, list[float]],
    limit: float,
    least: float,
) -> Result:
    """Compares every array; the worst is told."""
    least *= _norm(expected)
    errors = {path: error(value, got[path], least) for path, value in expected.items()}
    worst = max(errors, key=lambda path: errors[path])
    wrong = sum(value > limit for value in errors.values())
    text = f"largest relative error {errors[worst]:.1e} of {len(errors)} arrays ({worst})"
    text += f", allowed {limit:.0e}"
    if wrong:
        text = f"{wrong} of {len(errors)} arrays are wrong, most {worst}: expected norm"
        text += f" {expected[worst][0]:.6g}, got {got[worst][0]:.6g}, relative error"
        text += f" {errors[worst]:.1e}, allowed {limit:.0e}"
    return Result(name, not wrong, text, _WRONG)


def _gradients(
    programs: Programs, state: State, expected: Mapping[str, Any], limit: Tolerance
) -> Iterator[Result]:
    """Compares the first step's gradient, which the momentum holds beside the weight decay."""
    trace = by_path(optax.tree_utils.tree_get(state["opt_state"], "trace"))
    before = by_path(programs.variables["params"])
    got = {
        path: network.sketch(path, np.float64(v) - programs.train.weight_decay * before[path])
        for path, v in trace.items()
    }
    sketches = expected["gradient"]
    total = _norm(sketches)
    squares = (error(sketches[path], got[path]) * sketches[path][0] for path in sketches)
    found = float(np.sqrt(sum(square**2 for square in squares))) / total
    text = f"relative error {found:.1e}, allowed {limit.gradient:.0e}"
    if not found <= limit.gradient:
        text += f": expected norm {total:.6g}, got {_norm(got):.6g}"
    yield Result("gradient", found <= limit.gradient, text, _WRONG)
    yield _worst("gradient of each layer", sketches, got, limit.leaf, limit.least)


def _norm(sketches: Mapping[str, list[float]]) -> float:
    return float(np.sqrt(sum(value[0] ** 2 for value in sketches.values())))


def _loss(name: str, expected: list[float], got: list[float], limit: float) -> Result:
    pairs = list(zip(expected, got, strict=True))
    errors = [abs(b - a) / abs(a) if np.isfinite(b) else float("inf") for a, b in pairs]
    text = f"relative error {max(errors):.1e} in {len(errors)} steps, allowed {limit:.0e}"
    if max(errors) > limit:
        step = next(k for k, value in enumerate(errors) if value > limit)
        text += f": expected {expected[step]:.7g} at step {step + 1}, got {got[step]:.7g}"
    return Result(name, max(errors) <= limit, text, _WRONG)


def determinism(one: Mapping[str, Any], other: Mapping[str, Any]) -> Result:
    """Compares what the same step left twice, bit for bit."""
    pairs = by_path(jax.device_get(one)), by_path(jax.device_get(other))
    bits = [{path: np.asarray(leaf).tobytes() for path, leaf in pair.items()} for pair in pairs]
    differing = [path for path, value in bits[0].items() if value != bits[1][path]]
    text = "the same step twice is equal bit for bit"
    if differing:
        text = f"the same step twice differs in {len(differing)} arrays, such as {differing[0]}"
    return Result("determinism", not differing, text, _DETERMINISM)
