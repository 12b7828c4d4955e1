"""The one table of names and layouts: sssegmentation's checkpoints against our variables.

Both directions read it, so what goes in comes out. Convolutions are OIHW there and HWIO here
(also depthwise: (C, 1, 3, 3) is (3, 3, 1, C)); everything else is equal. Order is the order of
registration in PyTorch, which is also the order of its optimiser's state (ssseg spec section 3.2).
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from deeplab_jax.errors import CheckpointError, shorten
from deeplab_jax.models.resnet import BLOCKS


class Unit(NamedTuple):
    """A convolution and the norm after it, or a classifier.

    Attributes:
      path: our module, such as "backbone/layer1_0/conv1".
      conv: PyTorch's module of the convolution.
      norm: PyTorch's module of the norm; "" for a classifier, whose convolution has a bias.
    """

    path: str
    conv: str
    norm: str


def units(depth: int) -> Iterator[Unit]:
    """Yields every unit of the network with a backbone of `depth` layers."""
    for index in range(3):
        stem = "backbone_net.stem"
        yield Unit(
            f"backbone/stem/conv{index + 1}", f"{stem}.{3 * index}", f"{stem}.{3 * index + 1}"
        )
    for layer, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            path, key = f"backbone/layer{layer}_{block}", f"backbone_net.layer{layer}.{block}"
            # A basic block projects only where stride or width changes: not in layer 1.
            if block == 0 and (depth >= 50 or layer > 1):
                yield Unit(f"{path}/projection", f"{key}.downsample.0", f"{key}.downsample.1")
            for index in range(1, 4 if depth >= 50 else 3):
                yield Unit(f"{path}/conv{index}", f"{key}.conv{index}", f"{key}.bn{index}")
    branches = "aspp_net.parallel_branches"
    yield Unit("aspp/branch0", f"{branches}.0.0", f"{branches}.0.1")
    for index in range(1, 4):
        yield from _separable(f"aspp/branch{index}", f"{branches}.{index}")
    yield Unit("aspp/image_pool", "aspp_net.global_branch.1", "aspp_net.global_branch.2")
    yield Unit("aspp/merge", "aspp_net.bottleneck.0", "aspp_net.bottleneck.1")
    yield Unit("decoder/low_level", "shortcut.0", "shortcut.1")
    for index in range(2):
        yield from _separable(f"decoder/refine{index}", f"decoder.{index}")
    yield Unit("classifier", "decoder.3", "")
    yield Unit("aux_head", "auxiliary_decoder.0", "auxiliary_decoder.1")
    yield Unit("aux_classifier", "auxiliary_decoder.4", "")


def _separable(path: str, key: str) -> Iterator[Unit]:
    for part in ("depthwise", "pointwise"):
        yield Unit(f"{path}/{part}", f"{key}.{part}_conv", f"{key}.{part}_bn")


def leaves(depth: int) -> Iterator[tuple[str, str, str]]:
    """Yields (collection, our path, PyTorch's key) of every tensor.

    The collection is "params", "batch_stats" or "counters" (the norms' `num_batches_tracked`).
    """
    for path, conv, norm in units(depth):
        if not norm:
            yield "params", f"{path}/kernel", f"{conv}.weight"
            yield "params", f"{path}/bias", f"{conv}.bias"
            continue
        yield "params", f"{path}/conv/kernel", f"{conv}.weight"
        yield "params", f"{path}/norm/scale", f"{norm}.weight"
        yield "params", f"{path}/norm/bias", f"{norm}.bias"
        yield "batch_stats", f"{path}/norm/mean", f"{norm}.running_mean"
        yield "batch_stats", f"{path}/norm/var", f"{norm}.running_var"
        yield "counters", f"{path}/norm", f"{norm}.num_batches_tracked"


def to_variables(
    tensors: Mapping[str, np.ndarray], depth: int
) -> tuple[dict[str, dict], dict[str, int]]:
    """Converts a PyTorch state dict.

    Args:
      tensors: key -> array, convolutions OIHW.
      depth: layers of the backbone.

    Returns:
      ({"params": tree, "batch_stats": tree} with kernels HWIO and dtypes kept, counters of the
      norms by our path).

    Raises:
      CheckpointError: a key is missing or not known; none is ignored.
    """
    table = list(leaves(depth))
    missing = [key for _, _, key in table if key not in tensors]
    unexpected = set(tensors) - {key for _, _, key in table}
    if missing or unexpected:
        raise CheckpointError(
            "state dict",
            f"{len(missing)} tensors missing ({shorten(missing)}), "
            f"{len(unexpected)} unexpected ({shorten(unexpected)})",
            f"give a DeepLabV3+ of sssegmentation with ResNet-{depth}",
        )
    variables: dict[str, dict] = {"params": {}, "batch_stats": {}}
    counters = {}
    for collection, path, key in table:
        value = np.asarray(tensors[key])
        if collection == "counters":
            counters[path] = int(value)
            continue
        node = variables[collection]
        *parents, leaf = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return variables, counters


def to_tensors(
    variables: Mapping[str, Mapping], counters: Mapping[str, int], depth: int
) -> dict[str, np.ndarray]:
    """Converts our variables to a PyTorch state dict, in PyTorch's order.

    Args:
      variables: {"params": tree, "batch_stats": tree}.
      counters: of the norms by our path; a norm that is not there gets 0.
      depth: layers of the backbone.

    Returns:
      Key -> array; convolutions OIHW, counters int64 scalars.
    """
    tensors = {}
    for collection, path, key in leaves(depth):
        if collection == "counters":
            tensors[key] = np.asarray(counters.get(path, 0), np.int64)
            continue
        value = variables[collection]
        for part in path.split("/"):
            value = value[part]
        array = np.asarray(value)
        tensors[key] = array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array
    return tensors
