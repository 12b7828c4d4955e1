"""Where a run's curves go beside `log.jsonl`: `metrics.csv`, TensorBoard, Weights & Biases."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from deeplab_jax.config import Config
from deeplab_jax.config.schema import LogConfig
from deeplab_jax.errors import ConfigError, ResourceError
from deeplab_jax.training.log.points import (
    TABLE,
    Point,
    of_evaluation,
    of_training,
    points_of,
    write_table,
)
from deeplab_jax.utils.places import is_address


class Sink(Protocol):
    """What draws curves. Points come in the order of steps, training before its evaluation."""

    def add(self, point: Point) -> None:
        """Takes a point."""
        ...

    def show(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """Takes pictures by name."""
        ...

    def go_back(self, step: int) -> None:
        """Makes the curves end at `step`."""
        ...

    def sync(self) -> None:
        """Hands what was taken to the disk."""
        ...

    def close(self) -> None:
        """Ends the curves of this process."""
        ...


def check_curves(config: LogConfig, workdir: Path) -> None:
    """Refuses loggers that cannot be used.

    Raises:
      ResourceError: a package is not installed.
      ConfigError: TensorBoard's files would lie in a bucket.
    """
    for name in ("tensorboard", "wandb"):
        if getattr(config, name) and not _is_installed(name):
            what = f"needs the package {name}, which is not installed"
            raise ResourceError(f"config.log.{name}", what, f"pip install 'deeplab_jax[{name}]'")
    if config.tensorboard and is_address(workdir):
        what = f"cannot be written to a bucket ({workdir})"
        fix = "leave it out, or choose a folder as --workdir; metrics.csv is in the bucket, too"
        raise ConfigError("config.log.tensorboard", what, fix)


def _is_installed(name: str) -> bool:
    """Tells whether there is a package; a mere folder of its name, as wandb makes, is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


class Curves:
    """The curves of a run. Without a log, as on hosts other than the first, nothing is drawn.

    Attributes:
      has_pictures: whether pictures are taken.
    """

    def __init__(
        self,
        config: Config,
        log_path: Path | None,
        class_names: Sequence[str],
        start: int,
        is_replaced: bool,
        say: Callable[[str], None],
    ):
        """Opens the loggers as `go_back` leaves them; the log is not yet cut.

        Args:
          config: the run's configuration.
          log_path: `log.jsonl`, or None.
          class_names: C names.
          start: optimiser steps done.
          is_replaced: whether the user goes back behind steps that were saved.
          say: prints a line.
        """
        self._log_path, self._names, self._say = log_path, class_names, say
        self._sinks: list[Sink] = []
        if log_path is not None:
            points = [*points_of(log_path, class_names)]
            if config.log.tensorboard:
                from deeplab_jax.training.log.tensorboard import TensorBoard

                self._sinks.append(TensorBoard(log_path.parent / "tensorboard", start, config))
            if config.log.wandb:
                from deeplab_jax.training.log.wandb import Wandb

                self._sinks.append(Wandb(log_path.parent, start, config, points, is_replaced, say))
        self.has_pictures = bool(self._sinks)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Takes the values of a logged training step."""
        for sink in self._sinks:
            sink.add(Point(step, False, of_training(values)))

    def evaluated(
        self, step: int, scores: Mapping[str, Any], pictures: Mapping[str, Image.Image]
    ) -> None:
        """Takes the scores of an evaluation, as in `evaluation.json`, and pictures by name."""
        for sink in self._sinks:
            sink.add(Point(step, True, of_evaluation(scores, self._names)))
            sink.show(step, pictures)

    def go_back(self, step: int) -> None:
        """Makes all curves end at `step`."""
        for sink in self._sinks:
            sink.go_back(step)

    def sync(self) -> None:
        """Writes `metrics.csv`, and hands the rest to the disk."""
        for sink in self._sinks:
            sink.sync()
        if self._log_path is not None:
            path = self._log_path.with_name(TABLE)
            try:
                write_table(path, points_of(self._log_path, self._names))
            except OSError as error:
                self._say(f"warning: {path} was not written: {error.strerror or error}")
            except ResourceError as error:
                self._say(f"warning: {path} was not written: {error.what}")

    def close(self) -> None:
        """Ends the curves of this process."""
        self.sync()
        for sink in self._sinks:
            sink.close()
