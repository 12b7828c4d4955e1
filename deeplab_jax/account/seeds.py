"""Runs of one recipe with several seeds: their scores, mean and standard deviation."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deeplab_jax import checkpoint
from deeplab_jax.errors import CheckpointError
from deeplab_jax.utils.atomic import atomic_write

FILE = "seeds.json"
_COUNTS = ("num_classes_in_mean", "num_classes")


def summarize(workdir: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns the scores of finished runs, and writes them to `seeds.json` in `workdir`.

    Returns:
      "runs": for each seed its "seed", and for "last" and "best", the steps of these names, "step"
      and the validation scores, fractions. "last" and "best" over runs: {score: {"mean", "std"}},
      the sample standard deviation, null with one seed. Scores that a run lacks are left out, and
      "best" of a run has none where no evaluation had a finite score.

    Raises:
      CheckpointError: a run has no step.
      OSError: the file cannot be written.
    """
    runs = []
    for seed in seeds:
        place, run = workdir / f"seed_{seed}", dict[str, Any](seed=seed)
        for name, step in (("last", "latest"), ("best", "best")):
            try:
                info = checkpoint.read_info(place, step)
            except CheckpointError:
                if name == "last":
                    raise
                run[name] = {}
            else:
                run[name] = {"step": info.step, **_scores(info)}
        runs.append(run)
    spread = {name: _spread([run[name] for run in runs]) for name in ("last", "best")}
    result = {"seeds": list(seeds), "runs": runs, **spread}
    with atomic_write(workdir / FILE) as file:
        file.write(f"{json.dumps(result, indent=1)}\n".encode())
    return result


def render(result: dict[str, Any]) -> list[str]:
    """Returns lines: a score of all runs at their last and their best step."""
    lines, count = [], len(result["runs"])
    over = "1 seed" if count == 1 else f"{count} seeds"
    for name in ("last", "best"):
        for score, found in result[name].items():
            factor, unit = (1, "") if score == "loss" else (100, " %")
            text = f"{factor * found['mean']:.{3 if score == 'loss' else 2}f}"
            if found["std"] is not None:
                text += f" +- {factor * found['std']:.{3 if score == 'loss' else 2}f}"
            lines.append(f"{score} {text}{unit} over {over}, {name} step of each")
    return lines


def _scores(info: checkpoint.Info) -> dict[str, float]:
    found = {name: float(value) for name, value in (info.metrics or {}).items()}
    return {k: v for k, v in found.items() if k not in _COUNTS and math.isfinite(v)}


def _spread(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Returns mean and standard deviation of each score that all runs have."""
    found: dict[str, dict[str, float | None]] = {}
    for name in runs[0]:
        if name != "step" and all(name in run for run in runs):
            values = [run[name] for run in runs]
            std = statistics.stdev(values) if len(values) > 1 else None
            found[name] = {"mean": statistics.fmean(values), "std": std}
    return found
