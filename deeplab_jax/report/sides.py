"""Sides of a comparison: evaluations of one data set, read from files and folders.

A side is an evaluation, or those of several seeds: of the folders `seed_<n>` in one folder.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax.config.checks import as_text
from deeplab_jax.errors import ConfigError, clip
from deeplab_jax.evaluation.run import EVALUATION_FILE
from deeplab_jax.evaluation.summary import Evaluation, read_areas
from deeplab_jax.report.write import read_evaluation
from deeplab_jax.utils import steps
from deeplab_jax.utils.places import as_place

_SEED = re.compile(r"seed_(\d+)")
_PROTOCOL = ("mode", "crop_size", "stride", "scales", "flip", "softmax_first", "resize_base")


class Side(NamedTuple):
    """Evaluations of S seeds of one side.

    Attributes:
      name: its folder or file.
      files: S files.
      evaluations: their contents.
      ids: N images, in alphabetic order.
      areas: int64 (S, N, 3, C), areas of each image.
    """

    name: str
    files: tuple[Path, ...]
    evaluations: tuple[Evaluation, ...]
    ids: tuple[str, ...]
    areas: np.ndarray

    @property
    def checkpoint(self) -> Path:
        """The checkpoint directory of the first seed."""
        return _checkpoint(self.files[0], self.evaluations[0])


def read_sides(paths: Sequence[str]) -> list[Side]:
    """Returns the sides that paths name, at least two.

    A path is a file that `deeplab evaluate` wrote, or a folder with one, or with folders `seed_<n>`
    that have one each. Seeds of one folder are one side, unless there is no other side.

    Raises:
      CheckpointError: a folder holds neither an evaluation nor a checkpoint.
      ConfigError: there is no evaluation, only one, one twice, one that an older version wrote, or
        evaluations differ in data or protocol, or seeds of one side in the kind of weights.
    """
    files = [file for path in paths for file in _files(path)]
    for number, file in enumerate(files):
        if file in files[:number]:
            raise ConfigError(str(file), "is given twice", "name each evaluation once")
    groups: dict[Path, list[Path]] = {}
    for file in files:
        is_seed = file.name == EVALUATION_FILE and _SEED.fullmatch(file.parent.name)
        groups.setdefault(file.parent.parent if is_seed else file, []).append(file)
    if len(groups) < 2:
        groups = {file: [file] for file in files}
    if len(groups) < 2:
        fix = f"name another: deeplab compare {shlex.join(paths)} OTHER"
        raise ConfigError(str(files[0]), "is one evaluation, and a comparison takes two", fix)
    sides = [_read(key, own) for key, own in groups.items()]
    for side in sides:
        for file, evaluation in zip(side.files, side.evaluations, strict=True):
            _check_same(sides[0], file, evaluation)
            _check_weights(side, file, evaluation)
    for side in sides:
        _check_truth(sides[0], side)
    return sides


def _files(path: str) -> list[Path]:
    """Returns the evaluations that a path names."""
    place = as_place(path)
    if place.is_file():
        return [place]
    if not place.is_dir():
        fix = f"name a run's directory or a file that deeplab evaluate wrote, {EVALUATION_FILE}"
        raise ConfigError(path, "is neither a file nor a folder", fix)
    inner = [folder for folder in place.iterdir() if folder.is_dir()]
    seeds = [folder for folder in inner if _SEED.fullmatch(folder.name)]
    folders = sorted(seeds, key=lambda folder: int(folder.name[len("seed_") :])) or [place]
    lacking = [folder for folder in folders if not (folder / EVALUATION_FILE).is_file()]
    if not lacking:
        return [folder / EVALUATION_FILE for folder in folders]
    if not seeds and (runs := [f for f in inner if (f / EVALUATION_FILE).is_file()]):
        fix = f"name the sides: deeplab compare {shlex.join(sorted(map(str, runs)))}"
        raise ConfigError(path, "holds evaluations of several runs, no own one", fix)
    steps.check(lacking[0])
    fix = f"make one: deeplab evaluate --checkpoint {shlex.quote(str(lacking[0]))}"
    raise ConfigError(str(lacking[0]), "there is no evaluation to compare", fix)


def _read(key: Path, files: Sequence[Path]) -> Side:
    evaluations = tuple(map(read_evaluation, files))
    ids = tuple(sorted(image["id"] for image in evaluations[0]["images"]))
    areas = []
    for file, evaluation in zip(files, evaluations, strict=True):
        images = evaluation["images"]
        if not all("areas" in image for image in images):
            what = "is of an older version: it has no counts of each image"
            fix = f"evaluate again: {_evaluate(file, evaluation)}"
            raise ConfigError(str(file), what, fix)
        ordered = sorted(images, key=lambda image: image["id"])
        areas.append(read_areas(ordered, len(evaluation["class_names"])))
    name = key.parent if key.name == EVALUATION_FILE else key
    same = len({own.shape for own in areas}) == 1
    return Side(str(name), tuple(files), evaluations, ids, np.stack(areas if same else areas[:1]))


def _check_same(base: Side, file: Path, evaluation: Evaluation) -> None:
    """Refuses an evaluation of other images or classes than the first, or by another protocol."""
    pair = base.evaluations[0], evaluation
    places = [f"{e['dataset']}/{e['split']}" for e in pair]
    if places[0] != places[1]:
        raise _differs(base, file, "data set and split", places, _of_data(base, file, evaluation))
    if pair[0]["class_names"] != pair[1]["class_names"]:
        names = [", ".join(e["class_names"]) for e in pair]
        raise _differs(base, file, "class names", names, "compare evaluations of the same classes")
    protocols: list[dict[str, Any]] = [e["config"].get("eval", {}) for e in pair]
    fields = [x for x in _PROTOCOL if protocols[0].get(x) != protocols[1].get(x)]
    if fields or pair[0]["protocol"] != pair[1]["protocol"]:
        own, other = ([f"eval.{x}={as_text(p.get(x))}" for x in fields] for p in protocols)
        texts = [" ".join(own), " ".join(other)] if fields else [e["protocol"] for e in pair]
        flags = [f"--config.{text}" for text in own]
        fix = f"evaluate alike: {_evaluate(file, evaluation, flags)}"
        raise _differs(base, file, "protocol", texts, fix)
    ids = tuple(sorted(image["id"] for image in evaluation["images"]))
    if ids != base.ids:
        odd = min(set(ids) ^ set(base.ids), default=ids[0])
        texts = [f"{len(each)} images" for each in (base.ids, ids)]
        fix = _of_data(base, file, evaluation)
        raise _differs(base, file, f"images ({odd} is in one alone)", texts, fix)


def _check_weights(side: Side, file: Path, evaluation: Evaluation) -> None:
    """Refuses a seed of which other weights were evaluated than of the side's first, ema or raw."""
    one, other = (e.get("weights", "") for e in (side.evaluations[0], evaluation))
    if one != other:
        fix = "compare seeds of one recipe"
        if one and other:
            fix = f"evaluate alike: {_evaluate(file, {**evaluation, 'weights': one})}"
        raise _differs(side, file, "weights", [one or "one kind", other or "one kind"], fix)


