"""Where samples come from: all that a `Dataset` needs of files, TFDS or a cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deeplab_jax.data.images import read_color_label, read_image, read_label
from deeplab_jax.data.labels import ColorTable


class Source(Protocol):
    """Random access to the samples of one split; picklable, and opens nothing until asked."""

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image, uint8 (H, W, 3) RGB, and the raw mask, uint8 or uint16 (H, W).

        Raises:
          DataError: one of them cannot be read. Sizes and values are the caller's to check.
        """
        ...

    def names(self, index: int) -> tuple[str, str]:
        """Returns what messages call the image and the mask."""
        ...


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Samples in files.

    Attributes:
      image_paths: of the images.
      label_paths: of their masks, in the same order.
      color_table: for masks in colours.
    """

    image_paths: tuple[str, ...]
    label_paths: tuple[str, ...]
    color_table: ColorTable | None = None

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image and the raw mask; see `Source`."""
        image, path = read_image(self.image_paths[index]), self.label_paths[index]
        if self.color_table is None:
            return image, read_label(path)
        return image, self.color_table(path, read_color_label(path))

    def names(self, index: int) -> tuple[str, str]:
        """Returns both paths."""
        return self.image_paths[index], self.label_paths[index]


@dataclass(frozen=True, eq=False)
class SubsetSource:
    """Some samples of another source, in the given order."""

    source: Source
    indices: Sequence[int]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image and the raw mask; see `Source`."""
        return self.source.read(self.indices[index])

    def names(self, index: int) -> tuple[str, str]:
        """Returns what messages call the image and the mask."""
        return self.source.names(self.indices[index])
