"""The networks and sizes that are timed where no recipe is named."""

from collections.abc import Sequence
from typing import NamedTuple

from deeplab_jax.config import Config
from deeplab_jax.config.recipe import load_recipe

CASES = ("train", "inference", "end-to-end", "input")


class Row(NamedTuple):
    """A recipe to time.

    Attributes:
      config: with the sizes of the training step.
      size: (height, width) of the images that the network segments.
    """

    config: Config
    size: tuple[int, int]


_SMALL = ("train.loss_groups=1", "train.batch_size=2", "data.crop_size=256,256")
# Recipe, its changes, and the size of inference, by kind of device; the first is the quick one.
_ROWS: dict[str, tuple[tuple[str, tuple[str, ...], tuple[int, int]], ...]] = {
    "quick": (("camvid_r18_os16", _SMALL, (256, 256)),),
    "cpu": (
        ("voc_r50_os16", _SMALL, (512, 512)),
        ("camvid_r18_os16", ("train.batch_size=4", "data.crop_size=360,480"), (360, 480)),
        ("voc_r50_os8", _SMALL, (512, 512)),
    ),
    "accelerator": (
        ("ade20k_r50_os16", ("model.dtype=bfloat16",), (512, 512)),
        ("ade20k_r101_os8", ("model.dtype=bfloat16",), (512, 512)),
        ("cityscapes_r50_os16", ("model.dtype=bfloat16",), (1024, 2048)),
    ),
}


def choose(
    recipe: str | None, overrides: Sequence[str], platform: str, is_quick: bool
) -> list[Row]:
    """Returns what is timed: one recipe as it is, or the rows for a platform of JAX's.

    Raises:
      ConfigError: the recipe or an override cannot be used.
    """
    if recipe is not None:
        config = load_recipe(recipe, overrides)
        return [Row(config, _pair(config))]
    rows = _ROWS["cpu" if platform == "cpu" else "accelerator"]
    if is_quick:
        rows = _ROWS["quick"] if platform == "cpu" else rows[:1]
    has_size = any(text.startswith("--config.data.crop_size") for text in overrides)
    chosen = []
    for name, changes, size in rows:
        config = load_recipe(name, [*(f"--config.{change}" for change in changes), *overrides])
        chosen.append(Row(config, _pair(config) if has_size else size))
    return chosen


def _pair(config: Config) -> tuple[int, int]:
    height, width = config.data.crop_size
    return height, width
