"""The network as StableHLO by `jax.export`: any batch, one size, named platforms."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

from deeplab_jax.config import Config
from deeplab_jax.export.fit import fit
from deeplab_jax.inference.buckets import Size
from deeplab_jax.inference.engine import network_logits
from deeplab_jax.models import build_model
from deeplab_jax.models.ops import resize_bilinear
from deeplab_jax.models.preprocess import normalize

PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}  # JAX's names, and ours
_UNUSED = ("aux_head", "aux_classifier")  # of which the outputs need nothing
# JAX's documentation, "Exporting and serializing", read in November 2026.
WINDOW = (
    "JAX promises that a jax and jaxlib up to 6 months newer, or up to 3 weeks older, than those"
    " that wrote the file read it"
)


def build(
    params: Mapping[str, Any], config: Config, kind: str, size: Size, platforms: Sequence[str]
) -> tuple[bytes, int]:
    """Returns the file's content and the version of its calling convention.

    Args:
      params: of the network with folded norms.
      config: of the network; its protocol is that of the table.
      kind: "labels" or "logits".
      size: (height, width) of images.
      platforms: some of `PLATFORMS`.
    """

    def forms(platform: str) -> Callable[..., tuple[jax.Array, ...]]:
        return partial(_outputs, config, kind, PLATFORMS[platform])

    def program(images: jax.Array) -> tuple[jax.Array, ...]:
        # Without the barrier a compiler would compute with the constants, for minutes.
        own = lax.optimization_barrier({k: v for k, v in params.items() if k not in _UNUSED})
        own |= {key: jax.tree.map(jnp.zeros_like, params[key]) for key in _UNUSED}
        by_platform = {platform: forms(platform) for platform in platforms}
        if len(by_platform) == 1:
            return by_platform[platforms[0]](own, images)
        return lax.platform_dependent(own, images, **by_platform)

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *size, 3), np.uint8)
    exported = export.export(jax.jit(program), platforms=platforms)(images)
    return bytes(exported.serialize()), exported.calling_convention_version


def _outputs(
    config: Config, kind: str, platform: str, params: Mapping[str, Any], images: jax.Array
) -> tuple[jax.Array, ...]:
    """Returns (logits,) or (labels, confidence) of bytes (B, H, W, 3)."""
    model = build_model(config.model, platform)
    model = model.clone(policy=model.policy._replace(is_folded=True))
    base = config.eval.resize_base
    pixels = fit(images, base) if base else images
    logits = network_logits(model, {"params": params}, normalize(pixels))
    if kind == "logits":
        return (logits,)
    scores = resize_bilinear(logits, images.shape[1:3], platform)
    largest = scores.max(-1)
    confidence = jnp.exp(largest - jax.nn.logsumexp(scores, -1))
    return jnp.argmax(scores, -1).astype(jnp.uint8), confidence
