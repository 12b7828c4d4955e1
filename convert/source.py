"""Weights of a PyTorch file: unwrapped, recognised and made our variables."""

import dataclasses
from dataclasses import dataclass

import jax
import numpy as np

from convert import shown
from convert.dialects import MisfitError, Structure, compare, detect, infer, is_floating
from convert.keymap import DIALECTS, Tree, Variables, describe, to_shapes, to_variables
from convert.pth import read_weights
from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError, shorten
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.models.structure import describe_difference

_LEVELS = ("model", "state_dict")  # where files keep the state dict, if not at the top
_MODULE = "module."  # what PyTorch's wrappers for several devices put before every key


@dataclass(frozen=True, eq=False)
class PyTorchFile:
    """A file's state dict and what is known about it."""

    path: str
    tensors: dict[str, np.ndarray]  # by key, in the file's order; without `module.`
    structure: Structure  # what keys and shapes say
    ignored: tuple[str, ...]  # what else the file holds at its top, such as "optimizer"
    class_names: tuple[str, ...]  # as the file records them; empty where it does not
    palette: np.ndarray  # uint8 (C, 3) RGB, or (0, 3)
    # Not checked; None where the file does not have them, or they were not asked for.
    optimizer: object = None  # state of the optimiser
    iteration: object = None  # steps done

    def dropped(self) -> list[str]:
        """Returns the keys that are left out on purpose."""
        return [key for key in DIALECTS[self.structure.dialect].drops if key in self.tensors]

    def require_network(self, recipe: str) -> None:
        """Refuses a backbone alone (CheckpointError)."""
        if self.structure.is_backbone:
            name = describe(self.structure.dialect, self.structure.depth)
            what = f"is an ImageNet classifier ({name}), and {recipe} wants a DeepLabV3+"
            fix = "convert it without --config, and train with --config.init.backbone=DIR"
            raise CheckpointError(self.path, what, fix)

    def to_variables(
        self, model: ModelConfig, recipe: str = ""
    ) -> tuple[dict[str, Tree], dict[str, int]]:
        """Returns `keymap.to_variables` of all tensors.

        They must fill the network of `model`, a backbone its own part. `recipe` names the source of
        `model` in errors; it is empty if `model` comes from the tensors.

        Raises:
          MisfitError: a tensor is missing, left over, or of another shape or type.
          CheckpointError: the stem is another, or a value is not finite.
        """
        dialect, depth, fields = self.structure
        if model.stem != fields["stem"]:
            what = f"has the {fields['stem']} stem, and {recipe} wants config.model.stem="
            fix = f"give --config.model.stem={fields['stem']}"
            raise CheckpointError(self.path, what + model.stem, fix)
        abstract = abstract_variables(model)
        if self.structure.is_backbone:
            abstract = {name: tree["backbone"] for name, tree in abstract.items()}
        misfit = compare(self.tensors, to_shapes(abstract, model.depth, dialect), dialect)
        if any(misfit):
            closest = f"closest known layout: {describe(dialect, depth)}"
            pairs = [(key, value, getattr(model, key)) for key, value in fields.items()]
            differences = [describe_difference(*pair) for pair in pairs if pair[1] != pair[2]]
            phrases = "; ".join([*differences, misfit.counts()])
            what = f"does not fit{' ' + recipe if recipe else ''} ({closest}): {phrases}"
            raise MisfitError(self.path, what, self._advice(model, recipe), misfit.table())
        floating = {key: v for key, v in self.tensors.items() if is_floating(v.dtype)}
        bad = [shown(key) for key, value in floating.items() if not np.isfinite(value).all()]
        if bad:
            what = f"{len(bad)} tensors hold values that are not finite ({shorten(bad)})"
            raise CheckpointError(self.path, what, "use weights from before training went wrong")
        return to_variables(self.tensors, model.depth, dialect)

    def _advice(self, model: ModelConfig, recipe: str) -> str:
        if not recipe:
            return "give the whole state dict of such a network"
        fields = self.structure.model.items()
        flags = [f"--config.model.{k}={value}" for k, value in fields if getattr(model, k) != value]
        if not flags:
            return "give the recipe of these weights"
        known = " ".join(flags)
        return f"give the recipe of these weights, or {known} and the atrous rates they had"


