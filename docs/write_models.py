"""Writes docs/models/: a card for each of the table's twelve networks, and their index.

    python docs/write_models.py          # from the recipes and the figures that are known
    python docs/write_models.py count    # counts parameters and arithmetic again: a minute

The figures of memory and compile time are those of docs/hardware.json, the differences from PyTorch
those of docs/parity.md, the hours those of docs/training.md; none is measured here.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deeplab_jax.config import PUBLISHED_IMAGES, PUBLISHED_MIOU, Config
from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.utils.atomic import atomic_write

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
COUNTS = DOCS / "models.json"
_TITLES = {"voc": "PASCAL VOC 2012", "ade20k": "ADE20k", "cityscapes": "Cityscapes"}
_ZOO = "https://github.com/SegmentationBLWX/modelstore/releases/tag/ssseg_deeplabv3plus"
_GIB = 2**30


def main() -> None:
    """Writes all pages, or counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["count"])
    if parser.parse_args().what:
        rows = {name: count(read(name)) for name in names()}
        lines = ",\n".join(f'"{name}": {json.dumps(row)}' for name, row in rows.items())
        with atomic_write(COUNTS) as file:
            file.write(f"{{\n{lines}\n}}\n".encode())
    for path, text in pages().items():
        (DOCS / path).write_text(text)


def names() -> dict[str, tuple[str, int, int]]:
    """Returns {recipe: (data set, depth, output stride)} in the table's order."""
    return {f"{dataset}_r{depth}_os{stride}": (dataset, depth, stride)
            for dataset, depth, stride in PUBLISHED_MIOU}  # fmt: skip


def read(name: str) -> Config:
    """Returns a recipe of the table."""
    return load_recipe(name, ["--config.init.backbone=none"])


def count(config: Config) -> dict[str, int]:
    """Returns parameters, and multiply-adds of an image forward and of a training step."""
    from deeplab_jax.dry_run import flops

    macs = flops.count_macs(config)
    auxiliary = flops.count_parameters(config)["auxiliary head"]
    return {
        "parameters": flops.count_learning(config),
        "auxiliary": auxiliary,
        "forward_macs": sum(macs.values()) - macs["auxiliary head"],
        "step_macs": flops.step_macs(config, macs),
    }


def pages() -> dict[str, str]:
    """Returns the text of each page by its path under docs/."""
    counts = json.loads(COUNTS.read_text())
    figures = json.loads((DOCS / "hardware.json").read_text())["figures"]
    hours = _rows(DOCS / "training.md", r"`(\w+_r\d+_os\d+)`")
    cards = {f"models/{name}.md": _card(name, row, counts[name], figures, hours[name])
             for name, row in names().items()}  # fmt: skip
    return {"models/index.md": _index(counts, hours), **cards}


def _rows(page: Path, first: str) -> dict[str, list[str]]:
    """Returns {group of the first cell: other cells} of a page's tables."""
    cells = (line.strip("| ").split(" | ") for line in page.read_text().splitlines())
    found = ((re.fullmatch(first, row[0]), row[1:]) for row in cells)
    return {match[1]: rest for match, rest in found if match}


def _parity(depth: int, stride: int, classes: int) -> dict[str, list[float]]:
    """Returns {quantity: largest differences in float64, float32, and PyTorch's float32}."""
    page = (DOCS / "parity.md").read_text()
    name = f"r{depth}_d{stride}_c{classes}"
    found: dict[str, list[float]] = {}
    for line in page.splitlines():
        row = line.strip("| ").split(" | ")
        if row[0] == name:
            values = [float(cell) if cell != "-" else 0.0 for cell in row[3:]]
            kind = "inner stages" if row[2].startswith("inner") else "logits of both heads"
            found[kind] = [max(pair) for pair in zip(found.get(kind, values), values, strict=True)]
    return found


