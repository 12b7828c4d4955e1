"""One optimiser step: gradients, then the update of the state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from deeplab_jax.config import Config
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.models import DeepLabV3Plus, build_model, ops
from deeplab_jax.models.preprocess import preprocess
from deeplab_jax.training.losses import row_weights, segmentation_loss
from deeplab_jax.training.optimizer import build_optimizer, joint_norm
from deeplab_jax.training.state import State
from deeplab_jax.utils.trees import PyTree

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
    model: DeepLabV3Plus,
    aux_weight: float,
    use_dropout: bool,
    loss: Callable[..., jax.Array] | None = None,
) -> LossFunction:
    """Returns the loss of a step; its batch is (images, labels, weights of `row_weights`).

    `loss` takes the place of ours, of logits at the labels' size.
    """

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
        if loss is not None:
            heads = (
                ops.resize_bilinear(x, labels.shape[1:], model.policy.platform) for x in output
            )
            value = loss(*heads, labels, weights)
            return value, (updated["batch_stats"], {"loss": value})
        losses = segmentation_loss(
            output.logits,
            output.aux_logits,
            labels,
            weights=weights,
            aux_weight=aux_weight,
            platform=model.policy.platform,
        )
        return losses["loss"], (updated["batch_stats"], losses)

    return loss_fn


def make_update(
    model: DeepLabV3Plus,
    config: Config,
    total_steps: int,
    *,
    use_dropout: bool = True,
    loss: Callable[..., jax.Array] | None = None,
) -> Callable[[State, jax.Array, jax.Array], tuple[State, Metrics]]:
    """Builds the pure function that does one step.

    Args:
      model: the network.
      config: the run's configuration, of which `seed` and `train` are read.
      total_steps: T of the schedule.
      use_dropout: off for comparing with another implementation.
      loss: takes the place of ours; see `make_loss`.

    Returns:
      update(state, images float32 (B, H, W, 3), labels int32 (B, H, W)) -> (state, metrics), where
      metrics are scalars: "loss", "loss_main", "loss_aux" (weighted), "lr", "grad_norm" and the
      boolean "is_finite", which covers these, the new weights and the new statistics.
    """
    optimizer, schedule = build_optimizer(config.train, total_steps)
    train = config.train
    loss_fn = make_loss(model, train.aux_weight, use_dropout, loss)
    global_norm = joint_norm if model.policy.platform == "cpu" else optax.global_norm

    def update(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        batch = images, labels, row_weights(labels, train.loss_groups)
        grads, batch_stats, losses = gradients(
            loss_fn, train.gradient_accumulation, state["params"], state["batch_stats"], batch, key
        )
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        grad_norm = global_norm(grads)
        new_state = {
            "step": state["step"] + 1,
            "params": optax.apply_updates(state["params"], updates),
            "batch_stats": batch_stats,
            "opt_state": opt_state,
        }
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
    config: Config,
    total_steps: int,
    mesh: Mesh,
    *,
    loss: Callable[..., jax.Array] | None = None,
) -> Callable[..., tuple[State, Metrics]]:
    """Returns the jitted step(state, image, label, box) -> (state, metrics) over the mesh.

    The batch, and with `mesh.spatial` its rows of pixels, is split over devices; everything else is
    replicated. The state is donated.
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
