"""Command: trains on given batches from PyTorch's weights, to compare step by step.

    deeplab convert replay --checkpoint X.pth --config F --batches B.npz --steps N --total-steps T

The update is `train`'s own, without dropout. Standard output is one JSON line a step.
"""

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from convert import MAX_ITERATION
from convert.from_pytorch import (
    SOURCE,
    add_progress_flags,
    add_source_flags,
    check_progress_flags,
    describe_weights,
    to_run,
)
from convert.to_pytorch import check_dialect, check_output, to_state_dict, write
from deeplab_jax import cli
from deeplab_jax.errors import ConfigError, DataError, NumericError

if TYPE_CHECKING:
    import numpy as np

    from convert.keymap import Tree
    from deeplab_jax.config import Config

_EXAMPLES = """\
  deeplab convert replay --checkpoint start.pth --config voc_r50_os16 \\
      --batches batches.npz --steps 5 --total-steps 100 --dtype float64 --output end.pth
  deeplab convert replay --checkpoint epoch_30.pth --optimizer --config voc_r50_os16 \\
      --batches batches.npz --steps 5 --total-steps 39660

batches: `np.savez(..., images=..., labels=...)`, images float32 (S, B, H, W, 3) normalised, labels
int (S, B, H, W) with 255 ignored; step s takes batch s mod S"""
_FIELDS = ("lr", "loss_main", "loss_aux", "loss", "grad_norm")


