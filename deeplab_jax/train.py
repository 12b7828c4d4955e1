"""Command: trains a recipe, or continues an interrupted run.

    deeplab train --config ade20k_r50_os16 --config.init.backbone=DIR

The loop itself is `deeplab_jax.training.loop.train`.
"""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from deeplab_jax import cli
from deeplab_jax.distributed import cluster
from deeplab_jax.errors import ConfigError, DataError, DeepLabError, check_folder
from deeplab_jax.training import signals
from deeplab_jax.utils import steps

if TYPE_CHECKING:
    from deeplab_jax.config import Config

_EXAMPLES = """\
  deeplab train --config camvid_r50_os16 --config.data.root=camvid
  deeplab train --config ade20k_r50_os16 --config.init.backbone=DIR --workdir runs/ade
  deeplab train --config voc_r50_os16 --config.init.backbone=none --config.seed=1
  deeplab train --config camvid_r50_os16 --seeds 0,1,2 --workdir runs/camvid
  deeplab train --config ade20k_r50_os16 --dry-run --hardware v5e:4x4
The same command again continues where the run stopped."""
_FIELDS = """\
often changed, here with their defaults; `deeplab config fields` tells all:
  --config.data.root=data                  folder of the data
  --config.data.crop_size=512,512          (height, width) of a training sample
  --config.data.num_workers=0              processes that read; 0: threads
  --config.model.num_classes=2             classes, without the ignored one
  --config.init.backbone=none              checkpoint of ImageNet weights, or none
  --config.train.batch_size=16             images of a step, over all devices
  --config.train.gradient_accumulation=1   parts of a batch, one after the other: less memory
  --config.train.epochs=60                 length of the run
  --config.train.lr=0.01                   learning rate at the first step
  --config.eval.every_epochs=10            epochs between evaluations"""


