"""Saves and restores training state, weights and backbones; nothing else imports Orbax.

A checkpoint directory W (the work directory of a run, or the output of a converter) holds
`W/checkpoints/<step>/`. A step is a mapping of named items, each a pytree, and a description in
JSON (`Info`, and a checksum of each array). Orbax writes a step under a temporary name and renames
it when complete, so the newest finished step survives a kill at any moment. What is read is
compared with its checksums, so that a step changed on the disk is refused.
"""

from deeplab_jax.checkpoint.description import Info
from deeplab_jax.checkpoint.folder import check_link, set_aside, set_aside_before
from deeplab_jax.checkpoint.reading import (
    find_step,
    misfits,
    read_arrays,
    read_info,
    read_shapes,
    restore,
    with_step,
)
from deeplab_jax.checkpoint.saver import Saver, save_once
from deeplab_jax.checkpoint.weights import (
    EVAL_ITEMS,
    WEIGHTS,
    abstract_items,
    item_names,
    network,
    weights_of,
)
from deeplab_jax.utils.steps import (
    FORMAT,
    finished,
    folder_of,
    is_finished,
    is_good,
    latest_step,
    step_path,
)

__all__ = [
    "EVAL_ITEMS",
    "FORMAT",
    "WEIGHTS",
    "Info",
    "Saver",
    "abstract_items",
    "check_link",
    "find_step",
    "finished",
    "folder_of",
    "is_finished",
    "is_good",
    "item_names",
    "latest_step",
    "misfits",
    "network",
    "read_arrays",
    "read_info",
    "read_shapes",
    "restore",
    "save_once",
    "set_aside",
    "set_aside_before",
    "step_path",
    "weights_of",
    "with_step",
]
