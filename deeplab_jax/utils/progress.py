"""Progress of long work on the screen, and closed pipes.

A `Screen` shows the innermost work under way. On a terminal that is a live area, redrawn four times
a second so that clocks run; elsewhere a plain line now and then.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

PLAIN_SECONDS = 10.0  # between lines where the output is not a terminal
_BAR = 10  # characters
_GAP = "  "


class View(NamedTuple):
    """What a screen shows of some work.

    Attributes:
      parts: texts such as "step 1/10"; a line breaks between parts alone.
      share: done of all, in [0, 1]; drawn as a bar before the parts. None draws no bar.
    """

    parts: Sequence[str]
    share: float | None = None


class Screen:
    """Shows the work under way on one stream, while it is open.

    Attributes:
      stream: where it is shown.
      is_live: whether it is open, and on a terminal.
    """

    def __init__(
        self,
        view: Callable[[], View] | None = None,
        stream: TextIO | None = None,
        on_gone: Callable[[], None] | None = None,
        is_transient: bool = False,
    ):
        """Shows nothing yet.

        Args:
          view: returns what is shown while no other work is.
          stream: standard output by default.
          on_gone: called when the reader of the output has gone, as in `... | head`; by default
            BrokenPipeError is raised.
          is_transient: whether the live area disappears at the end.
        """
        self.stream = _unwrapped(stream)
        self._on_gone = on_gone
        self._is_transient = is_transient
        self._views = [view or (lambda: View(()))]
        self._live: Any = None

    @property
    def is_live(self) -> bool:
        """Whether the screen is open, and on a terminal."""
        return self._live is not None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Shows this screen's work while the block runs."""
        _screens.append(self)
        try:
            if not self.stream.isatty():
                yield
                return
            from rich.console import Console
            from rich.live import Live

            # What others print appears above the live area; a file keeps getting its own.
            with Live(
                self,
                console=Console(file=self.stream),
                transient=self._is_transient,
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            ) as self._live:
                yield
        finally:
            self._live = None
            _screens.remove(self)

    @contextmanager
    def over(self, view: Callable[[], View]) -> Iterator[None]:
        """Shows other work instead while the block runs."""
        self._views.append(view)
        try:
            yield
        finally:
            self._views.remove(view)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
            return
        try:
            print(text, file=self.stream, flush=True)
        except BrokenPipeError:
            if self._on_gone is None:
                raise
            discard(self.stream)
            self._on_gone()

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Draws the live area."""
        from rich.text import Text

        view = self._views[-1]()
        done = round((view.share or 0) * _BAR)
        full, rest = "#-" if options.ascii_only else "━┄"
        bar = [] if view.share is None else [full * done + rest * (_BAR - done)]
        text = Text("\n".join(lay_out([*bar, *view.parts], options.max_width)), no_wrap=True)
        text.stylize("bar.complete", 0, done)
        yield text


_screens: list[Screen] = []  # open ones, the innermost last


def _unwrapped(stream: TextIO | None) -> TextIO:
    """Returns a stream, by default standard output, without what a live area wraps it in."""
    stream = sys.stdout if stream is None else stream
    return getattr(stream, "rich_proxied_file", stream)


def lay_out(parts: Sequence[str], width: int) -> list[str]:
    """Returns lines of at most `width` characters, broken between parts; one part may be longer."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(_GAP) + len(part) <= width:
            lines[-1] += _GAP + part
        else:
            lines.append(part)
    return lines


def say(text: str) -> None:
    """Prints a line that stays on the innermost open screen; without one, nothing."""
    if _screens:
        _screens[-1].say(text)


@contextmanager
def clock(text: str, note: str = "", is_told: bool = False) -> Iterator[None]:
    """Shows on the innermost open screen for how long the block has been running.

    Without an open screen nothing is shown. Where the screen is not a terminal, a line comes every
    ten seconds.

    Args:
      text: what is done, such as "compiling".
      note: follows the time.
      is_told: whether the first line comes at the start of the block, not after ten seconds.
    """
    if not _screens:
        yield
        return
    screen, began = _screens[-1], time.perf_counter()

    def line() -> str:
        return f"{text} {duration(time.perf_counter() - began)}" + (note and f", {note}")

    with screen.over(lambda: View([line()])), _ticking(screen, line):
        if is_told and not screen.is_live:
            screen.say(line())
        yield


@contextmanager
def _ticking(screen: Screen, line: Callable[[], str]) -> Iterator[None]:
    """Prints a line now and then while the block runs, if the screen is not a terminal."""
    if screen.is_live:
        yield
        return
    is_over = threading.Event()

    def tick() -> None:
        while not is_over.wait(PLAIN_SECONDS):
            try:
                screen.say(line())
            except OSError:  # a closed pipe, or a full disk under `... > log`
                return  # the main thread meets it at its own next line

    thread = threading.Thread(target=tick, name="clock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextmanager
def counting(
    total: int, what: str, stream: TextIO | None = None, unit: str = ""
) -> Iterator[Callable[[], None]]:
    """Shows how many of `total` items are done: a bar on a terminal, else a line now and then.

    Inside an open screen of the same stream it takes that screen's place while the block runs.

    Args:
      total: number of items.
      what: text after the count, such as "images evaluated".
      stream: standard output by default. A bar on another stream disappears at the end.
      unit: such as "images"; the mean rate follows the count, "12 images/s".

    Yields:
      A function to call after each item.
    """
    done, began = 0, time.perf_counter()
    printed = began

    def text() -> str:
        rate = f", {done / (time.perf_counter() - began):.0f} {unit}/s" if unit else ""
        return f"{done}/{total} {what}{rate}"

    def view() -> View:
        left = (time.perf_counter() - began) / max(done, 1) * (total - done)
        parts = [text(), f"left {duration(left)}"] if 0 < done < total else [text()]
        return View(parts, done / max(total, 1))

    stream = _unwrapped(stream)
    outer = _screens[-1] if _screens and _screens[-1].stream is stream else None
    screen = outer or Screen(view, stream, is_transient=stream is not _unwrapped(None))

    def count() -> None:
        nonlocal done, printed
        done, now = done + 1, time.perf_counter()
        if not screen.is_live and now - printed >= PLAIN_SECONDS:
            printed = now
            screen.say(text())

    with screen.over(view) if outer else screen.open():
        yield count


def duration(seconds: float) -> str:
    """Returns a time such as "1:05", or "2:00:00" from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def discard(stream: TextIO) -> None:
    """Redirects a standard stream, whose reader has gone, to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
