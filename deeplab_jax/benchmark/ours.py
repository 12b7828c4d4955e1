"""Our sides: the programs that `deeplab train`, `evaluate` and `predict` run, and our reading."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deeplab_jax import checkpoint
from deeplab_jax.benchmark import machine
from deeplab_jax.benchmark.drawn import draw_batch
from deeplab_jax.config import Config
from deeplab_jax.config.transforms import parse_all
from deeplab_jax.data import Dataset, TrainBatch, open_dataset
from deeplab_jax.data.classes import colormap
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.dry_run.compiled import compile_step, lower_step
from deeplab_jax.dry_run.estimate import item_bytes
from deeplab_jax.errors import DataError
from deeplab_jax.inference.engine import Engine, Item
from deeplab_jax.inference.protocol import EvalProtocol
from deeplab_jax.inference.segmenter import Segmenter
from deeplab_jax.models import Output, build_model, fold_batch_norm
from deeplab_jax.models.preprocess import preprocess
from deeplab_jax.training.losses import row_weights, segmentation_loss
from deeplab_jax.training.plan import make_plan, read_batches
from deeplab_jax.training.state import State, draw_state, eval_variables
from deeplab_jax.utils import compile_cache

_TOTAL = 1000  # steps of the schedule; its length does not change the step
_BATCHES = 2  # different ones, in turn


class Training:
    """The training step, its state donated, its batches of bytes copied ahead.

    Attributes:
      batches: what it trains on, in turn; the first is compared.
    """

    def __init__(self, config: Config, devices: Sequence[jax.Device]):
        """Draws state and batches; compiles no step."""
        self.config, self.mesh = config, mesh_lib.mesh_of(config, devices)
        self.model = build_model(config.model, mesh_lib.platform(self.mesh))
        self._state = draw_state(self.model, config, _TOTAL, self.mesh)
        self.batches = [draw_batch(config, seed) for seed in range(_BATCHES)]
        feed = itertools.cycle(self.batches)
        self._feed = mesh_lib.to_devices(feed, self.mesh, config.train.batch_size)

    def compile(self) -> None:
        """Compiles the step and runs it once."""
        with compile_cache.compiling("the training step", is_told=True):
            lowered = lower_step(self.config, list(self.mesh.devices.flat))
            self._figures, self._step = compile_step(lowered)
        self.run(1)

    def run(self, count: int) -> None:
        """Runs steps, and waits for the metrics of the last; the device never waits in between."""
        before = None
        for _ in range(count):
            _, (_, *batch) = next(self._feed)
            self._state, metrics = self._step(self._state, *batch)
            jax.block_until_ready(before)  # as in training: a step late
            before = metrics
        jax.block_until_ready((self._state, before))

    def memory(self) -> dict[str, Any]:
        """Returns the fields of a side about memory."""
        state = sum(item_bytes(self._state).values())
        return memory(self.run, state, self._figures.needed)

    def variables(self) -> dict[str, Any]:
        """Returns the weights and statistics of now, on the host."""
        return jax.device_get(eval_variables(self._state))

    def outputs(self) -> tuple[np.ndarray, float]:
        """Returns logits and loss of the first batch, in training mode, without dropout."""
        train = self.config.train

        def apply(state: State, *batch: jax.Array) -> tuple[jax.Array, jax.Array]:
            images, labels = preprocess(*batch)
            variables = eval_variables(state)
            output, _ = self.model.apply(
                variables, images, is_train=True, use_dropout=False, mutable=["batch_stats"]
            )
            assert isinstance(output, Output)
            weights = row_weights(labels, train.loss_groups)
            losses = segmentation_loss(
                *output,
                labels,
                weights=weights,
                aux_weight=train.aux_weight,
                platform=self.model.policy.platform,
            )
            return output.logits, losses["loss"]

        with compile_cache.without_alarms():
            logits, loss = jax.jit(apply)(self._state, *self.batches[0][1:])
        return np.asarray(logits, np.float32), float(loss)


class Inference:
    """The network of `evaluate` and `predict`: bytes to logits at a quarter of the size.

    Attributes:
      images: uint8 (B, H, W, 3), as many as the engine takes at once.
    """

    def __init__(self, config: Config, variables: Any, size: tuple[int, int]):
        """Compiles nothing; `size` is (height, width) of the images."""
        self._engine = Engine(build_model(config.model), EvalProtocol()).load(variables)
        self._engine.plan([size])
        batch = self._engine.batch_size(self._engine.shapes(size)[0])
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (batch, *size, 3), np.uint8)
        self._folded = jax.device_put(fold_batch_norm(variables), jax.local_devices()[0])

    def compile(self) -> None:
        """Compiles the network and segments the images once."""
        size = (self.images.shape[1], self.images.shape[2])
        items = [Item(row, image, size) for row, image in enumerate(self.images)]
        for _ in self._engine.segment(items):
            pass
        [self._program] = self._engine.programs.values()

    def run(self, count: int) -> jax.Array:
        """Computes the logits of all images, so many times; returns the last (B, h, w, C)."""
        for _ in range(count):
            images = jax.device_put(self.images, jax.local_devices()[0])
            logits: jax.Array = self._program(self._folded, images, None)
        return jax.block_until_ready(logits)

    def memory(self) -> dict[str, Any]:
        """Returns the fields of a side about memory."""
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(self._folded))
        analysis = self._program.memory_analysis()
        assert analysis is not None
        needed = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        return memory(self.run, weights, needed + analysis.temp_size_in_bytes)


def memory(run: Any, held: int, needed: int) -> dict[str, Any]:
    """Returns the fields of a side about memory.

    Args:
      run: as a side's.
      held: bytes of state or weights, which stay between calls.
      needed: bytes by the compiler's figures.
    """
    if jax.default_backend() != "cpu":
        return {"memory_bytes": needed, "memory_how": "the compiler's figure for a device"}
    grown = machine.growth(lambda: run(1))
    fields: dict[str, Any] = {"compiler_bytes": needed}
    if grown is None:
        return {**fields, "memory_bytes": needed, "memory_how": "the compiler's figure"}
    return {**fields, "memory_bytes": held + grown, "memory_how": machine.HOW}


def make_segmenter(config: Config, variables: Any) -> Segmenter:
    """Returns what `deeplab_jax.load` would, of weights that are in memory."""
    number = config.model.num_classes
    names = config.data.class_names or tuple(f"class_{k}" for k in range(number))
    info = checkpoint.Info(
        kind="weights", config=config, class_names=names, palette=colormap(number)
    )
    device = jax.local_devices()[0]
    return Segmenter(Path("drawn"), info, config, jax.device_put(variables, device))


def segment(segmenter: Segmenter, files: Sequence[Path]) -> list[np.ndarray]:
    """Returns the labels of images: files are read, resized, segmented at their own size."""
    labels = []
    for result in segmenter.segment([str(file) for file in files]):
        if isinstance(result, DataError):
            raise result
        labels.append(result.labels)
    return labels


def has_data(config: Config) -> bool:
    """Tells whether the recipe's own data are read: they are there, or are no plain folder."""
    return config.data.source != "folder" or Path(config.data.root).is_dir()


