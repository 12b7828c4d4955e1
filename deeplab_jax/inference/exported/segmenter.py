"""`deeplab_jax.load` of an exported folder: the interface of a checkpoint, its own runtime."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from deeplab_jax import checkpoint
from deeplab_jax.data.images import TooLargeError
from deeplab_jax.errors import ConfigError, DataError, DeepLabError
from deeplab_jax.inference import inputs
from deeplab_jax.inference.buckets import Shape, Size
from deeplab_jax.inference.engine import Engine, Item, Key
from deeplab_jax.inference.exported.folder import Exported, read_folder
from deeplab_jax.inference.exported.runtime import Runtime, open_runtime
from deeplab_jax.inference.memory import host_memory
from deeplab_jax.inference.prediction import Window
from deeplab_jax.inference.protocol import EvalProtocol, Picture, View
from deeplab_jax.inference.resize import fitted_size, sampling
from deeplab_jax.inference.segmenter import Segmenter
from deeplab_jax.models import DeepLabV3Plus
from deeplab_jax.utils.places import as_place

# Bytes for each pixel of the network's input: the decoder holds at least two maps of 256 channels
# in float32 at a quarter of its size.
_NETWORK_BYTES = 2 * 256 * 4 // 16


class ExportedSegmenter(Segmenter):
    """An exported network; made by `load`. Files of labels have no probabilities.

    Attributes:
      exported: the folder's description.
    """

    def __init__(self, exported: Exported, runtime: Runtime):
        info = checkpoint.Info(
            kind="weights", config=exported.config, step=exported.step,
            class_names=exported.class_names, palette=exported.palette,
        )  # fmt: skip
        super().__init__(as_place(exported.path), info, exported.config, {}, exported.weights)
        self.exported, self._runtime = exported, runtime

    @cached_property
    def engine(self) -> Engine:
        """The runtime behind the interface of an engine."""
        return ExportedEngine(self.model, self.exported, self._runtime)

    @cached_property
    def _reading(self) -> inputs.Reading:
        return inputs.Reading(self.config.data.value_range)

    def logits(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Computes class scores at a quarter of the resolution of the fitted image.

        Args:
          images: uint8 (B, H, W, 3) RGB: the file normalises.

        Returns:
          float32 (B, h, w, C).

        Raises:
          ConfigError: the folder's files give labels.
        """
        if self.exported.kind != "logits":
            raise _has_labels_alone(self.exported)
        return jnp.asarray(self._runtime(np.asarray(images, np.uint8))["logits"])

    @property
    def usual_size(self) -> Size:
        """The (height, width) that StableHLO takes, else that of training."""
        height, width = self.exported.files.get("stablehlo", {}).get("size") or super().usual_size
        return height, width

    @property
    def _base(self) -> Sequence[int]:
        return ()  # the file fits the image itself


@dataclass(frozen=True)
class _Protocol(EvalProtocol):
    """The table's protocol, whose fitting of the image into `base` is the network's part."""

    base: tuple[int, ...] = ()

    def views(self, image: Picture, size: Size, dtype: DTypeLike) -> list[View]:
        """Returns the image; its logits are those of the fitted image."""
        (view,) = super().views(image, size, dtype)
        fitted = fitted_size(view.size, self.base)
        axes = []
        for axis, out, side in zip(view.parts[0], size, fitted, strict=True):
            index, weight = sampling(out, -(-side // 4))
            axes.append(axis._replace(index=index, weight=weight))
        return [replace(view, parts=((axes[0], axes[1]),))]


class ExportedEngine(Engine):
    """An engine whose network is a file: each image at its own size, one at a time."""

    def __init__(self, model: DeepLabV3Plus, exported: Exported, runtime: Runtime):
        super().__init__(model, _Protocol(base=exported.config.eval.resize_base))
        self._exported, self._runtime = exported, runtime

    def batch_size(self, shape: Shape) -> int:
        """Returns 1."""
        return 1

    def run_network(self, turn: int, views: Sequence[View], shape: Shape, size: Size) -> jax.Array:
        """Returns the logits of one view (TooLargeError)."""
        self._check_memory(size)
        return jnp.asarray(self._runtime(views[0].image[None])["logits"])

    def segment(
        self, items: Iterable[Item[Key]], refuse: Callable[[Key, DeepLabError], None] | None = None
    ) -> Iterator[tuple[Key, list[np.ndarray]]]:
        """Yields as an engine of a checkpoint does."""
        if self._exported.kind == "logits":
            yield from super().segment(items, refuse)
            return
        for item in items:
            try:
                self._check_memory(item.size)
                outputs = self._runtime(item.image[:][None])
            except DataError as error:  # of this image; any other ends the command
                if refuse is None:
                    raise
                refuse(item.key, error)
                continue
            yield item.key, [outputs["labels"][0], outputs["confidence"][0]]

    def _check_memory(self, size: Size) -> None:
        """Refuses an image for which the system would end the process, by a lower bound.

        Raises:
          TooLargeError: the file needs more memory than is free.
        """
        exported, how = self._exported, "export with --output-kind logits, or "
        height, width = fitted_size(size, exported.config.eval.resize_base)
        needed = _NETWORK_BYTES * height * width
        if exported.kind == "labels":  # scores of every pixel, in float32
            needed += 4 * len(exported.class_names) * size[0] * size[1]
        free = host_memory()
        if free is not None and needed > free:
            what = f"needs {needed / 2**30:.1f} GiB in this file, and {free / 2**30:.1f} are free"
            fix = f"{how if exported.kind == 'labels' else ''}shrink the image"
            raise TooLargeError(f"image of {size[0]} x {size[1]} pixels", what, fix)

    def probabilities(self, item: Item[object], give: Callable[[Window, np.ndarray], None]) -> None:
        """Calls `give` as an engine of a checkpoint does.

        Raises:
          ConfigError: the folder's files give labels.
        """
        if self._exported.kind != "logits":
            raise _has_labels_alone(self._exported)
        super().probabilities(item, give)


def load_exported(path: str | os.PathLike) -> ExportedSegmenter:
    """Returns an exported folder, checked against its SHA-256, in its runtime.

    Raises:
      CheckpointError: the folder is not as it was exported, or holds weights alone.
      ResourceError: the runtime is not installed.
    """
    exported = read_folder(path)
    return ExportedSegmenter(exported, open_runtime(exported))


def _has_labels_alone(exported: Exported) -> ConfigError:
    what = "gives labels and confidence alone"
    return ConfigError(str(exported.path), what, "export the checkpoint with --output-kind logits")
