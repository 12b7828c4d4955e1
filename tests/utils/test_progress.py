import errno
import io
import re
import threading
import time
from types import SimpleNamespace

import pytest

from deeplab_jax.utils import progress


def test_count_is_told_now_and_then_or_by_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0)
    with progress.counting(2, "images") as count:
        count()
        count()
    assert capsys.readouterr().out == "1/2 images\n2/2 images\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    with progress.counting(2, "images") as count:
        count()
    assert "1/2" in capsys.readouterr().out


def test_count_goes_to_another_stream_with_its_rate(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0)
    stream = io.StringIO()
    with progress.counting(2, "read", stream, unit="images") as count:
        count()
    assert capsys.readouterr().out == ""
    text = stream.getvalue()
    assert text.startswith("1/2 read, ")
    assert text.endswith(" images/s\n")
    stream.isatty = lambda: True
    with progress.counting(2, "read", stream) as count:
        count()
    assert "1/2" in stream.getvalue()[len(text) :]


def test_clock_is_silent_without_a_screen(capsys):
    with progress.clock("compiling", is_told=True):
        assert threading.current_thread() in threading.enumerate()
    assert capsys.readouterr().out == ""


def test_clock_runs_in_plain_lines_and_leaves_no_thread(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.05)
    with progress.Screen().open():
        with progress.clock("compiling", "once per shape", is_told=True):
            time.sleep(0.3)
        with pytest.raises(KeyError), progress.clock("failing"):
            raise KeyError
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    assert all(re.fullmatch(r"compiling 0:0\d, once per shape", line) for line in lines)
    assert not [thread for thread in threading.enumerate() if thread.name == "clock"]


def test_clock_and_count_run_on_a_terminal(terminal, monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now))
    with terminal(80) as output:
        screen = progress.Screen()
        with screen.open(), progress.counting(4, "images") as count:
            count()
            with progress.clock("compiling", "once per shape"):
                screen.say("a line")  # redraws what is below
                now += 1.3
                screen.say("a line")
            count()
            screen.say("a line")
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", output())
    assert "compiling 0:00, once per shape" in text
    assert "compiling 0:01, once per shape" in text
    assert "━━━━━┄┄┄┄┄  2/4 images  left 0:01" in text


def test_count_takes_the_place_of_a_screen_of_its_stream_alone(terminal, capsys, monkeypatch):
    with terminal(80) as output:
        screen = progress.Screen(lambda: progress.View(["the run"]))
        other = io.StringIO()
        with screen.open():
            with progress.counting(2, "images"):
                screen.say("a line")
            monkeypatch.setattr(progress, "PLAIN_SECONDS", 0)
            with progress.counting(2, "read", other) as count:
                count()
    text = output()
    assert "0/2 images" in text
    assert "read" not in text
    assert other.getvalue() == "1/2 read\n"


class Closed(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


def test_reader_that_has_gone_is_told_or_raised(monkeypatch):
    monkeypatch.setattr(progress, "discard", lambda stream: None)
    gone = []
    closed = Closed(BrokenPipeError())
    progress.Screen(stream=closed, on_gone=lambda: gone.append(1)).say("x")
    assert gone == [1]
    with pytest.raises(BrokenPipeError):
        progress.Screen(stream=closed).say("x")


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "no space")])
def test_thread_that_cannot_print_ends_quietly(monkeypatch, error):
    failed = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.01)
    with progress.Screen(stream=Closed(error)).open(), progress.clock("compiling"):
        end = time.monotonic() + 10
        while any(thread.name == "clock" for thread in threading.enumerate()):
            assert time.monotonic() < end
            time.sleep(0.01)
    assert not failed


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36061, "10:01:01")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_lines_break_between_parts_alone():
    assert progress.lay_out(["ab", "cd", "efghijk", "l"], 6) == ["ab  cd", "efghijk", "l"]
    assert progress.lay_out([], 6) == []
