"""Whole training steps: `deeplab bench`, against PyTorch eager and compiled in alternation."""

import shutil
from collections.abc import Sequence

from evidence.commands import deeplab, read_json
from evidence.networks import step_overrides
from evidence.record import Box, Item, Result

_UNEQUAL = 6  # exit code of `deeplab bench`: PyTorch's network does not compute what ours does
_NETWORKS = {"R-50-D16": "ade20k_r50_os16", "R-50-D8": "ade20k_r50_os8",
             "R-101-D8": "ade20k_r101_os8"}  # fmt: skip


def items(box: Box) -> list[Item]:
    """Returns the three networks of the ADE20k recipe at batch 16, in both types."""
    networks = box.pick(_NETWORKS, {"R-50-D16": "ade20k_r50_os16"})
    return [
        Item(f"{name} {dtype}", lambda r=recipe, d=dtype: _step(box, r, d), 120)
        for dtype in box.pick(("bfloat16", "float32"), ("float32",))
        for name, recipe in networks.items()
    ]


def _step(box: Box, recipe: str, dtype: str) -> Result:
    return bench(box, recipe, "train", step_overrides(box, dtype))


def bench(box: Box, recipe: str, cases: str, overrides: Sequence[str]) -> Result:
    """Returns the cases of bench.json that `deeplab bench` writes.

    Raises:
      OutOfTime: the stage's time ended first.
      ValueError: no case was measured.
    """
    folder = box.output / "bench"
    shutil.rmtree(folder, ignore_errors=True)
    argv = ["bench", "--config", recipe, "--only", cases, "--output", str(folder), *overrides]
    argv += box.pick([], ["--quick"])
    done = deeplab(box, argv, box.left)
    found = read_json(folder / "bench.json") or {}
    cases_found = found.get("cases", [])
    if not cases_found:
        raise ValueError(f"deeplab bench ended with {done.code}: {done.text[-200:]}")
    lines = [case_line(case) for case in cases_found]
    return {
        "code": done.code,
        "is_good": done.code != _UNEQUAL,
        "cases": cases_found,
        "notes": found.get("notes", []),
        "machine": found.get("machine"),
        "ceilings": found.get("ceilings"),
        "packages": found.get("packages"),
        "line": "; ".join(lines),
    }


def case_line(case: Result) -> str:
    """Returns a case in words: images/s, and its time over PyTorch's."""
    if case.get("error"):
        return f"{case['case']}: {case['error']}"
    rate = case["sides"].get("deeplab_jax", {}).get("images_per_second")
    ratios = [f"{r['median']:.2f} of {name}" for name, r in (case.get("ratios") or {}).items()]
    told = "not measured" if rate is None else f"{rate:.4g} images/s"
    return ", ".join([f"{case['case']}: {told}", *ratios])
