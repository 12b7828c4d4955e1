import json

import pytest

from deeplab_jax.training import log
from deeplab_jax.training.log import Display, JsonLog, Speed


def write_lines(path, *lines):
    path.write_text("".join(line + "\n" for line in lines))


def train_line(step):
    return json.dumps({"event": "train", "step": step, "loss": 1 / (step + 3)})


def test_each_line_has_event_step_and_values_and_is_written_at_once(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl", 0)
    log.write("train", 1, {"loss": 0.5})
    log.write("eval", 1, {"mean_iou": None})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"event": "train", "step": 1, "loss": 0.5},
        {"event": "eval", "step": 1, "mean_iou": None},
    ]
    log.close()


def test_floats_come_back_bit_for_bit(tmp_path):
    value = 0.1 + 0.2
    JsonLog(tmp_path / "log.jsonl", 0).write("train", 1, {"loss": value})
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == value


def test_continued_log_drops_what_comes_again(tmp_path):
    path = tmp_path / "log.jsonl"
    write_lines(path, *(train_line(step) for step in (1, 2, 3, 4)))
    log = JsonLog(path, 2)
    log.write("train", 3, {"loss": 9})
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3]
    assert entries[:2] == [json.loads(train_line(1)), json.loads(train_line(2))]
    assert entries[2]["loss"] == 9


def test_continued_log_drops_the_end(tmp_path):
    path = tmp_path / "log.jsonl"
    write_lines(path, train_line(2), json.dumps({"event": "end", "step": 2}))
    JsonLog(path, 2)
    assert path.read_text() == train_line(2) + "\n"


@pytest.mark.parametrize("rest", [train_line(3)[:-9], '{"event": "train"}', "[]", "\0\0\0"])
def test_line_that_a_kill_cut_short_is_dropped(tmp_path, rest):
    path = tmp_path / "log.jsonl"
    path.write_text(train_line(1) + "\n" + train_line(2) + "\n" + rest)
    log = JsonLog(path, 5)
    log.write("train", 6, {})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 6]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


class Clock:
    """Stands in for `time`; `perf_counter` returns what was set."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(log, "time", clock)
    return clock


def test_speed_counts_images_and_the_share_of_waiting(clock):
    speed = Speed(batch_size=8)
    for _ in range(3):
        speed.waited(0.5)
        speed.finished_step()
    clock.now += 6
    assert speed.read() == {"images_per_second": 4.0, "data_wait": 0.25}
    clock.now += 2
    speed.finished_step()
    assert speed.read() == {"images_per_second": 4.0, "data_wait": 0.0}


def test_speed_leaves_out_what_came_before_a_pause(clock):
    speed = Speed(batch_size=8)
    speed.waited(1)
    speed.finished_step()
    clock.now += 100
    speed.pause()
    speed.waited(1)
    speed.finished_step()
    clock.now += 2
    assert speed.read() == {"images_per_second": 4.0, "data_wait": 0.5}


VALUES = {"loss": 2.0, "lr": 0.01, "images_per_second": 3.0, "data_wait": 0.25}


def test_plain_line_tells_where_the_run_is(clock, capsys):
    display = Display(100, 40)
    clock.now += 5
    display.step(50, VALUES, is_last=False)  # 10 steps in 5 s: 50 more take 25 s
    assert capsys.readouterr().out == (
        "step 50/100  loss 2.000  lr 1.0e-02  left 0:25  3.0 images/s  data wait 25 %\n"
    )


def test_plain_lines_are_some_seconds_apart_but_the_last_one_is_printed(clock, capsys):
    display = Display(12, 0)
    for step in range(1, 13):
        clock.now += 4
        display.step(step, VALUES, is_last=step == 12)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/12", "4/12", "7/12", "10/12", "12/12"]


def test_shown_loss_is_smoothed(clock, capsys):
    display = Display(3, 0)
    display.step(1, VALUES, is_last=True)
    display.step(2, VALUES | {"loss": 1.0}, is_last=True)
    first, second = capsys.readouterr().out.splitlines()
    assert "loss 2.000" in first
    assert "loss 1.900" in second


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36061, "10:01:01")]
)
def test_durations(clock, capsys, seconds, text):
    display = Display(2, 0)
    clock.now += seconds
    display.step(1, VALUES, is_last=True)
    assert capsys.readouterr().out.split("  ")[3] == f"left {text}"


def test_terminal_gets_a_bar_and_lines_that_stay(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    display = Display(10, 0)
    with display.live():
        display.step(7, VALUES, is_last=False)
        display.say("saved [3/4]")
    out = capsys.readouterr().out
    assert "saved [3/4]" in out
    assert "step 7/10" in out
    display.say("after")
    assert capsys.readouterr().out == "after\n"
