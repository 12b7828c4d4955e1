"""Progress of long work on the terminal, and closed pipes."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

PLAIN_SECONDS = 10.0  # between lines where the output is not a terminal


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Shows how many of `total` are done: a bar on a terminal, else a line now and then.

    Yields:
      What to call after each one.
    """
    if sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        with Progress(BarColumn(), MofNCompleteColumn(), what, TimeRemainingColumn()) as bar:
            task = bar.add_task("", total=total)
            yield lambda: bar.advance(task)
        return
    done, printed = 0, time.perf_counter()

    def count() -> None:
        nonlocal done, printed
        done += 1
        if time.perf_counter() - printed >= PLAIN_SECONDS:
            printed = time.perf_counter()
            print(f"{done}/{total} {what}", flush=True)

    yield count


def discard(stream: TextIO) -> None:
    """Sends a standard stream nowhere from here on, since its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
