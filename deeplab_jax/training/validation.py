"""Evaluations of a run while it trains: computed, logged, shown and drawn."""

from collections.abc import Callable

from deeplab_jax.distributed import hosts
from deeplab_jax.errors import ResourceError
from deeplab_jax.evaluation.evaluator import EvalResult, Evaluator, counting_images
from deeplab_jax.evaluation.metrics import mean_in_words, over_classes
from deeplab_jax.inference.protocol import read_protocol
from deeplab_jax.training.log import Display, JsonLog, picture, read_log
from deeplab_jax.training.setup import RunSetup
from deeplab_jax.utils.trees import PyTree


class Validation:
    """Evaluates the validation split of a run by its own protocol."""

    def __init__(self, setup: RunSetup, log: JsonLog, display: Display):
        """Compiles nothing yet."""
        self._setup, self._log, self._display = setup, log, display
        config = setup.config.eval
        protocol = read_protocol(config)
        self._evaluator = Evaluator(setup.model, setup.validation, config.resize_base, protocol)

    def evaluate(
        self,
        step: int,
        variables: PyTree,
        should_stop: Callable[[], bool],
        raw: PyTree | None = None,
    ) -> dict[str, float] | None:
        """Returns what the saved step says of its evaluation; None when asked to stop.

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
        summary = result.summary()
        counts = {
            "num_classes_in_mean": summary["num_classes_in_mean"],
            "num_classes": len(result.class_names),
        }
        scores = {key: summary[key] for key in ("mean_iou", "pixel_accuracy", "iou")}
        both = {} if beside is None else {"mean_iou_raw": beside.summary()["mean_iou"]}
        self._log.write("eval", step, scores | both | counts)
        words = mean_in_words(summary["iou"])
        if beside is not None:
            words += f"; weights as trained {mean_in_words(beside.summary()['iou'])}"
        self._display.say(f"step {step}: validation mean IoU {words}")
        self._display.evaluated(result.mean_iou, over=over_classes(*counts.values()))
        if hosts.is_primary():
            self._draw(step)
        saved = {} if beside is None else {"mean_iou_raw": beside.mean_iou}
        return {"mean_iou": result.mean_iou, **saved, **counts}

    def _result(self, variables: PyTree, should_stop: Callable[[], bool]) -> EvalResult | None:
        with counting_images(self._setup.validation) as count:
            return self._evaluator(variables, should_stop=should_stop, on_image=count)

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
