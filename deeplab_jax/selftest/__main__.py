"""Command: checks what is computed here, on the devices and libraries at hand.

    deeplab selftest

A narrow network is compared with PyTorch's float64 numbers, see `deeplab_jax.selftest.checks`.
"""

import shlex
import time

from deeplab_jax import cli
from deeplab_jax.distributed import cluster
from deeplab_jax.errors import ConfigError, NumericError

_EXAMPLES = """\
  deeplab selftest
  deeplab selftest --config.model.dtype=bfloat16
  deeplab selftest --config.mesh.spatial=2
It takes about a minute and keeps its result beside the compiled programs, for `deeplab train`.
Exit code 0: all checks passed; 6: one failed. On several hosts start it on each, as train."""
_FIELDS = ("--config.model.dtype=", "--config.mesh.spatial=")


def main(argv: list[str]) -> None:
    """Parses arguments, runs the checks and prints a line for each.

    Raises:
      NumericError: a check failed.
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    began = time.perf_counter()
    parser = cli.Parser("selftest", _EXAMPLES)
    text = "config.model.dtype (float32, bfloat16 or float64) or config.mesh.spatial alone"
    parser.add_argument("--config.x", metavar="VALUE", help=text)
    cluster.add_arguments(parser)
    args, overrides = parser.parse(argv)
    for override in overrides:
        if not override.startswith(_FIELDS):
            fix = "leave it out; config.model.dtype and config.mesh.spatial may be chosen"
            raise ConfigError(override, "the self-test has its own network", fix)
    cluster.initialize(args.coordinator, args.num_processes, args.process_id)
    from deeplab_jax.selftest.run import run

    where, failed = run(overrides)
    if failed:
        command = shlex.join(["deeplab", "selftest", *overrides])
        first = failed[0]
        more = f" (first of {len(failed)} checks that failed)" if len(failed) > 1 else ""
        where = f"{command} on {where}: {first.name}"
        raise NumericError(where, f"{first.text}{more}", first.fix)
    print(f"passed in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    cli.run(main)
