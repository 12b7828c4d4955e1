"""Weights of a PyTorch file: unwrapped, recognised and made our variables."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from convert import shown
from convert.dialects import (
    Misfit,
    MisfitError,
    Structure,
    compare,
    detect,
    infer,
    is_auxiliary,
    is_floating,
)
from convert.keymap import (
    COUNTER,
    DIALECTS,
    Tree,
    Variables,
    describe,
    leaves,
    to_shapes,
    to_tensors,
    to_variables,
)
from convert.pth import read_weights
from convert.unwrap import drop_flags, unwrap
from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError, ConfigError, shorten
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.models.structure import describe_difference

_COUNTERS = f"*.{COUNTER}"


@dataclass(frozen=True, eq=False)
class PyTorchFile:
    """A file's state dict and what is known about it."""

    path: str
    tensors: dict[str, np.ndarray]  # by key, in the file's order; without prefixes
    structure: Structure  # what keys and shapes say
    ignored: tuple[str, ...]  # what else the file holds at its top, such as "optimizer"
    class_names: tuple[str, ...]  # as the file records them; empty where it does not
    palette: np.ndarray  # uint8 (C, 3) RGB, or (0, 3)
    # Not checked; None where the file does not have them, or they were not asked for.
    optimizer: object = None  # state of the optimiser
    iteration: object = None  # steps done
    keys: Mapping[str, str] = field(default_factory=dict)  # the file's name of each tensor
    others: Mapping[str, np.ndarray] = field(default_factory=dict)  # no part of the network
    notes: tuple[str, ...] = ()  # lines that tell what was unwrapped and left out

    def dropped(self) -> list[str]:
        """Returns the keys that are left out on purpose."""
        return [key for key in DIALECTS[self.structure.dialect].drops if key in self.tensors]

    def rest_flags(self) -> str:
        """Returns the flags that leave out what is no part of the network; "" if nothing is."""
        return drop_flags(list(self.others), self.keys.values())[1]

    def require_network(self, recipe: str) -> None:
        """Refuses a backbone alone (CheckpointError)."""
        if self.structure.is_backbone:
            name = describe(self.structure.dialect, self.structure.depth)
            what = f"is an ImageNet classifier ({name})"
            fix = "convert it without --config, and train with --config.init.backbone=DIR"
            if rest := self.rest_flags():
                what = f"holds a backbone ({name}) and {len(self.others)} tensors of no known head"
                fix = f"convert the backbone alone: {rest} and no --config"
            what += f", and {recipe} wants a DeepLabV3+"
            raise CheckpointError(self.path, what, fix)

    def to_variables(
        self, model: ModelConfig, recipe: str = "", new_auxiliary: int | None = None
    ) -> tuple[dict[str, Tree], dict[str, int]]:
        """Returns `keymap.to_variables` of all tensors, those of 8 bits as float32.

        They must fill the network of `model`, a backbone its own part. `recipe` names the source of
        `model` in errors; it is empty if `model` comes from the tensors. The auxiliary head is
        drawn from the seed `new_auxiliary`, if that is given; the tensors must have none then.

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
        shapes = to_shapes(abstract, model.depth, dialect)
        auxiliary = {key for _, path, key in leaves(model.depth, dialect) if is_auxiliary(path)}
        tensors = self.tensors
        if new_auxiliary is not None:
            self._refuse_auxiliary(auxiliary, shapes)
            shapes = {key: shape for key, shape in shapes.items() if key not in auxiliary}
        misfit = compare(tensors, shapes, dialect)
        misfit.unexpected.extend((shown(k), f"{v.shape} {v.dtype}") for k, v in self.others.items())
        if any(misfit):
            closest = f"closest known layout: {describe(dialect, depth)}"
            pairs = [(key, value, getattr(model, key)) for key, value in fields.items()]
            differences = [describe_difference(*pair) for pair in pairs if pair[1] != pair[2]]
            extra, advice = self._advice(misfit, model, recipe, shapes, auxiliary)
            phrases = "; ".join([*differences, misfit.counts(), *extra])
            what = f"does not fit{' ' + recipe if recipe else ''} ({closest}): {phrases}"
            raise MisfitError(self.path, what, advice, misfit.table())
        if new_auxiliary is not None:
            tensors = tensors | self._draw(auxiliary, model, new_auxiliary)
        narrow = {k: v for k, v in tensors.items() if v.dtype.name.startswith("float8_")}
        tensors = tensors | {key: value.astype(np.float32) for key, value in narrow.items()}
        floating = {key: v for key, v in tensors.items() if is_floating(v.dtype)}
        bad = [shown(key) for key, value in floating.items() if not np.isfinite(value).all()]
        if bad:
            what = f"{len(bad)} tensors hold values that are not finite ({shorten(bad)})"
            raise CheckpointError(self.path, what, "use weights from before training went wrong")
        return to_variables(tensors, model.depth, dialect)

    def _refuse_auxiliary(self, auxiliary: set[str], wanted: Collection[str]) -> None:
        there = [self.keys.get(key, key) for key in self.tensors if key in auxiliary]
        if there:
            what = f"is given, and {self.path} has {len(there)} tensors of an auxiliary head"
            kept = [self.keys.get(key, key) for key in wanted if key not in auxiliary]
            _, flags = drop_flags(there, kept)
            raise ConfigError("--new-auxiliary", what, f"leave it out, or those: {flags}")

    def _draw(self, auxiliary: set[str], model: ModelConfig, seed: int) -> dict[str, np.ndarray]:
        """Returns the auxiliary head's tensors as a new run with this seed would draw them."""
        network = build_model(dataclasses.replace(model, dtype="float32"), "cpu")

        def draw() -> dict[str, Tree]:  # the head alone, so that nothing else is compiled
            trees = init_variables(network, seed)
            return {kind: {unit: tree[unit] for unit in tree if is_auxiliary(unit)}
                    for kind, tree in trees.items()}  # fmt: skip

        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract_variables(model))
        drawn = {kind: zeros[kind] | tree for kind, tree in jax.device_get(jax.jit(draw)()).items()}
        norms = dict.fromkeys((p for kind, p, _ in leaves(model.depth) if kind == "counters"), 0)
        if not any(key.endswith(f".{COUNTER}") for key in self.tensors):
            norms = {}
        tensors = to_tensors(drawn, norms, model.depth, self.structure.dialect)
        return {key: value for key, value in tensors.items() if key in auxiliary}

    def _advice(
        self, misfit: Misfit, model: ModelConfig, recipe: str, wanted: Mapping[str, object],
        auxiliary: set[str],
    ) -> tuple[list[str], str]:  # fmt: skip
        """Returns phrases that tell more of a misfit, and what to do."""
        missing = {key for key, _ in misfit.missing}
        fixes, phrases = [], []
        counters = {k for k, _ in (*misfit.missing, *misfit.changed) if k.endswith(f".{COUNTER}")}
        is_headless = auxiliary and auxiliary & wanted.keys() == missing & auxiliary
        lost = missing - counters - (auxiliary if is_headless else set())
        if is_headless and auxiliary & missing:
            fixes.append("draw a new auxiliary head: --new-auxiliary")
            counters -= auxiliary
        changed = {key for key, _ in misfit.changed} - counters
        if lost or changed or self._flags(model):
            return [], self._network_advice(model, recipe)
        if counters:
            fixes.append(f"leave out what PyTorch's norms count: --drop '{_COUNTERS}'")
        kept = [self.keys.get(key, key) for key in wanted if key in self.tensors]
        names = [self.keys.get(key, key) for key in self.tensors]
        drops = DIALECTS[self.structure.dialect].drops
        others = [k for k in names if k not in set(kept) and k not in drops] + list(self.others)
        if others:
            groups, flags = drop_flags(others, kept)
            phrases.append(groups)
            fixes.append(f"leave out what is no part of the network: {flags}")
        return phrases, ", and ".join(fixes)

    def _flags(self, model: ModelConfig) -> list[str]:
        fields = self.structure.model.items()
        return [f"--config.model.{k}={value}" for k, value in fields if getattr(model, k) != value]

    def _network_advice(self, model: ModelConfig, recipe: str) -> str:
        if not recipe:
            return "give the whole state dict of such a network"
        flags = self._flags(model)
        if not flags:
            return "give the recipe of these weights"
        known = " ".join(flags)
        return f"give the recipe of these weights, or {known} and the atrous rates they had"


