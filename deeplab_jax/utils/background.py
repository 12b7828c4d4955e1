"""Work in C++, which no signal interrupts, done by a thread so that its caller can leave it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")

_LOOK = 0.2  # seconds between looks whether to stop
_left: list[threading.Thread] = []


class Abandoned(Exception):
    """The caller was asked to stop; the work may go on without it."""


def unless(should_stop: Callable[[], bool], work: Callable[[], T]) -> T:
    """Returns `work()`, done by another thread.

    Raises:
      Abandoned: `should_stop()` became true. So does any exception of the main thread, such as
        KeyboardInterrupt, leave the work.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="abandonable", daemon=True)
    thread.start()
    try:
        while not wait([future], _LOOK).done:
            if should_stop():
                raise Abandoned
    finally:
        if not future.done():
            _left.append(thread)
    return future.result()


def is_left() -> bool:
    """Tells whether abandoned work goes on: the process must not wait for it at its end."""
    return any(thread.is_alive() for thread in _left)
