"""The transforms of a recipe, one after the other, for the samples of one data set.

A chain is a function of (sample, random generator, data set) alone. What it remembers of masks that
it has read saves reading them again and changes no result.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from deeplab_jax.config import DataConfig
from deeplab_jax.config.transforms import FIELD, REFERENCE, Spec, parse_all
from deeplab_jax.data import transforms
from deeplab_jax.data.augment import functions, named
from deeplab_jax.data.augment.functions import Function
from deeplab_jax.data.augment.named import Sample
from deeplab_jax.data.dataset import Dataset
from deeplab_jax.errors import ConfigError, DataError, shorten

_Size = tuple[int, ...]
_TRIES = 20  # samples in which `copy_paste` searches for a class


class Chain:
    """The transforms of a recipe, in its order, then the function that was handed over.

    Picklable, for worker processes, where its functions are.
    """

    def __init__(
        self, dataset: Dataset, texts: Sequence[str], function: Function | None,
        crop_size: tuple[int, int], resize_base: tuple[int, int], scale_range: tuple[float, float],
    ):  # fmt: skip
        """Finds functions and classes. For the arguments see `train_batches`.

        Raises:
          ConfigError: a function or class is not there.
        """
        self._dataset, self._crop_size = dataset, crop_size
        self._draw = partial(transforms.random_size, base=resize_base, scale_range=scale_range)
        self._is_scaled = False  # whether the steps so far scale
        specs = list(parse_all(texts or REFERENCE))
        self._steps: list[Callable[[Sample, np.random.Generator, int], Sample]] = []
        while specs:
            spec = specs.pop(0)
            follows_crop = specs and (spec.name, specs[0].name) == ("scale", "crop")
            # Both in one compute no pixel outside the window.
            values = specs.pop(0).values if follows_crop else {}
            self._steps.append(
                partial(self._scale_and_crop, **values) if follows_crop else self._step(spec)
            )
            self._is_scaled |= spec.name == "scale"
        if function is not None:
            self._steps.append(_Own(functions.name_of(function), function, dataset))

    def __call__(self, sample: Sample, rng: np.random.Generator, index: int) -> Sample:
        """Returns the augmented image and label, uint8 (h, w, 3) and (h, w) of any size.

        `index` is the sample's position in the data set, for messages.

        Raises:
          DataError: a function of the user's fails; or a sample to paste from cannot be read.
        """
        for step in self._steps:
            sample = step(sample, rng, index)
        return sample

    def check(self, most_bad: int) -> dict[str, str]:
        """Tries the functions on the first sample that can be read.

        Returns the fingerprints of those that the recipe names.

        With `most_bad`, up to that many samples are passed over; where none of them is good the
        functions are not tried.

        Raises:
          ConfigError: a function does not return what it must.
          DataError: the first sample cannot be read, and `most_bad` is 0.
        """
        own = [step for step in self._steps if isinstance(step, _Own)]
        for index in range(min(most_bad + 1, len(self._dataset)) if own else 0):
            try:
                sample = self._dataset.read(index)
            except DataError:
                if not most_bad:
                    raise
                continue
            rng = np.random.default_rng(0)
            for step in self._steps:
                if isinstance(step, _Own):
                    step.check(sample, index)
                sample = step(sample, rng, index)
            break
        named = (step for step in own if ":" in step.name)  # not that which was handed over
        return {step.name: functions.fingerprint(step.function) for step in named}

    def _step(self, spec: Spec) -> Callable[[Sample, np.random.Generator, int], Sample]:
        if spec.is_function:
            return _Own(spec.name, functions.find(spec.name), self._dataset)
        if spec.name == "copy_paste":
            classes = tuple(self._class(c) for c in spec.values["classes"])
            draw = self._draw if self._is_scaled else None
            return CopyPaste(self._dataset, classes, spec.values["chance"], draw)
        own: dict[str, Callable[..., Sample]] = {
            "scale": self._scale, "crop": self._crop, "flip": transforms.random_flip,
            "photometric": _photometric,
        }  # fmt: skip
        operation = own.get(spec.name) or getattr(named, spec.name)
        return _Plain(operation, spec.values)

    def _class(self, wanted: int | str) -> int:
        names = self._dataset.class_names
        if isinstance(wanted, int):
            return wanted  # `config.transforms.check` knows how many there are
        if wanted in names:
            return names.index(wanted)
        near = difflib.get_close_matches(wanted, names, 1)
        fix = f"did you mean {near[0]}?" if near else f"the classes are {shorten(names)}"
        raise ConfigError(f"{FIELD}, copy_paste", f"there is no class {wanted!r}", fix)

    def _scale(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Sample:
        size = self._draw(label.shape, rng)
        return transforms.resize_image(image, size), transforms.resize_label(label, size)

    def _crop(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, max_share: float
    ) -> Sample:
        window = transforms.random_window(label, rng, self._crop_size, max_share)
        return image[window], label[window]

    def _scale_and_crop(
        self, sample: Sample, rng: np.random.Generator, index: int, max_share: float
    ) -> Sample:
        size = self._draw(sample[1].shape, rng)
        label = transforms.resize_label(sample[1], size)
        window = transforms.random_window(label, rng, self._crop_size, max_share)
        return transforms.resize_window(sample[0], size, window), label[window]


def _photometric(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator, **values: float
) -> Sample:
    return transforms.photometric_distortion(image, rng, **values), label  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Plain:
    """A transform of one sample alone, with its values, as a step."""

    operation: Callable[..., Sample]
    values: Mapping[str, Any]

    def __call__(self, sample: Sample, rng: np.random.Generator, index: int) -> Sample:
        return self.operation(*sample, rng, **self.values)


@dataclass(frozen=True)
class _Own:
    """A function of the user's as a step."""

    name: str
    function: Function
    dataset: Dataset

    def __call__(self, sample: Sample, rng: np.random.Generator, index: int) -> Sample:
        return functions.apply(self.function, self.name, sample, rng, *self._about(index))

    def check(self, sample: Sample, index: int) -> None:
        functions.check(self.function, self.name, sample, *self._about(index))

    def _about(self, index: int) -> tuple[int, str]:
        return len(self.dataset.class_names), self.dataset.source.names(index)[0]


