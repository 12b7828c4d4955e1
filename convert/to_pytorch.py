"""Command: writes a checkpoint's weights as a file for PyTorch, without PyTorch.

    python -m convert.to_pytorch --checkpoint DIR --output X.pth

Names and order are those of `convert.keymap`; so a file that `convert.from_pytorch` has read comes
back with equal tensors, what it dropped aside.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deeplab_jax import cli
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.utils.atomic import check_writable

_EXAMPLES = """\
  deeplab convert to-pytorch --checkpoint runs/voc_r50_os16 --step best --output voc.pth
  deeplab convert to-pytorch --checkpoint weights/mine --output mine.safetensors
  deeplab convert to-pytorch --checkpoint weights/mine --output mine.pth --dialect mmsegmentation"""
_SUFFIXES = (".pth", ".pt", ".safetensors")


def main(argv: list[str]) -> None:
    """Parses arguments and writes the file.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("convert to-pytorch", _EXAMPLES)
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help="checkpoint directory")
    parser.add_argument("--step", default="latest", help="latest, best or a number")
    parser.add_argument("--output", metavar="FILE", required=True, help=".pth or .safetensors")
    parser.add_argument(
        "--dialect",
        metavar="NAME",
        help="sssegmentation (default) or mmsegmentation; of a backbone v1c or torchvision",
    )
    parser.add_argument(
        "--optimizer",
        action="store_true",
        help="also momentum and iteration of a run, for torch.optim.SGD",
    )
    args, overrides = parser.parse(argv)
    if overrides:
        raise ConfigError(overrides[0], "there is no such argument", f"see {parser.prog} --help")
    check_output(args.output, args.optimizer)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # leave the accelerator to whoever trains on it
    from convert.keymap import describe
    from convert.momentum import to_optimizer
    from deeplab_jax import checkpoint

    check_dialect(args.dialect)
    info = checkpoint.read_info(args.checkpoint, args.step)
    names = ["params", "batch_stats"]
    if args.optimizer:
        if info.kind != "run":
            what = f"is of kind {info.kind}, which has no optimiser's state"
            raise CheckpointError(args.checkpoint, what, "leave out --optimizer, or give a run")
        names.append("opt_state")
    items = checkpoint.read_arrays(args.checkpoint, info.step, names)
    variables = {name: items[name] for name in names[:2]}
    tensors, dialect, depth = to_state_dict(args.checkpoint, variables, info, args.dialect)
    optimizer = None
    if args.optimizer:
        total = _total_steps(info)
        optimizer = to_optimizer(items, info.config, info.step, total, dialect)
    write(args.output, tensors, info, dialect, optimizer)
    print(f"{args.checkpoint}, step {info.step}: {describe(dialect, depth)}")
    if optimizer is not None:
        lr = optimizer["param_groups"][0]["lr"]
        note = "" if total is not None else " of the first step: the schedule's end is not known"
        print(f"momentum converted; iteration {info.step}, lr {lr:.6g}{note}")
    print(f"written: {args.output} ({len(tensors)} tensors)")


def check_output(path: str, with_optimizer: bool = False) -> None:
    """Refuses a path where the file could not be written, before the work that makes it.

    Raises:
      CheckpointError: it exists.
      ConfigError: its suffix names no format that can hold what is asked for.
      ResourceError: its folder is missing, or not writable.
    """
    check_named(path)
    if os.path.lexists(path):
        raise CheckpointError(path, "exists already", "choose another --output, or remove it")
    if Path(path).suffix not in _SUFFIXES:
        what = f"has the suffix {Path(path).suffix!r}, which names no format"
        raise ConfigError(path, what, f"end it with one of {', '.join(_SUFFIXES)}")
    if with_optimizer and Path(path).suffix == ".safetensors":
        what = "is to be a safetensors file, which holds tensors alone, and --optimizer is given"
        raise ConfigError(path, what, "end it with .pth, or leave out --optimizer")
    check_writable(Path(path), "--output")


def check_named(path: str) -> None:
    """Refuses an empty path, which would be the current folder.

    Raises:
      ConfigError: it is one.
    """
    if not path:
        raise ConfigError("--output", "is empty", "give a path")


