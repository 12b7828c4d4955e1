"""The results of `deeplab bench` as Markdown, for the terminal and for pages."""

from collections.abc import Iterator, Mapping
from typing import Any

_COLUMNS = ("case", "network", "side", "ms: median (low to high)", "images/s", "of the ceiling",
            "memory, MiB", "first result, s", "ours / theirs")  # fmt: skip
_NONE = "-"


def render(results: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a page: machine, versions, date, table, notes."""
    return [
        "# deeplab bench", "", f"`{results['command']}`", "",
        *origin(results), "", *table(results), *notes(results),
    ]  # fmt: skip


def origin(results: Mapping[str, Any]) -> list[str]:
    """Returns machine, versions and date, a sentence each."""
    at, packages = results["machine"], results["packages"]
    device = at["processor"] if at["platform"] == "cpu" else f"{at['devices']} x {at['device']}"
    versions = ", ".join(f"{k} {v}" for k, v in packages.items() if k in ("jax", "torch"))
    lines = [
        f"{device}, {at['cores']} cores, load {at['load']} at the start;"
        f" deeplab_jax {packages['deeplab_jax']}, {versions}; {results['date'][:10]}."
    ]
    for dtype, most in results["ceilings"].items():
        speed = most["flops_per_second"] / 1e9
        lines.append(f"Ceiling in {dtype}: {speed:,.0f} GFLOP/s a device ({most['by']}).")
    return lines


def table(results: Mapping[str, Any]) -> list[str]:
    """Returns the table of all cases, a line a side."""
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    for case in results["cases"]:
        lines += map(_line, _rows(case))
    return lines


def notes(results: Mapping[str, Any]) -> list[str]:
    """Returns what the user should know, after an empty line; nothing where there is nothing."""
    lines = [f"- {note}" for note in results["notes"]]
    for case in results["cases"]:
        if case["case"] == "input" and case.get("need") and "sides" in case:
            [side] = case["sides"].values()
            rate, need = side["images_per_second"], case["need"]
            lines.append(
                f"- {case['recipe']}: reading {case['source']} gives {rate:.1f} images/s, and the"
                f" step takes {need:.1f}: {rate / need:.1f} times as many as it needs"
            )
    return ["", *lines] if lines else []


def _rows(case: Mapping[str, Any]) -> Iterator[list[str]]:
    size = "x".join(map(str, case["size"])) or "several sizes"
    words = [case["recipe"], case["network"], f"{case['batch_size']} x {size}", case["dtype"]]
    start = [case["case"], ", ".join(words)]
    if "error" in case:
        yield [*start, "deeplab_jax", case["error"], *[_NONE] * 5]
        return
    for name, side in case["sides"].items():
        share, memory, first = (
            side.get(key) for key in ("share_of_ceiling", "memory_bytes", "first_seconds")
        )
        told = f"{first:.1f}" if first is not None else _NONE
        if side.get("compile"):
            told += f" ({side['compile']})"
        ratio = case["ratios"].get(name)
        yield [
            *start,
            name,
            f"{_ms(side['median'])} ({_ms(side['low'])} to {_ms(side['high'])})",
            f"{side['images_per_second']:.4g}",
            _NONE if share is None else f"{100 * share:.0f} %",
            _NONE if memory is None else f"{memory / 2**20:.0f}",
            told,
            _NONE if ratio is None else
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        ]  # fmt: skip
        start = ["", ""]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.4g}" if seconds < 1 else f"{1000 * seconds:.0f}"


def _line(cells: "list[str] | tuple[str, ...]") -> str:
    return f"| {' | '.join(cells)} |"
