"""Compiles training steps for devices that are not there and writes the tables of docs/pods.md.

    python scripts/write_pods.py tpu        # needs libtpu: pip install "jax[tpu]"; 4 minutes a row
    python scripts/write_pods.py gpu        # needs the CUDA plugin, no GPU; a minute a row
    python scripts/write_pods.py memory     # the same
    python scripts/write_pods.py estimate   # needs no compiler: the others' figures beside ours

Each row is saved in docs/pods.json as soon as it is known. A row whose program, JAX and compiler
are those of its last figures is not compiled again, so the command can be cut off and repeated.
Only what stands between a table's two markers in docs/pods.md is rewritten.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.dry_run import hardware
from deeplab_jax.utils.atomic import atomic_write

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "pods.json", ROOT / "docs" / "pods.md"
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Row:
    """A training step to compile."""

    target: str
    recipe: str
    dtype: str
    space: int = 1
    setting: str = ""  # another, such as "train.gradient_accumulation=2"

    @property
    def key(self) -> str:
        """Its name in docs/pods.json."""
        return f"{self.target} {self.recipe} {self.dtype} space={self.space} {self.setting}".strip()

    def config(self) -> Any:
        """Returns the recipe with the row's settings."""
        changes = [f"model.dtype={self.dtype}", f"mesh.spatial={self.space}"]
        changes += [self.setting] * bool(self.setting)
        path = ROOT / "configs" / f"{self.recipe}.py"
        return load_recipe(str(path), [f"--config.{change}" for change in changes])


_TABLE_RECIPES = [
    f"{dataset}_r{depth}_os{stride}"
    for dataset in ("voc", "ade20k", "cityscapes")
    for depth in (50, 101)
    for stride in (16, 8)
]
ROWS = {
    "tpu": [
        Row("v5e:4x4", "ade20k_r50_os16", "bfloat16"),
        Row("v5e:4x8", "cityscapes_r50_os16", "bfloat16", space=4),
        Row("v5e:4x4", "cityscapes_r50_os16", "bfloat16", space=2),
        Row("v5e:4x4", "ade20k_r101_os8", "bfloat16"),
        Row("v5e:4x4", "cityscapes_r101_os8", "bfloat16", space=2),
        Row("v5e:2x4", "ade20k_r50_os16", "bfloat16"),
        Row("v5e:2x4", "cityscapes_r50_os16", "bfloat16"),
    ],
    "gpu": [
        *(Row("h200", recipe, dtype) for recipe in _TABLE_RECIPES
          for dtype in ("float32", "bfloat16")),
        *(Row("h100", recipe, dtype) for recipe in ("ade20k_r50_os16", "cityscapes_r101_os8")
          for dtype in ("float32", "bfloat16")),
        Row("h200:8", "ade20k_r50_os16", "bfloat16"),
        Row("h200:8", "ade20k_r101_os8", "bfloat16"),
        Row("h200:16", "cityscapes_r101_os8", "bfloat16", space=2),
    ],
    "memory": [
        Row("h200", "ade20k_r101_os8", "bfloat16", setting=setting)
        for setting in (
            "", "model.remat=4", "model.remat=3", "model.remat=1,2,3,4",
            "train.gradient_accumulation=2", "train.gradient_accumulation=4",
            "model.freeze_batch_norm=true",
        )
    ],
    "estimate": [
        Row("v5e:2x4", "ade20k_r50_os16", "bfloat16"),
        Row("v5e:4x4", "ade20k_r50_os16", "bfloat16"),
        Row("v5e:4x4", "cityscapes_r50_os16", "bfloat16", space=2),
        Row("v5e:4x8", "cityscapes_r50_os16", "bfloat16", space=4),
        Row("v5e:4x4", "ade20k_r101_os8", "bfloat16"),
        Row("h200", "voc_r101_os8", "float32"),
        Row("h200", "ade20k_r50_os16", "bfloat16"),
        Row("h200", "cityscapes_r50_os16", "float32"),
        Row("h100", "cityscapes_r101_os8", "bfloat16"),
        Row("h200", "ade20k_r101_os8", "bfloat16", setting="model.remat=1,2,3,4"),
        Row("h200", "ade20k_r101_os8", "bfloat16", setting="train.gradient_accumulation=2"),
        Row("h200:8", "ade20k_r50_os16", "bfloat16"),
        Row("h200:16", "cityscapes_r101_os8", "bfloat16", space=2),
    ],
}  # fmt: skip


