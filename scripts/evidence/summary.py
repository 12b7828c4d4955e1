"""summary.md: the results of all stages as tables. Reads records alone."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.record import DONE, Record, Result

_REFERENCE = "0.2140, standard deviation 0.0170 (five seeds)"  # docs/results/learning.md


def write(output: Path, titles: Mapping[str, str]) -> None:
    """Writes summary.md from the records in a folder."""
    lines = ["# What one GPU shows", "", "Written by `scripts/gpu_evidence.sh`.", ""]
    for name, title in titles.items():
        if not (output / f"{name}.json").exists():
            continue
        record = Record.read(output, name, False)
        lines[2] += " A rehearsal: the numbers mean nothing." * (
            record.is_rehearsal and "rehearsal" not in lines[2]
        )
        lines += [f"## {name}: {title}", ""]
        status = record.status if not record.reason else f"{record.status}: {record.reason}"
        facts, packages = record.facts, record.facts.get("packages", {})
        versions = ", ".join(f"{k} {v}" for k, v in packages.items() if k in ("jax", "deeplab_jax"))
        lines += [f"{status}. {record.seconds:.0f} s, {facts.get('date', '')}, {versions}, commit"
                  f" {str(facts.get('commit'))[:12]}.", ""]  # fmt: skip
        good = {k: item for k, item in record.items.items() if "error" not in item}
        if good:
            lines += [*_TABLES[name](good), ""]
        errors = record.errors.items()
        lines += [f"- {key}: no result: {why[:300]}" for key, why in errors] + [""] * bool(errors)
        if record.status != DONE and record.running:
            lines += [f"Ended during: {record.running}.", ""]
    (output / "summary.md").write_text("\n".join(lines))


def _table(head: Sequence[str], rows: Iterator[Sequence[Any]]) -> list[str]:
    texts = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *texts)]


def _ms(times: Mapping[str, Any] | None) -> str:
    """Returns the median and the range of a way's times."""
    if times is None:
        return ""
    low, high = (f"{1e3 * times[key]:.3g}" for key in ("low", "high"))
    return f"{1e3 * times['median']:.4g} ({low} to {high})"


def _environment(items: Result) -> list[str]:
    lines = []
    if machine := items.get("machine"):
        told = {
            "device": machine["device"],
            "memory": f"{(machine['memory_bytes'] or 0) / 2**30:.1f} GiB",
            "processor": f"{machine['processor']['model']}, {machine['processor']['cores']} cores",
            "packages": ", ".join(f"{k} {v}" for k, v in machine["packages"].items()),
            "CUDA, cuDNN of torch": f"{machine['torch_cuda']}, {machine['torch_cudnn']}",
            "variables": " ".join(f"{k}={v}" for k, v in machine["variables"].items()),
            **machine["nvidia_smi"],
        }
        lines = [*_table(("fact", "value"), iter(told.items())), ""]
    rows = ((name, item["line"]) for name, item in items.items() if name != "machine")
    return [*lines, *_table(("ceiling", "measured"), rows)]


def _parity(items: Result) -> list[str]:
    lines = []
    if selftest := items.get("selftest"):
        lines = [f"`deeplab selftest`: exit code {selftest['code']}.", "", "```",
                 *selftest["output"].splitlines()[-30:], "```", ""]  # fmt: skip
    rows = (
        (name, quantity, f"{check['value']:.2e}", f"{check['limit']:.0e}",
         "yes" if check["is_good"] else "NO", f"{item['to_float64'][quantity]:.2e}",
         f"{item['to_float64'].get('torch float32 ' + quantity.split()[-1], 0):.2e}")
        for name, item in items.items() if "checks" in item
        for quantity, check in item["checks"].items()
    )  # fmt: skip
    head = ("network", "quantity", "to torch float32", "limit", "kept", "to torch float64",
            "torch float32 to float64")  # fmt: skip
    return [*lines, *_table(head, rows)]


def _operators(items: Result) -> list[str]:
    head = ("operator", "ours, ms", "by products, ms", "lax, ms", "torch, ms", "ours / torch",
            "ours / lax", "largest difference to torch")  # fmt: skip

    def row(name: str, item: Result) -> Sequence[str]:
        times = item["times"]
        ours = times["ours"]["median"]
        ratios = (f"{ours / times[other]['median']:.2f}" for other in ("torch", "lax"))
        ways = (_ms(times.get(way)) for way in ("ours", "by products", "lax", "torch"))
        return (name, *ways, *ratios, f"{max(item['errors'].values()):.1e}")

    return _table(head, (row(*pair) for pair in items.items()))


