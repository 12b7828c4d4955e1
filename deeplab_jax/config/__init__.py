"""The configuration of a run: its fields, their checks, the table's rows, recipe files."""

from deeplab_jax.config.checks import LABEL_IDS, TRAIN_IDS, nearest_multiple, validate, warnings
from deeplab_jax.config.data_schema import DATASETS, DataConfig
from deeplab_jax.config.forms import difference, flatten, freeze, from_dict, to_dict, to_json
from deeplab_jax.config.schema import (
    IGNORE_INDEX,
    Config,
    EvalConfig,
    InitConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    TrainConfig,
    is_local,
)
from deeplab_jax.config.table import PUBLISHED_IMAGES, PUBLISHED_MIOU, get_config

__all__ = [
    "DATASETS",
    "IGNORE_INDEX",
    "LABEL_IDS",
    "PUBLISHED_IMAGES",
    "PUBLISHED_MIOU",
    "TRAIN_IDS",
    "Config",
    "DataConfig",
    "EvalConfig",
    "InitConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "TrainConfig",
    "difference",
    "flatten",
    "freeze",
    "from_dict",
    "get_config",
    "is_local",
    "nearest_multiple",
    "to_dict",
    "to_json",
    "validate",
    "warnings",
]
