"""The Python interface: load a checkpoint, ask it for logits or for a segmentation.

model = deeplab_jax.load("runs/camvid_r50_os16")
result = model("street.jpg")       # .labels (H, W), .confidence (H, W)
result.save("out")                 # out/street.png, out/street_overlay.jpg
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from deeplab_jax import checkpoint
from deeplab_jax.data.images import read_image, write_overlay, write_png_indices
from deeplab_jax.data.transforms import fit_size, resize_image
from deeplab_jax.errors import CheckpointError
from deeplab_jax.inference import make_predict, network_logits
from deeplab_jax.models import build_model
from deeplab_jax.recipe import apply_overrides
from deeplab_jax.train_state import EVAL_ITEMS, init_variables


@dataclass(frozen=True)
class Prediction:
    """A segmented image.

    Attributes:
      labels: uint8 (H, W), class ids, at the image's own size.
      confidence: float32 (H, W), probability of the chosen class.
      image: uint8 (H, W, 3) RGB, the image itself.
      palette: uint8 (C, 3), RGB.
      name: stem of the image's file; "image" for an array.
    """

    labels: np.ndarray
    confidence: np.ndarray
    image: np.ndarray
    palette: np.ndarray
    name: str = "image"

    def save(self, directory: str | Path) -> list[Path]:
        """Writes NAME.png (indices with a palette) and NAME_overlay.jpg; returns both paths."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        mask, overlay = directory / f"{self.name}.png", directory / f"{self.name}_overlay.jpg"
        write_png_indices(mask, self.labels, self.palette)
        write_overlay(overlay, self.image, self.labels, self.palette)
        return [mask, overlay]


class Segmenter:
    """A network with its weights, classes and configuration; made by `load`.

    Attributes:
      path: the checkpoint directory.
      step: the step that was loaded.
      config: its configuration, overrides applied.
      class_names: C names.
      palette: uint8 (C, 3), RGB.
      model: the network.
      variables: {"params", "batch_stats"}, on one device.
    """

    def __init__(self, path: Path, info: checkpoint.Info, config: ConfigDict, variables: Any):
        self.path = path
        self.step = info.step
        self.config = config
        self.class_names = info.class_names
        self.palette = info.palette
        self.model = build_model(config.model)
        self.variables = variables
        self._predict = make_predict(self.model)
        self._logits = jax.jit(partial(network_logits, self.model))

    def logits(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Computes class scores at a quarter of the resolution.

        Args:
          images: float32 (B, H, W, 3) RGB, normalised (see `deeplab_jax.prepare.normalize`).

        Returns:
          float32 (B, ceil(H / 4), ceil(W / 4), C).
        """
        return self._logits(self.variables, jnp.asarray(images))

    def __call__(self, image: str | Path | np.ndarray) -> Prediction:
        """Segments one image.

        Args:
          image: a file, or uint8 (H, W, 3) RGB. It is fitted into `config.eval.resize_base` as in
            evaluation; the result has the image's own size.

        Raises:
          DataError: the file cannot be used.
          ValueError: the array has another shape or dtype.
        """
        name = "image"
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"`image` must be uint8 (H, W, 3) RGB, got {image.dtype} {image.shape}."
                )
        else:
            name, image = Path(image).stem, read_image(image)
        size = image.shape[:2]
        base = self.config.eval.resize_base
        resized = resize_image(image, fit_size(size[0], size[1], base)) if base else image
        labels, confidence = jax.device_get(self._predict(self.variables, resized, size))
        return Prediction(labels, confidence, image, self.palette, name)


def load(path: str | Path, step: int | str = "latest", overrides: Sequence[str] = ()) -> Segmenter:
    """Loads a checkpoint for evaluation and prediction.

    Args:
      path: work directory of a run, or the output of a converter.
      step: a number, "latest" or "best".
      overrides: changes to the checkpoint's configuration, such as
        "--config.eval.resize_base=240,180".

    Raises:
      CheckpointError: there is no such checkpoint or step, or it does not fit.
      ConfigError: an override cannot be used.
    """
    info = checkpoint.read_info(path, step)
    if info.config is None or info.kind == "backbone":
        what = "holds a backbone, not a segmentation network"
        raise CheckpointError(str(path), what, "train with --config.init.backbone=" + str(path))
    config = apply_overrides(info.config, overrides)
    model = build_model(config.model)
    abstract = jax.eval_shape(lambda: init_variables(model, 0))
    place = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract
    )
    items = {item: abstract[variable] for variable, item in EVAL_ITEMS.items()}
    restored = checkpoint.restore(path, info.step, items, allow_cast=True)
    variables = {variable: restored[item] for variable, item in EVAL_ITEMS.items()}
    return Segmenter(Path(path), info, config, variables)