def main(argv: list[str]) -> None:
    """Parses arguments, trains, prints a line a step, and writes the weights."""
    parser = cli.Parser("convert replay", _EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", required=True, help=SOURCE)
    add("--config", metavar="FILE", required=True, help="recipe: a file or a name")
    add("--batches", metavar="FILE", required=True, help=".npz, see below")
    add("--steps", metavar="N", type=int, required=True, help="how many to do")
    add("--total-steps", metavar="T", type=int, required=True, help="where the schedule ends")
    add("--output", metavar="FILE", help="write the weights: .pth or .safetensors")
    add("--dialect", metavar="NAME", help="of --output; default: the checkpoint's")
    text = "of the computation; default: float32"
    add("--dtype", choices=("float32", "float64", "bfloat16"), help=text)
    text = "start from the checkpoint's momentum and iteration, and write them to --output"
    add_progress_flags(parser, text)
    add_source_flags(parser)
    add("--config.x", metavar="VALUE", help="any field of the recipe")
    args, overrides = parser.parse(argv)
    check_progress_flags(args)
    check_dialect(args.dialect)
    if args.output is not None:
        check_output(args.output, args.optimizer)
    elif args.dialect is not None:
        raise ConfigError("--dialect", "is given without --output", "give both or none")
    if args.steps < 1:
        raise ConfigError("--steps", f"must be 1 or more, got {args.steps}", "change it")
    _check_total(args, 0)
    images, labels = read_batches(args.batches)
    config = read_config(args, overrides, images.shape[1])
    check_labels(args.batches, labels, config.model.num_classes)
    import jax

    from convert.dialects import MisfitError

    try:
        with jax.enable_x64(config.model.dtype == "float64"):
            _replay(args, config, images, labels.astype("int32"))
    except MisfitError as error:
        print(error.table, file=sys.stderr, flush=True)
        raise


def _check_total(args: argparse.Namespace, start: int) -> None:
    if args.total_steps > MAX_ITERATION:
        what = f"must be at most {MAX_ITERATION}, got {args.total_steps}"
        raise ConfigError("--total-steps", what, "give the schedule's length")
    end = start + args.steps
    if end > args.total_steps:
        what = f"is {args.total_steps}, and these steps end at {end}"
        raise ConfigError("--total-steps", what, "give the schedule's length, or fewer --steps")


def read_config(args: argparse.Namespace, overrides: list[str], batch_size: int) -> "Config":
    """Returns the recipe for this batch size, one process and the flags' type; overrides win."""
    from deeplab_jax.config.recipe import load_recipe

    given = [f"--config.train.batch_size={batch_size}", "--config.train.loss_groups=1",
             f"--config.model.dtype={args.dtype or 'float32'}"]  # fmt: skip
    if args.dtype and any(override.startswith("--config.model.dtype=") for override in overrides):
        raise ConfigError("--dtype", "is given beside --config.model.dtype", "give one of them")
    config = load_recipe(args.config, given + overrides)
    if config.train.batch_size != batch_size:
        what = f"is {config.train.batch_size}, and the batches hold {batch_size} images each"
        raise ConfigError("--config.train.batch_size", what, "leave it out")
    return config


def read_batches(path: str) -> "tuple[np.ndarray, np.ndarray]":
    """Returns a file's images, float32 (S, B, H, W, 3), and labels, integers (S, B, H, W)."""
    import numpy as np

    wanted = "save it with np.savez(..., images=..., labels=...)"
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except FileNotFoundError as error:
        raise DataError(path, "does not exist", "check the path") from error
    except KeyError as error:
        raise DataError(path, "lacks the array `images` or `labels`", wanted) from error
    except Exception as error:  # whatever a file's bytes provoke is the file's fault
        text = " ".join(str(error).split())[:200]
        raise DataError(path, f"cannot be read ({type(error).__name__}: {text})", wanted) from error
    shape = images.shape
    if images.dtype != np.float32 or images.ndim != 5 or shape[-1] != 3:
        what = f"`images` is {images.dtype} {shape}, float32 (S, B, H, W, 3) wanted"
        raise DataError(path, what, "convert it")
    if labels.dtype.kind not in "iu" or labels.shape != shape[:-1]:
        what = f"`labels` is {labels.dtype} {labels.shape}, integers {shape[:-1]} wanted"
        raise DataError(path, what, "convert it: one label for each pixel of `images`")
    if 0 in shape:
        raise DataError(path, f"`images` is empty, {shape}", "give at least one batch")
    if shape[1] < 2:
        what = "has batches of one image, and the image-pool norm would see one value"
        raise DataError(path, what, "give two images or more a batch")
    if not np.isfinite(images).all():
        raise DataError(path, "`images` holds values that are not finite", "mend them")
    return images, labels


def check_labels(path: str, labels: "np.ndarray", num_classes: int) -> None:
    """Refuses labels that are neither a class nor ignored."""
    import numpy as np

    from deeplab_jax.config import IGNORE_INDEX

    bad = ((labels < 0) | (labels >= num_classes)) & (labels != IGNORE_INDEX)
    if bad.any():
        value, step = labels[bad][0], np.argwhere(bad)[0][0]
        what = f"`labels` holds {value} in batch {step}, with {num_classes} classes"
        raise DataError(path, what, f"use 0 to {num_classes - 1}, and {IGNORE_INDEX} for ignored")


def _replay(
    args: argparse.Namespace, config: "Config", images: "np.ndarray", labels: "np.ndarray"
) -> None:
    import numpy as np

    from convert.momentum import Progress, read_progress, run_items, to_optimizer
    from convert.source import read_source

    source = read_source(args.checkpoint, args.optimizer, args.level, args.drop)
    source.require_network(args.config)
    seed = config.seed if args.new_auxiliary else None
    variables, counters = source.to_variables(config.model, args.config, seed)
    progress = Progress()
    if args.optimizer:
        progress = read_progress(source, config, args.iteration)
        _check_total(args, progress.iteration)
    info = to_run(describe_weights(config, source, counters), progress.iteration)
    dialect = args.dialect or source.structure.dialect
    to_state_dict(args.checkpoint, variables, info, dialect)  # refuses before it takes time
    items = run_items(args.checkpoint, variables, progress, config)
    start = {"step": np.int32(info.step), **items}
    for note in source.notes:
        print(note, file=sys.stderr)
    state = _train(start, images, labels, config, args)
    if args.output is None:
        return
    info = dataclasses.replace(info, step=info.step + args.steps)
    variables = {name: state[name] for name in variables}
    tensors, *_ = to_state_dict(args.checkpoint, variables, info, dialect)
    optimizer = None
    if args.optimizer:
        optimizer = to_optimizer(state, config, info.step, args.total_steps, dialect)
    write(args.output, tensors, info, dialect, optimizer)
    print(f"written: {args.output} ({len(tensors)} tensors)", file=sys.stderr)


def _train(
    state: "Tree", images: "np.ndarray", labels: "np.ndarray", config: "Config",
    args: argparse.Namespace,
) -> "Tree":  # fmt: skip
    """Does `--steps`, prints their lines, and returns the state after them as NumPy arrays."""
    import jax

    from deeplab_jax.models import build_model
    from deeplab_jax.training.step import make_update

    update = make_update(build_model(config.model), config, args.total_steps, use_dropout=False)
    jitted = jax.jit(update, donate_argnums=0)
    start = int(state["step"])
    state = jax.device_put(state)
    for step in range(start, start + args.steps):
        batch = step % len(images)
        state, metrics = jitted(state, images[batch], labels[batch])
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        if not values["is_finite"]:
            what = f"is not finite: loss {values['loss']}, gradient norm {values['grad_norm']}"
            what += f", else the new weights; batch {batch}, lr {values['lr']:.3g}"
            raise NumericError(f"step {step}", what, "look at the weights and this batch")
        print(json.dumps({"step": step, **{name: values[name] for name in _FIELDS}}), flush=True)
    return jax.device_get(state)


if __name__ == "__main__":
    cli.run(main)
