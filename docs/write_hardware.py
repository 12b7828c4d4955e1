"""Compiles training steps for hardware that is not there; writes the tables of docs/hardware.md.

    python docs/write_hardware.py tpu        # needs libtpu: pip install "jax[tpu]"; 4 minutes a row
    python docs/write_hardware.py gpu        # needs the CUDA plugin, no GPU; a minute a row
    python docs/write_hardware.py memory     # the same
    python docs/write_hardware.py estimate   # needs no compiler: estimates beside the figures above
    python docs/write_hardware.py recipes    # needs no compiler: the recipes of docs/training.md

docs/hardware.json lists the rows of each table, and the figures of each row as soon as they are
known, so the command can be interrupted and repeated. A row is compiled again only if its step, JAX
or the compiler changed. In the pages only the text between the two markers of a table is rewritten.
"""

import argparse
import hashlib
import json
import os
import platform
import re
from dataclasses import asdict
from datetime import date
from importlib import metadata
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_jax.config import PUBLISHED_IMAGES, PUBLISHED_MIOU, Config
from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.dry_run import hardware as hardware_lib
from deeplab_jax.utils.atomic import atomic_write

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "hardware.json", ROOT / "docs" / "hardware.md"
TRAINING = ROOT / "docs" / "training.md"
MIB = 2**20
Facts = dict[str, Any]  # figures of a row
Results = dict[str, dict[str, Any]]  # all of docs/hardware.json, see `read_results`
_COMPILED = "compile, s | temporaries, MiB a device | needed, MiB a device"
_HEADINGS = {
    "tpu": f"recipe | slice | mesh data x spatial | dtype | {_COMPILED} | GFLOP a chip "
    "| estimated cycles, millions | collectives",
    "gpu": f"recipe | GPUs | mesh data x spatial | dtype | {_COMPILED} "
    "| convolutions without a cuDNN kernel | collectives",
    "memory": "setting | temporaries, MiB | of the recipe's",
    "estimate": "recipe | hardware | mesh data x spatial | dtype "
    "| temporaries, MiB a device: estimate | compiler | ratio | needed: estimate | compiler "
    "| ratio | MiB between devices: estimate | compiler",
}

_RECIPES = (
    "recipe | crop, batch | steps | GiB on one GPU, float32 / bfloat16 | hours in bfloat16, a guess"
)


class Row(NamedTuple):
    """A training step to compile; `setting` is another change of the recipe, or ""."""

    hardware: hardware_lib.Hardware
    recipe: str
    dtype: str
    spatial: int
    setting: str

    @classmethod
    def parse(cls, key: str) -> "Row":
        """Takes a key of docs/hardware.json apart: "HARDWARE RECIPE DTYPE spatial=N [SETTING]"."""
        name, recipe, dtype, spatial, *setting = key.split(" ")
        number = int(spatial.removeprefix("spatial="))
        return cls(hardware_lib.parse_hardware(name), recipe, dtype, number, " ".join(setting))

    def config(self) -> Config:
        """Returns the recipe with the row's settings."""
        changes = [f"model.dtype={self.dtype}", f"mesh.spatial={self.spatial}", self.setting]
        path = ROOT / "configs" / f"{self.recipe}.py"
        return load_recipe(str(path), [f"--config.{change}" for change in changes if change])

    def cells(self) -> list[str]:
        """Returns the first cells of the row in a table."""
        recipe = f"{self.recipe} {self.setting}".strip()
        mesh = f"{self.hardware.num_devices // self.spatial} x {self.spatial}"
        return [recipe, self.hardware.name, mesh, self.dtype]


