"""The Python interface: a loaded checkpoint computes logits and segmentations.

model = deeplab_jax.load("runs/camvid_r50_os16")
result = model("street.jpg")       # .labels (H, W), .confidence (H, W), .overlay()
result.save("out")                 # out/street.png, out/street_overlay.jpg, out/street.json
"""

import copy
import dataclasses
import os
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from deeplab_jax import checkpoint
from deeplab_jax.config import Config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.data import images as files
from deeplab_jax.data import workers
from deeplab_jax.data.labels import open_classes
from deeplab_jax.errors import CheckpointError, DataError, DeepLabError
from deeplab_jax.inference import inputs
from deeplab_jax.inference.buckets import Size
from deeplab_jax.inference.engine import Engine, Item, Variables, network_logits
from deeplab_jax.inference.inputs import Image
from deeplab_jax.inference.memory import WINDOWS
from deeplab_jax.inference.prediction import Prediction
from deeplab_jax.inference.protocol import Picture, read_protocol
from deeplab_jax.inference.resize import fitted, fitted_size
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.places import as_place
from deeplab_jax.utils.trees import placed

AnyImage = TypeVar("AnyImage", bound=Image)
_RANGE = "--config.data.value_range="  # says nothing about classes
_THREADS = min(4, os.cpu_count() or 1)  # reading files ahead


class _Origin(NamedTuple):
    """The image of a prediction.

    Attributes:
      name: stem of the file; "image" or "image_<position>" without a file.
      file: the image's file; None without one.
      where: its name in messages.
      image: uint8 (H, W, 3) RGB at its own size, or one that is read by windows.
      position: place among the images to segment.
    """

    name: str
    file: str | None
    where: str
    image: Picture
    position: int


