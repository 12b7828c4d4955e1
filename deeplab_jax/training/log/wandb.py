"""Curves, pictures and fields in a project of Weights & Biases."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from deeplab_jax.config import Config, flatten
from deeplab_jax.errors import ConfigError, clip
from deeplab_jax.training.log.points import Point
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.places import is_address

FILE = "wandb.json"  # {"id": of the run there, "project": its project, "last": see `_place`}


class Wandb:
    """A run of Weights & Biases, which a continued run goes on with.

    Steps that are computed again, after a kill, have the same values, and are not sent again. A
    run that goes back behind steps that others may be computed for begins another run there, to
    which the points that stay are sent first.

    `WANDB_MODE=offline` keeps all on the disk, for `wandb sync`. An error in sending ends no run.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        config: Config,
        points: Sequence[Point],
        is_replaced: bool,
        say: Callable[[str], None],
    ):
        """Begins, or goes on with, a run there.

        Args:
          workdir: the work directory.
          start: optimiser steps done.
          config: the run's configuration.
          points: those of the log until now, also after `start`.
          is_replaced: whether the user goes back behind steps that were saved.
          say: prints a line.

        Raises:
          ConfigError: it cannot begin, as without a key.
        """
        self._workdir, self._config, self._say = workdir, config, say
        self._points: list[Point] = [*points]
        self._run: Any = None  # None after an error, too
        kept = _read(workdir / FILE)
        if kept.get("project") != config.log.wandb or is_replaced:
            self._begin([point for point in points if point.step <= start])
            return
        self._last = max([kept["last"], *map(_place, points)])
        self._open(str(kept["id"]))

    def add(self, point: Point) -> None:
        """Takes a point."""
        self._points.append(point)
        self._send(point, point.values)

    def show(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """Takes pictures by name."""
        point = Point(step, True, {})
        if self._last == _place(point):  # its scores were sent by this process
            images = {name: wandb.Image(picture) for name, picture in pictures.items()}
            self._attempt(lambda run: run.log({"step": step, **images}, step=_place(point)))

    def go_back(self, step: int) -> None:
        """Begins another run there, whose curves end at `step`."""
        self.close()
        self._begin([point for point in self._points if point.step <= step])

    def sync(self) -> None:
        """Notes what was sent."""
        content = {"id": self._id, "project": self._config.log.wandb, "last": self._last}
        with atomic_write(self._workdir / FILE) as file:
            file.write(f"{json.dumps(content)}\n".encode())

    def close(self) -> None:
        """Ends the run there."""
        if self._run is not None:
            self._attempt(lambda run: run.finish())
            self._run = None

    def _begin(self, points: list[Point]) -> None:
        self._last, self._points = -1, points
        self._open(secrets.token_hex(4))
        for point in points:
            self._send(point, point.values)

    def _open(self, name: str) -> None:
        self._id = name
        place = None if is_address(self._workdir) else str(self._workdir)
        settings = wandb.Settings(silent=True, console="off")
        try:
            run = wandb.init(
                project=self._config.log.wandb, id=name, name=self._config.name, resume="allow",
                dir=place, config=flatten(self._config), settings=settings,
            )  # fmt: skip
            run.define_metric("step", hidden=True)
            run.define_metric("*", step_metric="step")
        except Exception as error:
            what = f"cannot begin: {clip(str(error), 200)}"
            fix = "wandb login; or send nothing: WANDB_MODE=offline before the command"
            raise ConfigError("config.log.wandb", what, fix) from error
        self._run = run
        is_offline = run.settings.mode == "offline"
        where = f"to send it: wandb sync {Path(run.dir).parent}" if is_offline else run.url
        self._say(f"Weights & Biases: run {name} of {self._config.log.wandb}, {where}")
        self.sync()

    def _send(self, point: Point, values: Mapping[str, Any]) -> None:
        if (place := _place(point)) > self._last:
            self._last = place
            self._attempt(lambda run: run.log({"step": point.step, **values}, step=place))

    def _attempt(self, action: Callable[[Any], Any]) -> None:
        """Does something with the run; after an error nothing more is sent."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._run = None
            self._say(f"warning: Weights & Biases has failed, and gets no more: {clip(str(error))}")


def _place(point: Point) -> int:
    """Returns a point's number there, which must grow: an evaluation follows its training step."""
    return 2 * point.step + point.is_evaluation


def _read(path: Path) -> dict[str, Any]:
    """Returns what is noted of the run there; nothing of a file that is not ours."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text("utf-8"))
        return {"id": kept["id"], "project": kept["project"], "last": int(kept["last"])}
    return {}