def _bench(items: Result) -> list[str]:
    head = ("row", "case", "side", "ms, median (range)", "images/s", "ours / it", "of ceiling",
            "memory, GiB", "first result, s")  # fmt: skip

    def rows() -> Iterator[Sequence[Any]]:
        for name, item in items.items():
            for case in item["cases"]:
                if case.get("error"):
                    yield name, case["case"], case["error"], *[""] * 6
                    continue
                for side, found in case["sides"].items():
                    ratio = (case.get("ratios") or {}).get(side)
                    rate, share = found.get("images_per_second"), found.get("share_of_ceiling")
                    memory, first = found.get("memory_bytes"), found.get("first_seconds")
                    yield (
                        name, case["case"], side,
                        _ms(found) if found.get("median") is not None else "",
                        "" if rate is None else f"{rate:.4g}",
                        "" if ratio is None else f"{ratio['median']:.2f}",
                        "" if share is None else f"{share:.1%}",
                        "" if memory is None else f"{memory / 2**30:.2f}",
                        "" if first is None else f"{first:.1f}",
                    )  # fmt: skip

    notes = {note for item in items.values() for note in item["notes"]}
    return [*_table(head, rows()), *([""] if notes else []), *(f"- {note}" for note in notes)]


def _inference(items: Result) -> list[str]:
    rows = (
        (name, _ms(item["times"]["ours"]), _ms(item["times"]["torch"]), f"{item['ratio']:.2f}",
         f"{item['images_per_second']['ours']:.4g}", f"{item['labels_that_differ']:.1e}")
        for name, item in items.items() if "ratio" in item
    )  # fmt: skip
    head = ("bytes to labels", "ours, ms", "torch, ms", "ours / torch", "images/s of ours",
            "share of labels that differ")  # fmt: skip
    bench = {name: item for name, item in items.items() if "cases" in item}
    same = [f"{name}: {item['line']}." for name, item in items.items()
            if "labels_that_differ" in item and "ratio" not in item]  # fmt: skip
    return [
        *_table(head, rows),
        *([""] if same else []),
        *same,
        *([""] if bench else []),
        *(_bench(bench) if bench else []),
    ]


def _flags(items: Result) -> list[str]:
    head = ("flag", "step with it, ms", "step without, ms", "with / without", "compiling, s",
            "difference of the first loss", "why", "expected")  # fmt: skip
    rows = (
        (f"`{name}`", _ms(item["times"]["with"]), _ms(item["times"]["without"]),
         f"{item['ratio']:.3f}", item["compile_seconds"], f"{item['loss_difference']:.0e}",
         item["why"], item["effect"])
        for name, item in items.items() if "ratio" in item
    )  # fmt: skip
    alone = items.get("no flag")
    told = [f"Without any: {_ms(alone['times']['step'])} ms.", ""] if alone else []
    return [*told, *_table(head, rows)]


def _kernels(items: Result) -> list[str]:
    lines: list[str] = []
    for name, item in items.items():
        total = item["kernel_seconds"]
        rows = ((kind, f"{1e3 * s:.3f}", f"{s / total:.1%}") for kind, s in item["kinds"].items())
        single = (
            (row["operation"], f"{1e3 * row['seconds']:.3f}", row["path"] or row["kernel"])
            for row in item["largest"]
        )
        lines += [f"{name}: {1e3 * total:.4g} ms in {item['kernels']} kernels a step;"
                  f" {1e3 * item['traced_step_seconds']:.4g} ms a step while traced.", "",
                  *_table(("kind", "ms a step", "share"), rows), "",
                  *_table(("largest operations", "ms a step", "path"), single), ""]  # fmt: skip
    return lines[:-1]


def _camvid(items: Result) -> list[str]:
    def line(item: Result, is_it: Callable[[str], bool]) -> str:
        return next((" ".join(text.split()) for text in item["goodput"] if is_it(text)), "")

    rows = (
        (name, f"{item['mean_iou']:.4f}", f"{item['last_loss']:.4f}",
         line(item, lambda text: " images: " in text),
         line(item, lambda text: text.startswith("steps  ")))
        for name, item in items.items()
    )  # fmt: skip
    scores = [item["mean_iou"] for item in items.values()]
    spread = f", standard deviation {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
    return [
        *_table(("run", "mean IoU", "last loss", "images/s", "goodput"), rows),
        "",
        f"Mean of {len(scores)}: {statistics.mean(scores):.4f}{spread}; the PyTorch reference:"
        f" {_REFERENCE}.",
    ]


_TABLES: dict[str, Callable[[Result], list[str]]] = {
    "environment": _environment,
    "parity": _parity,
    "operators": _operators,
    "steps": _bench,
    "inference": _inference,
    "flags": _flags,
    "kernels": _kernels,
    "camvid": _camvid,
}