def main() -> None:
    """Brings one table up to date and writes all that are known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=[*_HEADINGS, "recipes"])
    table = parser.parse_args().table
    if table == "recipes":
        TRAINING.write_text(replace(TRAINING.read_text(), table, recipes(read_results())))
        return
    for key in read_results()["tables"][table]:
        row = Row.parse(key.removeprefix("estimate "))
        hardware_lib.set_compiler_environment(row.hardware)
        known = read_results()["figures"].get(key, {})
        facts = estimate_row(row) if table == "estimate" else compile_row(row, known)
        print(f"{key}: {'known' if facts is known else facts.get('error', 'done')}", flush=True)
        results = read_results()  # again: another table may have been written meanwhile
        results["figures"][key] = facts
        with atomic_write(RESULTS) as file:
            file.write(format_results(results).encode())
        PAGE.write_text(rewrite(PAGE.read_text(), results))


def read_results() -> Results:
    """Returns {"tables": {name: keys of its rows}, "figures": {key of a row: its figures}}."""
    return json.loads(RESULTS.read_text())


def format_results(results: Results) -> str:
    """Returns the text of docs/hardware.json, one row a line."""
    figures = ",\n".join(f"{json.dumps(key)}: {json.dumps(facts, sort_keys=True)}"
                         for key, facts in sorted(results["figures"].items()))  # fmt: skip
    tables = json.dumps(results["tables"], indent=2)
    return f'{{"tables": {tables},\n"figures": {{\n{figures}\n}}}}\n'


def compile_row(row: Row, known: Facts) -> Facts:
    """Returns a row's figures; `known` itself if step, JAX and compiler are still the same."""
    import jax

    from deeplab_jax.dry_run import compiled

    jax.clear_caches()
    lowered = compiled.lower_step(row.config(), hardware_lib.compile_devices(row.hardware))
    identity = {
        "lowered": hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16],
        "jax": metadata.version("jax"),
        "compiler": hardware_lib.compiler_version(row.hardware),
    }
    if identity.items() <= known.items():
        return known
    try:
        options = hardware_lib.compiler_options(row.hardware)
        step, _ = compiled.compile_step(lowered, options)
        facts = asdict(step) | {"needed": step.needed}
    except jax.errors.JaxRuntimeError as error:
        facts = {"error": str(error).splitlines()[0]}
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"
    return identity | {"date": str(date.today()), "machine": machine} | facts


def estimate_row(row: Row) -> Facts:
    """Returns a row's figures without the compiler."""
    from deeplab_jax.dry_run.estimate import estimate

    step = estimate(row.config(), row.hardware)
    origin = {"date": str(date.today()), "jax": metadata.version("jax")}
    return origin | asdict(step) | {"needed": step.needed}


def recipes(results: Results) -> str:
    """Returns the table of the published recipes: steps, memory and a guess of hours on one GPU."""
    from deeplab_jax.dry_run import flops, hours
    from deeplab_jax.training.plan import total_steps

    gpu = hardware_lib.parse_hardware("h200")
    rows = [_RECIPES.split(" | "), ["---"] * len(_RECIPES.split(" | "))]
    for dataset, depth, stride in PUBLISHED_MIOU:
        name = f"{dataset}_r{depth}_os{stride}"
        key = f"h200 {name} {{}} spatial=1"
        needed = (results["figures"][key.format(t)]["needed"] for t in ("float32", "bfloat16"))
        config = load_recipe(name, ["--config.model.dtype=bfloat16"])
        steps = total_steps(config, PUBLISHED_IMAGES[dataset][0])
        operations = 2 * flops.step_macs(config, flops.count_macs(config))
        time = hours.guess(operations, config, gpu)
        assert time is not None  # a peak is known
        memory = " / ".join(f"{size / hardware_lib.GIB:.1f}" for size in needed)
        images = f"{config.data.crop_size[0]}x{config.data.crop_size[1]}, {config.train.batch_size}"
        low, high = (steps * seconds / 3600 for seconds in (time.low, time.high))
        rows.append([f"`{name}`", images, f"{steps:,}", memory, f"{low:.2g} to {high:.2g}"])
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    return f"""{text}
`python docs/write_hardware.py recipes`. Memory: the CUDA compiler's figures for one H200
([hardware](hardware.md#gpus)). Hours on one, without evaluations: **not measured**; {time.basis}.
"""


