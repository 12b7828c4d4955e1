"""Softmax cross entropy with ignored pixels, for both heads (spec section 4)."""

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.models import ops


def row_weights(
    labels: jax.Array,
    num_groups: int,
    ignore_index: int = 255,
    class_weights: tuple[float, ...] = (),
) -> jax.Array:
    """Returns the weights of rows that make the loss the mean of the groups' means.

    Args:
      labels: int (B, H, W), class ids or `ignore_index`.
      num_groups: contiguous groups of rows of the batch, each averaged over its own valid pixels
        as the reference's processes do; must divide B.
      ignore_index: label of pixels that do not count.
      class_weights: one a class, for a mean weighted by class; empty: 1 each.

    Returns:
      (B,): 1 / (number of groups x sum of the class weights of the valid pixels of the row's
      group); any finite value in a group without valid pixels.
    """
    batch = labels.shape[0]
    # A mask of members, not a reshape: rows may lie on other devices than their group's others.
    group = np.arange(batch) // (batch // num_groups)
    is_member = group[None] == np.arange(num_groups)[:, None]  # (G, B)
    if class_weights:
        classes = jnp.arange(len(class_weights)).reshape(1, 1, 1, -1)
        # Whole numbers are exact, whichever devices add them.
        counts = jnp.sum(labels[..., None] == classes, (1, 2))  # (B, C)
        rows = jnp.sum(counts * jnp.asarray(class_weights).reshape(1, -1), 1)
        totals = jnp.sum(jnp.where(is_member, rows[None], 0), 1, keepdims=True)  # (G, 1)
        shares = 1 / (num_groups * jnp.where(totals > 0, totals, 1))
        return jnp.sum(jnp.where(is_member, shares, 0), 0)
    # One sum over rows and pixels: where both are split, two sums are two all-reduces.
    is_valid = is_member[..., None, None] & (labels != ignore_index)[None]  # (G, B, H, W)
    counts = jnp.sum(is_valid, (1, 2, 3)).reshape(-1, 1)
    return jnp.sum(jnp.where(is_member, 1 / (num_groups * jnp.maximum(counts, 1)), 0), 0)


def segmentation_loss(
    logits: jax.Array,
    aux_logits: jax.Array,
    labels: jax.Array,
    *,
    weights: jax.Array,
    platform: str,
    aux_weight: float = 0.4,
    ignore_index: int = 255,
) -> dict[str, jax.Array]:
    """Computes the training loss of a batch, or of some of its rows.

    Args:
      logits: (B, h, w, C), resized to the labels' size here.
      aux_logits: (B, h', w', C), resized to the labels' size here.
      labels: int (B, H, W), class ids or `ignore_index`.
      weights: (B,), `row_weights` of the whole batch; each multiplies its row's sum over pixels.
      platform: as in `ComputePolicy`; picks the form.
      aux_weight: weight of the auxiliary head's loss.
      ignore_index: label of pixels that do not count.

    Returns:
      Scalars "loss_main", "loss_aux" (already weighted) and their sum "loss".
    """
    options = labels, weights, ignore_index, platform
    with jax.named_scope("loss"):  # for those who read compiled programs
        main = _weighted_cross_entropy(logits, *options)
        aux = aux_weight * _weighted_cross_entropy(aux_logits, *options)
    return {"loss_main": main, "loss_aux": aux, "loss": main + aux}


def _weighted_cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, ignore_index: int, platform: str
) -> jax.Array:
    if platform in ("gpu", "tpu") and labels.shape[1] % logits.shape[1] == 0:
        return ops.resized_cross_entropy(logits, labels, weights, ignore_index)
    logits = ops.resize_bilinear(logits, labels.shape[1:], platform)
    is_valid = labels != ignore_index
    # A comparison instead of a gather: its gradient needs no scatter.
    is_class = labels[..., None] == jnp.arange(logits.shape[-1]).reshape(1, 1, 1, -1)
    picked = jnp.sum(jnp.where(is_class, logits, 0), -1)
    per_pixel = jnp.where(is_valid, jax.nn.logsumexp(logits, -1) - picked, 0)
    return jnp.sum(weights.reshape(-1, 1, 1) * per_pixel)
