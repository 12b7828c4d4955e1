"""DeepLabV3+ (ECCV 2018) in JAX: train, evaluate, predict.

    import deeplab_jax
    model = deeplab_jax.load("runs/camvid_r50_os16")
    model("street.jpg").save("out")

JAX is imported when one of these names is first used, not by this import.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"
__all__ = ["DeepLabV3Plus", "__version__", "get_config", "load"]

_HOMES = {
    "DeepLabV3Plus": "deeplab_jax.models",
    "get_config": "deeplab_jax.config",
    "load": "deeplab_jax.inference.segmenter",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
