"""Command: turns a file of PyTorch weights into a checkpoint, without PyTorch.

    deeplab convert from-pytorch --checkpoint X.pth --config ROW --output DIR

Networks of sssegmentation and mmsegmentation become a checkpoint of kind "weights", ImageNet
classifiers (v1c, torchvision) one of kind "backbone"; a network with its optimiser's state becomes
a "run". The table of names is `convert.keymap`.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from convert import MAX_ITERATION
from convert.to_pytorch import check_named
from deeplab_jax import cli
from deeplab_jax.errors import CheckpointError, ConfigError, ResourceError, shorten
from deeplab_jax.utils.places import as_place, is_address, is_taken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from convert.keymap import Tree
    from convert.source import PyTorchFile
    from deeplab_jax.checkpoint import Info
    from deeplab_jax.config import Config

SOURCE = ".pth or .safetensors; of one in shards the folder or its .index.json"  # --checkpoint
_STRUCTURE = ("output_stride", "atrous_rates", "multi_grid")  # what weights do not show
_BACKBONE = "--config.init.backbone"
_EXAMPLES = """\
  deeplab convert from-pytorch --checkpoint resnet50_v1c-2cccc1ad.pth --output weights/r50_v1c
  deeplab convert from-pytorch --checkpoint deeplabv3plus_resnet50os16_voc_train.pth \\
      --config voc_r50_os16 --output weights/voc_r50_os16
  deeplab convert from-pytorch --checkpoint mine.pth --output-stride 16 --output weights/mine
  deeplab convert from-pytorch --checkpoint checkpoints-epoch-30.pth --optimizer \\
      --config voc_r50_os16 --output runs/voc_r50_os16   # `train` continues it"""


