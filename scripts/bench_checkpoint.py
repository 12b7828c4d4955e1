"""Times saving and restoring a run's state with and without its checksums, in alternation.

    python scripts/bench_checkpoint.py                      # ResNet-101, about 500 MB
    python scripts/bench_checkpoint.py --depth 18 --rounds 9

A state of random weights is saved to a temporary directory, waited for, and restored, as a run
does. Prints the medians of both and their ratio; the first pair, which compiles, does not count.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import jax

from deeplab_jax import checkpoint
from deeplab_jax.config import Config, freeze, get_config
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.models import build_model
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.state import State, init_state, restore_state
from deeplab_jax.utils.trees import by_path


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each round, and the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--depth", type=int, default=101, choices=(18, 50, 101))
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--folder", help="where the temporary directory is made")
    args = parser.parse_args(argv)
    config = freeze(get_config("folder", args.depth, 16))
    mesh = mesh_lib.mesh_of(config)
    optimizer, _ = build_optimizer(config.train, 100)
    init = jax.jit(lambda: init_state(build_model(config.model), optimizer, 0))
    state = jax.device_put(init(), mesh_lib.replicated(mesh))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"ResNet-{args.depth}: {size / 1e6:.0f} MB, {mesh.size} x {jax.default_backend()}")
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(args.rounds + 1):
        for is_checked in (True, False) if number % 2 else (False, True):
            taken = _once(state, config, mesh, is_checked, args.folder)
            if number:
                seconds[is_checked].append(taken)
        if number:
            with_sums, without = (seconds[is_checked][-1] for is_checked in (True, False))
            print(f"round {number}: {with_sums:.2f} s with, {without:.2f} s without", flush=True)
    with_sums, without = (statistics.median(seconds[is_checked]) for is_checked in (True, False))
    ratio = with_sums / without
    print(f"medians: {with_sums:.2f} s with, {without:.2f} s without checksums; ratio {ratio:.3f}")


def _once(
    state: State, config: Config, mesh: jax.sharding.Mesh, is_checked: bool, folder: str | None
) -> float:
    """Returns the seconds of a save, until it is on the disk, and a restoration."""
    items = {name: item for name, item in state.items() if name != "step"}
    info = checkpoint.Info(kind="run", config=config)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        if not is_checked:
            zeros = dict.fromkeys(by_path(items), "0" * 16)
            for name, replacement in (
                ("deeplab_jax.checkpoint.description.checksums", lambda tree: zeros),
                ("deeplab_jax.checkpoint.reading.mismatches", lambda saved, tree: []),
            ):
                stack.enter_context(mock.patch(name, replacement))
        began = time.perf_counter()
        with checkpoint.Saver(place) as saver:
            saver.save(1, items, info)
        jax.block_until_ready(restore_state(place, 1, config, mesh))
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
