"""Measures how many training images a second one core prepares, stage by stage.

    python scripts/bench_input.py
    python scripts/bench_input.py --dataset folder --num-classes 11 --data DIR --json out.json

Our loader and a plain re-statement of the reference's order of operations prepare the same samples
in alternation, on one core, at VOC's settings. Without `--data`, pictures and masks of VOC's size
are drawn: one to three objects before a background that holds most pixels, as in VOC. Both get the
same random draws, and what they make of a sample is compared before anything is timed.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deeplab_jax import config as config_lib
from deeplab_jax.benchmark.drawn import draw_pictures
from deeplab_jax.data import Dataset, SampleOrder, open_dataset, pipeline, transforms
from deeplab_jax.data.sources import folder
from deeplab_jax.errors import ConfigError, DeepLabError
from deeplab_jax.models.preprocess import MEAN, STD, normalize

IGNORE = 255
STAGES = (
    "image",
    "mask",
    "scale",
    "crop",
    "flip",
    "photometric",
    "normalise",
    "place",
    "stack",
    "other",
)


class Timer:
    """Adds up the processor time of stages; stages inside stages count for the inner one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open = ["other"]
        self._mark = time.process_time()

    def restart(self) -> None:
        """Forgets what was charged."""
        self.seconds.clear()
        self._mark = time.process_time()

    def charge(self) -> None:
        """Charges the time since the last mark to the stage that is open."""
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._mark
        self._mark = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charges what the block takes to `name`."""
        self.charge()
        self._open.append(name)
        try:
            yield
        finally:
            self.charge()
            self._open.pop()

    def wrap(self, name: str, function: Callable) -> Callable:
        """Returns `function`, charged to `name`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return timed


