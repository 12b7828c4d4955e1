"""The loss function of a recipe, of both heads."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from deeplab_jax.config import IGNORE_INDEX, Config, LossConfig, TrainConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.models import ops
from deeplab_jax.training.losses import terms
from deeplab_jax.training.losses.plain import row_weights, segmentation_loss

# (logits, aux_logits, labels, weights) -> scalar; see `build_loss`
UserLoss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
# (logits (B, h, w, C), aux_logits (B, h', w', C), labels, weights) -> scalars, "loss" among them
Losses = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], dict[str, jax.Array]]


def weights_of(labels: jax.Array, config: Config) -> jax.Array:
    """Returns the weights of a batch's rows, (B,); see `row_weights`."""
    return row_weights(labels, config.train.loss_groups, class_weights=config.loss.class_weights)


def build_loss(config: Config, platform: str, loss: UserLoss | None = None) -> Losses:
    """Returns the loss of a batch, or of some of its rows, as a function.

    Its arguments are both heads' logits, labels int (B, H, W), and `weights_of` the whole batch.
    It returns scalars: "loss_main", "loss_aux" (already weighted) and their sum "loss".

    A recipe with plain cross entropy gets `segmentation_loss`. Any other gets, for each head, the
    sum of the terms of `config.loss`, each times its weight; the auxiliary head's sum is times
    `config.train.aux_weight`.

    Args:
      config: the run's configuration, whose class weights are numbers or none; see
        `class_weights.resolved`.
      platform: as in `ComputePolicy`.
      loss: takes the terms' place. It is given both heads' logits (B, H, W, C) at the labels' size,
        float32 or wider, labels int32 (B, H, W) with 255 for ignored pixels, and weights (B,): a
        row's sum over valid pixels times its weight, summed over rows, is the mean over the batch's
        valid pixels. It returns a scalar. With `config.train.gradient_accumulation` it is given
        some rows at a time, and what it returns is summed over parts. Then "loss" is all that is
        returned.

    Raises:
      ConfigError: as `check_unused`, with `loss`; or, when that is called, it does not return a
        scalar; or class weights are to be computed, and were not.
    """
    if loss is not None:
        check_unused(config)
        return _of_user(loss, platform)
    if config.loss == LossConfig():
        return _plain(config.train.aux_weight, platform)
    if config.loss.class_weighting != "none":
        what = f"is {config.loss.class_weighting}, and no training labels are at hand to be counted"
        fix = "give the numbers: --config.loss.class_weights=W0,W1,..."
        raise ConfigError("config.loss.class_weighting", what, fix)
    return _of_terms(config, platform)


def check_unused(config: Config) -> None:
    """Refuses fields that a loss of the caller's own leaves without effect.

    Raises:
      ConfigError: `config.loss` or `config.train.aux_weight` is not its default.
    """
    takes = "and a loss of your own takes their place"
    if config.loss != LossConfig():
        fix = "drop the fields of config.loss, or the loss"
        raise ConfigError("config.loss", f"changes terms, {takes}", fix)
    usual = TrainConfig().aux_weight
    if config.train.aux_weight != usual:
        what = f"is {config.train.aux_weight:g} times the auxiliary head's terms, {takes}"
        fix = f"leave it at {usual:g}, and weigh aux_logits in the loss"
        raise ConfigError("config.train.aux_weight", what, fix)


def _plain(aux_weight: float, platform: str) -> Losses:
    def compute(
        logits: jax.Array, aux_logits: jax.Array, labels: jax.Array, weights: jax.Array
    ) -> dict[str, jax.Array]:
        return segmentation_loss(
            logits, aux_logits, labels, weights=weights, platform=platform, aux_weight=aux_weight
        )

    return compute


def _of_user(loss: UserLoss, platform: str) -> Losses:
    def compute(
        logits: jax.Array, aux_logits: jax.Array, labels: jax.Array, weights: jax.Array
    ) -> dict[str, jax.Array]:
        with jax.named_scope("loss"):
            size = labels.shape[1:]
            main = ops.resize_bilinear(logits, size, platform)
            aux = ops.resize_bilinear(aux_logits, size, platform)
            value = jnp.asarray(loss(main, aux, labels, weights))
        if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            what = f"returned {value.dtype} of shape {value.shape}, not one floating-point number"
            name = getattr(loss, "__name__", "loss")
            raise ConfigError(name, what, "return a scalar, such as jnp.sum(...) of its pixels")
        return {"loss": value}

    return compute


def _of_terms(config: Config, platform: str) -> Losses:
    recipe, groups = config.loss, config.train.loss_groups

    def compute(
        logits: jax.Array, aux_logits: jax.Array, labels: jax.Array, weights: jax.Array
    ) -> dict[str, jax.Array]:
        def of_head(logits: jax.Array) -> jax.Array:
            wide = ops.resize_bilinear(logits, labels.shape[1:], platform)
            return head_loss(wide, labels, weights, recipe, groups)

        with jax.named_scope("loss"):
            main = of_head(logits)
            aux = config.train.aux_weight * of_head(aux_logits)
        return {"loss_main": main, "loss_aux": aux, "loss": main + aux}

    return compute


def head_loss(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, recipe: LossConfig, num_groups: int
) -> jax.Array:
    """Returns the sum of a recipe's terms for one head.

    Args:
      logits: (B, H, W, C).
      labels: int (B, H, W).
      weights: (B,), `weights_of` the whole batch.
      recipe: the terms; class weights are numbers.
      num_groups: groups of rows of this batch, where a term is no sum over pixels.
    """
    log_p = jax.nn.log_softmax(logits, -1)
    by_class, total = recipe.class_weights, jnp.zeros((), logits.dtype)
    if recipe.cross_entropy:
        kept, of_kept = labels, weights
        if recipe.ohem_threshold:
            limits = recipe.ohem_threshold, recipe.ohem_min_kept
            is_kept = terms.hard_pixels(log_p, labels, num_groups, *limits)
            kept = jnp.where(is_kept, labels, IGNORE_INDEX)
            of_kept = row_weights(kept, num_groups, class_weights=by_class)
        per_pixel = terms.cross_entropy(log_p, kept, by_class, recipe.label_smoothing)
        total += recipe.cross_entropy * _weighted_sum(per_pixel, of_kept)
    if recipe.focal:
        per_pixel = terms.focal(log_p, labels, by_class, recipe.focal_gamma)
        total += recipe.focal * _weighted_sum(per_pixel, weights)
    if recipe.dice:
        total += recipe.dice * terms.dice(log_p, labels, num_groups)
    if recipe.lovasz:
        total += recipe.lovasz * terms.lovasz_softmax(log_p, labels, num_groups)
    return total


def _weighted_sum(per_pixel: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(weights.reshape(-1, 1, 1) * per_pixel)