def main(argv: list[str]) -> None:
    """Parses arguments and trains.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    began = time.time()
    parser = cli.Parser("train", f"{_EXAMPLES}\n\n{_FIELDS}")
    text = "recipe: a file, or a name of `deeplab recipes`, such as ade20k_r50_os16"
    parser.add_argument("--config", metavar="RECIPE", required=True, help=text)
    text = "default: runs/<name of the recipe>; a path, gs://BUCKET/NAME or s3://BUCKET/NAME"
    parser.add_argument("--workdir", metavar="DIR", help=text)
    parser.add_argument(
        "--step",
        metavar="N",
        help="go back to this saved step: a number, latest or best; later ones are set aside as"
        " M.replaced; default: the latest that is good",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="begin at step 0 where every saved step is damaged; they are set aside as N.damaged",
    )
    parser.add_argument(
        "--seeds",
        metavar="A,B,...",
        help="train once with each seed, one after the other, in DIR/seed_A, DIR/seed_B, ...; then"
        " DIR/seeds.json has mean and standard deviation of the scores",
    )
    parser.add_argument(
        "--config.x", metavar="VALUE", help="any field, such as --config.train.lr=0.02"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: tell what the run computes, needs and reads, and whether it fits;"
        " without --hardware a few steps run here, on zeros, for their time",
    )
    parser.add_argument(
        "--hardware",
        metavar="H",
        help="devices that a dry run is for: v5e:4x4, v5p:4x4x4, h200, h100:8, cpu:8, ...; they"
        " need not be here; default: those of this machine",
    )
    parser.add_argument(
        "--save-within",
        metavar="SECONDS",
        type=float,
        help="for a scheduler that kills after SIGTERM: save and be gone by then; if the step under"
        " way and a save will not end in time, leave at once with the last save; in any case be"
        " gone; default: no limit",
    )
    cluster.add_arguments(parser)
    args, overrides = parser.parse(argv)
    if args.hardware is not None and not args.dry_run:
        raise ConfigError(
            "--hardware", "is for a dry run only", "add --dry-run, or drop --hardware"
        )
    if args.step is not None and args.restart:
        what = "goes back to a step, and --restart begins where none is good"
        raise ConfigError("--step", what, "leave out one of them")
    seeds = None if args.seeds is None else _read_seeds(args.seeds, overrides)
    for flag in ("--step", "--restart", "--dry-run"):
        if seeds and getattr(args, flag[2:].replace("-", "_")):
            fix = (
                f"name one: --workdir DIR/seed_{seeds[0]} --config.seed={seeds[0]} without --seeds"
            )
            raise ConfigError(flag, "is about one run, and --seeds are several", fix)
    if args.dry_run and (args.step is not None or args.restart):
        flag = "--restart" if args.restart else "--step"
        raise ConfigError(flag, "changes nothing about a dry run", "leave it out")
    from deeplab_jax.config.recipe import load_recipe

    config = load_recipe(args.config, overrides)
    workdir = args.workdir or f"runs/{config.name}"
    if args.dry_run:
        if args.coordinator is not None or args.num_processes is not None:
            fix = "name the devices of all hosts with --hardware"
            raise ConfigError("--coordinator", "a dry run is one process", fix)
        try:
            _dry_run(config, workdir, args.hardware)
        except DataError as error:
            raise cli.with_doctor(error, config, args.config, overrides) from error
        place = ["--workdir", args.workdir] if args.workdir else []
        cli.finish(None, "train", "--config", args.config, *place, *overrides)
        return
    with signals.watched(args.save_within) as stop:
        if cluster.is_alone(args.coordinator, args.num_processes, args.process_id):
            for folder in [workdir] if seeds is None else _folders(workdir, seeds):
                _check_paths(config, folder)  # before JAX loads
        cluster.initialize(args.coordinator, args.num_processes, args.process_id)
        from deeplab_jax.distributed import hosts
        from deeplab_jax.training.loop import train

        try:
            if seeds is None:
                train(config, workdir, step=args.step, restart=args.restart, stop=stop, began=began)
            else:
                _train_each(config, workdir, seeds, stop)
        except DataError as error:
            raise cli.with_doctor(error, config, args.config, overrides) from error
    if hosts.is_primary():
        first = workdir if seeds is None else _folders(workdir, seeds)[0]
        cli.finish(workdir, "evaluate", "--checkpoint", first)


def _read_seeds(text: str, overrides: Sequence[str]) -> list[int]:
    """Returns the seeds of `--seeds`."""
    words = text.split(",")
    is_good = all(re.fullmatch("[0-9]{1,10}", word) and int(word) < 2**32 for word in words)
    seeds = [*map(int, words)] if is_good else []
    if not seeds or len({*seeds}) < len(seeds):
        what = f"must be different whole numbers, 0 to {2**32 - 1}, got {text!r}"
        raise ConfigError("--seeds", what, "give such as --seeds 0,1,2")
    if any(override.startswith("--config.seed=") for override in overrides):
        raise ConfigError("--config.seed", "is what --seeds set", "leave it out")
    return seeds


def _folders(workdir: str, seeds: Sequence[int]) -> list[str]:
    return [f"{workdir.rstrip('/')}/seed_{seed}" for seed in seeds]


def _train_each(config: "Config", workdir: str, seeds: Sequence[int], stop: signals.Stop) -> None:
    """Trains with one seed after the other; runs that are finished are left as they are."""
    from deeplab_jax.account.seeds import render, summarize
    from deeplab_jax.distributed import hosts
    from deeplab_jax.training.loop import train
    from deeplab_jax.utils.places import as_place

    for seed, place in zip(seeds, _folders(workdir, seeds), strict=True):
        print(f"seed {seed}:", flush=True)
        stop.is_orderly = False
        train(replace(config, seed=seed), place, stop=stop)
    if hosts.is_primary():
        print(*render(summarize(as_place(workdir), seeds)), sep="\n", flush=True)


def _check_paths(config: "Config", workdir: str) -> None:
    """Refuses a work directory, data root, backbone or checkpoint that is not there."""
    from deeplab_jax.data.open import check_root

    check_folder(workdir, "--workdir")
    latest = steps.latest_step(workdir)
    is_own = False
    if latest is not None:
        with suppress(DeepLabError):
            is_own = bool(steps.read_description(workdir, latest).get("given"))
    if not is_own:  # else its data may be a Python program's: `setup.gather` tells
        check_root(config.data)
    if latest is None:  # a continued run has its weights
        path = config.init.checkpoint or config.init.backbone  # a recipe names one at most
        if path not in ("", "none"):
            steps.check(path)


def _dry_run(config: "Config", workdir: str, hardware: str | None) -> None:
    from deeplab_jax.dry_run import hardware as hardware_lib

    if hardware is not None:
        hardware_lib.set_compiler_environment(hardware_lib.parse_hardware(hardware))
    from deeplab_jax.dry_run.gather import dry_run

    dry_run(config, workdir, hardware)


if __name__ == "__main__":
    cli.run(main)