def main() -> None:
    """Brings one table up to date, and writes all that are known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=[*ROWS])
    table = parser.parse_args().table
    hardware.set_compiler_environment(hardware.parse_hardware(ROWS[table][0].target))
    for row in ROWS[table]:
        if table == "estimate":
            key, facts = _estimate_key(row), estimate_row(row)
        else:
            key, facts = row.key, update(row, read_results().get(row.key, {}))
        results = read_results() | {key: facts}  # another table's may be written meanwhile
        with atomic_write(RESULTS) as file:
            file.write(f"{json.dumps(results, indent=1, sort_keys=True)}\n".encode())
        PAGE.write_text(rewrite(PAGE.read_text(), results))


def read_results() -> dict[str, Any]:
    """Returns {key of a row: its figures}."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def update(row: Row, known: dict[str, Any]) -> dict[str, Any]:
    """Returns a row's figures: those known, where they are of the same program and compiler."""
    import jax

    from deeplab_jax.dry_run import compiled

    jax.clear_caches()
    target = hardware.parse_hardware(row.target)
    devices = hardware.compile_devices(target)
    lowered = compiled.lower_step(row.config(), devices)
    identity = {
        "program": hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16],
        "jax": metadata.version("jax"),
        "compiler": hardware.compiler_version(target),
    }
    if identity.items() <= known.items():
        print(f"{row.key}: known", flush=True)
        return known
    try:
        got = compiled.compile_program(lowered, hardware.compiler_options(target))
        facts = _facts(got)
    except jax.errors.JaxRuntimeError as error:
        facts = {"error": str(error).splitlines()[0]}
    print(f"{row.key}: {facts.get('error') or facts['seconds']}", flush=True)
    return identity | {"date": str(date.today()), "machine": _machine()} | facts


def estimate_row(row: Row) -> dict[str, Any]:
    """Returns what a dry run without the target's compiler says."""
    from deeplab_jax.dry_run.estimate import estimate

    print(row.key, flush=True)
    facts = _facts(estimate(row.config(), hardware.parse_hardware(row.target)))
    return {"date": str(date.today()), "jax": metadata.version("jax")} | facts


def _facts(got: Any) -> dict[str, Any]:
    """Returns what docs/pods.json holds of a `Program` or an `Estimate`."""
    return dataclasses.asdict(got) | {"needed": got.needed}


def _estimate_key(row: Row) -> str:
    return f"estimate {row.key}"


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"


