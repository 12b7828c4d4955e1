"""Initial weights of a new run: drawn, those of a backbone, or those of another network.

A checkpoint is checked by its list of arrays, before anything compiles or is written.
"""

import shlex
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax

from deeplab_jax import checkpoint
from deeplab_jax.config import Config
from deeplab_jax.errors import CheckpointError, ConfigError, DamagedError, shorten
from deeplab_jax.evaluation.metrics import over_classes
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.models.structure import describe_difference, structure
from deeplab_jax.training.state import State
from deeplab_jax.utils import steps
from deeplab_jax.utils.trees import PyTree, placed

T = TypeVar("T")

_CLASSIFIERS = ("aux_classifier", "classifier")  # left as drawn by config.init.head=skip


def check_init(config: Config, class_names: Sequence[str]) -> list[str]:
    """Checks `config.init` against the checkpoint; reads no array and compiles nothing.

    Returns a line for each setting that is legal but probably a mistake, such as classes whose
    names differ from the data set's `class_names`.

    Raises:
      ConfigError: the recipe needs a backbone or a checkpoint, and names neither.
      CheckpointError: the checkpoint cannot be read, is of another kind, or does not fit.
    """
    if config.init.checkpoint:
        return _check_checkpoint(config, class_names)
    backbone = config.init.backbone
    if not backbone:
        raise ConfigError(
            "config.init.backbone",
            "this recipe starts from ImageNet weights, and none are named",
            "give --config.init.backbone=DIR (a backbone checkpoint), or =none for random weights",
        )
    if backbone != "none":
        _latest(backbone, lambda step: _check_backbone(config, backbone, step))
    return []


def _latest(path: str, read: Callable[[int], T]) -> T:
    """Returns read(latest step); the error about a damaged one tells how to use those before it."""
    try:
        return checkpoint.with_step(path, "latest", read)
    except DamagedError as error:
        older = [step for step in checkpoint.finished(path)[:-1] if checkpoint.is_good(path, step)]
        if not older:
            raise
        command = f"deeplab checkpoint export {shlex.quote(path)} --step {older[-1]} --output DIR"
        fix = f"use step {older[-1]}: {command}, and name DIR"
        raise DamagedError(error.where, error.what, fix) from error


def _check_backbone(config: Config, path: str, step: int) -> None:
    kind = checkpoint.read_info(path, step).kind
    if kind != "backbone":
        what = f"is a checkpoint of kind {kind}, not backbone"
        raise CheckpointError(path, what, f"give it as --config.init.checkpoint={path}")
    wanted = jax.eval_shape(lambda: init_variables(build_model(config.model), 0))
    _check_fit(path, step, {name: tree["backbone"] for name, tree in wanted.items()})


def _check_fit(path: str, step: int, wanted: dict[str, PyTree], skip: str = "") -> None:
    """Refuses weights that do not fit; says which networks they and the recipe are of.

    Args:
      path: the checkpoint.
      step: its step.
      wanted: shapes and types by item.
      skip: a field of `config.model` in which they may differ.
    """
    problems = checkpoint.misfits(path, step, wanted, allow_cast=True)
    if not problems:
        return
    saved = checkpoint.read_shapes(path, step, ["params"])["params"]
    there, here = structure(saved), structure(wanted["params"])
    changed = {k: v for k, v in there.items() if k in here and k != skip and v != here[k]}
    phrases = [describe_difference(key, value, here[key]) for key, value in changed.items()]
    if changed:  # names of parameters would tell nothing more
        problems = [problem.partition(" (")[0] for problem in problems]
    fixes = []
    if changed.pop("num_classes", None):
        fixes.append("new classifiers: --config.init.head=skip")
    if changed:
        flags = " ".join(f"--config.model.{key}={value}" for key, value in changed.items())
        fixes.insert(0, f"build its network: {flags}")
    fix = ", and ".join(fixes) or "convert or copy it again: it is of the network that is wanted"
    raise CheckpointError(path, f"does not fit: {'; '.join([*phrases, ', '.join(problems)])}", fix)


def _check_checkpoint(config: Config, class_names: Sequence[str]) -> list[str]:
    path = config.init.checkpoint
    return _latest(path, lambda step: _compare(config, class_names, path, step))


