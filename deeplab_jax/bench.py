"""Command: times training, inference and reading on this machine, beside PyTorch.

    deeplab bench --quick

What is timed, and what it is compared with, is in `deeplab_jax.benchmark`.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError, NumericError, ResourceError, check_folder
from deeplab_jax.utils import machine
from deeplab_jax.utils.atomic import atomic_write

_EXAMPLES = """\
  deeplab bench --quick
  deeplab bench --output bench
  deeplab bench --config ade20k_r50_os16 --config.model.dtype=bfloat16 --only train,input
  deeplab bench --config voc_r50_os16 --config.data.crop_size=256,256 --config.train.batch_size=8
  DEEPLAB_COMPILE_CACHE=off deeplab bench --quick
Weights, batches and, where the recipe's data are not there, pictures are drawn. The last line
measures how long compiling takes; otherwise the compile cache may hold the programs.

cases:
  train         the training step: forward, backward, optimiser
  inference     the network, bytes to logits at a quarter of the size
  end-to-end    files to labels at their own size: decode, resize, network, resize, argmax
  input         how fast training samples are read, and how fast the step takes them
PyTorch, where it is installed, has the same network, weights, batches and threads, on the same
device. Logits, loss and labels are compared before anything is timed. Rounds alternate. On a GPU
XLA_PYTHON_CLIENT_PREALLOCATE=false is set unless you set it, so that both find memory."""


def main(argv: list[str]) -> None:
    """Parses arguments, times, prints a table and writes the results.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("bench", _EXAMPLES)
    add = parser.add_argument
    add(
        "--config",
        metavar="RECIPE",
        help="recipe to time, at its own sizes: a file, a run, or a name of `deeplab recipes`;"
        " default: voc_r50_os16, camvid_r18_os16 and voc_r50_os8 at sizes for a processor, or"
        " ade20k_r50_os16, ade20k_r101_os8 and cityscapes_r50_os16 in bfloat16 on GPUs and TPUs",
    )
    add("--config.x", metavar="VALUE", help="any field, such as --config.train.batch_size=8")
    text = "a minute on two cores: 3 rounds instead of 9, no torch.compile; without --config"
    add("--quick", action="store_true", help=f"{text} one recipe, on a processor a small one")
    add("--only", metavar="CASES", help="some of train,inference,end-to-end,input; default: all")
    add("--alone", action="store_true", help="without PyTorch")
    text = "folder for bench.json, with every raw time, and bench.md; written after each case"
    add("--output", metavar="DIR", help=text)
    args, overrides = parser.parse(argv)
    if args.output is not None:
        check_folder(args.output, "--output")
    only = _cases(args.only)
    if args.config is not None:
        from deeplab_jax.config.recipe import load_recipe

        load_recipe(args.config, overrides)  # before JAX loads
    os.environ.setdefault("NPROC", str(machine.num_cores()))  # of XLA's threads
    # PyTorch needs memory of the same device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from convert.keymap import to_tensors
    from deeplab_jax.benchmark import text as text_lib
    from deeplab_jax.benchmark.rows import choose
    from deeplab_jax.benchmark.run import Bench
    from deeplab_jax.utils import compile_cache
    from deeplab_jax.utils.progress import Screen

    compile_cache.enable()
    rows = choose(args.config, overrides, jax.default_backend(), args.quick)
    bench = Bench(
        lambda variables, depth: to_tensors(variables, {}, depth),
        only, args.quick, args.alone,
    )  # fmt: skip
    results: dict[str, Any] = {}
    try:
        with Screen(stream=sys.stderr, is_transient=True).open():
            for results in bench.results(rows, shlex.join(["deeplab", "bench", *argv])):
                if args.output is not None:
                    _write(Path(args.output), results, text_lib.render(results))
    finally:  # also what was done before Ctrl-C
        if results:
            print("\n".join(text_lib.render(results)), flush=True)
    if args.output is not None:
        cli.finish(args.output)
    if bench.unequal:
        what = "PyTorch's network does not compute what ours does"
        fix = f"trust no time of it, and report this: {'; '.join(bench.unequal)}"
        raise NumericError("deeplab bench", what, fix)
    if all("error" in case for case in results["cases"]):
        fix = "lower --config.train.batch_size or --config.data.crop_size"
        raise ResourceError("deeplab bench", "memory ran out in every case", fix)


def _cases(text: str | None) -> tuple[str, ...]:
    """Returns the cases that `--only` names; all without it."""
    from deeplab_jax.benchmark.rows import CASES

    wanted = CASES if text is None else tuple(filter(None, text.replace(" ", "").split(",")))
    wrong = [case for case in wanted if case not in CASES]
    if wrong or not wanted:
        what = f"{wrong[0]!r} is no case" if wrong else "names no case"
        raise ConfigError("--only", what, f"give some of {','.join(CASES)}")
    return wanted


def _write(folder: Path, results: dict[str, Any], lines: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("bench.json", json.dumps(results, indent=1)),
        ("bench.md", "\n".join(lines)),
    ):
        with atomic_write(folder / name) as file:
            file.write(f"{text}\n".encode())


if __name__ == "__main__":
    cli.run(main)