def _index(counts: dict[str, dict[str, int]], hours: dict[str, list[str]]) -> str:
    head = "model | published mean IoU, % | parameters, M | GFLOP an image | GiB on one GPU, "
    head += "float32 / bfloat16 | hours on one H200 in bfloat16, an estimate"
    rows = [head.split(" | "), ["---"] * 6]
    for name, row in names().items():
        known = counts[name]
        size = f"{(known['parameters'] - known['auxiliary']) / 1e6:.1f}"
        memory, guess = hours[name][2:4]
        rows.append([f"[{name}]({name}.md)", f"{PUBLISHED_MIOU[row]:.2f}", size,
                     f"{2 * known['forward_macs'] / 1e9:,.0f}", memory, guess])  # fmt: skip
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    toctree = "\n".join(names())
    return f"""# Models

DeepLabV3+ with ResNet-50 and ResNet-101 at output stride 8 and 16, on three data sets: the twelve
rows of
[sssegmentation's model zoo]({_ZOO}).
Each card says how the network is trained and evaluated, which figure was published, what is proven
here and by which test, what it needs, and how to run it. **None of the twelve has been trained to
its published figure here**: not measured.

{table}
Parameters and GFLOP are those of inference, without the auxiliary head, at the crop's size (1
multiply-add is 2 FLOP; norms and resizing are not counted). GiB and hours are those of training,
for the whole batch and all steps; neither was measured on a GPU. Written by
`python docs/write_models.py` from the recipes, the compiler's figures ([hardware](../hardware.md)),
the comparison with PyTorch ([parity](../parity.md)) and the
[recipes' hours](../training.md#the-recipes); a test compares.

Which one: by the published figures output stride 8 gains 0.5 to 1.3 points over 16 for three times
the arithmetic, ResNet-101 0.5 to 2.0 points over ResNet-50 for a third to a half more. For classes
of your own start from one of them ([fine-tuning](../how-to/fine-tuning.md)), and on a processor
take `camvid_r18_os16`. Weights and data: [links](../links.md).

```{{toctree}}
:hidden:

{toctree}
```
"""


def _card(
    name: str,
    row: tuple[str, int, int],
    known: dict[str, int],
    figures: dict[str, Any],
    cells: list[str],
) -> str:
    dataset, depth, stride = row
    config = read(name)
    high, wide = config.data.crop_size
    used = (known["parameters"] - known["auxiliary"]) / 1e6
    file = f"deeplabv3plus_resnet{depth}os{stride}_{dataset}_train.pth"
    published = f"{PUBLISHED_MIOU[row]:.2f}"
    backbone = {50: "resnet50_v1c-2cccc1ad.pth", 101: "resnet101_v1c-e67eebb6.pth"}[depth]
    protocol = "".join(f"| {title} | {text} |\n"
                       for title, text in _protocol(row, config, backbone, cells[1]))  # fmt: skip
    return f"""# {name}

DeepLabV3+ with ResNet-{depth} at output stride {stride} on {_TITLES[dataset]}: published mean IoU
{published} %. [All twelve](index.md).

## Protocol

| part | the published one |
| --- | --- |
{protocol}
## Results

| weights | mean IoU, % |
| --- | --- |
| published ([sssegmentation]({_ZOO}), `{file}`) | {published} |
| the published weights, evaluated here | not measured: weights and data could not be fetched |
| trained here | not measured |

`python scripts/crosscheck_table.py --data data --weights .` measures the second line where weights
and data are there.

## What is proven

{_proven(depth, stride, config.model.num_classes)}
## What it needs

{used:.1f} million parameters ({known["parameters"] / 1e6:.1f} with the auxiliary head, which
training alone uses). One image of {high}x{wide} takes {2 * known["forward_macs"] / 1e9:,.0f} GFLOP
forward, a training step {2 * known["step_macs"] / 1e12:.1f} TFLOP: own count, 1 multiply-add is 2
FLOP, norms and resizing not counted (`python docs/write_models.py count`).

{_hardware(name, figures)}
The whole training on one H200 in bfloat16, without evaluations: **{cells[3]} hours, an estimate**,
not measured ([how](../training.md#the-recipes)). On your machine the dry run below says it.

## Run it

```
deeplab convert from-pytorch --checkpoint {backbone} --output weights/r{depth}_v1c
deeplab train --config {name} --config.init.backbone=weights/r{depth}_v1c --dry-run
deeplab train --config {name} --config.init.backbone=weights/r{depth}_v1c \\
    --config.model.dtype=bfloat16
```

The published network, evaluated:

```
deeplab convert from-pytorch --checkpoint {file} \\
    --config {name} --output weights/{name}
deeplab evaluate --checkpoint weights/{name}
```

Next: [where weights and data are](../links.md), [public data](../public-data.md),
[little memory](../how-to/memory.md), [fine-tuning](../how-to/fine-tuning.md).
"""


