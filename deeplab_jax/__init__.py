"""DeepLabV3+ (ECCV 2018) in JAX: train, evaluate, predict.

    import deeplab_jax
    model = deeplab_jax.load("runs/camvid_r50_os16")
    model("street.jpg").save("out")

    config = deeplab_jax.load_recipe("camvid_r50_os16", ["--config.data.root=camvid"])
    deeplab_jax.train(config, "runs/camvid_r50_os16")
    deeplab_jax.evaluate("runs/camvid_r50_os16")["mean_iou"]

Data, loss, transform and callbacks of your own: docs/examples/own_training.py.

JAX is imported when one of these names is first used, not by this import. `train` and `evaluate`
are these functions, also after the commands `deeplab_jax.train` and `deeplab_jax.evaluate` are
imported as modules; `from deeplab_jax.train import main` works all the same.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeplab_jax.config import get_config
    from deeplab_jax.config.recipe import load_recipe
    from deeplab_jax.evaluation.run import evaluate
    from deeplab_jax.inference.loading import load
    from deeplab_jax.models import DeepLabV3Plus
    from deeplab_jax.training.loop import train

__version__ = "0.2.0"
__all__ = [
    "DeepLabV3Plus",
    "__version__",
    "evaluate",
    "get_config",
    "load",
    "load_recipe",
    "train",
]

_HOMES = {
    "DeepLabV3Plus": "deeplab_jax.models",
    "evaluate": "deeplab_jax.evaluation.run",
    "get_config": "deeplab_jax.config",
    "load": "deeplab_jax.inference.loading",
    "load_recipe": "deeplab_jax.config.recipe",
    "train": "deeplab_jax.training.loop",
}


class _Package(ModuleType):
    """A package whose public functions are not replaced by its modules of the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):  # which the import system binds
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
