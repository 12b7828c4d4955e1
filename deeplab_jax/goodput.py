"""Command: tells where the wall time of a run went.

    deeplab goodput runs/camvid_r50_os16

The parts, and what is known of a killed process, are defined in `deeplab_jax.account.goodput`.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError
from deeplab_jax.utils.places import as_place

if TYPE_CHECKING:
    from deeplab_jax.account.goodput import Account

_EXAMPLES = """\
  deeplab goodput runs/camvid_r50_os16
  deeplab goodput runs/camvid_r50_os16 --peak-tflops 312
It reads log.jsonl, also of a run under way, and starts no device."""


def main(argv: list[str]) -> None:
    """Parses arguments and prints the account.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("goodput", _EXAMPLES)
    parser.add_argument("run", metavar="DIR", help="a run's work directory")
    parser.add_argument(
        "--peak-tflops",
        metavar="X",
        help="peak of one device in TFLOP/s, for the model FLOP utilisation; default: known for"
        " H100, H200 and TPU v4, v5e, v5p, v6e",
    )
    args, overrides = parser.parse(argv)
    if overrides:
        raise ConfigError(overrides[0], "changes nothing here: a run is as it was", "leave it out")
    peak = None if args.peak_tflops is None else _peak(args.peak_tflops)
    os.environ["JAX_PLATFORMS"] = "cpu"  # a run may hold the accelerators
    from deeplab_jax.account import text
    from deeplab_jax.account.goodput import read_account

    folder = as_place(args.run)
    account = read_account(folder)
    used, peak = _utilisation(account, folder, peak)
    print("\n".join(text.render(account, used, peak)))


def _peak(value: str) -> float:
    try:
        peak = 1e12 * float(value)
    except ValueError:
        peak = 0.0
    if not 0 < peak < float("inf"):
        what = f"{value!r} is not a positive number of TFLOP/s"
        raise ConfigError("--peak-tflops", what, "give the data sheet's, such as 312")
    return peak


def _utilisation(
    account: "Account", folder: Path, peak: float | None
) -> tuple[float | None, float | None]:
    """Returns the model FLOP utilisation and the peak by which it is measured, where known."""
    from deeplab_jax.account.utilisation import peak_of, utilisation
    from deeplab_jax.config.recipe import RUN_CONFIG, load_recipe

    if not (folder / RUN_CONFIG).is_file():
        if peak is None:
            return None, None
        what = "is not there, so what a step computes is not known"
        raise ConfigError(str(folder / RUN_CONFIG), what, "leave --peak-tflops out")
    config = load_recipe(str(folder))
    peak = peak_of(account, config) if peak is None else peak
    return (None if peak is None else utilisation(account, config, peak)), peak


if __name__ == "__main__":
    cli.run(main)
