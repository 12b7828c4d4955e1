"""Progress of long work on the terminal, and closed pipes."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

PLAIN_SECONDS = 10.0  # between lines where the output is not a terminal


@contextmanager
def counting(
    total: int, what: str, stream: TextIO | None = None, unit: str = ""
) -> Iterator[Callable[[], None]]:
    """Shows how many of `total` items are done: a bar on a terminal, else a line now and then.

    Args:
      total: number of items.
      what: text after the count, such as "images evaluated".
      stream: output; standard output by default. A bar on another stream disappears at the end.
      unit: such as "images"; lines then end with the mean rate, "12 images/s".

    Yields:
      A function to call after each item.
    """
    stream = stream or sys.stdout
    if stream.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = BarColumn(), MofNCompleteColumn(), what, TimeRemainingColumn()
        console, is_transient = Console(file=stream), stream is not sys.stdout
        with Progress(*columns, console=console, transient=is_transient) as bar:
            task = bar.add_task("", total=total)
            yield lambda: bar.advance(task)
        return
    done, began = 0, time.perf_counter()
    printed = began

    def count() -> None:
        nonlocal done, printed
        done, now = done + 1, time.perf_counter()
        if now - printed >= PLAIN_SECONDS:
            printed = now
            rate = f", {done / (now - began):.0f} {unit}/s" if unit else ""
            print(f"{done}/{total} {what}{rate}", file=stream, flush=True)

    yield count


def discard(stream: TextIO) -> None:
    """Redirects a standard stream, whose reader has gone, to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
