"""Being asked to stop: signals that are remembered until the step ends, and what is said then."""

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
            os.write(2, text)  # print may be at work

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
    """Returns what a run that was stopped by a signal ends with."""
    name = signal.Signals(number).name
    what = f"stopped by {name} and saved at step {step} of {total}"
    return Interrupted("train", what, "repeat the command to go on", 128 + number)