class Reference:
    """The reference's order of operations, as its users run it: uint8 BGR, then float32 CHW."""

    def __init__(self, dataset: Dataset, options: dict):
        self._paths = [dataset.source.names(index) for index in range(len(dataset))]
        classes = dataset.label_map[:256]
        self._changes = {v: c for v, c in enumerate(classes) if c not in (v, -1)}
        self._options = options
        self.num_classes = len(dataset.class_names)
        self.timer = Timer()

    def batch(self, samples: list[tuple[int, np.random.Generator]]) -> tuple[np.ndarray, ...]:
        """Returns images, float32 (b, 3, h, w), and labels, uint8 (b, h, w)."""
        made = [self._sample(index, rng) for index, rng in samples]
        with self.timer.stage("stack"):
            return np.stack([image for image, _ in made]), np.stack([label for _, label in made])

    def _sample(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        crop_size, stage = self._options["crop_size"], self.timer.stage
        with stage("image"):
            image = cv2.imread(self._paths[index][0])
        with stage("mask"):
            label = self._read_mask(self._paths[index][1])
        with stage("scale"):
            image, label = self._scale(image, label, rng)
        with stage("crop"):
            image, label = self._crop(image, label, rng, crop_size)
        with stage("flip"):
            if rng.random() <= 0.5:
                image, label = image[:, ::-1].copy(), label[:, ::-1].copy()
        with stage("photometric"):
            image = _distort(image, rng)
        with stage("normalise"):
            image = image.astype(np.float32)
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
            cv2.subtract(image, MEAN.astype(np.float64)[None], image)
            cv2.multiply(image, 1 / STD.astype(np.float64)[None], image)
        with stage("place"):
            return _pad(image.transpose(2, 0, 1), label, crop_size)

    def _read_mask(self, path: str) -> np.ndarray:
        raw = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        label = raw.copy()
        for value, class_id in self._changes.items():
            label[raw == value] = class_id
        if label[label != IGNORE].max(initial=0) >= self.num_classes:
            raise ValueError(path)
        return label

    def _scale(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple:
        (low, high), base = self._options["scale_range"], self._options["resize_base"]
        scale = rng.random() * (high - low) + low
        long, short = int(base[0] * scale), int(base[1] * scale)
        height, width = label.shape
        factor = min(long / max(height, width), short / min(height, width))
        size = int(width * factor + 0.5), int(height * factor + 0.5)
        return cv2.resize(image, size), cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)

    def _crop(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        height, width = label.shape
        h, w = min(size[0], height), min(size[1], width)
        for _ in range(10):
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            window = label[top : top + h, left : left + w]
            values, counts = np.unique(window, return_counts=True)
            counts = counts[values != IGNORE]
            if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
                break
        if not len(counts):
            return image, label
        return image[top : top + h, left : left + w], window


def _distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.integers(0, 2):
        image = _linear(image, beta=rng.uniform(-32, 32))
    is_contrast_early = rng.integers(0, 2)
    if is_contrast_early and rng.integers(0, 2):
        image = _linear(image, alpha=rng.uniform(0.5, 1.5))
    if rng.integers(0, 2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _linear(hsv[..., 1], alpha=rng.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.integers(0, 2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(rng.integers(-18, 18))) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not is_contrast_early and rng.integers(0, 2):
        image = _linear(image, alpha=rng.uniform(0.5, 1.5))
    return image


def _linear(image: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
    return np.clip(image.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def _pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (3, h, w) and (h, w) in `size`; a negative margin cuts."""
    top, left = (size[0] - label.shape[0]) // 2, (size[1] - label.shape[1]) // 2
    image = image[:, max(0, -top) :, max(0, -left) :][:, : size[0], : size[1]]
    label = label[max(0, -top) :, max(0, -left) :][: size[0], : size[1]]
    top, left = max(0, top), max(0, left)
    box = np.s_[top : top + label.shape[0], left : left + label.shape[1]]
    out_image, out_label = np.zeros((3, *size), np.float32), np.full(size, IGNORE, np.uint8)
    out_image[:, *box], out_label[box] = image, label
    return out_image, out_label


@contextmanager
def timed_loader(timer: Timer) -> Iterator[None]:
    """Charges the loader's functions to their stages while the block runs."""
    stages = [
        (folder, "read_image", "image"),
        (folder, "read_label", "mask"),
        (transforms, "resize_label", "scale"),
        (transforms, "resize_window", "scale"),
        (transforms, "random_window", "crop"),
        (transforms, "random_flip", "flip"),
        (transforms, "photometric_distortion", "photometric"),
        (transforms, "place", "place"),
    ]
    originals = [(module, name, getattr(module, name)) for module, name, _ in stages]
    for module, name, stage in stages:
        setattr(module, name, timer.wrap(stage, getattr(module, name)))
    try:
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def check_equal(ours: pipeline.TrainBatch, theirs: tuple[np.ndarray, ...]) -> None:
    """Stops the run unless both made the same batch of the same draws."""
    for image, label, box, other, other_label in zip(*ours[1:], *theirs, strict=True):
        top, left, bottom, right = box
        expected = np.zeros(other.shape, np.float32)
        window = normalize(image[top:bottom, left:right])
        expected[:, top:bottom, left:right] = window.transpose(2, 0, 1)
        if not (np.array_equal(label, other_label) and np.allclose(expected, other, atol=1e-5)):
            raise AssertionError("our loader and the reference's order made different batches")


def measure(
    dataset: Dataset, options: dict, batch_size: int, rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Returns the seconds of each stage for one image, a mapping a round, for either loader.

    Both make the same batches; who begins changes from round to round.
    """
    per_epoch = max(1, len(dataset) // batch_size)
    order = SampleOrder(len(dataset), 0, batch_size, per_epoch)
    load = pipeline.BatchLoader(dataset, order, tuple(range(batch_size)), **options)
    reference, timer = Reference(dataset, options), Timer()

    def run_ours(step: int) -> pipeline.TrainBatch:
        with timed_loader(timer):
            return load(step)

    def run_reference(step: int) -> tuple[np.ndarray, ...]:
        return reference.batch([order.locate(step, row) for row in range(batch_size)])

    check_equal(run_ours(0), run_reference(0))  # and warms both up
    sides = {"ours": (run_ours, timer), "reference": (run_reference, reference.timer)}
    measured: dict[str, list] = {name: [] for name in sides}
    for step in range(1, rounds + 1):
        for name in sorted(sides, reverse=bool(step % 2)):
            run, clock = sides[name]
            clock.restart()
            wall = time.perf_counter()
            run(step)
            wall = (time.perf_counter() - wall) / batch_size
            clock.charge()
            stages = {stage: seconds / batch_size for stage, seconds in clock.seconds.items()}
            measured[name].append({"wall": wall, "total": sum(stages.values()), **stages})
    return measured


def summarise(measured: dict, images_per_second: float | None) -> dict[str, Any]:
    """Returns medians: milliseconds by stage, images/s per core, their ratio, cores needed."""
    medians = {
        name: {key: statistics.median(r.get(key, 0.0) for r in rounds) for key in rounds[0]}
        for name, rounds in measured.items()
    }
    pairs = zip(measured["reference"], measured["ours"], strict=True)
    ratio = statistics.median(theirs["total"] / ours["total"] for theirs, ours in pairs)
    result: dict[str, Any] = {"ratio": round(ratio, 3), "machine": _machine()}
    for name, values in medians.items():
        result[name] = {
            "images_per_second_per_core": round(1 / values["total"], 1),
            "milliseconds": {key: round(1000 * value, 3) for key, value in values.items()},
        }
        if images_per_second:
            result[name]["cores_needed"] = round(images_per_second * values["total"], 1)
    return result


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def report(result: dict[str, Any], images_per_second: float | None) -> None:
    """Prints the table for people."""
    ours, theirs = (result[name]["milliseconds"] for name in ("ours", "reference"))
    print(f"{'ms an image':14}{'ours':>10}{'reference order':>18}")
    for stage in (*STAGES, "total", "wall"):
        print(f"{stage:14}{ours.get(stage, 0):10.3f}{theirs.get(stage, 0):18.3f}")
    rates = [result[name]["images_per_second_per_core"] for name in ("ours", "reference")]
    print(f"{'images/s/core':14}{rates[0]:10.1f}{rates[1]:18.1f}")
    print(f"ratio {result['ratio']:.2f} (median over rounds, processor time; {result['machine']})")
    if images_per_second:
        cores = [result[name]["cores_needed"] for name in ("ours", "reference")]
        print(f"{images_per_second:g} images/s need {cores[0]} cores (reference: {cores[1]})")


def main(argv: list[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description="Images per second and core, stage by stage.")
    parser.add_argument("--data", help="root of the data set; drawn pictures by default")
    parser.add_argument("--dataset", default="voc", help="recipe whose settings are used")
    parser.add_argument("--split", help="the recipe's training split by default")
    parser.add_argument("--num-classes", type=int, help="of a folder")
    parser.add_argument("--crop", type=int, nargs=2, default=None, help="height and width")
    parser.add_argument("--base", type=int, nargs=2, default=None, help="long and short side")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images-per-second", type=float, help="a rate that is to be fed")
    parser.add_argument("--json", help="file for the numbers")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.batch_size < 1:
        raise ConfigError("--rounds, --batch-size", "must be 1 or more", "leave them out")
    config = config_lib.get_config("folder" if args.data is None else args.dataset)
    voc = config_lib.get_config("voc").data
    options = {
        "crop_size": tuple(args.crop or voc.crop_size),
        "resize_base": tuple(args.base or voc.resize_base),
        "scale_range": tuple(voc.scale_range),
    }
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        num_classes = args.num_classes or config.model.num_classes
        if args.data is None:
            draw_pictures(Path(folder), 48)
            num_classes = 21
        config.data.root = args.data or folder
        dataset = open_dataset(
            config_lib.freeze(config).data, num_classes, args.split or config.data.train_split
        )
        measured = measure(dataset, options, args.batch_size, args.rounds)
    result = summarise(measured, args.images_per_second)
    what = args.data or "drawn pictures of VOC's size"
    print(f"{what}: {len(dataset)} images, {options}, {args.rounds} rounds of {args.batch_size}")
    report(result, args.images_per_second)
    if args.json:
        Path(args.json).write_text(json.dumps(result | {"options": options}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except DeepLabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
