"""The description of an exported folder, whose files are as they were written."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.config import Config, flatten, from_dict, get_config
from deeplab_jax.config.checks import as_text
from deeplab_jax.data.classes import CLASS_NAMES
from deeplab_jax.data.colors import safe_palette
from deeplab_jax.errors import CheckpointError, clip, describe_cause, shorten
from deeplab_jax.inference.exported import standalone

FORMAT = 1  # of the description; raised when older readers would misunderstand it
# Fields beside the network's by which an image's labels depend on the configuration.
_OF_RESULTS = ("eval.mode", "eval.scales", "eval.flip", "eval.softmax_first", "eval.resize_base",
               "data.value_range")  # fmt: skip
AGAIN = "export the checkpoint again, or take a whole copy of the folder"


@dataclass(frozen=True, eq=False)
class Exported:
    """What an exported folder says of itself.

    Attributes:
      path: the folder.
      kind: "labels" or "logits", the outputs of its models; "weights" where it holds no model
        that runs.
      step: number of the exported step.
      weights: "ema" or "raw" of a step that held both, else "".
      config: the checkpoint's configuration; places of files are left out.
      class_names: C names.
      palette: uint8 (C, 3), RGB.
      files: details of each model, by "onnx", "stablehlo" and "safetensors".
      tolerances: differences allowed, by "logits", "confidence" and "pixels", see
        `standalone.differences`.
      protocol: the evaluation protocol in words.
    """

    path: Path
    kind: str
    step: int
    weights: str
    config: Config
    class_names: tuple[str, ...]
    palette: np.ndarray
    files: dict[str, dict[str, Any]]
    tolerances: dict[str, float]
    protocol: str

    def model(self, kind: str) -> Path:
        """Returns the file of "onnx", "stablehlo" or "safetensors"."""
        return self.path / standalone.MODELS[kind]


def convert_command(
    file: str, config: Config, class_names: Sequence[str], palette: np.ndarray, output: str
) -> str:
    """Returns the command that makes a checkpoint of exported weights, with the same results.

    Weights show the depth, widths and stem; what they do not show is given by flags.

    Args:
      file: the safetensors file.
      config: the configuration that was exported.
      class_names: C names.
      palette: uint8 (C, 3), RGB.
      output: the checkpoint to write.
    """
    model = config.model
    words = ["deeplab", "convert", "from-pytorch", "--checkpoint", file]
    words += ["--output-stride", str(model.output_stride)]
    words += ["--atrous-rates", as_text(model.atrous_rates)]
    words += ["--multi-grid", as_text(model.multi_grid)] if model.multi_grid else []
    words += ["--output", output]
    known = CLASS_NAMES.get(config.data.dataset, ())
    fields: dict[str, Any] = {}
    if tuple(class_names) == known:
        fields["data.dataset"] = config.data.dataset  # brings names and colours
    elif not any("," in name for name in class_names):  # as a list they would be others
        fields["data.class_names"] = tuple(class_names)
        if not np.array_equal(palette, safe_palette(len(class_names))):
            fields["data.class_colors"] = tuple(palette.ravel().tolist())
    own, usual = (flatten(c) for c in (config, get_config("folder", model.depth)))
    fields |= {key: own[key] for key in _OF_RESULTS if _plain(own[key]) != _plain(usual[key])}
    return shlex.join([*words, *(f"--config.{key}={as_text(x)}" for key, x in fields.items())])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def read_folder(path: str | os.PathLike) -> Exported:
    """Returns the description of an exported folder; every file is compared with its SHA-256.

    Raises:
      CheckpointError: a file is missing, changed or was added, or the folder is of another version.
    """
    folder = Path(path)
    try:
        faults = standalone.changed_files(folder)
        if not faults:
            content = json.loads((folder / standalone.DESCRIPTION).read_bytes())
            labels = json.loads((folder / "labels.json").read_bytes())["classes"]
            if content["format"] != FORMAT:
                what = f"has format {content['format']!r}, and this version reads {FORMAT}"
                raise CheckpointError(str(path), what, "use the version that exported it")
            return Exported(
                folder, content["output_kind"], content["step"], content["weights"],
                from_dict(content["config"]),
                tuple(label["name"] for label in labels),
                np.array([label["color"] for label in labels], np.uint8),
                content["files"], content["tolerances"], content["protocol"],
            )  # fmt: skip
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"cannot be read as an exported folder ({clip(describe_cause(error))})"
        raise CheckpointError(str(path), what, AGAIN) from error
    raise CheckpointError(str(path), f"is not as exported: {shorten(faults)}", AGAIN)