def check_dialect(name: str | None) -> None:
    """Refuses a dialect that does not exist.

    Raises:
      ConfigError: there is none of this name.
    """
    from convert.keymap import DIALECTS

    if name is not None and name not in DIALECTS:
        close = difflib.get_close_matches(name, DIALECTS, 1, 0.5)
        fix = f"did you mean {close[0]}?" if close else f"use one of {', '.join(DIALECTS)}"
        raise ConfigError("--dialect", f"{name!r} is not known", fix)


def to_state_dict(
    where: str, variables: Mapping[str, Mapping], info: Any, dialect: str | None = None
) -> tuple[dict[str, Any], str, int]:
    """Converts variables to a state dict.

    Args:
      where: the checkpoint, for errors.
      variables: {"params": tree, "batch_stats": tree} of a network, or of a backbone.
      info: the checkpoint's description.
      dialect: None for the first that can hold them.

    Returns:
      (tensors by key in PyTorch's order, dialect, depth). A run's counters are its steps.

    Raises:
      CheckpointError: the dialect cannot hold them.
    """
    from convert.dialects import nearest_depth
    from convert.keymap import DIALECTS, to_tensors, units

    is_backbone = info.kind == "backbone"
    backbone = variables["params"] if is_backbone else variables["params"]["backbone"]
    stem = "deep" if "conv3" in backbone["stem"] else "7x7"
    blocks = [name for name in backbone if name.startswith("layer3_")]
    depth = nearest_depth(len(blocks), "conv3" in backbone["layer3_0"])
    fitting = [
        name
        for name, names in DIALECTS.items()
        if (names.heads == ()) == is_backbone and names.stem == stem
    ]
    chosen = dialect or next(iter(fitting), "sssegmentation")
    if chosen not in fitting:
        kind = "a backbone" if is_backbone else "a DeepLabV3+"
        what = f"is {kind} with the {stem} stem, which {chosen} has no names for"
        fix = f"use --dialect {' or '.join(fitting)}" if fitting else "no dialect holds it"
        raise CheckpointError(where, what, fix)
    counters = dict(info.counters)
    if info.kind == "run":
        norms = [f"{path}/norm" for path, _, norm in units(depth, chosen) if norm]
        counters = {norm: info.counters.get(norm, 0) + info.step for norm in norms}
    return to_tensors(variables, counters, depth, chosen), chosen, depth


def write(
    path: str, tensors: dict[str, Any], info: Any, dialect: str, optimizer: dict | None = None
) -> None:
    """Writes a state dict in the format that the path's suffix names.

    Raises:
      ResourceError: it cannot be written.
    """
    from convert.pth import write_pth, write_safetensors

    if Path(path).suffix == ".safetensors":
        write_safetensors(path, tensors)
    else:
        write_pth(path, envelope(tensors, info, dialect, optimizer))


def envelope(
    tensors: dict[str, Any], info: Any, dialect: str, optimizer: dict | None = None
) -> dict[str, Any]:
    """Returns what the dialect's own programs save: the state dict and what is around it."""
    state = {} if optimizer is None else {"optimizer": optimizer}
    if dialect == "sssegmentation":
        return {"cur_epoch": _epochs(info), "cur_iter": info.step, **state, "model": tensors}
    if dialect == "mmsegmentation":
        names, palette = list(info.class_names), info.palette.tolist()
        meta = {"epoch": _epochs(info), "iter": info.step, "CLASSES": names, "PALETTE": palette}
        meta["dataset_meta"] = {"classes": names, "palette": palette}
        return {"meta": meta, "state_dict": tensors, **state}
    return tensors


def _num_samples(info: Any) -> int | None:
    """Returns how many images a run trains on; None where it is not known."""
    match = re.match(r"(\d+) images ", info.data)  # see rundir.fingerprint
    return int(match[1]) if match else None


def _total_steps(info: Any) -> int | None:
    """Returns T of a run's schedule; None where it is not known."""
    from deeplab_jax.config import total_steps

    count = _num_samples(info)
    return info.config.train.steps or (total_steps(info.config, count) if count else None)


def _epochs(info: Any) -> int:
    """Returns the finished epochs of a run; 0 where they are not known."""
    from deeplab_jax.config import steps_per_epoch

    count = _num_samples(info)
    return info.step // steps_per_epoch(info.config, count) if count else 0


if __name__ == "__main__":
    cli.run(main)