def read_source(
    path: str, with_optimizer: bool = False, level: str = "", drops: Sequence[str] = ()
) -> PyTorchFile:
    """Reads a .pth or .safetensors file, or one in shards; keeps the optimiser's state if asked to.

    `level` and `drops` are those of `unwrap`.

    Raises:
      CheckpointError: it cannot be read, holds no state dict, or one of an unknown network.
      ConfigError: `level` or a pattern of `drops` does not fit the file.
    """
    found = unwrap(read_weights(path), path, level, drops)
    notes = list(found.notes)
    tensors, beside = found.tensors, found.beside
    recorded = beside.get("meta")
    meta: dict[object, object] = recorded if isinstance(recorded, dict) else {}
    shapes = {key: value.shape for key, value in tensors.items()}
    structure = infer(shapes, detect(tensors.keys(), path))
    names, palette = _classes(meta, structure.model.get("num_classes", 0))
    used: set[object] = {"meta"} if names else set()
    optimizer = iteration = None
    if with_optimizer:
        name = _optimizer(beside)
        used |= {name, "cur_iter"}
        if name != "optimizer":
            notes.append(f"optimiser's state taken from '{shown(name)}', the only one there")
        optimizer, iteration = beside.get(name), beside.get("cur_iter", meta.get("iter"))
    ignored = tuple(shown(name) for name in beside if name not in used)
    notes += _type_notes(tensors)
    return PyTorchFile(path, tensors, structure, ignored, names, palette, optimizer, iteration,
                       found.keys, found.others, tuple(notes))  # fmt: skip


def _optimizer(beside: Mapping[object, object]) -> object:
    """Returns the name of the optimiser's state, which may have another name if it is the only."""
    states = [name for name, value in beside.items()
              if isinstance(value, dict) and {"state", "param_groups"} <= value.keys()]  # fmt: skip
    return states[0] if "optimizer" not in beside and len(states) == 1 else "optimizer"


def _type_notes(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Returns lines about tensors whose type does not stay."""
    counters = [v for k, v in tensors.items() if k.endswith(f".{COUNTER}")]
    floats = [value for value in counters if is_floating(value.dtype)]
    eights = [value for value in tensors.values() if value.dtype.name.startswith("float8_")]
    kinds = ", ".join(sorted({str(value.dtype) for value in floats}))
    notes = [f"{len(floats)} counters of type {kinds} rounded"] if floats else []
    if eights:
        notes.append(f"{len(eights)} tensors of type {eights[0].dtype} converted to float32")
    return notes


def abstract_variables(model: ModelConfig) -> Variables:
    """Returns shapes and types of the variables of the network that `config.model` describes."""
    # float64 would need another mode of JAX, for the same shapes.
    model = dataclasses.replace(model, dtype="float32")
    return jax.eval_shape(lambda: init_variables(build_model(model, "cpu"), 0))


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
