"""Runs with a step that is not finite, or a spike: left out, stopped, killed and continued."""

import json
import os
import signal

import jax.numpy as jnp
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.errors import ResourceError
from deeplab_jax.training import loop

pytestmark = pytest.mark.process("trains several times; the parts have tests of their own")

ROLLBACK = "--config.train.on_nonfinite=rollback"
SPIKES = "--config.train.spike_factor=9"  # a tiny run's losses stay far below
KILLED = 5  # exit code of the error that stands for a kill: nothing is saved


def nan_at(*steps):
    """Returns a fault by which these steps leave weights that are not finite."""

    def fault(step, state, metrics):
        if step not in steps:
            return state, metrics
        kernel = state["params"]["classifier"]["kernel"]
        params = state["params"] | {
            "classifier": state["params"]["classifier"] | {"kernel": kernel * jnp.nan}
        }
        return state | {"params": params}, metrics | {"is_finite": jnp.array(False)}

    return fault


def spike_at(*steps):
    """Returns a fault by which these steps tell a loss 100 times too large."""

    def fault(step, state, metrics):
        return state, metrics | {"loss": metrics["loss"] * (100 if step in steps else 1)}

    return fault


@pytest.fixture
def train(call, tiny, tmp_path, monkeypatch):
    """Returns train(workdir, fault, *options, at=()) -> Outcome of the run in `tmp_path/workdir`.

    `at` holds (n, what happens at the n-th step that is computed) of this process.
    """
    make = loop.make_train_step

    def train(workdir, fault, *options, at=()):
        computed = []

        def make_spied(*args):
            inner = make(*args)

            def train_step(state, *batch):
                step = int(state["step"]) + 1
                computed.append(step)
                for number, event in at:
                    if len(computed) == number:
                        event()
                return fault(step, *inner(state, *batch))

            return train_step

        monkeypatch.setattr(loop, "make_train_step", make_spied)
        outcome = call(*tiny, "--workdir", tmp_path / workdir, *options)
        train.computed = computed
        return outcome

    return train


def log_of(workdir):
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    clock = ("images_per_second", "data_wait")
    kept = [line for line in lines if line["event"] != "time"]
    return [{key: line[key] for key in line if key not in clock} for line in kept]


def rollbacks(workdir):
    return [(k["step"], k["to"]) for k in log_of(workdir) if k["event"] == "rollback"]


def kill():
    raise ResourceError("here", "was killed", "repeat it")


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


# (what is wrong, steps left out with the step gone back to, steps computed; what interrupts another
# such run at the first step that is repeated). Saves are due at 3, 6, 8, 9, 12.
FAULTS = {
    "before any save": (nan_at(2), [(2, 0)], [1, 2, 3, 1, *range(3, 15)], kill),
    "twice from one save": (
        nan_at(4, 5), [(4, 3), (5, 3)], [1, 2, 3, 4, 5, 5, 6, *range(6, 15)], stop
    ),
    "the last step": (nan_at(14), [(14, 12)], [*range(1, 15), 13], kill),
    "a spike": (spike_at(11), [(11, 9)], [*range(1, 13), 10, 12, 13, 14], stop),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("before any save", marks=pytest.mark.slow("as the others")),
        pytest.param("twice from one save", marks=pytest.mark.slow("as the others")),
        "the last step",
        pytest.param("a spike", marks=pytest.mark.slow("as the others")),
    ],
)
def test_bad_batch_is_left_out_and_a_continued_run_ends_the_same(name, train, tmp_path):
    fault, expected, computed, event = FAULTS[name]
    got = train("whole", fault, ROLLBACK, SPIKES)
    assert got.code == 0, got.err
    assert train.computed == computed
    whole = log_of(tmp_path / "whole")
    assert rollbacks(tmp_path / "whole") == expected
    step, back = expected[0]
    line = f"back to step {back}, to leave that batch out (1 of at most 3)"
    assert [s for s in got.out.splitlines() if f"warning: step {step}" in s and line in s]
    logged = [entry["step"] for entry in whole if entry["event"] == "train"]
    assert logged == [s for s in range(1, 15) if s not in dict(expected)]
    rates = [entry["lr"] for entry in whole if entry["event"] == "train"]
    assert len(set(rates)) == len(rates)  # by numbers of steps
    info = checkpoint.read_info(tmp_path / "whole")
    assert info.left_out == tuple(dict(expected))

    again = next(n for n, s in enumerate(computed, 1) if s <= max(computed[: n - 1], default=0))
    got = train("parted", fault, ROLLBACK, SPIKES, at=[(again, event)])
    assert got.code == {kill: KILLED, stop: 143}[event], got.err
    assert train("parted", fault, ROLLBACK, SPIKES).code == 0
    assert log_of(tmp_path / "parted") == whole


def test_run_stops_once_too_many_batches_are_bad(train, tmp_path):
    options = ROLLBACK, "--config.train.max_rollbacks=2"
    for _ in range(2):  # a repetition stops the same
        code, _, error = train("run", nan_at(*range(4, 15)), *options)
        assert code == 6
        assert error.startswith(f"error: {tmp_path}/run: step 6 is not finite: loss ")
        assert "first array params/classifier/kernel" in error
        assert "2 batches were left out before; the last saved step, 3, is kept" in error
        assert error.count("\n") == 1
    assert "follows the restored step 3, whose checkpoint may be damaged" in error
    # Another decision continues the same run.
    assert train("run", nan_at(4), *options, "--config.train.max_rollbacks=3").code == 0


def test_spike_is_warned_of_and_changes_nothing(train, finished, tmp_path):
    got = train("run", spike_at(11), SPIKES, at=[(9, stop)])
    assert got.code == 143
    got = train("run", spike_at(11), SPIKES)
    assert got.code == 0
    warned = [line for line in got.out.splitlines() if line.startswith("warning: step 11: loss ")]
    assert len(warned) == 1
    assert "is over 9 x " in warned[0]
    assert "the median of 10 before, images " in warned[0]
    spikes = [entry for entry in log_of(tmp_path / "run") if entry["event"] == "spike"]
    assert [entry["step"] for entry in spikes] == [11]
    ends = [log_of(workdir)[-1]["params_sha256"] for workdir in (finished, tmp_path / "run")]
    assert ends[0] == ends[1]