def _compare(config: Config, class_names: Sequence[str], path: str, step: int) -> list[str]:
    is_skipped, info = config.init.head == "skip", checkpoint.read_info(path, step)
    if info.kind == "backbone" or info.config is None:
        what = "holds a backbone, not a segmentation network"
        raise CheckpointError(path, what, f"give it as --config.init.backbone={path} instead")
    _check_fit(path, info.step, _wanted(config, info), "num_classes" if is_skipped else "")
    pairs = zip(info.class_names, class_names, strict=False)  # converted weights may have no names
    changed = [f"{i}: {there} -> {here}" for i, (there, here) in enumerate(pairs) if there != here]
    if is_skipped or not changed:
        return []
    return [
        f"classes differ from those of {path} ({shorten(changed)});"
        " config.init.head=skip starts new classifiers"
    ]


def init_fingerprint(config: Config) -> str | None:
    """Returns a text that changes with any bit of the weights that `config.init` names, or None.

    It is a hash of their description, which holds their checksums, unless an old version saved it.
    """
    path = config.init.checkpoint or config.init.backbone
    if path in ("", "none"):
        return None
    step = checkpoint.find_step(path)
    return f"step {step} ({steps.digest(steps.read_description(path, step))[:12]})"


def load_init(state: State, config: Config) -> State:
    """Returns `state` with the weights that `config.init` names; raises as `checkpoint.restore`."""
    if config.init.checkpoint:
        return load_checkpoint(state, config)
    backbone = config.init.backbone
    return state if backbone == "none" else load_backbone(state, backbone)


def load_checkpoint(state: State, config: Config) -> State:
    """Returns `state` with the weights and statistics of `config.init.checkpoint`; prints a line.

    Raises:
      CheckpointError: it does not fit.
    """
    path = config.init.checkpoint

    def read(step: int) -> tuple[checkpoint.Info, dict[str, PyTree]]:
        info = checkpoint.read_info(path, step)
        wanted = placed(_wanted(config, info), state["step"].sharding)
        abstract = checkpoint.abstract_items(info, wanted)
        restored = checkpoint.restore(path, step, abstract, allow_cast=True)
        return info, checkpoint.network(restored)

    info, loaded = _latest(path, read)
    skipped = _CLASSIFIERS if config.init.head == "skip" else ()
    for variables in loaded.values():
        for name in skipped:
            variables.pop(name, None)
    count, total = (
        len(jax.tree.leaves([tree[name] for name in loaded])) for tree in (loaded, state)
    )
    scores = info.metrics or {}
    score = scores.get("mean_iou")
    origin = f"step {info.step}" if info.kind == "run" else info.kind
    origin += ", average of its weights" if checkpoint.weights_of(info) else ""
    if score is not None:
        over = over_classes(scores.get("num_classes_in_mean", 0), scores.get("num_classes", 0))
        origin += f", mean IoU {100 * score:.2f} %{over}"
    if info.drawn:
        origin += f"; drawn when it was converted: {info.drawn}"
    text = f"init: {count} of {total} tensors from {path} ({origin})"
    if skipped:
        new = [f"{name}/{leaf}" for name in skipped for leaf in state["params"][name]]
        text += f"; not loaded: {shorten(new)} (new, {config.model.num_classes} classes)"
    print(text, flush=True)
    return state | {name: state[name] | loaded[name] for name in loaded}


def load_backbone(state: State, path: str) -> State:
    """Returns `state` with the backbone's weights and statistics from a backbone checkpoint.

    Raises:
      CheckpointError: it does not fit.
    """
    items = {name: state[name]["backbone"] for name in ("params", "batch_stats")}
    abstract = placed(items, jax.tree.leaves(items)[0].sharding)
    loaded = _latest(path, lambda step: checkpoint.restore(path, step, abstract, allow_cast=True))
    print(f"backbone: {len(jax.tree.leaves(loaded))} tensors from {path}", flush=True)
    return state | {name: state[name] | {"backbone": loaded[name]} for name in loaded}


def _wanted(config: Config, info: checkpoint.Info) -> dict[str, PyTree]:
    """Returns the shapes and types that the checkpoint must have."""
    model = build_model(config.model)
    if config.init.head == "skip":  # its classifiers are read, then dropped
        assert info.config is not None  # see check_init
        model = model.clone(num_classes=info.config.model.num_classes)
    return jax.eval_shape(lambda: init_variables(model, 0))
