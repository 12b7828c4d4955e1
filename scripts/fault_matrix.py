"""Injects the faults of a table into real commands; prints rows passed of rows.

    python scripts/fault_matrix.py                       # every row, three seeds
    python scripts/fault_matrix.py --rows 1,5,17 --seeds 1

Each row runs `deeplab` on data drawn here, with signals, full disks and limits, and checks what the
run must do: end with one line and its exit code, or go on to the very bits of a run that was never
interrupted. A row passes if it does with every seed. Exit code 1 if one fails; a row that this
machine cannot try is skipped, with its reason. A seed takes 10 to 25 minutes on two cores.
"""

import argparse
import os
import random
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # also of this process, which reads steps
sys.path.insert(0, str(Path(__file__).resolve().parent))

from faults import data, files, runs, saves  # noqa: F401  (each adds its rows)
from faults.harness import ROWS, Box, Failed, Row, Skipped, prepare, scratch


def main(argv: Sequence[str] | None = None) -> int:
    """Runs rows; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", metavar="N,N", help="default: all")
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="default: 3")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="rows at a time")
    parser.add_argument("--keep", metavar="DIR", help="folder in which all files stay")
    args = parser.parse_args(argv)
    wanted = [int(n) for n in args.rows.split(",")] if args.rows else sorted(ROWS)
    if unknown := sorted(set(wanted) - set(ROWS)):
        parser.error(f"there is no row {unknown[0]}; rows are 1 to {max(ROWS)}")
    with scratch(args.keep) as folder:
        if not (folder / "tiny.py").exists():
            prepare(folder)
        with ThreadPoolExecutor(args.jobs) as pool:
            results = pool.map(lambda n: _try(ROWS[n], args.seeds, folder), wanted)
            outcomes = []
            for number, (outcome, line) in zip(wanted, results, strict=True):
                print(f"{number:2} {ROWS[number].title}: {line}", flush=True)
                outcomes.append(outcome)
    passed, skipped = outcomes.count("passed"), outcomes.count("skipped")
    print(f"{passed} rows passed of {len(outcomes)}" + (f", {skipped} skipped" if skipped else ""))
    return int(passed + skipped < len(outcomes))


def _try(row: Row, seeds: int, folder: Path) -> tuple[str, str]:
    """Returns ("passed", "failed" or "skipped", what is said of it)."""
    began = time.monotonic()
    for seed in range(seeds):
        place = folder / f"row{row.number}-{seed}-{time.monotonic_ns()}"
        place.mkdir()
        try:
            row.run(Box(place, folder, seed, random.Random(f"{row.number} {seed}")))
        except Skipped as reason:
            return "skipped", f"skipped: {reason}"
        except Failed as reason:
            return "failed", f"FAILED with seed {seed}: {' '.join(str(reason).split())}"
        except Exception:
            return "failed", f"FAILED with seed {seed}: {traceback.format_exc()}"
    return "passed", f"passed ({seeds} x {(time.monotonic() - began) / seeds:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
