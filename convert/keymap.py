"""The one table of names and layouts: other projects' checkpoints against our variables.

Both directions read it, so that a round trip is exact. Convolutions are OIHW in PyTorch and HWIO
here (also depthwise: (C, 1, 3, 3) is (3, 3, 1, C)), and mmsegmentation concatenates ASPP's branches
in another order; all other tensors are equal. The order is that of registration in PyTorch, which
is also the order of its optimiser's state (spec section 3.2).
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from deeplab_jax.errors import CheckpointError, shorten
from deeplab_jax.models.resnet import BLOCKS

COUNTER = "num_batches_tracked"  # what only PyTorch's norms have
_MERGE = "aspp/merge/conv/kernel"  # takes ASPP's five branches, each as wide as its output

Tree: TypeAlias = Mapping[str, Any]  # by module; leaves are arrays, or anything with a shape
Variables: TypeAlias = Mapping[str, Tree]  # of a network or backbone: "params", "batch_stats"


class Unit(NamedTuple):
    """A convolution and the norm after it, or a classifier: our module, and PyTorch's two."""

    path: str  # such as "backbone/layer1_0/conv1"
    conv: str
    norm: str  # "" for a classifier, whose convolution has a bias


class Dialect(NamedTuple):
    """How a project names and orders the tensors of a network or of a backbone alone."""

    prefix: str  # of the backbone's keys
    stem: str  # "deep" or "7x7"
    is_projection_first: bool  # whether a block's `downsample` comes before its `conv1`
    is_pool_first: bool = False  # whether the image pool is ASPP's first joined branch, not last
    heads: tuple[Unit, ...] = ()  # after the backbone, in order; () for a backbone alone
    drops: tuple[str, ...] = ()  # keys that may be there and are dropped


def _pair(path: str, key: str, first: int = 0) -> Unit:
    """Returns the unit of two neighbours in an `nn.Sequential`."""
    return Unit(path, f"{key}.{first}", f"{key}.{first + 1}")


def _separable(path: str, key: str, conv: str = "conv", norm: str = "bn") -> Iterator[Unit]:
    """Yields the two units of a separable convolution."""
    for part in ("depthwise", "pointwise"):
        yield Unit(f"{path}/{part}", f"{key}.{part}_{conv}", f"{key}.{part}_{norm}")


def _sssegmentation_heads() -> Iterator[Unit]:
    yield _pair("aspp/branch0", "aspp_net.parallel_branches.0")
    for index in range(1, 4):
        yield from _separable(f"aspp/branch{index}", f"aspp_net.parallel_branches.{index}")
    yield _pair("aspp/image_pool", "aspp_net.global_branch", 1)
    yield _pair("aspp/merge", "aspp_net.bottleneck")
    yield _pair("decoder/low_level", "shortcut")
    for index in range(2):
        yield from _separable(f"decoder/refine{index}", f"decoder.{index}")
    yield Unit("classifier", "decoder.3", "")
    yield _pair("aux_head", "auxiliary_decoder")
    yield Unit("aux_classifier", "auxiliary_decoder.4", "")


def _mmsegmentation_heads() -> Iterator[Unit]:
    def unit(path: str, key: str) -> Unit:
        return Unit(path, f"{key}.conv", f"{key}.bn")

    def separable(path: str, key: str) -> Iterator[Unit]:
        return _separable(path, key, "conv.conv", "conv.bn")

    yield Unit("classifier", "decode_head.conv_seg", "")
    yield unit("aspp/image_pool", "decode_head.image_pool.1")
    yield unit("aspp/branch0", "decode_head.aspp_modules.0")
    for index in range(1, 4):
        yield from separable(f"aspp/branch{index}", f"decode_head.aspp_modules.{index}")
    yield unit("aspp/merge", "decode_head.bottleneck")
    yield unit("decoder/low_level", "decode_head.c1_bottleneck")
    for index in range(2):
        yield from separable(f"decoder/refine{index}", f"decode_head.sep_bottleneck.{index}")
    yield Unit("aux_classifier", "auxiliary_head.conv_seg", "")
    yield unit("aux_head", "auxiliary_head.convs.0")


_IMAGENET = ("fc.weight", "fc.bias")  # its thousand classes
DIALECTS = {
    "sssegmentation": Dialect("backbone_net.", "deep", True, heads=tuple(_sssegmentation_heads())),
    "mmsegmentation": Dialect("backbone.", "deep", False, True, tuple(_mmsegmentation_heads())),
    "v1c": Dialect("", "deep", False, drops=_IMAGENET),
    "torchvision": Dialect("", "7x7", False, drops=_IMAGENET),
}


def units(depth: int, dialect: str = "sssegmentation") -> Iterator[Unit]:
    """Yields every unit of the network, or backbone, with `depth` layers of ResNet."""
    spec = DIALECTS[dialect]
    root = "backbone/" if spec.heads else ""
    if spec.stem == "deep":
        for index in range(3):
            yield _pair(f"{root}stem/conv{index + 1}", f"{spec.prefix}stem", 3 * index)
    else:
        yield Unit(f"{root}stem/conv1", f"{spec.prefix}conv1", f"{spec.prefix}bn1")
    for layer, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            path, key = f"{root}layer{layer}_{block}", f"{spec.prefix}layer{layer}.{block}"
            parts = [
                Unit(f"{path}/conv{index}", f"{key}.conv{index}", f"{key}.bn{index}")
                for index in range(1, 4 if depth >= 50 else 3)
            ]
            # A basic block projects only where stride or width changes: not in layer 1.
            if block == 0 and (depth >= 50 or layer > 1):
                place = 0 if spec.is_projection_first else len(parts)
                parts.insert(place, _pair(f"{path}/projection", f"{key}.downsample"))
            yield from parts
    yield from spec.heads


