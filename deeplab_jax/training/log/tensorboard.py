"""Curves, pictures and fields for TensorBoard, in event files of its own writer; no TensorFlow."""

import io
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from deeplab_jax.config import Config, flatten
from deeplab_jax.config.checks import as_text
from deeplab_jax.training.log.points import Point

# TensorBoard's own switch: its parts take their stub of TensorFlow also where that is installed.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader  # noqa: E402
from tensorboard.compat.proto.event_pb2 import Event  # noqa: E402
from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: E402
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG  # noqa: E402
from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # noqa: E402
from tensorboard.plugins.scalar.summary_v2 import scalar_pb  # noqa: E402
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: E402

_SUFFIX = ".deeplab"  # other files of events in the folder are not ours


class TensorBoard:
    """Event files in a folder, without two values of a name at a step.

    A continued run copies what there is up to its step, as readers of event files differ in what
    they drop.
    """

    def __init__(self, folder: Path, start: int, config: Config):
        """Opens the file as `go_back(start)` leaves it, and writes the fields of `config`."""
        self._folder, self._config = folder, config
        self._writer: EventFileWriter | None = None
        self.go_back(start)

    def add(self, point: Point) -> None:
        """Takes a point."""
        for name, value in point.values.items():
            self._write(point.step, scalar_pb(name, value))

    def show(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """Takes pictures by name."""
        for name, picture in pictures.items():
            file = io.BytesIO()
            picture.save(file, "PNG")
            size = {"width": picture.width, "height": picture.height, "colorspace": 3}
            image = Summary.Image(encoded_image_string=file.getvalue(), **size)
            self._write(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def go_back(self, step: int) -> None:
        """Makes the curves end at `step`: one file holds what stays, another what follows."""
        self.close()
        folder, beside = self._folder, self._folder / ".next"  # a kill leaves one of them whole
        own = [*folder.glob(f"*{_SUFFIX}"), *beside.glob(f"*{_SUFFIX}")]
        kept = [*_until(step, sorted(own))]
        shutil.rmtree(beside, ignore_errors=True)
        if kept:
            writer = EventFileWriter(str(beside), filename_suffix=_SUFFIX)
            for event in kept:
                writer.add_event(event)
            writer.close()
        for path in own:
            path.unlink(missing_ok=True)
        if kept:
            for path in beside.iterdir():
                os.replace(path, folder / path.name)
            beside.rmdir()
        self._writer = EventFileWriter(str(folder), filename_suffix=_SUFFIX)
        self._write(0, hparams_pb(_as_fields(self._config), trial_id=str(folder.parent)))
        self._writer.flush()

    def sync(self) -> None:
        """Hands what was taken to the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, step: int, summary: Any) -> None:
        assert self._writer is not None
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


def _until(step: int, files: list[Path]) -> Iterator[Event]:
    """Yields the events of files until `step`, one for each name and step, without fields."""
    seen = {SESSION_START_INFO_TAG: {0}}
    for path in files:
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if event.step <= step and event.step not in seen.setdefault(value.tag, set()):
                    seen[value.tag].add(event.step)
                    summary = Summary(value=[value])
                    yield Event(wall_time=event.wall_time, step=event.step, summary=summary)


def _as_fields(config: Config) -> dict[str, bool | float | str]:
    values = flatten(config)
    return {k: v if isinstance(v, bool | int | float) else as_text(v) for k, v in values.items()}
