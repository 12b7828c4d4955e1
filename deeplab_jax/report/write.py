"""Gathers what a page shows, and writes it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.config import from_dict
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.data import open_dataset
from deeplab_jax.data.classes import colormap
from deeplab_jax.errors import ConfigError, DeepLabError, clip
from deeplab_jax.inference.segmenter import Segmenter, load
from deeplab_jax.report import checking, page, pictures, reading
from deeplab_jax.utils.atomic import atomic_write


def write_again(folder: Path, output: Path, overrides: Sequence[str]) -> None:
    """Writes the page of an evaluated checkpoint; without pictures if they cannot be made.

    Args:
      folder: the checkpoint, with `evaluation.json` in it.
      output: the page.
      overrides: "--config.data.root=elsewhere" and the like, after those of the evaluation.

    Raises:
      ConfigError: `evaluation.json` is not of this version, or an override cannot be used.
    """
    numbers = folder / "evaluation.json"
    result = read_evaluation(numbers)
    overrides = [*result["overrides"], *overrides]
    try:
        config = apply_overrides(from_dict(result["config"]), overrides)
    except ConfigError:
        raise  # it names the field
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise _not_written(numbers, f"config: {clip(str(error))}") from error
    try:
        segmenter = load(folder, result["step"], overrides)
    except DeepLabError as error:  # the numbers are there all the same
        palette = colormap(config.model.num_classes)
        _write(output, folder, page.Facts(result, config, {}, palette, (), [_no_pictures(error)]))
    else:
        _draw(output, result, segmenter)


def write_evaluated(output: Path, numbers: Path, segmenter: Segmenter) -> None:
    """Writes the page of what was evaluated just now.

    Args:
      output: the page.
      numbers: what `evaluate` wrote.
      segmenter: the evaluated network.
    """
    _draw(output, read_evaluation(numbers), segmenter)


def read_evaluation(path: Path) -> dict[str, Any]:
    """Returns what `evaluate` wrote.

    Raises:
      ConfigError: it is not JSON, or not what this version writes; says what is wrong.
    """
    try:
        result = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _not_written(path, f"no JSON: {clip(str(error))}") from error
    fault = checking.find_fault(result)
    if fault:
        raise _not_written(path, fault)
    return result


def _not_written(path: Path, fault: str) -> ConfigError:
    fix = f"run deeplab evaluate --checkpoint {path.parent} again"
    return ConfigError(str(path), f"is not what evaluate writes ({fault})", fix)


def _draw(output: Path, result: dict[str, Any], segmenter: Segmenter) -> None:
    """Writes the page; without pictures, and saying why, if the data cannot be read."""
    config, notes, samples = segmenter.config, [], []
    try:
        dataset = open_dataset(config.data, config.model.num_classes, result["split"])
        drawn = pictures.draw_samples(result, dataset, lambda image: segmenter(image).labels)
        samples = list(drawn)
    except DeepLabError as error:
        notes.append(_no_pictures(error))
    changed = [sample.name for sample in samples if not sample.is_as_evaluated()]
    if changed:
        notes.append(
            f"{len(changed)} pictures score otherwise than in the evaluation, first {changed[0]}: "
            "the data or the checkpoint have changed since. Evaluate again."
        )
    embedded = pictures.embed(samples)
    facts = page.Facts(result, config, {}, segmenter.palette, embedded, notes)
    _write(output, segmenter.path, facts)


def _no_pictures(error: DeepLabError) -> str:
    return f"No pictures: {error}."


def _write(output: Path, folder: Path, facts: page.Facts) -> None:
    text = page.build(facts._replace(log=reading.read_log(folder / "log.jsonl")))
    with atomic_write(output) as file:
        file.write(text.encode("utf-8", "replace"))  # ids may hold half a surrogate pair
    print(f"report: {output} ({len(text) / 1e6:.1f} MB, {len(facts.pictures)} pictures)")
