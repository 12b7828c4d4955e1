"""Opens a data set from the source that the configuration names."""

from pathlib import Path

from deeplab_jax.config import DataConfig
from deeplab_jax.data.dataset import Dataset
from deeplab_jax.data.sources.folder import open_folder
from deeplab_jax.errors import DataError

_DRAWN = "runs/demo/data"  # root of the recipe quickstart


def check_root(data_config: DataConfig) -> None:
    """Refuses a root that is no folder, where files are read (DataError)."""
    if data_config.source == "folder" and not Path(data_config.root).is_dir():
        fix = "name the folder of the data: --config.data.root=DIR"
        if data_config.root == _DRAWN:
            fix += "; or draw it: deeplab demo --draw-only"
        raise DataError(data_config.root, "there is no such folder of data", fix)


def open_dataset(data_config: DataConfig, num_classes: int, split: str) -> Dataset:
    """Returns a split of the configured data set, all its files found.

    Raises:
      DataError: a folder, list, image or mask is missing, or there are none.
      ConfigError: the data set has another number of classes.
    """
    check_root(data_config)
    if data_config.source == "tfds":
        from deeplab_jax.data.sources.tfds import open_tfds

        return open_tfds(data_config, num_classes, split)
    if data_config.source == "cache":
        from deeplab_jax.data.sources.cache import open_cache

        return open_cache(data_config, num_classes, split)
    return open_folder(data_config, num_classes, split)