def read_source(path: str, with_optimizer: bool = False) -> PyTorchFile:
    """Reads a .pth or .safetensors file; keeps the optimiser's state only if asked to.

    Raises:
      CheckpointError: it cannot be read, holds no state dict, or one of an unknown network.
    """
    tensors, beside = _unwrap(read_weights(path), path)
    found = beside.get("meta")
    meta: dict[object, object] = found if isinstance(found, dict) else {}
    shapes = {key: value.shape for key, value in tensors.items()}
    structure = infer(shapes, detect(tensors.keys(), path))
    names, palette = _classes(meta, structure.model.get("num_classes", 0))
    used = {"meta"} if names else set()
    optimizer = iteration = None
    if with_optimizer:
        used |= {"optimizer", "cur_iter"}
        optimizer, iteration = beside.get("optimizer"), beside.get("cur_iter", meta.get("iter"))
    ignored = tuple(shown(name) for name in beside if name not in used)
    return PyTorchFile(path, tensors, structure, ignored, names, palette, optimizer, iteration)


def abstract_variables(model: ModelConfig) -> Variables:
    """Returns shapes and types of the variables of the network that `config.model` describes."""
    # float64 would need another mode of JAX, for the same shapes.
    model = dataclasses.replace(model, dtype="float32")
    return jax.eval_shape(lambda: init_variables(build_model(model, "cpu"), 0))


def _unwrap(obj: object, path: str) -> tuple[dict[str, np.ndarray], dict[object, object]]:
    """Returns the state dict, and what else is in the file around it, by name."""
    beside: dict[object, object] = {}
    fix = f"save the state dict alone, or under one of: {', '.join(_LEVELS)}"
    while isinstance(obj, dict):
        levels = [name for name in _LEVELS if isinstance(obj.get(name), dict)]
        if not levels:
            break
        level = next((name for name in levels if obj[name]), levels[0])  # not empty, if any is
        beside |= {name: value for name, value in obj.items() if name != level}
        obj = obj[level]
    if not isinstance(obj, dict) or not obj:
        kind = "nothing" if isinstance(obj, dict) else f"a {type(obj).__name__}"
        raise CheckpointError(path, f"holds {kind}, not a state dict", fix)
    tensors = {k: v for k, v in obj.items() if type(k) is str and isinstance(v, np.ndarray)}
    strange = [shown(key) for key in obj if key not in tensors]
    if strange:
        what = f"holds no state dict: {len(strange)} of {len(obj)} entries are no named tensors"
        raise CheckpointError(path, f"{what} ({shorten(strange)})", fix)
    if all(key.startswith(_MODULE) for key in tensors):
        tensors = {key.removeprefix(_MODULE): value for key, value in tensors.items()}
    return tensors, beside


def _classes(meta: dict[object, object], count: object) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns names and colours as mmsegmentation records them; empty where they are unusable."""
    recorded = meta.get("dataset_meta")
    recorded = recorded if isinstance(recorded, dict) else {}
    names = recorded.get("classes", meta.get("CLASSES"))
    no_colors = np.zeros((0, 3), np.uint8)
    is_list = isinstance(names, list | tuple) and len(names) == count
    if not is_list or not all(isinstance(name, str) and name.isprintable() for name in names):
        return (), no_colors
    try:
        colors = np.array(recorded.get("palette", meta.get("PALETTE")), np.uint8)
        return tuple(names), colors.reshape(len(names), 3)
    except (ValueError, TypeError, OverflowError):
        return tuple(names), no_colors