def _check_truth(base: Side, side: Side) -> None:
    """Refuses images whose masks are not those of the first side."""
    differs = (base.areas[:1, :, 1] != side.areas[:, :, 1]).any((0, 2))
    if differs.any():
        first = base.ids[int(differs.argmax())]
        what = f"the masks of {differs.sum()} images, first {first}"
        fix = _of_data(base, side.files[0], side.evaluations[0])
        raise _differs(base, side.files[0], what, ["other pixels of the classes"] * 2, fix)


def _differs(base: Side, file: Path, what: str, texts: Sequence[str], fix: str) -> ConfigError:
    mine, theirs = map(clip, texts)
    return ConfigError(
        str(file), f"differs from {base.files[0]} in {what}: {theirs}, there {mine}", fix
    )


def _of_data(base: Side, file: Path, evaluation: Evaluation) -> str:
    """Returns how to evaluate on the images of the first side."""
    mine, theirs = (e["config"].get("data", {}) for e in (base.evaluations[0], evaluation))
    if mine.get("dataset") != theirs.get("dataset"):
        return "compare evaluations of one data set"
    fields = [name for name in ("root", "val_split") if mine.get(name) != theirs.get(name)]
    flags = [f"--config.data.{name}={as_text(mine.get(name))}" for name in fields]
    command = _evaluate(file, evaluation, flags)
    if flags:
        return f"evaluate on the same images: {command}"
    return f"evaluate both again: {_evaluate(base.files[0], base.evaluations[0])}; {command}"


def _checkpoint(file: Path, evaluation: Evaluation) -> Path:
    return file.parent if file.name == EVALUATION_FILE else as_place(evaluation["checkpoint"])


def _evaluate(file: Path, evaluation: Evaluation, flags: Sequence[str] = ()) -> str:
    """Returns the command that writes an evaluation again, with other values of some fields."""
    fields = {text.partition("=")[0] for text in flags}
    kept = [text for text in evaluation["overrides"] if text.partition("=")[0] not in fields]
    command = ["deeplab", "evaluate", "--checkpoint", str(_checkpoint(file, evaluation))]
    kind = ["--weights", evaluation["weights"]] if "weights" in evaluation else []
    command += ["--step", str(evaluation["step"]), *kind, *kept, *flags]
    return shlex.join([*command, *([] if file.name == EVALUATION_FILE else ["--json", str(file)])])
