"""Command: writes a checkpoint's weights as a file for PyTorch, without PyTorch.

    deeplab convert to-pytorch --checkpoint DIR --output X.pth

Names and order are those of `convert.keymap`; so a file that `convert.from_pytorch` has read comes
back with equal tensors, what it dropped aside.
"""

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab_jax import cli
from deeplab_jax.errors import CheckpointError, ConfigError, check_writable
from deeplab_jax.utils import steps

if TYPE_CHECKING:
    import numpy as np

    from convert.keymap import Variables
    from deeplab_jax.checkpoint import Info

_EXAMPLES = """\
  deeplab convert to-pytorch --checkpoint runs/voc_r50_os16 --step best --output voc.pth
  deeplab convert to-pytorch --checkpoint weights/mine --output mine.safetensors
  deeplab convert to-pytorch --checkpoint weights/mine --output mine.pth --dialect mmsegmentation"""
_SUFFIXES = (".pth", ".pt", ".safetensors")


def main(argv: list[str]) -> None:
    """Parses arguments and writes the file."""
    parser = cli.Parser("convert to-pytorch", _EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", required=True, help="checkpoint directory")
    add("--step", default="latest", help="latest, best or a number")
    add("--output", metavar="FILE", required=True, help=".pth or .safetensors")
    text = "sssegmentation (default) or mmsegmentation; of a backbone v1c or torchvision"
    add("--dialect", metavar="NAME", help=text)
    text = "also momentum and iteration of a run, for torch.optim.SGD"
    add("--optimizer", action="store_true", help=text)
    cli.add_weights(parser)
    args, overrides = parser.parse(argv)
    if overrides:
        raise ConfigError(overrides[0], "there is no such argument", f"see {parser.prog} --help")
    check_output(args.output, args.optimizer)
    check_dialect(args.dialect)
    steps.check(args.checkpoint, args.step)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # leave the accelerator to whoever trains on it
    from convert.keymap import describe
    from convert.momentum import to_optimizer
    from deeplab_jax import checkpoint

    def read(step: int) -> "tuple[Info, dict[str, Any]]":
        info = checkpoint.read_info(args.checkpoint, step)
        if args.optimizer and info.kind != "run":
            what = f"is of kind {info.kind}, which has no optimiser's state"
            raise CheckpointError(args.checkpoint, what, "leave out --optimizer, or give a run")
        kind = checkpoint.weights_of(info, args.weights)
        if args.optimizer and kind == "ema":
            what = "writes the average of the weights, which has no momentum"
            raise ConfigError("--optimizer", what, "add --weights raw, or leave it out")
        names = checkpoint.item_names(info, args.weights)
        names = (*names, "opt_state") if args.optimizer else names
        return info, checkpoint.read_arrays(args.checkpoint, step, names)

    info, items = checkpoint.with_step(args.checkpoint, args.step, read)
    variables = checkpoint.network(items)
    tensors, dialect, depth = to_state_dict(args.checkpoint, variables, info, args.dialect)
    optimizer = None
    if args.optimizer:
        assert info.config is not None  # a run's
        total, _ = _schedule(info)
        optimizer = to_optimizer(items, info.config, info.step, total, dialect)
    write(args.output, tensors, info, dialect, optimizer)
    kind = checkpoint.weights_of(info, args.weights)
    of_kind = f", {kind} weights" if kind else ""
    print(f"{args.checkpoint}, step {info.step}{of_kind}: {describe(dialect, depth)}")
    if optimizer is not None:
        lr = optimizer["param_groups"][0]["lr"]
        note = "" if total is not None else " of the first step: the schedule's end is not known"
        print(f"momentum converted; iteration {info.step}, lr {lr:.6g}{note}")
    level = {"sssegmentation": '["model"]', "mmsegmentation": '["state_dict"]'}.get(dialect, "")
    load = f"torch.load({args.output!r}){level}"
    if args.output.endswith(".safetensors"):
        load = f"safetensors.torch.load_file({args.output!r})"
    print(f"{len(tensors)} tensors; in PyTorch: {load}")
    cli.finish(args.output)


def check_output(path: str, with_optimizer: bool = False) -> None:
    """Refuses a path that exists, cannot be written or names no format that holds what is asked."""
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
    """Refuses an empty path, which would be the current folder."""
    if not path:
        raise ConfigError("--output", "is empty", "give a path")


def check_dialect(name: str | None, of_networks: bool = False) -> None:
    """Refuses a dialect that does not exist, or with `of_networks` has no names for a head."""
    if name is None:
        return
    from convert.keymap import DIALECTS

    known = [key for key, spec in DIALECTS.items() if spec.heads or not of_networks]
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, 0.5)
        fix = f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"
        raise ConfigError("--dialect", f"{name!r} is not known", fix)


def to_state_dict(
    where: str, variables: "Variables", info: "Info", dialect: str | None = None
) -> tuple[dict[str, "np.ndarray"], str, int]:
    """Converts the variables of a network's or backbone's checkpoint to a state dict.

    `where` names the checkpoint in errors. A run's steps are added to the counters of `info`.
    `dialect` None takes the first that can hold the variables.

    Returns:
      (tensors by key in PyTorch's order, dialect, depth).

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
    wanted = (stem, is_backbone)
    fitting = [name for name, spec in DIALECTS.items() if (spec.stem, not spec.heads) == wanted]
    chosen = dialect or next(iter(fitting), "sssegmentation")
    if chosen not in fitting:
        kind = "a backbone" if is_backbone else "a DeepLabV3+"
        what = f"is {kind} with the {stem} stem, which {chosen} has no names for"
        fix = f"use --dialect {' or '.join(fitting)}" if fitting else "no dialect holds it"
        raise CheckpointError(where, what, fix)
    counters = dict(info.counters)
    if info.kind == "run":
        norms = [f"{path}/norm" for path, _, norm in units(depth, chosen) if norm]
        counters = {norm: info.counters.get(norm, 0) + info.num_batches for norm in norms}
    return to_tensors(variables, counters, depth, chosen), chosen, depth


def write(
    path: str, tensors: dict[str, "np.ndarray"], info: "Info", dialect: str,
    optimizer: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes a state dict in the format that the path's suffix names."""
    from convert.pth import write_pth, write_safetensors

    if Path(path).suffix == ".safetensors":
        write_safetensors(path, tensors)
        return
    state = {} if optimizer is None else {"optimizer": optimizer}
    _, epoch = _schedule(info)
    obj: dict[str, object] = {**tensors}
    if dialect == "sssegmentation":
        obj = {"cur_epoch": epoch, "cur_iter": info.step, **state, "model": tensors}
    if dialect == "mmsegmentation":
        names, palette = list(info.class_names), info.palette.tolist()
        meta = {"epoch": epoch, "iter": info.step, "CLASSES": names, "PALETTE": palette}
        meta["dataset_meta"] = {"classes": names, "palette": palette}
        obj = {"meta": meta, "state_dict": tensors, **state}
    write_pth(path, obj)


def _schedule(info: "Info") -> tuple[int | None, int]:
    """Returns T of a run's schedule and its finished epochs; None and 0 where not known."""
    from deeplab_jax.training.plan import steps_per_epoch, total_steps

    if info.config is None:
        return None, 0
    match = re.match(r"(\d+) images ", info.data)  # see Dataset.fingerprint
    count = int(match[1]) if match else 0
    if not count:
        return info.config.train.steps or None, 0
    return total_steps(info.config, count), info.step // steps_per_epoch(info.config, count)


if __name__ == "__main__":
    cli.run(main)
