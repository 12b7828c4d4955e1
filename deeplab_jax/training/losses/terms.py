"""Terms of the loss of one head, for classes of unequal size.

Every term takes `log_p`, the log softmax (B, H, W, C) at the labels' size, float32 or wider, and
`labels`, int (B, H, W), class ids or `ignore_index`. All are finite for logits of +-1e4 in float32.
A group is one of the loss's groups of rows (`config.train.loss_groups`). Terms that are no sum over
pixels are computed in each group and averaged over groups; a group without valid pixels counts 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def cross_entropy(
    log_p: jax.Array,
    labels: jax.Array,
    class_weights: tuple[float, ...] = (),
    smoothing: float = 0.0,
    ignore_index: int = 255,
) -> jax.Array:
    """Returns each pixel's cross entropy, weighted by class and with smoothed labels.

    (1 - e) w[y] (-log p[y]) + e / C sum over c of w[c] (-log p[c]), for label y, class weights w
    and smoothing e. Divided by the sum of w[y] over valid pixels, which `row_weights` does, it is
    PyTorch's `cross_entropy(weight=w, label_smoothing=e)`.

    Source: label smoothing, Szegedy et al. 2016 (Rethinking the Inception Architecture), sec. 7.

    Args:
      log_p: see above.
      labels: see above.
      class_weights: w, one a class; empty: 1 each.
      smoothing: e, 0 <= e < 1.
      ignore_index: label of pixels that do not count.

    Returns:
      (B, H, W), 0 where a pixel is ignored.
    """
    w = _array(class_weights, log_p)
    is_class = _is_class(log_p, labels)
    loss = -jnp.sum(jnp.where(is_class, w * log_p, 0), -1)
    if not smoothing:
        return loss
    uniform = -jnp.mean(w * log_p, -1)
    is_valid = labels != ignore_index
    return (1 - smoothing) * loss + jnp.where(is_valid, smoothing * uniform, 0)


def focal(
    log_p: jax.Array, labels: jax.Array, class_weights: tuple[float, ...] = (), gamma: float = 2.0
) -> jax.Array:
    """Returns each pixel's focal loss: w[y] (1 - p[y])^gamma (-log p[y]).

    With gamma = 0 it is the cross entropy. Where p[y] = 1 value and gradient are 0, also for
    gamma < 1, where the derivative of the factor alone is infinite.

    Source: Lin et al. 2017 (Focal Loss for Dense Object Detection), eq. 5; w is their alpha. They
    divide by the number of foreground anchors; here `row_weights` divides by the sum of w[y].

    Args:
      log_p: see above.
      labels: see above.
      class_weights: w, one a class; empty: 1 each.
      gamma: focusing parameter, 0 or more.

    Returns:
      (B, H, W), 0 where a pixel is ignored.
    """
    is_class = _is_class(log_p, labels)
    own = -jnp.sum(jnp.where(is_class, log_p, 0), -1)  # 0 where ignored
    weight = jnp.sum(jnp.where(is_class, _array(class_weights, log_p), 0), -1)
    is_wrong = own > 0
    inner = jnp.where(is_wrong, own, 1)  # else 0 ** (gamma - 1) makes the gradient NaN
    return jnp.where(is_wrong, weight * (-jnp.expm1(-inner)) ** gamma * inner, 0)


def hard_pixels(
    log_p: jax.Array,
    labels: jax.Array,
    num_groups: int,
    threshold: float,
    min_kept: int,
    ignore_index: int = 255,
) -> jax.Array:
    """Returns which pixels online hard example mining keeps, bool (B, H, W).

    In each group, with n valid pixels and k = min_kept x images of the group, a valid pixel is kept
    where p[y] < max(threshold, (k + 1)-th smallest p[y], or the largest where n <= k). The loss is
    the mean over kept pixels. Nothing is kept where all p[y] reach both; such a group counts 0.
    A threshold near 0 keeps the k hardest alone. Pixels of equal p[y] are kept or left out
    together.

    Source: SSSegmentation's `OHEMPixelSampler(thresh, min_kept_per_image)`, whose batch is that of
    one process; MMSegmentation keeps the same pixels, and divides by all.

    The (k + 1)-th smallest is found by bisection over the bits of floating-point numbers: each of
    31 (float64: 63) turns counts, in whole numbers, so that any division of the pixels between
    devices gives the same threshold.

    Args:
      log_p: see above; takes no gradient.
      labels: see above.
      num_groups: contiguous groups of rows.
      threshold: 0 < threshold <= 1.
      min_kept: pixels an image, 0 or more.
      ignore_index: label of pixels that do not count.
    """
    is_valid = labels != ignore_index
    own = jnp.sum(jnp.where(_is_class(log_p, labels), lax.stop_gradient(log_p), 0), -1)
    # A value computed twice may be rounded in two ways, and is compared with itself below.
    p = lax.optimization_barrier(jnp.exp(own))
    limit = jnp.full(num_groups, threshold, p.dtype)
    if min_kept:
        num_valid = _group_sums(jnp.sum(is_valid, (1, 2)), num_groups)  # (G,)
        rank = jnp.minimum(min_kept * (len(labels) // num_groups), num_valid - 1)
        smallest = _ranked(p, is_valid, jnp.maximum(rank, 0), num_groups)
        limit = jnp.where(num_valid > 0, jnp.maximum(smallest, limit), limit)
    return is_valid & (p < _of_rows(limit, len(labels)))


def _ranked(p: jax.Array, is_valid: jax.Array, rank: jax.Array, num_groups: int) -> jax.Array:
    """Returns the element of each group with `rank` smaller ones, of valid numbers >= 0, (G,)."""
    bits = p.dtype.itemsize * 8
    kind = jnp.dtype(f"int{bits}")
    keys = lax.bitcast_convert_type(p, kind)  # in the order of the numbers, which are not negative

    def decide(turn: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | lax.shift_left(jnp.ones((), kind), (bits - 2 - turn).astype(kind))
        is_smaller = is_valid & (keys < _of_rows(tried, len(p)))
        count = _group_sums(jnp.sum(is_smaller, (1, 2)), num_groups)
        return jnp.where(count <= rank, tried, found)

    found = lax.fori_loop(0, bits - 1, decide, jnp.zeros(num_groups, kind))
    return lax.bitcast_convert_type(found, p.dtype)


def dice(
    log_p: jax.Array, labels: jax.Array, num_groups: int, ignore_index: int = 255
) -> jax.Array:
    """Returns the soft dice loss, averaged over the classes that a group's labels hold.

    1 - mean over present c of 2 sum(p[c] g[c]) / (sum p[c] + sum g[c]), with g[c] = 1 where the
    label is c, and sums over all valid pixels of the group. A class without a pixel in the group is
    left out, so that no smoothing constant is needed: false positives of it count through the
    classes they are taken from. Class weights do not act here: each class counts alike.

    Source: Milletari et al. 2016 (V-Net), sec. 3, with p for p^2 in the denominator, as Drozdzal et
    al. 2016 and segmentation_models.pytorch; present classes as Berman et al. 2018.

    Args:
      log_p: see above.
      labels: see above.
      num_groups: contiguous groups of rows.
      ignore_index: label of pixels that do not count.

    Returns:
      Scalar, 0 to 1.
    """
    is_class = _is_class(log_p, labels)
    p = jnp.where((labels != ignore_index)[..., None], jnp.exp(log_p), 0)
    truth = _group_sums(jnp.sum(is_class, (1, 2)), num_groups)  # (G, C)
    overlap = _group_sums(jnp.sum(jnp.where(is_class, p, 0), (1, 2)), num_groups)
    size = _group_sums(jnp.sum(p, (1, 2)), num_groups) + truth
    is_present = truth > 0
    return _mean_present(1 - 2 * overlap / jnp.where(is_present, size, 1), is_present)


def lovasz_softmax(
    log_p: jax.Array, labels: jax.Array, num_groups: int, ignore_index: int = 255
) -> jax.Array:
    """Returns the Lovasz-softmax loss, averaged over the classes that a group's labels hold.

    For each present class c: errors m = 1 - p[c] at its pixels and p[c] at other valid ones, sorted
    from large to small, times the growth of the Jaccard loss 1 - I / U as pixels are taken in that
    order: 1 / U at a pixel of the class, I / (U (U - 1)) at another, after I = pixels of c not yet
    taken and U = pixels of c and others taken. Equal errors keep the order of the pixels; their
    order changes no value. The growth is constant in the gradient. Class weights do not act here.

    Source: Berman et al. 2018 (The Lovasz-Softmax Loss), algorithm 1, over the pixels of the group
    (their "batch"), classes "present".

    Pixels of all devices are sorted together: on a mesh each device gathers the errors of one class
    after another, B H W numbers each. This costs memory and time that grow with the classes.

    Args:
      log_p: see above.
      labels: see above.
      num_groups: contiguous groups of rows.
      ignore_index: label of pixels that do not count.

    Returns:
      Scalar, 0 to 1.
    """
    is_valid = (labels != ignore_index).reshape(num_groups, -1)  # (G, n)

    def of_class(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, p = inputs
        is_class = (labels == number).reshape(num_groups, -1)
        p = p.reshape(num_groups, -1)
        errors = jnp.where(is_valid, jnp.where(is_class, 1 - p, p), 0)
        slopes = _jaccard_growth(lax.stop_gradient(errors), is_class, is_valid)
        return jnp.sum(errors * slopes, 1), jnp.any(is_class, 1)

    classes = jnp.arange(log_p.shape[-1]), jnp.moveaxis(jnp.exp(log_p), -1, 0)
    losses, is_present = lax.map(of_class, classes)  # (C, G) each
    return _mean_present(losses.T, is_present.T)


def _jaccard_growth(errors: jax.Array, is_class: jax.Array, is_valid: jax.Array) -> jax.Array:
    """Returns the growth of the Jaccard loss at each pixel, all (G, n); see `lovasz_softmax`."""
    keys = jnp.where(is_valid, -errors, 1)  # ignored pixels last
    positions = lax.broadcasted_iota(jnp.int32, errors.shape, 1)
    own = is_class.astype(jnp.int32)
    _, own, positions = lax.sort((keys, own, positions), dimension=1, is_stable=True, num_keys=1)
    total, taken = jnp.sum(own, 1, keepdims=True), jnp.cumsum(own, 1)
    rank = lax.broadcasted_iota(jnp.int32, errors.shape, 1)
    union = (total + rank + 1 - taken).astype(errors.dtype)
    left = (total - taken).astype(errors.dtype)
    growth = jnp.where(own > 0, 1 / union, left / jnp.maximum(union * (union - 1), 1))

    def place(positions: jax.Array, growth: jax.Array) -> jax.Array:
        return jnp.zeros_like(growth).at[positions].set(growth, unique_indices=True)

    return jax.vmap(place)(positions, growth)


def _mean_present(losses: jax.Array, is_present: jax.Array) -> jax.Array:
    """Returns the mean over groups of the mean over present classes; both are (G, C)."""
    totals = jnp.sum(jnp.where(is_present, losses, 0), 1)
    return jnp.mean(totals / jnp.maximum(jnp.sum(is_present, 1), 1))


def _is_class(log_p: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns bool (B, H, W, C); all are false where a pixel is ignored."""
    return labels[..., None] == jnp.arange(log_p.shape[-1]).reshape(1, 1, 1, -1)


def _array(class_weights: tuple[float, ...], log_p: jax.Array) -> jax.Array:
    """Returns the class weights as (1, 1, 1, C)."""
    weights = np.array(class_weights or (1,) * log_p.shape[-1])
    return jnp.asarray(weights, log_p.dtype).reshape(1, 1, 1, -1)


def _group_sums(rows: jax.Array, num_groups: int) -> jax.Array:
    """Returns (G, ...), sums over the rows of each group of (B, ...)."""
    return jnp.sum(rows.reshape(num_groups, -1, *rows.shape[1:]), 1)


def _of_rows(groups: jax.Array, batch: int) -> jax.Array:
    """Returns each row's value of its group, (B, 1, 1)."""
    return jnp.repeat(groups, batch // len(groups)).reshape(-1, 1, 1)
