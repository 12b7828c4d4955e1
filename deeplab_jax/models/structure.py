"""What the shapes of parameters say about their network, to explain weights that do not fit.

Output stride, atrous rates and multi-grid leave no trace in parameters.
"""

from collections.abc import Mapping
from typing import Any

from deeplab_jax.models.resnet import BLOCKS

_CHANNELS = {
    "num_classes": ("classifier", "kernel"),
    "head_channels": ("aspp", "merge", "conv", "kernel"),
    "low_level_channels": ("decoder", "low_level", "conv", "kernel"),
    "aux_channels": ("aux_head", "conv", "kernel"),
}


def structure(params: Mapping[str, Any]) -> dict[str, int | str]:
    """Returns fields of `config.model` by name, as far as parameters show them.

    Args:
      params: parameters of a network, or of its backbone alone; leaves have a `shape`.
    """
    backbone = params.get("backbone", params)
    is_bottleneck = "conv3" in backbone["layer1_0"]
    blocks = tuple(sum(name.startswith(f"layer{n}_") for name in backbone) for n in range(1, 5))
    depths = [d for d, known in BLOCKS.items() if known == blocks and (d >= 50) == is_bottleneck]
    stem = backbone["stem"]
    last = "conv3" if "conv3" in stem else "conv1"
    found: dict[str, int | str] = {"depth": depths[0]} if depths else {}
    found |= {"stem": "deep" if "conv3" in stem else "7x7"}
    found |= {"width": stem[last]["conv"]["kernel"].shape[-1]}
    for field, path in _CHANNELS.items():
        if path[0] in params:
            leaf: Any = params
            for name in path:
                leaf = leaf[name]
            found[field] = leaf.shape[-1]
    return found


def describe_difference(field: str, there: int | str, here: int | str) -> str:
    """Returns how the networks of a checkpoint (`there`) and of a recipe (`here`) differ."""
    if field == "depth":
        return f"a ResNet-{there} there, a ResNet-{here} here"
    if field == "stem":
        return f"a {there} stem there, a {here} one here"
    if field == "num_classes":
        return f"{there} classes there, {here} here"
    return f"{field.replace('_', ' ')} {there} there, {here} here"