def training_data(config: Config, drawn: Path) -> tuple[Dataset, Config, str]:
    """Returns the recipe's training split if it is there, else that of drawn pictures.

    With it come the recipe, for the drawn pictures where it is those, and the words for it, with
    the transforms that are left out: drawn pictures have the names alone that the recipe gives.
    """
    data = config.data
    if has_data(config):
        return open_dataset(data, config.model.num_classes, data.train_split), config, data.root
    words, kept = "drawn pictures", []
    for spec in parse_all(data.transforms):
        names = [c for c in spec.values.get("classes", ()) if isinstance(c, str)]
        if unknown := [name for name in names if name not in data.class_names]:
            words += f", without {spec.name} of the class {unknown[0]}, which they do not have"
        else:
            kept.append(spec.text)
    plain = type(data)(
        root=str(drawn), crop_size=data.crop_size, resize_base=data.resize_base,
        scale_range=data.scale_range, num_workers=data.num_workers,
        class_names=data.class_names, transforms=tuple(kept),
    )  # fmt: skip
    config = replace(config, data=plain)
    return open_dataset(plain, config.model.num_classes, "train"), config, words


def read(config: Config, dataset: Dataset, count: int) -> Iterator[TrainBatch]:
    """Yields the first `count` training batches, as a run reads them."""
    plan = make_plan(config, len(dataset))
    rows = range(config.train.batch_size)
    return read_batches(config, dataset, plan, range(count), rows, config.data.num_workers)


def difference(ours: Any, theirs: Any) -> float:
    """Returns the norm of the difference of two arrays over the norm of the second."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs)) / max(float(np.linalg.norm(theirs)), 1e-30)
