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
from deeplab_jax.data.transforms import fit_size
from deeplab_jax.errors import ConfigError, DeepLabError
from deeplab_jax.inference import inputs
from deeplab_jax.inference.buckets import Shape, Size
from deeplab_jax.inference.engine import Engine, Item, Key
from deeplab_jax.inference.exported.folder import Exported, read_folder
from deeplab_jax.inference.exported.runtime import Runtime, open_runtime
from deeplab_jax.inference.prediction import Window
from deeplab_jax.inference.protocol import EvalProtocol, Picture, View
from deeplab_jax.inference.resize import sampling
from deeplab_jax.inference.segmenter import Segmenter
from deeplab_jax.models import DeepLabV3Plus
from deeplab_jax.utils.places import as_place


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
        super().__init__(as_place(exported.path), info, exported.config, {})
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

    def _fit(self, size: Size) -> Size:
        return size  # the file fits the image itself


@dataclass(frozen=True)
class _Protocol(EvalProtocol):
    """The table's protocol, whose fitting of the image into `base` is the network's part."""

    base: tuple[int, ...] = ()

    def views(self, image: Picture, size: Size, dtype: DTypeLike) -> list[View]:
        """Returns the image; its logits are those of the fitted image."""
        (view,) = super().views(image, size, dtype)
        fitted = fit_size(*view.size, (self.base[0], self.base[1])) if self.base else view.size
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
        """Returns the logits of one view."""
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
                outputs = self._runtime(item.image[:][None])
            except DeepLabError as error:
                if refuse is None:
                    raise
                refuse(item.key, error)
                continue
            yield item.key, [outputs["labels"][0], outputs["confidence"][0]]

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