def main(argv: list[str]) -> None:
    """Parses arguments, converts, and prints what became of the file."""
    parser = cli.Parser("convert from-pytorch", _EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", required=True, help=SOURCE)
    add("--output", metavar="DIR", required=True, help="the checkpoint to write")
    text = "recipe of the weights: a file, a name, or a run's directory"
    add("--config", metavar="RECIPE", help=text)
    text = "needed without --config: weights do not show it"
    add("--output-stride", type=int, choices=(8, 16), help=text)
    text = "default: 12,24,36 at output stride 8, 6,12,18 at 16"
    add("--atrous-rates", metavar="R,R,R", type=_integers, help=text)
    add("--multi-grid", metavar="D,D,D", type=_integers, help="dilations of layer 4, as 1,2,4")
    text = "also momentum and iteration: a run that `train --workdir DIR` continues"
    add_progress_flags(parser, text)
    add_source_flags(parser)
    add("--config.x", metavar="VALUE", help="any field of the recipe")
    args, overrides = parser.parse(argv)
    check_progress_flags(args)
    check_named(args.output)
    from convert.pth import check_file
    from deeplab_jax.config.recipe import load_recipe

    if is_taken(as_place(args.output)):
        fix = "choose another --output, or remove this one"
        raise CheckpointError(args.output, "exists already", fix)
    config = load_recipe(args.config, overrides) if args.config else None
    check_file(args.checkpoint)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # leave the accelerator to whoever trains on it
    from convert.dialects import MisfitError

    try:
        _convert(args, overrides, config)
    except MisfitError as error:
        print(error.table, file=sys.stderr, flush=True)
        raise


def _convert(args: argparse.Namespace, overrides: list[str], config: "Config | None") -> None:
    from convert.momentum import read_progress, run_items
    from convert.source import read_source
    from deeplab_jax.checkpoint import Info

    _refuse_duplicates(args, overrides)
    source = read_source(args.checkpoint, args.optimizer, args.level, args.drop)
    if config is None:
        _refuse_unused(source, args, overrides)
        config = infer_config(source, args, overrides)
    else:
        source.require_network(args.config)
    seed = config.seed if args.new_auxiliary else None
    items, counters = source.to_variables(config.model, args.config or "", seed)
    if source.structure.is_backbone:
        info = Info(kind="backbone", counters=counters)
    else:
        info = describe_weights(config, source, counters)
        if args.new_auxiliary:
            info = dataclasses.replace(info, drawn=f"auxiliary head, from seed {config.seed}")
    if args.optimizer:
        progress = read_progress(source, config, args.iteration)
        items = run_items(args.checkpoint, items, progress, config)
        info = to_run(info, progress.iteration)
    save(args.output, items, info)
    print("\n".join(summary(source, config, info)))
    if args.new_auxiliary:
        print(f"auxiliary head drawn from seed {config.seed}: for training only")
    if args.optimizer:
        print(f"momentum converted; step {info.step}")
        words = ("train", "--config", args.config, *overrides, "--workdir", args.output)
        cli.finish(args.output, *words)
    elif source.structure.is_backbone:
        cli.finish(args.output, "train", *backbone_flags(source), f"{_BACKBONE}={args.output}")
    elif args.config and os.path.isdir(config.data.root):
        cli.finish(args.output, "evaluate", "--checkpoint", args.output)
    else:
        command = ("predict", "--checkpoint", args.output, "IMAGES", "--output", "out")
        cli.finish(args.output, *command)


def backbone_flags(source: "PyTorchFile") -> list[str]:
    """Returns the flags of `deeplab train` for a recipe whose network has the file's backbone."""
    from deeplab_jax.config import get_config

    depth = source.structure.depth
    name = f"voc_r{101 if depth == 101 else 50}_os16"
    own = get_config("voc", 101 if depth == 101 else 50).model
    flags = [f"--config.model.{key}={value}" for key, value in source.structure.model.items()
             if value != own[key]]  # fmt: skip
    return ["--config", name, *flags]


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 1,2,4") from None


def to_run(info: "Info", iteration: int) -> "Info":
    """Returns the description of a run at `iteration` that has the weights that `info` describes.

    A run's counters are those from before its first step: every step adds one.
    """
    counters = {norm: count - iteration for norm, count in info.counters.items()}
    return dataclasses.replace(info, kind="run", step=iteration, counters=counters)


def add_progress_flags(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Adds `--optimizer`, described by `purpose`, and `--iteration`; see `check_progress_flags`."""
    parser.add_argument("--optimizer", action="store_true", help=purpose)
    text = "steps done; needed with --optimizer where the file does not say it"
    parser.add_argument("--iteration", metavar="N", type=int, help=text)


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which tensors of the file are the network."""
    text = "which network of a file that holds several, such as model_ema; the output names them"
    parser.add_argument("--level", metavar="NAME", default="", help=text)
    text = "leave out tensors by name, such as '*.total_ops' or 'criterion.*'; repeatable"
    parser.add_argument("--drop", metavar="GLOB", action="append", default=[], help=text)
    text = "draw an auxiliary head, from config.seed, for weights that have none"
    parser.add_argument("--new-auxiliary", action="store_true", help=text)


def check_progress_flags(args: argparse.Namespace) -> None:
    """Refuses `--iteration` without `--optimizer`, which needs a recipe, and impossible ones."""
    if args.optimizer and args.new_auxiliary:
        what = "is given with --optimizer, whose momentum is that of the file's parameters"
        raise ConfigError("--new-auxiliary", what, "leave out one of them")
    if args.optimizer and not args.config:
        what = "needs --config: the recipe that the run follows"
        raise ConfigError("--optimizer", what, "give --config ROW")
    if args.iteration is not None and not args.optimizer:
        raise ConfigError("--iteration", "is given without --optimizer", "give both or none")
    if args.iteration is not None and not 0 <= args.iteration <= MAX_ITERATION:
        what = f"must be from 0 to {MAX_ITERATION}, got {args.iteration}"
        raise ConfigError("--iteration", what, "count the optimiser's steps")


def _flags(args: argparse.Namespace) -> dict[str, str]:
    """Returns the flags that say what weights do not show, by their field of `config.model`."""
    given = [field for field in _STRUCTURE if getattr(args, field) is not None]
    return {field: f"--{field.replace('_', '-')}" for field in given}


def _refuse_duplicates(args: argparse.Namespace, overrides: list[str]) -> None:
    for field, flag in _flags(args).items():
        option = f"--config.model.{field}"
        if args.config or any(override.startswith(f"{option}=") for override in overrides):
            other = "--config" if args.config else option
            what = f"is given beside {other}, which says config.model.{field}"
            raise ConfigError(flag, what, f"leave it out, or use {option}")


def _refuse_unused(source: "PyTorchFile", args: argparse.Namespace, overrides: list[str]) -> None:
    """Refuses options that a backbone has no use for; its checkpoint holds no configuration."""
    given = ["--new-auxiliary"] if args.new_auxiliary else []
    unused = [*given, *_flags(args).values(), *(override.split("=")[0] for override in overrides)]
    if source.structure.is_backbone and unused:
        what = f"is given, and {source.path} is a backbone alone, which does not depend on it"
        if rest := source.rest_flags():
            what = f"is given, and {source.path} holds a backbone and {len(source.others)} tensors"
            fix = f"convert the backbone alone: leave it out, and give {rest}"
            raise ConfigError(unused[0], f"{what} of no known head", fix)
        raise ConfigError(unused[0], what, "leave it out, and give it to `train`")


def infer_config(source: "PyTorchFile", args: argparse.Namespace, overrides: list[str]) -> "Config":
    """Returns a configuration for weights without a recipe: structure from shapes and flags.

    Raises:
      ConfigError: the output stride is missing, or a value cannot be used.
      CheckpointError: the structure is one that we do not build.
    """
    from deeplab_jax.config import freeze, get_config
    from deeplab_jax.config.recipe import apply_overrides

    if args.output_stride is None and not source.structure.is_backbone:
        what = "is missing: the weights do not show it, and there is no --config that says it"
        fix = "give --output-stride 16, or 8, as in training (d8, os8 and the like in the name)"
        raise ConfigError("--output-stride", what, fix)
    template = get_config("folder", source.structure.depth, args.output_stride or 16)
    template.name = Path(source.path).stem
    template.model.update(source.structure.model)
    template.data.class_names = source.class_names
    try:
        config = freeze(template)
    except ConfigError as error:
        what = f"has a structure that is not known here: {error.where} {error.what}"
        raise CheckpointError(source.path, what, "give another network's weights") from error
    flags = _flags(args)
    flags.pop("output_stride", None)
    for field, flag in flags.items():
        values = ",".join(map(str, getattr(args, field)))
        try:
            config = apply_overrides(config, [f"--config.model.{field}={values}"])
        except ConfigError as error:
            raise ConfigError(flag, error.what, "give as many as there are") from error
    return apply_overrides(config, overrides)


def describe_weights(config: "Config", source: "PyTorchFile", counters: dict[str, int]) -> "Info":
    """Returns the description of a network's weights.

    Class names and colours are the data set's, else the recipe's, else the file's, else numbers.
    """
    import numpy as np

    from deeplab_jax.checkpoint import Info
    from deeplab_jax.data.classes import CLASS_NAMES, PALETTES
    from deeplab_jax.data.colors import safe_palette

    dataset, count = config.data.dataset, config.model.num_classes
    if len(CLASS_NAMES.get(dataset, ())) == count:
        names, palette = CLASS_NAMES[dataset], PALETTES[dataset]
    else:
        numbered = tuple(f"class_{index}" for index in range(count))
        names = tuple(config.data.class_names) or source.class_names or numbered
        palette = source.palette if len(source.palette) == count else safe_palette(count)
        if config.data.class_colors:
            palette = np.array(config.data.class_colors, np.uint8).reshape(-1, 3)
    return Info(kind="weights", config=config, class_names=names, palette=palette,
                counters=counters)  # fmt: skip


def save(output: str, items: "Mapping[str, Tree]", info: "Info") -> None:
    """Writes a checkpoint that appears at `output`, a new directory, only once it is complete."""
    from deeplab_jax import checkpoint

    if is_address(output):  # where a step appears as a whole, but a folder cannot be renamed
        checkpoint.save_once(output, items, info)
        return
    target = Path(output).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        partial = Path(folder) / target.name
        try:
            checkpoint.save_once(partial, items, info)
        except ResourceError as error:
            raise ResourceError(output, error.what, "make room or choose another place") from error
        partial.rename(target)


def summary(source: "PyTorchFile", config: "Config", info: "Info") -> list[str]:
    """Returns lines that tell what was converted, and what was not."""
    from convert.keymap import describe

    structure, model = source.structure, config.model
    dropped = source.dropped()
    lines = [*source.notes, f"{source.path}: {describe(structure.dialect, structure.depth)}"]
    if not structure.is_backbone:
        more = "; ..." if model.num_classes > 3 else ""
        lines[-1] += f", {model.num_classes} classes ({'; '.join(info.class_names[:3])}{more})"
        rates = ",".join(map(str, model.atrous_rates))
        grid = f", multi-grid {','.join(map(str, model.multi_grid))}" if model.multi_grid else ""
        lines.append(f"taken as: output stride {model.output_stride}, atrous rates {rates}{grid}")
    which = f" ({', '.join(dropped)}: its ImageNet classes)" if dropped else ""
    converted = len(source.tensors) - len(dropped)
    lines.append(f"{converted} tensors converted, {len(dropped)} dropped{which}")
    if source.ignored:
        lines.append(f"not read: {shorten(source.ignored)}")
    return lines


if __name__ == "__main__":
    cli.run(main)
