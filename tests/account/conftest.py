"""Logs of runs, written by hand."""

import json

import pytest

PARTS = ("starting", "compile", "input", "steps", "evaluation", "saving")
DEVICES = {"platform": "cpu", "kind": "cpu", "count": 2, "processes": 1}
# Four processes. The first two are killed at steps 15 and 32; the second one's step 30 is bad, so
# the third goes on at step 20. Its machine sleeps for 4 s. Then the clock is set back by 14 s.
# (at, time, step, seconds of PARTS)
KILLED_TWICE = [
    ("start", 1010, 0, (10, 0, 0, 0, 0, 0), 1000),
    ("saved", 1100, 10, (10, 20, 5, 50, 10, 5)),
    ("run", 1150, 15, (10, 20, 10, 95, 10, 5)),
    ("start", 1205, 10, (5, 0, 0, 0, 0, 0), 1200),
    ("saved", 1300, 20, (5, 10, 5, 60, 15, 5)),
    ("saved", 1400, 30, (5, 10, 10, 130, 30, 15)),
    ("run", 1420, 32, (5, 10, 11, 149, 30, 15)),
    ("start", 1504, 20, (4, 0, 0, 0, 0, 0), 1500),
    ("stop", 1604, 30, (4, 6, 10, 60, 15, 5)),
    ("start", 1593, 30, (3, 0, 0, 0, 0, 0), 1590),
    ("stop", 1640, 40, (3, 2, 5, 30, 7, 3)),
]


def line_of(at, time, step, seconds, began=None):
    facts = {"began": began, "batch_size": 4, "devices": DEVICES} if at == "start" else {}
    parts = dict(zip(PARTS, seconds, strict=True))
    return {"event": "time", "step": step, "at": at, "time": time, **parts, **facts}


@pytest.fixture
def write_log(tmp_path):
    """Returns write_log(entries) -> a work directory; entries are as those above, or texts."""

    def write_log(entries):
        lines = [x if isinstance(x, str) else json.dumps(line_of(*x)) for x in entries]
        (tmp_path / "log.jsonl").write_text("\n".join([*lines, ""]))
        return tmp_path

    return write_log


@pytest.fixture
def killed_twice(write_log):
    others = ['{"event": "train", "step": 10, "loss": 1.0}', "[]", '{"event": "time", "st']
    return write_log([*KILLED_TWICE[:3], *others, *KILLED_TWICE[3:]])
