"""From an image and a network to class scores: the one protocol of evaluate, predict and the API.

Whole image, one scale, no flip. Logits, not probabilities, go by one bilinear interpolation
straight to the image's original size (ssseg spec section 7, items 1 to 3).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from deeplab_jax.metrics import confusion_matrix
from deeplab_jax.models import DeepLabV3Plus, ops
from deeplab_jax.prepare import normalize

PROTOCOL = "whole image, single scale, no flip, logits resized to the original size"


def network_logits(model: DeepLabV3Plus, variables: Any, images: jax.Array) -> jax.Array:
    """Returns logits (B, ceil(H/4), ceil(W/4), C) of normalised images (B, H, W, 3)."""
    output: Any = model.apply(variables, images)
    return output.logits


def scores(
    model: DeepLabV3Plus, variables: Any, image: jax.Array, size: Sequence[int]
) -> jax.Array:
    """Returns logits (*size, C) of one image uint8 (h, w, 3) RGB, fitted for the network."""
    logits = network_logits(model, variables, normalize(image)[None])
    return ops.resize_bilinear(logits, size)[0]


def make_predict(model: DeepLabV3Plus) -> Callable:
    """Returns a jitted function that segments one image.

    predict(variables, image uint8 (h, w, 3), size) -> (labels uint8 (*size), confidence float32
    (*size): the probability of the chosen class). `size` (height, width) is static; each pair of
    shapes compiles once.
    """

    def predict(
        variables: Any, image: jax.Array, size: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        logits = scores(model, variables, image, size)
        confidence = jnp.exp(logits.max(-1) - jax.nn.logsumexp(logits, -1))
        return jnp.argmax(logits, -1).astype(jnp.uint8), confidence.astype(jnp.float32)

    return jax.jit(predict, static_argnums=2)


def make_count(model: DeepLabV3Plus) -> Callable:
    """Returns a jitted function that compares one image with its truth.

    count(variables, image uint8 (h, w, 3), label uint8 (H, W)) -> int32 (C, C) confusion matrix.
    Only these counts leave the device.
    """

    def count(variables: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        prediction = jnp.argmax(scores(model, variables, image, label.shape), -1)
        return confusion_matrix(prediction, label, model.num_classes)

    return jax.jit(count)
