"""Signals to stop a run, remembered until the step under way ends."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from deeplab_jax.errors import Interrupted


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list that receives the first SIGINT or SIGTERM; a second one acts at once."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other, handler in previous.items():
            signal.signal(other, handler)
        with suppress(BrokenPipeError):
            text = b"\nstopping after this step; again to quit at once\n"
            os.write(2, text)  # not print, which the signal may have interrupted

    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            previous[number] = signal.signal(number, remember) or signal.SIG_DFL
    except ValueError:  # not the main thread: the caller handles signals
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupted(number: int, step: int, total: int) -> Interrupted:
    """Returns the error with which a run stopped by a signal ends."""
    name = signal.Signals(number).name
    what = f"stopped by {name} and saved at step {step} of {total}"
    return Interrupted("train", what, "repeat the command to go on", 128 + number)
