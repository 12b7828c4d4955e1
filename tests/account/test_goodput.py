import pytest

from deeplab_jax.account import text
from deeplab_jax.account.goodput import read_account

PARTS = {  # of the run that was killed twice, see conftest.py
    "steps": 50 + 60 + 60 + 30,
    "input wait": 5 + 5 + 10 + 5,
    "compile": 20 + 10 + 6 + 2,
    "start-up": 10 + 5 + 4 + 3,
    "evaluation": 10 + 15 + 15 + 7,
    "saving": 5 + 5 + 5 + 3,
    # After the saves of steps 10 and 20: input wait, steps, evaluation, saving.
    "lost work": (5 + 45) + (6 + 89 + 15 + 10),
    "stopped": (50 - 1.5) + (80 - 2.2),
    # A hundredth of the killed processes' lives of 150 s and 220 s; the sleep.
    "unknown": 1.5 + 2.2 + 4,
}


def test_parts_of_a_run_that_was_killed_twice(killed_twice):
    account = read_account(killed_twice)
    assert account.seconds == pytest.approx(PARTS)
    # First start to last line, and the 14 s that the clock went back.
    assert account.wall == pytest.approx(1640 - 1000 + 14)
    assert (account.set_back, account.lost_steps) == (14, 5 + 12)
    assert account.images == 40 * 4
    assert account.images_per_second() == pytest.approx((160 / 654, 160 / 225))


def test_account_in_words(killed_twice):
    lines = text.render(read_account(killed_twice), 0.25, 2e12)
    assert lines[0] == "steps               3:20   30.6 %"
    assert lines[6] == "lost work           2:50   26.0 %  17 steps computed again after a kill"
    assert lines[9] == "wall time          10:54  100.0 %"
    assert lines[11:] == [
        "steps 0 to 40 in 4 processes, 2 of them killed",
        "160 images: 0.24 a second of wall time, 0.71 a second of steps and input wait",
        "model FLOP utilisation 25.00 % of 2 TFLOP/s a device, over steps and input wait",
        "the clock went back by 14 s: as much may be missing in stopped",
    ]


START = ("start", 104, 8, (4, 0, 0, 0, 0, 0), 100)


@pytest.mark.parametrize(
    ("entries", "parts", "remark"),
    [
        # Older processes left no times: the account begins where they stopped. It still runs.
        ([START, ("run", 110, 9, (4, 2, 1, 3, 0, 0))], {"steps": 3, "unknown": 0}, "first 8 steps"),
        ([START, ("run", 110, 9, (4, 2, 1, 3, 0, 0))], {"stopped": 0}, "still runs or was killed"),
        # No line tells of the save of step 12: a third of the way from step 10 to 16.
        (
            [START, ("run", 200, 10, (4, 0, 3, 93, 0, 0)), ("run", 300, 16, (4, 0, 9, 187, 0, 0)),
             ("start", 310, 12, (1, 0, 0, 0, 0, 0), 309)],
            {"input wait": 5, "steps": 93 + 94 / 3, "lost work": 4 + 94 * 2 / 3,
             "unknown": 2, "stopped": 7},
            "",
        ),
        # Killed in the step after the save: what it did since is lost.
        (
            [START, ("saved", 200, 10, (4, 0, 3, 92, 0, 1)), ("run", 210, 10, (4, 0, 4, 101, 0, 1)),
             ("start", 221, 10, (1, 0, 0, 0, 0, 0), 220)],
            {"steps": 92, "lost work": 1 + 9},
            "",
        ),
        # The clock goes back while a process runs: its own clock counts.
        ([START, ("stop", 90, 10, (4, 0, 0, 16, 0, 0))], {"steps": 16, "unknown": 0}, "by 29 s"),
        # Step 8 itself could not be restored: everything since is lost but what is not repeated.
        (
            [START, ("stop", 120, 10, (4, 6, 1, 9, 0, 0)),
             ("start", 121, 4, (1, 0, 0, 0, 0, 0), 120)],
            {"compile": 6, "start-up": 5, "lost work": 10, "steps": 0, "stopped": 0},
            "",
        ),
    ],
)  # fmt: skip
def test_edges_of_the_account(write_log, entries, parts, remark):
    account = read_account(write_log(entries))
    assert {name: account.seconds[name] for name in parts} == pytest.approx(parts)
    assert remark in "\n".join(text.render(account, None, None))


def test_verb_prints_the_account(call, killed_twice):
    code, out, err = call("goodput", killed_twice)
    assert (code, err) == (0, "")
    assert out.splitlines() == text.render(read_account(killed_twice), None, None)


@pytest.mark.parametrize(
    ("content", "argv", "told"),
    [
        (None, [], "log.jsonl: there is no log of a run - give a work directory"),
        ('{"event": "train", "step": 1, "loss": 2.0}', [], "tells no times: an older version of"),
        ("", ["--peak-tflops", "-1"], "--peak-tflops: '-1' is not a positive number of TFLOP/s"),
        ("", ["--config.train.lr=1"], "--config.train.lr=1: changes nothing here"),
    ],
)
def test_verb_refuses_in_one_line(call, tmp_path, content, argv, told):
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    code, out, err = call("goodput", tmp_path, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
