"""Softmax cross entropy with ignored pixels, for both heads (ssseg spec section 4)."""

import jax
import jax.numpy as jnp

from deeplab_jax.models import ops


def segmentation_loss(
    logits: jax.Array,
    aux_logits: jax.Array,
    labels: jax.Array,
    *,
    num_groups: int = 1,
    aux_weight: float = 0.4,
    ignore_index: int = 255,
) -> dict[str, jax.Array]:
    """Computes the training loss.

    Args:
      logits: (B, h, w, C), resized to the labels' size here.
      aux_logits: (B, h', w', C), likewise.
      labels: int (B, H, W), class ids or `ignore_index`.
      num_groups: contiguous groups of rows of the batch, each averaged over its own valid pixels
        as the reference's processes do; must divide B.
      aux_weight: of the auxiliary head's loss.
      ignore_index: label of pixels that do not count.

    Returns:
      Scalars "loss_main", "loss_aux" (already weighted) and their sum "loss".
    """
    main = _grouped_cross_entropy(logits, labels, num_groups, ignore_index)
    aux = aux_weight * _grouped_cross_entropy(aux_logits, labels, num_groups, ignore_index)
    return {"loss_main": main, "loss_aux": aux, "loss": main + aux}


def _grouped_cross_entropy(logits, labels, num_groups, ignore_index):
    """Mean over groups of each group's mean over valid pixels; 0 for a group without any."""
    logits = ops.resize_bilinear(logits, labels.shape[1:])
    is_valid = labels != ignore_index
    # A comparison instead of a gather: its gradient needs no scatter.
    is_class = labels[..., None] == jnp.arange(logits.shape[-1]).reshape(1, 1, 1, -1)
    picked = jnp.sum(jnp.where(is_class, logits, 0), -1)
    per_pixel = jnp.where(is_valid, jax.nn.logsumexp(logits, -1) - picked, 0)
    per_row = jnp.sum(per_pixel, (1, 2)).reshape(num_groups, -1)
    valid_per_row = jnp.sum(is_valid, (1, 2)).reshape(num_groups, -1)
    sums, counts = per_row.sum(1), valid_per_row.sum(1)
    return jnp.mean(sums / jnp.maximum(counts, 1))