def _protocol(
    row: tuple[str, int, int], config: Config, backbone: str, steps: str
) -> Iterator[tuple[str, str]]:
    """Yields (title, text): data, network, training and evaluation."""
    dataset, depth, _ = row
    images, val_images = PUBLISHED_IMAGES[dataset]
    train, data, model = config.train, config.data, config.model
    base = "x".join(map(str, data.resize_base))
    text = f"{_TITLES[dataset]}: {images:,} images of `{data.train_split}` to train, {val_images:,}"
    yield "data", f"{text} of `{data.val_split}` to evaluate; {model.num_classes} classes"
    text = f"ResNet-{depth} whose stem is three 3x3 convolutions (v1c), atrous rates "
    text += f"{', '.join(map(str, model.atrous_rates))}, heads of {model.head_channels} channels"
    yield "network", f"{text}, auxiliary head on stage 3"
    yield "starts from", f"ImageNet weights of the backbone: `{backbone}`"
    text = f"crop {data.crop_size[0]}x{data.crop_size[1]} (height x width), batch "
    text += f"{train.batch_size}, {train.epochs} epochs = {steps} steps; SGD, rate {train.lr}, "
    text += f"momentum {train.momentum}, weight decay {train.weight_decay}, poly "
    yield "training", f"{text}{train.poly_power} down to {train.min_lr}"
    low, high = data.scale_range
    yield "augmentation", f"scale {low} to {high} of {base}, crop, flip, photometric"
    text = f"softmax cross entropy + {train.aux_weight} x auxiliary, in {train.loss_groups} groups"
    yield "loss", f"{text} of rows, as eight processes of the reference"
    text = f"whole image fitted into {base} (long side x short side), one scale, no flip; logits"
    yield "evaluation", f"{text} resized to the label's size"


def _proven(depth: int, stride: int, classes: int) -> str:
    test = "`tests/models/test_deeplabv3plus.py`"
    if depth == 101:  # float64 takes minutes
        test += " in float32, `tests/golden/write_parity.py` in float64"
    rows = ""
    for kind, values in _parity(depth, stride, classes).items():
        shown = [f"{value:.1e}" if value else "-" for value in values]
        rows += f"| {kind} | {' | '.join(shown)} | {test} |\n"
    steps = "compared on ResNet-50 with 21 classes, at both strides; the same code computes these"
    if depth == 50 and classes == 21:
        steps = "loss, every gradient, norm statistics and weights are compared"
        steps += " ([values](../parity.md#five-optimiser-steps), `tests/training/test_step.py`)"
    page = (DOCS / "parity.md").read_text()
    date = re.search(r"write_parity\.py` on ([\d-]+, .*)\.\n", page)
    assert date
    return f"""Largest difference from the PyTorch reference in float64:

| values | ours in float64 | ours in float32 | PyTorch's own in float32 | test |
| --- | --- | --- | --- | --- |
{rows}
A dash: not measured. Logits spread over 1 to 4. The reference's values are stored with float32's
precision, so that 1e-7 of a value is agreement. `python tests/golden/write_parity.py`, {date[1]}
([parity](../parity.md)).

- Key, shape and order of every tensor in the published layout: equal
  (`tests/convert/test_keymap.py`).
- Schedule, data pipeline and evaluator: [values](../parity.md#everything-else) (`tests/training`,
  `tests/data`, `tests/evaluation`).
- Five optimiser steps: {steps}.
"""


def _hardware(name: str, figures: dict[str, Any]) -> str:
    head = "devices | dtype | memory a device, GiB | compile, s"
    rows = [head.split(" | "), ["---"] * 4]
    origins = set()
    for key, facts in figures.items():
        hardware, recipe, dtype, spatial, *setting = key.split(" ")
        if hardware == "estimate" or recipe != name or setting or "needed" not in facts:
            continue
        rows_of_image = int(spatial.removeprefix("spatial="))
        shared = f", {rows_of_image} to an image" if rows_of_image > 1 else ""
        rows.append([f"`{hardware}`{shared}", dtype, f"{facts['needed'] / _GIB:.1f}",
                     f"{facts['seconds']:.0f}"])  # fmt: skip
        origins.add((facts["date"], facts["jax"], facts["machine"]))
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    origin = ";\n".join(f"{machine}, {date}, jax {jax}" for date, jax, machine in sorted(origins))
    return f"""{table}
By the hardware's own compilers without the hardware, for the whole batch, on
{origin};
`python docs/write_hardware.py gpu` and `tpu`. The machine compiled beside other work, so times are
upper bounds. Nothing was executed. Devices are named as `--dry-run --hardware` takes them; others:
[hardware](../hardware.md).
"""


if __name__ == "__main__":
    main()
