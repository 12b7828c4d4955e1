import json
import os
import re
import time

import pytest

from deeplab_jax.training import log
from deeplab_jax.training.log import (
    Account,
    Display,
    JsonLog,
    Log,
    Speed,
    display,
    read_log,
)


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


def test_full_disk_is_that_of_the_log(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl", 0)
    os.dup2(os.open("/dev/full", os.O_WRONLY), log._file.fileno())
    for write in (lambda: log.write("train", 1, {}), log.close):  # closing tries once more
        with pytest.raises(OSError, match="No space left") as caught:
            write()
        assert caught.value.filename == str(tmp_path / "log.jsonl")


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


def test_log_that_goes_back_keeps_the_rollbacks_that_are_not_repeated(tmp_path):
    path = tmp_path / "log.jsonl"
    rollbacks = [json.dumps({"event": "rollback", "step": step}) for step in (5, 6)]
    write_lines(path, *(train_line(step) for step in (1, 2)), *rollbacks, train_line(3))
    log = JsonLog(path, 9)
    log.go_back(2, [6])
    log.write("train", 3, {})
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [1, 2, 6, 3]
    log.close()


def test_log_that_cannot_go_back_still_takes_lines(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    log = JsonLog(tmp_path / "log.jsonl", 9)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            log.go_back(2, [])
    log.write("end", 9, {})
    assert json.loads((tmp_path / "log.jsonl").read_text())["event"] == "end"
    log.close()


@pytest.mark.parametrize("rest", [train_line(3)[:-9], '{"event": "train"}', "[]", "\0\0\0"])
def test_line_that_a_kill_cut_short_is_dropped(tmp_path, rest):
    path = tmp_path / "log.jsonl"
    path.write_text(train_line(1) + "\n" + train_line(2) + "\n" + rest)
    log = JsonLog(path, 5)
    log.write("train", 6, {})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 6]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_lines_of_the_account_outlive_the_steps_that_are_done_again(tmp_path):
    path = tmp_path / "log.jsonl"
    first = JsonLog(path, 0)
    account = Account(first, time.time() - 5, 0, {"batch_size": 4})
    account.trains()
    with account.during("saving"):
        account.step = 3
    account.saved()
    first.write("loss", 3, {"loss": 2.0})
    account.close()
    account.close()
    first.write("end", 3, {})
    JsonLog(path, 2).close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(x["event"], x["at"], x["step"]) for x in lines] == [
        ("time", "start", 0), ("time", "saved", 3), ("time", "stop", 3)
    ]  # fmt: skip
    assert lines[0]["batch_size"] == 4
    assert lines[0]["began"] == pytest.approx(lines[0]["time"] - lines[0]["starting"], abs=0.1)
    for line in lines:
        seconds = sum(line[part] for part in log.PARTS)
        assert seconds == pytest.approx(line["time"] - lines[0]["began"], abs=0.1)
    assert read_log(path) == ({}, {})


def test_a_killed_process_is_unknown_for_a_hundredth_of_its_life():
    assert [log.beat({"a": x, "b": x}) for x in (0, 49, 150, 1e6)] == [1, 1, 3, 60]


def test_living_process_writes_lines_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("deeplab_jax.training.log.account.beat", lambda seconds: 0.001)
    file = JsonLog(tmp_path / "log.jsonl", 0)
    account = Account(file, time.time(), 0, {})
    while '"run"' not in (tmp_path / "log.jsonl").read_text():
        time.sleep(0.001)
    account.close()


