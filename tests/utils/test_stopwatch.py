from contextlib import suppress

import pytest

from deeplab_jax.utils import compile_cache, stopwatch
from deeplab_jax.utils.stopwatch import Stopwatch


class Clock:
    now = 100.0

    def perf_counter(self):
        return self.now


def test_parts_sum_to_all_time(monkeypatch):
    clock, compiled = Clock(), [7.0]
    monkeypatch.setattr(stopwatch, "time", clock)
    watch = Stopwatch(("start", "steps", "compile"), 3.0, ("compile", lambda: compiled[0]))
    clock.now += 2
    assert watch.switch("steps") == "start"
    with watch.during("start"):
        clock.now += 4
        compiled[0] += 3  # of these 4 s
    clock.now += 8
    assert watch.read() == {"start": 3 + 2 + 1, "steps": 8, "compile": 3}
    clock.now += 1
    assert sum(watch.read().values()) == pytest.approx(3 + clock.now - 100)


def test_block_that_fails_ends_its_part(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    watch = Stopwatch(("a", "b"))
    with suppress(ValueError), watch.during("b"):
        clock.now += 1
        raise ValueError
    clock.now += 1
    assert watch.read() == {"a": 1, "b": 1}


def test_time_of_compiling_counts_also_while_it_lasts(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(compile_cache, "time", clock)
    before = compile_cache.seconds()
    with compile_cache.compiling("a network"):
        clock.now += 2
        assert compile_cache.seconds() == before + 2
    clock.now += 5
    assert compile_cache.seconds() == before + 2