def rewrite(page: str, results: dict[str, Any]) -> str:
    """Returns the page with its tables as the results make them.

    Raises:
      ValueError: a table has no place in the page.
    """
    tables = {
        "tpu": tpu_table,
        "gpu": gpu_table,
        "memory": memory_table,
        "estimate": estimate_table,
    }
    for name, table in tables.items():
        block = re.compile(f"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not block.search(page):
            raise ValueError(f"{PAGE} has no <!-- table: {name} --> ... <!-- end -->")
        body = "\n".join([*table(results), "", _origin(name, results), ""])
        page = block.sub(lambda match, body=body: f"{match[1]}\n{body}\n{match[2]}", page)
    return page


def tpu_table(results: dict[str, Any]) -> Iterable[str]:
    """Yields the lines of the table of TPU slices."""
    yield (
        "| recipe | slice, chips | mesh data x space | compile, s | temporaries, MiB a chip "
        "| needed, MiB a chip | GFLOP a chip | all-reduces | permutes | other collectives "
        "| estimated cycles, millions |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row, facts in _known("tpu", results):
        target = hardware.parse_hardware(row.target)
        start = f"| {row.recipe} | {row.target}, {target.num_devices} "
        start += f"| {target.num_devices // row.space} x {row.space} "
        if "error" in facts:
            yield f"{start}| - | - | {facts['error']} | - | - | - | - | - |"
            continue
        moved = facts["collectives"]
        others = [f"{kind}: {_moved(moved, kind)}" for kind in sorted(moved)
                  if kind not in ("all-reduce", "collective-permute")]  # fmt: skip
        yield (
            f"{start}| {facts['seconds']:.0f} | {_memory(facts)} "
            f"| {_needed(facts, target)} | {facts['flops'] / 1e9:.0f} "
            f"| {_moved(moved, 'all-reduce')} | {_moved(moved, 'collective-permute')} "
            f"| {'; '.join(others) or 'none'} | {facts['cycles'] / 1e6:.1f} |"
        )


def gpu_table(results: dict[str, Any]) -> Iterable[str]:
    """Yields the lines of the table of GPUs."""
    yield (
        "| recipe | GPUs | mesh data x space | dtype | compile, s | temporaries, MiB a GPU "
        "| needed, MiB a GPU | kernels' gradients that cuDNN does not get | collectives |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row, facts in _known("gpu", results):
        target = hardware.parse_hardware(row.target)
        start = f"| {row.recipe} | {row.target} | {target.num_devices // row.space} x {row.space} "
        start += f"| {row.dtype} "
        if "error" in facts:
            yield f"{start}| - | - | {facts['error']} | - | - |"
            continue
        moved = [f"{kind}: {_moved(facts['collectives'], kind)}" for kind in facts["collectives"]]
        yield (
            f"{start}| {facts['seconds']:.0f} | {_memory(facts)} | {_needed(facts, target)} "
            f"| {len(facts['unrecognised'])} | {'; '.join(sorted(moved)) or 'none'} |"
        )


def memory_table(results: dict[str, Any]) -> Iterable[str]:
    """Yields the lines of the table of what lowers memory."""
    first = ROWS["memory"][0]
    whole = results.get(first.key, {})
    if "temporaries" not in whole:
        return
    yield f"| {first.recipe}, {first.target}, {first.dtype} | temporaries, MiB | of the recipe's |"
    yield "| --- | --- | --- |"
    for row, facts in _known("memory", results):
        start = f"| {f'`--config.{row.setting}`' if row.setting else 'the recipe'} "
        if "error" in facts:
            yield f"{start}| {facts['error']} | - |"
            continue
        share = facts["temporaries"] / whole["temporaries"]
        yield f"{start}| {_memory(facts)} | {100 * share:.0f} % |"


def estimate_table(results: dict[str, Any]) -> Iterable[str]:
    """Yields the lines of the table of estimates beside the compilers' figures."""
    yield (
        "| recipe | target | mesh data x space | dtype | temporaries, MiB a device: estimate "
        "| compiler | ratio | needed: estimate | compiler | ratio "
        "| MiB between devices: estimate | compiler |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row, ours in _known("estimate", results):
        facts = results.get(row.key, {})
        if "temporaries" not in facts:
            continue
        data = hardware.parse_hardware(row.target).num_devices // row.space
        pairs = [
            (ours["temporaries"], facts["temporaries"]),
            (ours["needed"], facts["needed"]),
        ]
        sizes = [f"{a / MIB:.0f} | {b / MIB:.0f} | {a / b:.2f}" for a, b in pairs]
        moved = [sum(size for _, size in side["collectives"].values()) for side in (ours, facts)]
        yield (
            f"| {f'{row.recipe} {row.setting}'.strip()} | {row.target} | {data} x {row.space} "
            f"| {row.dtype} | {' | '.join(sizes)} "
            f"| {' | '.join(f'{size / MIB:.0f}' for size in moved)} |"
        )


def _known(table: str, results: dict[str, Any]) -> list[tuple[Row, dict[str, Any]]]:
    keys = {row: _estimate_key(row) if table == "estimate" else row.key for row in ROWS[table]}
    return [(row, results[key]) for row, key in keys.items() if key in results]


def _moved(collectives: dict[str, Any], kind: str) -> str:
    if kind not in collectives:
        return "0"
    count, size = collectives[kind]
    return f"{count} ({size / MIB:.1f} MiB)"


def _memory(facts: dict[str, Any]) -> str:
    return f"{facts['temporaries'] / MIB:.0f}"


def _needed(facts: dict[str, Any], target: hardware.Hardware) -> str:
    needed = facts["needed"]
    share = f"{100 * needed / target.memory_bytes:.0f} %"
    return f"{needed / MIB:.0f}, {share}" if needed < target.memory_bytes else f"{share}: too much"


def _origin(table: str, results: dict[str, Any]) -> str:
    """Returns the line under a table: the command, and where and when its figures are from."""
    rows = [facts for _, facts in _known(table, results)]
    command = f"`python scripts/write_pods.py {table}`"
    if not rows:
        return f"Not made yet: {command}."
    names = {key: ", ".join(sorted({facts[key] for facts in rows if key in facts}))
             for key in ("machine", "date", "jax", "compiler")}  # fmt: skip
    missing = [row.key for row in ROWS[table] if row.key not in results]
    rest = f" Not compiled yet: {'; '.join(missing)}." if missing else ""
    if table == "estimate":
        return f"{command}, {names['date']}, jax {names['jax']}; compilers as above.{rest}"
    return (
        f"{command}; compiled on {names['machine']}; {names['date']}; jax {names['jax']}, "
        f"{names['compiler']}. Nothing was executed.{rest}"
    )


if __name__ == "__main__":
    main()
