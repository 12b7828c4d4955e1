"""Wall-clock seconds by what a process does."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class Stopwatch:
    """Seconds of named parts; one runs at a time, so they sum to all time since the start.

    Thread-safe: one thread switches parts, others may read.
    """

    def __init__(
        self,
        parts: Sequence[str],
        seconds: float = 0.0,
        aside: tuple[str, Callable[[], float]] | None = None,
    ):
        """Starts the first part, which already has `seconds`.

        Args:
          parts: all names.
          seconds: time before the start.
          aside: (part, function): seconds that the function counts, from any start, belong to that
            part, and not to the one that runs meanwhile.
        """
        self._aside, self._counted = aside or (parts[0], lambda: 0.0)
        self._seconds = dict.fromkeys(parts, 0.0) | {parts[0]: seconds}
        self._part = parts[0]
        self._lock = threading.Lock()
        self._at, self._before = time.perf_counter(), self._counted()

    def switch(self, part: str) -> str:
        """Ends the part that runs, which is returned, and goes on with another."""
        with self._lock:
            self._settle()
            previous, self._part = self._part, part
        return previous

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Runs another part during the block."""
        previous = self.switch(part)
        try:
            yield
        finally:
            self.switch(previous)

    def read(self) -> dict[str, float]:
        """Returns the seconds of each part until now."""
        with self._lock:
            self._settle()
            return dict(self._seconds)

    def _settle(self) -> None:
        now, counted = time.perf_counter(), self._counted()
        aside = min(max(counted - self._before, 0.0), now - self._at)
        self._seconds[self._aside] += aside
        self._seconds[self._part] += now - self._at - aside
        self._at, self._before = now, counted
