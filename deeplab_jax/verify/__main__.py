"""Command: verifies an exported folder on its sample, and on a data set.

    deeplab verify camvid_onnx --data camvid

What is compared is in `deeplab_jax.verify.compare`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab_jax import cli
from deeplab_jax.errors import CheckpointError, ConfigError, ResourceError, check_writable
from deeplab_jax.utils import steps
from deeplab_jax.utils.atomic import atomic_write

if TYPE_CHECKING:
    from deeplab_jax.inference.engine import Variables
    from deeplab_jax.verify.compare import Tensors

_EXAMPLES = """\
  deeplab verify camvid_onnx
  deeplab verify camvid_onnx --data camvid --json verified.json
  deeplab verify camvid_gpu --data camvid --checkpoint runs/camvid_r50_os16
Exit code 0: every file is as exported, and results are within the tolerances that the folder
states; 4: not; 5: the same as 0, but a model was not verified, since its runtime is missing or too
old, or JAX has not the device that it is for; 5 also where memory or disk is short. Before
anything runs, 2: a flag cannot be used, as a --json that cannot be written; 3: the data cannot."""


def main(argv: list[str]) -> None:
    """Parses arguments, compares, prints and writes the numbers.

    Raises:
      CheckpointError: something is not as it was exported, or departs by more than is allowed.
      ResourceError: a model cannot run here; the others are good.
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("verify", _EXAMPLES)
    add = parser.add_argument
    add("dir", metavar="DIR", help="a folder of deeplab export")
    text = "root of the recipe's data: run its validation split, too, beside the same weights here"
    add("--data", metavar="ROOT", help=text)
    text = "the checkpoint that was exported, to compare with; default: the weights in the folder"
    add("--checkpoint", metavar="W", help=text)
    add("--json", metavar="FILE", help="where the numbers go, too")
    args, overrides = parser.parse(argv)
    if overrides:
        what = "cannot be changed: the folder is verified as it is"
        raise ConfigError(overrides[0], what, "leave it out; --data names the data")
    cli.refuse_empty(args, "DIR", "--data", "--checkpoint", "--json")
    if args.json:
        _check_json(args.json, args.dir)
    if not steps.is_exported(args.dir):
        what = f"holds no {steps.EXPORT}" if Path(args.dir).is_dir() else "is no folder"
        raise CheckpointError(args.dir, what, "give a folder that deeplab export wrote")
    if args.checkpoint and not args.data:
        fix = "add --data ROOT, or leave it out: the sample has its results in the folder"
        raise ConfigError("--checkpoint", "is compared with on data, and there are none", fix)
    if args.checkpoint:
        steps.check(args.checkpoint)
    from deeplab_jax.utils import compile_cache
    from deeplab_jax.verify.compare import verify

    compile_cache.enable()
    results, faults, not_run = verify(args.dir, _variables, args.data, args.checkpoint)
    if args.json:
        with atomic_write(Path(args.json)) as file:
            file.write(f"{json.dumps(results, indent=1)}\n".encode())
    if faults:
        fix = "do not use it: export the checkpoint again, or run `python verify.py` elsewhere"
        raise CheckpointError(
            args.dir, f"departs by more than is allowed: {'; '.join(faults)}", fix
        )
    if not_run:
        reasons = "; ".join(f"{name} {model.why}" for name, model in not_run.items())
        fix = next(iter(not_run.values())).fix
        raise ResourceError(args.dir, f"was not verified whole: {reasons}", fix)
    print("verified", flush=True)


def _check_json(file: str, folder: str) -> None:
    """Refuses a place for the numbers that cannot be written, or where they spoil the folder."""
    path, root = Path(file), Path(folder).resolve()
    places = path.resolve(), path.parent.resolve() / path.name  # with and without a last link
    if any(place.is_relative_to(root) for place in places):
        what = f"lies in {folder}, where a file that is added or changed is a fault"
        raise ConfigError(f"--json {file}", what, "name a file outside of the folder")
    try:
        check_writable(path, "--json")
    except ResourceError as error:  # whose exit code says here that a model did not run
        raise ConfigError(f"--json {file}", error.what, error.fix) from error


def _variables(tensors: "Tensors", depth: int, dialect: str) -> "Variables":
    from convert.keymap import to_variables

    return to_variables(tensors, depth, dialect)[0]


if __name__ == "__main__":
    cli.run(main)
