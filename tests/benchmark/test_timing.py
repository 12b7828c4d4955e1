import time

import jax
import jax.numpy as jnp
import pytest

from deeplab_jax.benchmark import machine, timing


def test_summary_and_ratio_are_medians_over_rounds():
    ours, theirs = [1.0, 2.0, 6.0], [2.0, 1.0, 4.0]
    assert timing.summary(ours, images=8) == {
        "seconds": ours, "median": 2.0, "low": 1.0, "high": 6.0, "images_per_second": 4.0
    }  # fmt: skip
    assert timing.ratio(ours, theirs) == {"median": 1.5, "low": 0.5, "high": 2.0}


def test_sides_take_turns_with_equal_numbers_of_calls():
    calls = []
    sides = {name: lambda count, name=name: calls.append((name, count)) for name in "abc"}
    times = timing.alternate(sides, rounds=3, least=0)
    assert [name for name, _ in calls] == list("abcbcacab")
    assert {count for _, count in calls} == {1}
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys("abc", 3)

    calls.clear()
    timing.alternate(sides, rounds=1, least=1e-4)
    assert calls[0] == ("a", 1)  # how long a call takes
    assert len({count for _, count in calls[1:]}) == 1
    assert calls[1][1] > 1


def test_the_first_result_is_cold_and_then_cached(compile_once):
    for source in ("cold", "cached"):
        jax.clear_caches()
        with timing.first() as first:
            jax.jit(lambda x: x * 3.25 + 1)(jnp.arange(7.0)).block_until_ready()
        assert first.as_json()["compile"] == source
        assert first.seconds > 0


def test_growth_is_that_of_the_call():
    kept = []
    grown = machine.growth(lambda: kept.append(bytearray(b"x" * (64 << 20))))
    if grown is None:
        pytest.skip("the system does not tell")
    assert 48 << 20 < grown < 256 << 20


def test_the_share_of_other_programs_is_one():
    others, end = machine.Others(), time.perf_counter() + 0.2
    while time.perf_counter() < end:
        pass
    share = others.share()
    assert share is None or 0 <= share <= 1


def test_the_ceiling_is_a_speed():
    most = machine.ceiling("bfloat16")
    assert 1e8 < most["flops_per_second"] < 1e16
    assert most["by"].startswith("JAX, ")