class Clock:
    """Stands in for `time`; `perf_counter` returns what was set."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def test_speed_counts_images_and_the_share_of_waiting(clock):
    speed = Speed(batch_size=8)
    assert speed.read() == {}  # no step yet
    for _ in range(3):
        speed.waited(0.5)
        speed.finished_step()
    clock.now += 6
    assert speed.read() == {"images_per_second": 4.0, "data_wait": 0.25}
    speed.pause()
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


def test_time_left_goes_by_the_recent_rate(clock):
    speed = Speed(batch_size=8)
    assert speed.left(10, 0) is None
    for seconds in (1, 2):
        clock.now += seconds
        speed.finished_step()
    assert speed.left(100, 0) == "1:50"  # 0.9 x 1 s + 0.1 x 2 s, a hundred times
    assert speed.left(100, 2) == "1:50 + evaluations"
    clock.now += 1000
    speed.pause()  # such as an evaluation: no step
    clock.now += 1.1
    speed.finished_step()
    assert speed.left(100, 0) == "1:50"
    speed.evaluated(20)
    speed.evaluated(30)
    assert speed.left(100, 2) == "2:40"


VALUES = {
    "loss": 2.0, "loss_smoothed": 2.25, "lr": 0.01, "images_per_second": 3.0, "data_wait": 0.25
}  # fmt: skip
LINE = "loss 2.000 (smoothed 2.250)  lr 1.0e-02  3.0 images/s  data wait 25 %"


def test_plain_line_tells_where_the_run_is(clock, capsys):
    display = Display(100, 20, memory=lambda: 3 << 29)
    display.step(50, VALUES, left="0:25")
    assert capsys.readouterr().out == f"step 50/100  epoch 2.5  {LINE}  left 0:25  memory 1.5 GiB\n"


def test_what_is_not_known_is_left_out(clock, capsys):
    first = {key: VALUES[key] for key in ("loss", "loss_smoothed", "lr")}
    Display(100, 20).step(1, first)
    loss = LINE.partition("  3.0")[0]
    assert capsys.readouterr().out == f"step 1/100  epoch 0.1  {loss}\n"


def test_last_and_best_score_follow_an_evaluation(clock, capsys):
    display = Display(100, 20)
    display.evaluated(0.3, 0.361)
    display.evaluated(0.352)
    display.step(50, VALUES)
    assert capsys.readouterr().out.endswith("  mIoU last 35.2 best 36.1\n")
    display.evaluated(0.4, over=" over 1 of 2 classes")
    display.step(100, VALUES, is_last=True)
    assert capsys.readouterr().out.endswith("last 40.0 best 40.0 over 1 of 2 classes\n")


def test_log_knows_over_how_many_classes_its_last_mean_is(tmp_path):
    assert Log({}, {}).over_classes() == ""
    assert Log({}, {"mean_iou": [(1, 0.5)]}).over_classes() == ""  # as version 0.2 wrote it
    log = JsonLog(tmp_path / "log.jsonl", 0)
    for step, count in ((1, 1), (2, 2), (3, 1)):
        log.write("eval", step, {"num_classes_in_mean": count, "num_classes": 2})
        over = " over 1 of 2 classes" if count == 1 else ""
        assert read_log(tmp_path / "log.jsonl").over_classes() == over


def test_plain_lines_are_some_seconds_apart_but_the_first_and_last_are_printed(clock, capsys):
    display = Display(12, 4)
    for step in range(1, 13):
        clock.now += 4
        display.step(step, VALUES, is_last=step == 12)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/12", "4/12", "7/12", "10/12", "12/12"]


def test_loss_is_smoothed_with_nine_tenths_of_the_past():
    assert log.smooth(None, 2.0) == 2.0
    assert log.smooth(2.0, 1.0) == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (200, [f"━━━━━┄┄┄┄┄  step 50/100  epoch 2.5  {LINE}  left 0:25  mIoU last 35.2 best 35.2"]),
        (80, ["━━━━━┄┄┄┄┄  step 50/100  epoch 2.5  loss 2.000 (smoothed 2.250)  lr 1.0e-02",
              "3.0 images/s  data wait 25 %  left 0:25  mIoU last 35.2 best 35.2"]),
        (40, ["━━━━━┄┄┄┄┄  step 50/100  epoch 2.5", "loss 2.000 (smoothed 2.250)  lr 1.0e-02",
              "3.0 images/s  data wait 25 %  left 0:25", "mIoU last 35.2 best 35.2"]),
    ],
)  # fmt: skip
def test_terminal_gets_lines_broken_between_figures(terminal, columns, lines):
    with terminal(columns) as output:
        display = Display(100, 20)
        with display.live():
            display.say("saved [3/4]")
            display.evaluated(0.352)
            display.step(50, VALUES, left="0:25")
        display.say("after")
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", output().replace("\r\n", "\n")).replace("\r", "\n")
    assert "saved [3/4]\n" in text
    assert "\n".join([*lines, "after\n"]) in text
    assert max(map(len, text.splitlines())) <= columns


def test_log_of_a_killed_run_is_read(tmp_path):
    lines = [
        '{"event": "train", "step": 10, "loss": 2.5, "lr": NaN}',
        '{"event": "eval", "step": 10, "mean_iou": 0.5, "iou": [0.5]}',
        '{"event": "end"}',
        "[]",
        '{"event": "tr',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    got = log.read_log(tmp_path / "log.jsonl")
    assert got == ({"loss": [(10, 2.5)]}, {"mean_iou": [(10, 0.5)]})
