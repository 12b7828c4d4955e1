"""`deeplab_jax.load`: of checkpoints, and of the folders that `deeplab export` writes."""

from collections.abc import Sequence
from pathlib import Path

from deeplab_jax.inference import segmenter
from deeplab_jax.inference.exported.segmenter import load_exported
from deeplab_jax.inference.segmenter import Segmenter
from deeplab_jax.utils import compile_cache, steps


def load(
    path: str | Path,
    step: int | str = "latest",
    overrides: Sequence[str] = (),
    weights: str | None = None,
) -> Segmenter:
    """Loads a checkpoint, or an exported folder, for prediction.

    Args:
      path: work directory of a run, the output of a converter, or a folder of `deeplab export`,
        which has one step and one configuration, and runs in onnxruntime or JAX.
      step: a number, "latest" or "best".
      overrides: changes to the checkpoint's configuration, such as
        "--config.eval.resize_base=240,180"; "--config.data.class_names=road,sky" names the classes.
      weights: "ema" or "raw" of a run that averages its weights; its average by default.

    Raises:
      CheckpointError: there is no such checkpoint or step, it does not fit, or is not what was
        saved; no other step is taken in its place.
      ConfigError: an override cannot be used, or the step does not hold two kinds of weights.
      ResourceError: the runtime of an exported folder is not installed.
    """
    if not steps.is_exported(path):
        return segmenter.load(path, step, overrides, weights)
    given = [*overrides]
    given += [f"{key}={value}" for key, value in (("step", step), ("weights", weights))
              if value not in ("latest", None)]  # fmt: skip
    steps.refuse_changes(path, given)
    compile_cache.enable()
    return load_exported(path)
