"""One optimiser step: gradients, then the update of the state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from deeplab_jax.config import Config
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.models import DeepLabV3Plus, build_model
from deeplab_jax.models.preprocess import preprocess
from deeplab_jax.training.losses import UserLoss, build_loss, weights_of
from deeplab_jax.training.optimizer import build_optimizer, joint_norm, next_average
from deeplab_jax.training.state import State
from deeplab_jax.utils.trees import PyTree, divide, merged

Metrics = dict[str, jax.Array]
# (params, batch_stats, batch, key of dropout) -> (loss, (new batch_stats, losses))
LossFunction = Callable[[PyTree, PyTree, PyTree, jax.Array], tuple[jax.Array, PyTree]]


def gradients(
    loss_fn: LossFunction,
    parts: int,
    params: PyTree,
    batch_stats: PyTree,
    batch: PyTree,
    key: jax.Array,
) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
    """Returns (gradient, batch_stats, losses), summed over the parts of a batch.

    Parts are computed one after the other, each from the statistics that the one before left and
    with its own split of `key` for dropout. Part k holds the rows that are k modulo `parts`, which
    lie on every device. `batch` is a pytree of arrays (B, ...); losses are sums over rows.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def take(
        batch_stats: PyTree, batch: PyTree, key: jax.Array
    ) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
        (_, (batch_stats, losses)), grads = value_and_grad(params, batch_stats, batch, key)
        return grads, batch_stats, losses

    if parts == 1:
        return take(batch_stats, batch, key)

    def split(array: jax.Array) -> jax.Array:
        return jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0)

    def add(total: PyTree, x: PyTree) -> tuple[PyTree, None]:
        grads, batch_stats, losses = take(total[1], *x)
        grads, losses = jax.tree.map(jnp.add, (total[0], total[2]), (grads, losses))
        return (grads, batch_stats, losses), None

    xs = jax.tree.map(split, batch), jax.random.split(key, parts)
    shapes = jax.eval_shape(take, batch_stats, *jax.tree.map(lambda array: array[0], xs))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, (zeros[0], batch_stats, zeros[2]), xs)
    return total