def leaves(depth: int, dialect: str = "sssegmentation") -> Iterator[tuple[str, str, str]]:
    """Yields (collection, our path, PyTorch's key) of every tensor.

    The collection is "params", "batch_stats" or "counters" (the norms' `num_batches_tracked`).
    """
    for path, conv, norm in units(depth, dialect):
        if not norm:
            yield "params", f"{path}/kernel", f"{conv}.weight"
            yield "params", f"{path}/bias", f"{conv}.bias"
            continue
        yield "params", f"{path}/conv/kernel", f"{conv}.weight"
        yield "params", f"{path}/norm/scale", f"{norm}.weight"
        yield "params", f"{path}/norm/bias", f"{norm}.bias"
        yield "batch_stats", f"{path}/norm/mean", f"{norm}.running_mean"
        yield "batch_stats", f"{path}/norm/var", f"{norm}.running_var"
        yield "counters", f"{path}/norm", f"{norm}.{COUNTER}"


def to_variables(
    tensors: Mapping[str, np.ndarray], depth: int, dialect: str = "sssegmentation"
) -> tuple[dict[str, Tree], dict[str, int]]:
    """Converts a PyTorch state dict of a network, or backbone, with `depth` layers of ResNet.

    Returns:
      Variables with kernels HWIO and dtypes kept, of the backbone alone for a dialect of backbones;
      and the norms' counters by our path, none for files from before 2018.

    Raises:
      CheckpointError: a key is missing or not known; only the dialect's drops are ignored.
    """
    has_counters = any(key.endswith(f".{COUNTER}") for key in tensors)
    table = [leaf for leaf in leaves(depth, dialect) if has_counters or leaf[0] != "counters"]
    missing = [key for _, _, key in table if key not in tensors]
    unexpected = set(tensors) - {key for _, _, key in table} - set(DIALECTS[dialect].drops)
    if missing or unexpected:
        what = f"{len(missing)} tensors missing ({shorten(missing)}), "
        what += f"{len(unexpected)} unexpected ({shorten(unexpected)})"
        raise CheckpointError("state dict", what, f"give {describe(dialect, depth)}")
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    counters = {}
    for collection, path, key in table:
        value = np.asarray(tensors[key])
        if collection == "counters":
            counters[path] = round(float(value)) if value.dtype != np.int64 else int(value)
            continue
        node = variables[collection]
        *parents, leaf = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        if path == _MERGE and DIALECTS[dialect].is_pool_first:
            value = np.roll(value, -value.shape[3], axis=2)
        node[leaf] = value
    return variables, counters


def to_tensors(
    variables: Variables, counters: Mapping[str, int], depth: int, dialect: str = "sssegmentation"
) -> dict[str, np.ndarray]:
    """Returns our variables as a PyTorch state dict, in PyTorch's order.

    A dialect of backbones takes the variables of the backbone alone. `counters` are the norms' by
    our path: one that is missing becomes 0; with no counters at all the state dict has none, which
    PyTorch reads as 0. Convolutions are OIHW, views where possible; counters int64 scalars.

    Raises:
      CheckpointError: a variable is missing or has no name in the dialect.
    """
    known = _flatten(variables)
    wanted = {f"{kind}/{path}" for kind, path, _ in leaves(depth, dialect) if kind != "counters"}
    missing, unexpected = wanted - known.keys(), known.keys() - wanted
    if missing or unexpected:
        what = f"{len(missing)} missing ({shorten(missing)}), "
        what += f"{len(unexpected)} unexpected ({shorten(unexpected)})"
        raise CheckpointError("variables", what, f"give those of {describe(dialect, depth)}")
    tensors = {}
    for collection, path, key in leaves(depth, dialect):
        if collection == "counters":
            if counters:
                tensors[key] = np.asarray(counters.get(path, 0), np.int64)
            continue
        array = np.asarray(known[f"{collection}/{path}"])
        if path == _MERGE and DIALECTS[dialect].is_pool_first:
            array = np.roll(array, array.shape[3], axis=2)
        tensors[key] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return tensors


def to_shapes(
    variables: Variables, depth: int, dialect: str = "sssegmentation"
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of the state dict that (abstract) variables become."""
    known = _flatten(variables)
    shapes: dict[str, tuple[int, ...]] = {}
    for collection, path, key in leaves(depth, dialect):
        shape = () if collection == "counters" else tuple(known[f"{collection}/{path}"].shape)
        shapes[key] = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
    return shapes


def describe(dialect: str, depth: int) -> str:
    """Returns words for what a dialect holds, such as "sssegmentation's DeepLabV3+ ..."."""
    return f"{dialect}'s {'DeepLabV3+ with ' if DIALECTS[dialect].heads else ''}ResNet-{depth}"


def _flatten(tree: Tree, root: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        is_tree = isinstance(value, Mapping)
        flat |= _flatten(value, f"{root}{key}/") if is_tree else {f"{root}{key}": value}
    return flat
