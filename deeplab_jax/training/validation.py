"""Evaluations of a run while it trains: computed, logged, shown and drawn."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from deeplab_jax.data import eval_examples
from deeplab_jax.distributed import hosts
from deeplab_jax.errors import ResourceError
from deeplab_jax.evaluation.evaluator import EvalResult, Evaluator, counting_images
from deeplab_jax.evaluation.metrics import mean_in_words, over_classes
from deeplab_jax.inference.engine import Item
from deeplab_jax.inference.overlay import blend
from deeplab_jax.inference.protocol import read_protocol
from deeplab_jax.training.log import Curves, Display, JsonLog, picture, read_log
from deeplab_jax.training.setup import RunSetup
from deeplab_jax.utils.trees import PyTree

_SHOWN, _SIDE = 3, 512  # images that are shown, pixels of their longer side


class Scores(NamedTuple):
    """Scores of an evaluation: what the saved step says of it, and all."""

    metrics: dict[str, float]
    summary: Mapping[str, Any]


class Validation:
    """Evaluates the validation split of a run by its own protocol."""

    def __init__(self, setup: RunSetup, log: JsonLog, curves: Curves, display: Display):
        """Compiles nothing yet."""
        self._setup, self._log, self._curves, self._display = setup, log, curves, display
        config = setup.config.eval
        protocol = read_protocol(config)
        self._evaluator = Evaluator(setup.model, setup.validation, config.resize_base, protocol)

    def evaluate(
        self,
        step: int,
        variables: PyTree,
        should_stop: Callable[[], bool],
        raw: PyTree | None = None,
    ) -> Scores | None:
        """Returns the scores; None when asked to stop.

        Args:
          step: optimiser steps done.
          variables: {"params", "batch_stats"} of the network.
          should_stop: asked between images.
          raw: the same of the weights as trained, where both are evaluated; their mean IoU is
            "mean_iou_raw".
        """
        result = self._result(variables, should_stop)
        beside = None if raw is None or result is None else self._result(raw, should_stop)
        if result is None or (raw is not None and beside is None):
            return None
        summary: Mapping[str, Any] = result.summary()
        of_raw = None if beside is None else beside.summary()
        counts = {
            "num_classes_in_mean": summary["num_classes_in_mean"],
            "num_classes": len(result.class_names),
        }
        scores = {key: summary[key] for key in ("mean_iou", "pixel_accuracy", "iou")}
        more = {key: summary.get(key) for key in ("loss", "boundary_iou")}
        if of_raw is not None:
            more["mean_iou_raw"] = of_raw["mean_iou"]
        more = {key: value for key, value in more.items() if value is not None}
        self._log.write("eval", step, scores | more | counts)
        words = mean_in_words(summary["iou"])
        if of_raw is not None:
            words += f"; weights as trained {mean_in_words(of_raw['iou'])}"
        words += f", loss {more['loss']:.3f}" if "loss" in more else ""
        metrics = {"mean_iou": result.mean_iou, **more, **counts}
        best = self._setup.config.checkpoint.best
        if best.startswith("iou/"):
            value = summary["iou"][result.class_names.index(best[4:])]
            metrics |= {} if value is None else {best: value}
        if best not in ("mean_iou", "loss"):
            words += f", {best} {100 * metrics[best]:.2f} %" if best in metrics else f", no {best}"
        self._display.say(f"step {step}: validation mean IoU {words}")
        self._display.evaluated(result.mean_iou, over=over_classes(*counts.values()))
        if hosts.is_primary():
            pictures = self._pictures() if self._curves.has_pictures else {}
            self._curves.evaluated(step, scores | more, pictures)
            self._draw(step)
        return Scores(metrics, summary)

    def _result(self, variables: PyTree, should_stop: Callable[[], bool]) -> EvalResult | None:
        with counting_images(self._setup.validation) as count:
            return self._evaluator(variables, should_stop=should_stop, on_image=count)

    def _pictures(self) -> dict[str, Image.Image]:
        """Returns a few images, each beside its truth and its prediction, by name."""
        dataset = self._setup.validation
        last = len(dataset) - 1
        indices = sorted({round(k * last / max(_SHOWN - 1, 1)) for k in range(_SHOWN)})
        palette = np.zeros((256, 3), np.uint8)  # black where ignored
        palette[: len(dataset.palette)] = dataset.palette
        examples = [*eval_examples(dataset, indices, self._setup.config.eval.resize_base)]
        items = [
            Item(k, example.image, (example.label.shape[0], example.label.shape[1]))
            for k, example in enumerate(examples)
        ]
        found = {}
        self._evaluator.engine.should_stop = lambda: False
        for k, (prediction, _) in self._evaluator.engine.segment(items):
            example, labels = examples[k], (examples[k].label, prediction)
            size = example.label.shape[::-1]
            image = np.asarray(Image.fromarray(example.image).resize(size))
            parts = [image, *(np.asarray(blend(image, part, palette)) for part in labels)]
            whole = Image.fromarray(np.concatenate(parts, 1))
            whole.thumbnail((3 * _SIDE, _SIDE))
            found[f"val/{dataset.ids[indices[k]]}"] = whole
        return found

    def _draw(self, step: int) -> None:
        """Writes `progress.png`; an error of the disk must not end the run here."""
        setup = self._setup
        path = setup.workdir / "progress.png"
        try:
            self._log.sync()
            log = read_log(setup.workdir / "log.jsonl")
            picture.write(path, f"{setup.config.name}, step {step} of {setup.plan.total}", log)
        except OSError as error:
            self._display.say(f"warning: {path} was not written: {error.strerror or error}")
        except ResourceError as error:
            self._display.say(f"warning: {path} was not written: {error.what}")