def make_loss(
    model: DeepLabV3Plus, config: Config, use_dropout: bool, loss: UserLoss | None = None
) -> LossFunction:
    """Returns the loss of a step; its batch is (images, labels, `weights_of` the whole batch).

    `loss` takes the place of `config.loss`; see `build_loss`.
    """
    compute = build_loss(config, model.policy.platform, loss)

    def loss_fn(
        params: PyTree, batch_stats: PyTree, batch: PyTree, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        images, labels, weights = batch
        output, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            is_train=True,
            use_dropout=use_dropout,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        losses = compute(output.logits, output.aux_logits, labels, weights)
        return losses["loss"], (updated["batch_stats"], losses)

    return loss_fn


def of_learning(loss_fn: LossFunction, frozen: PyTree) -> LossFunction:
    """Returns the loss as a function of the parameters that learn; `frozen` are the others."""
    return lambda params, *rest: loss_fn(merged(params, frozen), *rest)


def make_update(
    model: DeepLabV3Plus,
    config: Config,
    total_steps: int,
    *,
    use_dropout: bool = True,
    loss: UserLoss | None = None,
) -> Callable[[State, jax.Array, jax.Array], tuple[State, Metrics]]:
    """Builds the pure function that does one step.

    Args:
      model: the network; `train.freeze` says which of its modules are frozen.
      config: the run's configuration, of which `seed`, `train` and `loss` are read.
      total_steps: T of the schedule.
      use_dropout: off for comparing with another implementation.
      loss: takes the place of `config.loss`; see `build_loss`.

    Returns:
      update(state, images float32 (B, H, W, 3), labels int32 (B, H, W)) -> (state, metrics), where
      metrics are scalars: those of `build_loss`, "lr" (of the schedule), "grad_norm" (of what
      learns, before it is clipped) and the boolean "is_finite", which covers these, the new weights
      and the new statistics.
    """
    optimizer, schedule = build_optimizer(config.train, total_steps)
    train = config.train
    model = model.clone(frozen=train.freeze)
    loss_fn = make_loss(model, config, use_dropout, loss)
    global_norm = joint_norm if model.policy.platform == "cpu" else optax.global_norm

    def update(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        batch = images, labels, weights_of(labels, config)
        learning, frozen = divide(state["params"], train.freeze)
        loss_of, parts = of_learning(loss_fn, frozen), train.gradient_accumulation
        grads, batch_stats, losses = gradients(
            loss_of, parts, learning, state["batch_stats"], batch, key
        )
        updates, opt_state = optimizer.update(grads, state["opt_state"], learning)
        grad_norm = global_norm(grads)
        new_state = {
            "step": state["step"] + 1,
            "params": merged(optax.apply_updates(learning, updates), frozen),
            "batch_stats": batch_stats,
            "opt_state": opt_state,
        }
        if train.ema_half_life:
            params, _ = divide(new_state["params"], train.freeze)
            stats, _ = divide(batch_stats, train.freeze)
            new_state["ema"] = next_average(state["ema"], params, stats, train.ema_half_life)
        # The new weights and statistics too: squares overflow while the loss is still finite.
        size = losses["loss"] + grad_norm + global_norm((new_state["params"], batch_stats))
        metrics = {
            **losses,
            "lr": jnp.asarray(schedule(state["step"])),
            "grad_norm": grad_norm,
            "is_finite": jnp.isfinite(size),
        }
        return new_state, metrics

    return update


_SUM_BYTES = "xla_gpu_all_reduce_combine_threshold_bytes"  # gradients in few large sums
# Else XLA cuts the pictures of a small batch into strips around every 3x3 convolution, which costs
# more passes over memory than it gains.
_WHOLE_PICTURES: dict[str, bool | int] = {
    "xla_tpu_run_space_to_batch": False,
    "xla_tpu_run_space_to_batch_on_new_platforms": False,
}
# libtpu's checker for silent data corruption: a program runs again, and results that differ end it.
# Not among them is `xla_tpu_sdc_replicate_llo`, other instructions for the repetition on chips of
# one core: with it libtpu 0.0.42 aborts while it compiles the network.
_CHECK_HARDWARE: dict[str, bool | int] = {
    "xla_tpu_enable_sdc_checker": True,
    "xla_tpu_sdc_check_halt_on_detection": True,
}


def compiler_options(config: Config, mesh: Mesh) -> dict[str, bool | int] | None:
    """Returns XLA's options for the training step; None where they are XLA's own."""
    kind = mesh_lib.platform(mesh)
    if kind == "gpu" and mesh.size > 1:
        return {_SUM_BYTES: 2**28}
    if kind != "tpu":
        return None
    options = _WHOLE_PICTURES if is_known(_WHOLE_PICTURES, mesh) else {}
    return options | _CHECK_HARDWARE if config.mesh.check_hardware else options or None


def is_known(options: dict[str, bool | int], mesh: Mesh) -> bool:
    """Tells whether the compiler of a mesh's devices has options; versions of libtpu differ."""
    layout = mesh_lib.replicated(mesh)
    probe = jax.jit(lambda: jnp.zeros(()), out_shardings=layout, compiler_options=options)
    try:
        probe.lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def make_train_step(
    config: Config, total_steps: int, mesh: Mesh, loss: UserLoss | None = None
) -> Callable[..., tuple[State, Metrics]]:
    """Returns the jitted step(state, image, label, box) -> (state, metrics) over the mesh.

    The batch, and with `mesh.spatial` its rows of pixels, is split over devices; everything else is
    replicated. The state is donated. `loss` takes the place of `config.loss`; see `build_loss`.
    """
    model = build_model(config.model, mesh_lib.platform(mesh))
    update = make_update(model, config, total_steps, loss=loss)
    whole, rows = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh)
    pictures = mesh_lib.batch_sharding(mesh, has_rows=True)

    def train_step(
        state: State, image: jax.Array, label: jax.Array, box: jax.Array
    ) -> tuple[State, Metrics]:
        return update(state, *preprocess(image, label, box))

    return jax.jit(
        train_step,
        in_shardings=(whole, pictures, pictures, rows),
        out_shardings=(whole, whole),
        donate_argnums=0,
        compiler_options=compiler_options(config, mesh),
    )