class Segmenter:
    """A network with its weights, classes and configuration; made by `load`.

    Attributes:
      path: the checkpoint directory.
      step: number of the loaded step.
      config: the checkpoint's configuration, overrides applied.
      class_names: C names.
      palette: uint8 (C, 3), RGB.
      model: the network.
      variables: {"params", "batch_stats"}, on one device.
      weights: "ema" or "raw", of a step that holds both; else "".
      given: names of what a Python program gave to the run, such as its data.
    """

    def __init__(
        self,
        path: Path,
        info: checkpoint.Info,
        config: Config,
        variables: Variables,
        weights: str = "",
    ):
        self.path, self.step, self.config, self.weights = path, info.step, config, weights
        self.class_names, self.palette, self.given = info.class_names, info.palette, info.given
        self.model, self.variables = build_model(config.model), variables
        self._logits = jax.jit(partial(network_logits, self.model))

    @cached_property
    def engine(self) -> Engine:
        """The network under the configuration's protocol, norms folded into kernels."""
        return Engine(self.model, read_protocol(self.config.eval)).load(self.variables)

    def twin(self) -> "Segmenter":
        """Returns a segmenter with the same weights, in memory once, that has compiled nothing."""
        twin = copy.copy(self)
        twin.engine = self.engine.twin()
        return twin

    @cached_property
    def _reading(self) -> inputs.Reading:
        protocol = self.config.eval
        flags = [] if protocol.mode == "slide" else [WINDOWS]
        flags += ["--config.eval.resize_base="] if protocol.resize_base else []
        flags += ["--config.eval.scales=1"] if protocol.scales != (1.0,) else []
        rows, value_range = protocol.crop_size[:1], self.config.data.value_range
        return inputs.Reading(value_range, not flags, *(rows or (0,)), " ".join(flags))

    def __repr__(self) -> str:
        """Returns the checkpoint, its step and the classes in one line."""
        return f"Segmenter({self.path}, step {self.step}, {len(self.class_names)} classes)"

    def logits(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Computes class scores at a quarter of the resolution.

        Args:
          images: float32 (B, H, W, 3) RGB, normalised by `models.preprocess.normalize`.

        Returns:
          float32 (B, ceil(H / 4), ceil(W / 4), C).
        """
        return self._logits(self.variables, jnp.asarray(images))

    @overload
    def __call__(self, image: Image) -> Prediction: ...

    @overload
    def __call__(self, image: list[AnyImage] | tuple[AnyImage, ...]) -> list[Prediction]: ...

    def __call__(
        self, image: Image | list[AnyImage] | tuple[AnyImage, ...]
    ) -> Prediction | list[Prediction]:
        """Segments one image, or a list of images.

        An image is fitted into `config.eval.resize_base` as in evaluation; its result has the
        image's own size. Those of a list share few compiled shapes, as in `segment`: smaller images
        are padded and masked, which changes results by rounding alone. The results of a list are in
        memory together; `segment` yields one after the other.

        Args:
          image: a path, the bytes of an image file, a Pillow image of any mode, a NumPy array uint8
            (H, W, 3) RGB or (H, W) grey; or a list or tuple of these. Files, bytes and Pillow
            images are turned upright by their EXIF tag; alpha is dropped. 16 bits, in arrays
            uint16, are scaled by `config.data.value_range`. A file of more than 80 million pixels
            is read by windows where the protocol is windows, at one scale and the image's own size.

        Returns:
          A prediction, or a list of them in the order of the images.

        Raises:
          DataError: an image cannot be decoded, has 16 bits and there is no range, or is too large
            for memory; names its file or its place in the list. `segment` yields such errors and
            goes on.
          TypeError: an image is of another type.
          ValueError: an array has another dtype or shape, or the list is empty.
        """
        if not isinstance(image, list | tuple):
            inputs.check_image(image)

            def refuse(origin: _Origin, error: DeepLabError) -> None:
                raise _refused(origin, error) from error

            [(origin, arrays)] = self.engine.segment([self._item(image)], refuse)
            return self._prediction(origin, arrays)
        if not image:
            raise ValueError("`image` must hold at least one image, got an empty list; add one.")
        predictions = []
        for result in self.segment(image):
            if isinstance(result, DataError):
                raise result
            predictions.append(result)
        return predictions

    def segment(self, images: Sequence[Image]) -> Iterator[Prediction | DataError]:
        """Yields the segmentation of each image of a list, in order; files are read ahead.

        For an image that cannot be decoded, or is too large for memory, the error is yielded. Only
        a few images and results are in memory at a time. For the rest see a call.
        """
        inputs.check_images(images)
        self.engine.plan(self._input_sizes(images))
        errors: dict[int, DataError] = {}

        def read(index: int) -> Item[_Origin] | DataError:
            try:
                with workers.reading(index):
                    return self._item(images[index], index)
            except DataError as error:
                return error

        def items() -> Iterator[Item[_Origin]]:
            names = [(inputs.name_of(image, index), "") for index, image in enumerate(images)]
            ahead = workers.in_threads(read, range(len(images)), _THREADS, names.__getitem__)
            for index, item in enumerate(ahead):
                if isinstance(item, DataError):
                    errors[index] = item
                else:
                    yield item

        def refuse(origin: _Origin, error: DeepLabError) -> None:
            errors[origin.position] = _refused(origin, error)

        turn = 0
        for origin, arrays in self.engine.segment(items(), refuse):
            for index in range(turn, origin.position):
                yield errors.pop(index)
            yield self._prediction(origin, arrays)
            turn = origin.position + 1
        for index in sorted(errors):
            yield errors[index]

    def _item(self, image: Image, position: int | None = None) -> Item[_Origin]:
        """Returns a checked image, resized to the network's input; None: the only one."""
        where = inputs.name_of(image, position)
        file = where if isinstance(image, str | os.PathLike) else None
        name = "image" if position is None else f"image_{position}"
        pixels = inputs.read(image, where, self._reading)
        return self._resized(
            _Origin(Path(file).stem if file else name, file, where, pixels, position or 0)
        )

    def fitted(self, image: Picture) -> tuple[Picture, Size]:
        """Returns an image resized to the network's input, and its own size."""
        return fitted(image, self._base), (image.shape[0], image.shape[1])

    def _resized(self, origin: _Origin) -> Item[_Origin]:
        return Item(origin, *self.fitted(origin.image))

    @property
    def source(self) -> dict[str, str | int]:
        """Origin of the labels: "checkpoint", "step", "protocol", and "weights" where two exist."""
        protocol = str(self.engine.protocol)
        kind = {"weights": self.weights} if self.weights else {}
        return {"checkpoint": str(self.path), "step": self.step, "protocol": protocol, **kind}

    def _prediction(self, origin: _Origin, arrays: Sequence[np.ndarray]) -> Prediction:
        return Prediction(
            labels=arrays[0],
            confidence=arrays[1],
            image=origin.image,
            palette=self.palette,
            name=origin.name,
            class_names=self.class_names,
            file=origin.file,
            source=self.source,
            stream=lambda give: self.engine.probabilities(self._resized(origin), give),
        )

    def _input_sizes(self, images: Sequence[Image]) -> Iterator[Size]:
        for position, image in enumerate(images):
            try:
                where = inputs.name_of(image, position)
                yield self.input_size(inputs.size_of(image, where, self._reading))
            except DataError:
                continue  # reading the image will report it

    @property
    def usual_size(self) -> Size:
        """The (height, width) of images for which a server compiles first: those of training."""
        height, width = self.config.data.crop_size
        return height, width

    def input_size(self, size: Size) -> Size:
        """Returns the size (height, width) of the network's input for an image's size."""
        return fitted_size(size, self._base)

    @property
    def _base(self) -> Sequence[int]:
        """The sides into which an image is fitted before the network has it, or none."""
        return self.config.eval.resize_base


def _refused(origin: _Origin, error: DeepLabError) -> DataError:
    """Returns the error of an image, named by its file or its place, if it has one."""
    if isinstance(error, DataError):
        return error
    if origin.where == inputs.ONLY:
        return files.TooLargeError(error.where, error.what, error.fix)
    return files.TooLargeError(origin.where, f"{error.where} {error.what}", error.fix)


def _names_classes(config: Config) -> bool:
    data = config.data
    has_file = (Path(data.root) / "classes.json").is_file()
    return data.dataset == "folder" and (has_file or bool(data.class_names))


def load(
    path: str | Path,
    step: int | str = "latest",
    overrides: Sequence[str] = (),
    weights: str | None = None,
) -> Segmenter:
    """Loads a checkpoint for evaluation and prediction.

    Arguments and errors are those of `loading.load`, which loads exported folders, too.
    """
    compile_cache.enable()
    return checkpoint.with_step(path, step, lambda number: _load(path, number, overrides, weights))


def _load(path: str | Path, step: int, overrides: Sequence[str], weights: str | None) -> Segmenter:
    info = checkpoint.read_info(path, step)
    if info.config is None or info.kind == "backbone":
        what = "holds a backbone, not a segmentation network"
        raise CheckpointError(str(path), what, "train with --config.init.backbone=" + str(path))
    config = apply_overrides(info.config, overrides)
    of_data = [text for text in overrides if text.startswith("--config.data.")]
    if not all(text.startswith(_RANGE) for text in of_data) and _names_classes(config):
        names, palette, _ = open_classes(config.data, config.model.num_classes)
        info = dataclasses.replace(info, class_names=names, palette=palette)
    model = build_model(config.model)
    abstract = jax.eval_shape(lambda: init_variables(model, 0))
    abstract = placed(abstract, SingleDeviceSharding(jax.local_devices()[0]))
    items = checkpoint.abstract_items(info, abstract, weights)
    variables = checkpoint.network(checkpoint.restore(path, step, items, allow_cast=True))
    kind = checkpoint.weights_of(info, weights)
    return Segmenter(as_place(path), info, config, variables, kind)