def replace(page: str, table: str, text: str) -> str:
    """Returns the page with another text between the markers of a table.

    Raises:
      ValueError: the page has no place for the table.
    """
    place = re.search(f"<!-- table: {table} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    if place is None:
        raise ValueError(f"no <!-- table: {table} --> ... <!-- end -->")
    return page[: place.start(1)] + text + page[place.end(1) :]


def rewrite(page: str, results: Results) -> str:
    """Returns the page with the tables of the results.

    Raises:
      ValueError: the page has no place for a table.
    """
    for table, headings in _HEADINGS.items():
        rows = [headings.split(" | "), ["---"] * len(headings.split(" | "))]
        for _, group in groupby(_cells(table, results), lambda cells: cells[:3]):  # types together
            rows.append(
                [" / ".join(dict.fromkeys(column)) for column in zip_longest(*group, fillvalue="-")]
            )
        text = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
        text += f"\n{_origin(table, results)}\n"
        page = replace(page, table, text)
    return page


def _cells(table: str, results: Results) -> list[list[str]]:
    """Returns the cells of the rows whose figures are known; after an error the rest is empty."""
    figures, lines = results["figures"], []
    for key in results["tables"][table]:
        compiled = key.removeprefix("estimate ")
        if key not in figures or compiled not in figures:
            continue
        row, facts = Row.parse(compiled), figures[compiled]
        start = row.cells()
        if table == "memory":
            start = [f"`--config.{row.setting}`" if row.setting else ", ".join(start)]
        if "error" in facts:
            lines.append([*start, facts["error"]])
        elif table == "memory":
            whole = figures.get(key.removesuffix(row.setting).strip(), {}).get("temporaries")
            share = f"{100 * facts['temporaries'] / whole:.0f} %" if whole else "-"
            lines.append([*start, _mib(facts["temporaries"]), share])
        elif table == "estimate":
            lines.append([*start, *_estimate_cells(figures[key], facts)])
        else:
            lines.append([*start, *_compiled_cells(row.hardware, facts)])
    return lines


def _compiled_cells(hardware: hardware_lib.Hardware, facts: Facts) -> list[str]:
    share = facts["needed"] / (hardware.memory_bytes or 1)
    needed = f"{_mib(facts['needed'])}, {100 * share:.0f} %{'' if share < 1 else ': too much'}"
    own = [str(len(facts["unrecognised"]))]
    if hardware.kind == "tpu":
        own = [f"{facts['flops'] / 1e9:.0f}", f"{facts['cycles'] / 1e6:.1f}"]
    moved = "; ".join(f"{kind}: {count} ({size / MIB:.1f} MiB)"
                      for kind, (count, size) in sorted(facts["collectives"].items()))  # fmt: skip
    seconds, temporaries = f"{facts['seconds']:.0f}", _mib(facts["temporaries"])
    return [seconds, temporaries, needed, *own, moved or "none"]


def _estimate_cells(ours: Facts, theirs: Facts) -> list[str]:
    cells = []
    for name in ("temporaries", "needed"):
        cells += [_mib(ours[name]), _mib(theirs[name]), f"{ours[name] / theirs[name]:.2f}"]
    moved = (sum(size for _, size in side["collectives"].values()) for side in (ours, theirs))
    return [*cells, *map(_mib, moved)]


def _mib(size: float) -> str:
    return f"{size / MIB:.0f}"


def _origin(table: str, results: Results) -> str:
    """Returns the line under a table: the command, and origin and date of its figures."""
    keys, figures = results["tables"][table], results["figures"]
    command = f"`python docs/write_hardware.py {table}`"
    rows = [figures[key] for key in keys if key in figures]
    if not rows:
        return f"Not made yet: {command}."
    names = [sorted({row[name] for row in rows if name in row})
             for name in ("machine", "date", "jax", "compiler")]  # fmt: skip
    machine, day, jax, compiler = map(", ".join, names)
    missing = "; ".join(key for key in keys if key not in figures)
    text = f"compiled on {machine}; {day}; jax {jax}, {compiler}. Nothing was executed."
    if table == "estimate":
        text = f"{day}; jax {jax}; compilers as above."
    return f"{command}; {text}{f' Not known yet: {missing}.' if missing else ''}"


if __name__ == "__main__":
    main()