@dataclass(frozen=True)
class CopyPaste:
    """Pastes pixels of some classes from a second sample of the data set.

    One of the classes is drawn, then samples, at most 20, until one holds it; without one the
    sample stays. `draw_size`, if given, draws the second sample's size from its shape and the
    generator.
    """

    dataset: Dataset
    classes: tuple[int, ...]
    chance: float
    draw_size: Callable[[_Size, np.random.Generator], tuple[int, int]] | None
    found: dict[int, frozenset[int]] = field(default_factory=dict)  # classes of samples read so far

    def __call__(self, sample: Sample, rng: np.random.Generator, index: int) -> Sample:
        """Returns the sample, or one with pixels pasted."""
        if rng.random() > self.chance:
            return sample
        drawn = self.classes[int(rng.integers(0, len(self.classes)))]
        for _ in range(_TRIES):
            second = int(rng.integers(0, len(self.dataset)))
            if drawn in self._classes_of(second):
                other = self.dataset.read(second)
                if self.draw_size is not None:
                    size = self.draw_size(other[1].shape, rng)
                    other = (
                        transforms.resize_image(other[0], size),
                        transforms.resize_label(other[1], size),
                    )
                return named.paste(sample, other, drawn, self.classes, rng)
        return sample

    def _classes_of(self, index: int) -> frozenset[int]:
        if index not in self.found:
            mask = self.dataset.source.read_mask(index)
            label = self.dataset.to_classes(index, mask)
            self.found[index] = frozenset(c for c in self.classes if (label == c).any())
        return self.found[index]


def check_transforms(
    dataset: Dataset, config: DataConfig, function: Function | None = None
) -> dict[str, str]:
    """Tries a recipe's functions, and one handed over, on a sample.

    Returns the `functions.fingerprint` of those that the recipe names, by name.

    Raises:
      ConfigError: a function or class is not there; a function does not return what it must, or
        cannot be sent to worker processes.
      DataError: the sample cannot be read.
    """
    if not config.transforms and function is None:
        return {}
    sizes = config.crop_size, config.resize_base, config.scale_range
    chain = Chain(dataset, config.transforms, function, *sizes)
    if function is not None and config.num_workers:
        functions.check_sent(function)
    return chain.check(config.max_bad_samples)
