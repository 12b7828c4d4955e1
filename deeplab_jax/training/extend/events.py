"""What callbacks of a run see, and the reasons for which a run ends before its plan does."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from deeplab_jax.checkpoint.description import score
from deeplab_jax.config import Config
from deeplab_jax.distributed import hosts

Evaluations = tuple[tuple[int, dict[str, float]], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """What a callback is called with.

    Attributes:
      kind: "epoch" (an epoch has ended), "evaluation" (one is done), or "stop" (the run ends, and
        what could be saved is saved).
      step: optimiser steps done.
      epoch: epochs done, `step` over the steps of an epoch.
      total: optimiser steps of the whole run.
      values: of an epoch's last step as in `log.jsonl`, such as "loss"; of an evaluation its scores
        as in `evaluation.json`, such as "mean_iou" and "iou" (a list over classes); else empty.
      evaluations: (step, scores) of all evaluations until now, oldest first, also of those before
        the run was continued; scores are "mean_iou", where they are known "loss", "boundary_iou",
        "mean_iou_raw" (with `config.eval.both_weights`) and what `config.checkpoint.best` names,
        and the counts "num_classes_in_mean" and "num_classes".
      reason: of a stop before the plan's end, an error's text among them; else "".
    """

    kind: Literal["epoch", "evaluation", "stop"]
    step: int
    epoch: float
    total: int
    values: Mapping[str, Any]
    evaluations: Evaluations
    reason: str = ""


# Returns None to go on. True or a text, the reason, ends the run once it is evaluated and saved.
Callback = Callable[[Event], bool | str | None]


def early_stop(evaluations: Evaluations, config: Config, steps_per_epoch: int) -> str:
    """Returns why a run ends for `config.train.early_stop`; "" while it goes on.

    It ends at the first evaluation that is so many epochs or more after the best one, the earlier
    of equals. Until a score is finite, epochs count from the run's start.
    """
    patience, name = config.train.early_stop, config.checkpoint.best
    best, at = float("-inf"), 0
    for step, metrics in evaluations:
        if (value := score(metrics, name)) > best:
            best, at = value, step
    if not patience or not evaluations or evaluations[-1][0] - at < patience * steps_per_epoch:
        return ""
    since = f"since step {at}" if at else "yet"
    return f"no better {name} {since}, config.train.early_stop={patience} epochs"


class Watch:
    """The evaluations of a run, and what is done on them: early stopping and callbacks.

    All hosts agree on a stop.

    Attributes:
      evaluations: (step, metrics) of the run's evaluations, oldest first.
      stopped: why the run ends before its plan does; "" while it goes on.
    """

    def __init__(
        self,
        config: Config,
        total: int,
        steps_per_epoch: int,
        callbacks: Sequence[Callback],
        evaluations: Evaluations = (),
        stopped: str = "",
    ):
        self._config, self._total, self._per_epoch = config, total, steps_per_epoch
        self._callbacks, self.evaluations, self.stopped = callbacks, evaluations, stopped

    def is_epoch_told(self, step: int) -> bool:
        """Whether callbacks are to be told of an epoch that ends at `step`."""
        return bool(self._callbacks) and step % self._per_epoch == 0

    def epoch_ended(self, step: int, values: Mapping[str, Any]) -> None:
        """Tells callbacks of an epoch; `values` are those of its last step."""
        self._ask(self._event("epoch", step, values))

    def evaluated(self, step: int, metrics: dict[str, float], scores: Mapping[str, Any]) -> None:
        """Adds an evaluation, and tells callbacks of it.

        Args:
          step: optimiser steps done.
          metrics: what the saved step says of it.
          scores: all scores.
        """
        self.evaluations = (*self.evaluations, (step, metrics))
        reason = early_stop(self.evaluations, self._config, self._per_epoch)
        self.stopped = self.stopped or reason
        self._ask(self._event("evaluation", step, scores))

    def ended(self, step: int, error: Exception | None, say: Callable[[str], None]) -> None:
        """Tells callbacks and the screen that the run ends; answers change nothing.

        A callback that fails after an `error` is warned of.
        """
        event = self._event("stop", step, {})
        event = dataclasses.replace(event, reason=self.stopped if error is None else str(error))
        for callback in self._callbacks:
            try:
                callback(event)
            except Exception as other:
                if error is None:
                    raise
                say(f"warning: a callback failed as the run stopped: {other!r}")
        if error is None:
            told = f"stopped at step {step} of {self._total}: {self.stopped}"
            say(told if self.stopped else f"done: {self._total} steps")

    def go_back(self, step: int) -> None:
        """Forgets the evaluations after `step`."""
        self.evaluations = tuple(found for found in self.evaluations if found[0] <= step)

    def metrics_of(self, step: int) -> dict[str, float] | None:
        """Returns the metrics of a step, None if it was not evaluated."""
        return dict(self.evaluations).get(step)

    def _event(self, kind: Any, step: int, values: Mapping[str, Any]) -> Event:
        return Event(
            kind=kind, step=step, epoch=step / self._per_epoch, total=self._total, values=values,
            evaluations=self.evaluations,
        )  # fmt: skip

    def _ask(self, event: Event) -> None:
        if not self._callbacks:
            return
        reasons: list[str] = []
        with hosts.sync_errors():
            reasons = [_reason(callback, callback(event)) for callback in self._callbacks]
        told = hosts.all_gather(next(filter(None, reasons), ""))
        self.stopped = self.stopped or next(filter(None, told), "")


def _reason(callback: Callback, answer: bool | str | None) -> str:
    """Returns the reason of an answer, "" to go on."""
    name = getattr(callback, "__qualname__", type(callback).__qualname__)
    if answer is not None and not isinstance(answer, bool | str):
        kind = type(answer).__name__
        raise TypeError(f"`callbacks`: {name} must return None, True or a text, got {kind}.")
    return f"{name} asked to stop" if answer is True else str(answer or "")
