import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "scripts" / "launch_tpu_pod.sh"
POD = ("--tpu", "pod", "--zone", "here")


# ---- What is asked for


def test_help_names_every_flag(place):
    code, output, errors = place.start(LAUNCH, "--help").end()
    assert (code, errors) == (0, "")
    parsed = LAUNCH.read_text().split("parse() {")[1].split("\n}\n")[0]
    flags = {word.strip("|)") for word in parsed.split() if word.startswith("--") and ")" in word}
    assert len(flags) > 15
    assert not [flag for flag in flags - {"--", "--*=*"} if flag not in output]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--tpu", "missing"]),
        (["--hosts", "local:2"], ["COMMAND", "missing"]),
        (["--hosts", "local:2", "--"], ["COMMAND", "missing"]),
        (["--hosts", "local:0", "--", "true"], ["--hosts", "local:0"]),
        (["--hosts", "ssh:", "--", "true"], ["--hosts", "ssh:"]),
        (["--hosts", "local:2", *POD, "--", "true"], ["--hosts", "--tpu"]),
        (["--tpu", "pod", "--", "true"], ["--zone", "missing"]),
        (["--hosts", "local:2", "deeplab", "train"], ["deeplab", "--"]),
        (["--host", "local:2", "--", "true"], ["--host", "no such"]),
        (["--hosts", "local:2", "--port", "1m", "--", "true"], ["1m", "whole number"]),
        (["--hosts", "local:2", "--setup", "none.sh", "--", "true"], ["--setup", "none.sh"]),
        ([*POD, "--recreate"], ["--recreate", "no value"]),
    ],
)
def test_mistakes_in_the_arguments_are_one_line(place, arguments, words):
    code, output, errors = place.start(LAUNCH, *arguments).end()
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert [word for word in words if word not in errors] == []
    assert not place.events()


def test_missing_gcloud_is_one_line(place):
    (place.root / "bash").mkdir()
    (place.root / "bash" / "bash").symlink_to(shutil.which("bash"))
    place.env["PATH"] = str(place.root / "bash")  # and nothing else
    code, _, errors = place.run(*POD)
    assert code == 5
    assert errors.startswith("error: gcloud: is not on the PATH - install")


# ---- Local processes


def test_each_host_has_its_place_and_log_and_the_first_is_shown(place):
    odd = ["it's", 'a "b" $HOME `id`', "", "--x=1;2", "*", "two\nlines", "\\", "ü"]
    code, output, _ = place.run("--hosts", "local:2", extra=odd)
    assert code == 0
    places = {event["place"]: event["args"] for event in place.events("start")}
    assert sorted(places) == [0, 1]
    for number, args in places.items():
        assert args[1 : 1 + len(odd)] == odd
        assert args[-6] == "--coordinator"
        assert args[-5].startswith("127.0.0.1:")
        assert args[-4:] == ["--num-processes", "2", "--process-id", str(number)]
        assert f"place {number}: done" in place.log(number)
        assert f"place {1 - number}" not in place.log(number)
    assert places[0][-5] == places[1][-5]
    assert "place 0: done" in output
    assert "place 1" not in output
    assert {event["in"] for event in place.events()} == {str(place.root)}


def test_killed_process_stops_the_others_and_all_start_again(place):
    code, output, _ = place.run("--hosts", "local:2", act="1:kill,done")
    assert code == 0
    what = [(event["place"], event["what"]) for event in place.events()]
    second = [i for i, event in enumerate(what) if event[1] == "start"][2]
    assert what.index((0, "saved")) < second  # it had its time, and no later start before
    assert place.counts("start") == [2, 2]
    assert place.counts("term") == [1, 0]
    assert "0:143 1:137" in output
    assert "restart 1 of 5" in output
    assert place.log(1).count("exit code") == 2  # of both starts


def test_preempted_hosts_start_again_and_not_for_ever(place):
    code, output, _ = place.run("--hosts", "local:2", "--max-restarts", 2, act="143")
    assert code == 143
    assert place.counts("start") == [3, 3]
    assert "after 2 restarts in a row: giving up" in output


@pytest.mark.parametrize("code", [2, 3, 4, 6])
def test_mistake_of_one_host_ends_all(place, code):
    got, output, _ = place.run("--hosts", "local:2", act=f"1:{code}")
    assert got == code
    assert place.counts("start") == [1, 1]
    assert place.counts("saved") == [1, 0]
    assert "a restart would not help" in output


def test_mistake_counts_before_the_death_it_causes(place):
    place.env["LAUNCH_SETTLE"] = "10"
    script = "case ${*: -1} in 0) exit 134 ;; 1) sleep 0.7; exit 3 ;; esac"
    command = ["--hosts", "local:2", "--", "bash", "-c", script, "x"]
    code, output, _ = place.start(LAUNCH, *command).end()
    assert code == 3
    assert "0:134 1:3" in output


def test_missing_command_is_not_tried_again(place):
    code, output, _ = place.start(LAUNCH, "--hosts", "local:1", "--", "no-such-command").end()
    assert code == 127
    assert "no-such-command" in output
    assert "would not help" in output


def test_what_does_not_stop_after_a_failure_is_killed(place):
    options = ["--hosts", "local:2", "--max-restarts", 0]
    place.env["LAUNCH_GRACE"] = "1"
    process = place.launch(*options, act="deaf")
    place.wait_for("start", [1, 1])
    first, second = (event["pid"] for event in place.events("start"))
    os.kill(first, signal.SIGKILL)
    code, output, _ = process.end()
    assert code == 137
    assert "killing what is left" in output
    assert second not in place.running()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_waits_for_the_save(place, number, code):
    process = place.launch("--hosts", "local:2", act="run")
    place.wait_for("start", [1, 1])
    os.killpg(process.pid, number)  # a terminal signals the whole group
    got, output, _ = process.end()
    assert got == code
    assert place.counts("term") == [1, 1]  # a second one would quit at once
    assert place.counts("saved") == [1, 1]
    assert place.counts("start") == [1, 1]
    assert "0:143 1:143" in output


def test_asked_to_stop_waits_for_what_the_command_started(place):
    script = f'{sys.executable} program.py 1:slow "$@"; true'  # a shell that ends at once
    command = ["--hosts", "local:2", "--", "bash", "-c", script, "shell"]
    process = place.start(LAUNCH, *command)
    place.wait_for("start", [1, 1])
    process.send_signal(signal.SIGTERM)
    assert process.end()[0] == 143
    assert place.counts("saved") == [1, 1]


def test_asked_to_stop_twice_kills(place):
    process = place.launch("--hosts", "local:2", act="deaf")
    place.wait_for("start", [1, 1])
    process.send_signal(signal.SIGTERM)
    place.wait_for("term", [1, 1])
    process.send_signal(signal.SIGTERM)
    code, output, _ = process.end()
    assert code == 143
    assert "0:137 1:137" in output
    assert not place.running()


def test_asked_to_stop_between_starts(place):
    place.env["LAUNCH_BACKOFF"] = "60"
    process = place.launch("--hosts", "local:2", act="143")
    place.until(lambda: place.counts("start") == [1, 1] and "exit code" in place.log(1))
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.end()[0] == 143
    assert place.counts("start") == [1, 1]


def test_what_a_killed_launcher_left_is_found_and_stopped(place):
    process = place.launch("--hosts", "local:2", act="run")
    place.wait_for("start", [1, 1])
    process.kill()
    code, output, errors = place.run("--hosts", "local:2")
    assert code == 2
    assert "another launch runs here" in output + errors
    assert "--stop" in output + errors
    code, output, _ = place.start(LAUNCH, "--hosts", "local:2", "--stop").end()
    assert code == 0
    assert output.count("is asked to save and end") == output.count("has ended") == 2
    assert place.counts("saved") == [1, 1]
    assert not place.running()
    assert "nothing runs" in place.start(LAUNCH, "--hosts", "local:2", "--stop").end()[1]
    assert place.run("--hosts", "local:2")[0] == 0


def test_stop_ends_a_living_launcher_too(place):
    process = place.launch("--hosts", "local:2", act="run")
    place.wait_for("start", [1, 1])
    assert place.start(LAUNCH, "--hosts", "local:2", "--stop").end()[0] == 0
    assert place.counts("saved") == [1, 1]
    code, output, _ = process.end()
    assert code == 130
    assert "stopped there" in output
    assert place.counts("start") == [1, 1]
    assert place.run("--hosts", "local:2")[0] == 0  # another launch may


def test_stop_twice_does_not_cut_the_save_off(place):
    place.launch("--hosts", "local:2", act="slow")
    place.wait_for("start", [1, 1])
    first = place.start(LAUNCH, "--hosts", "local:2", "--stop")
    place.wait_for("term", [1, 1])
    second = place.start(LAUNCH, "--hosts", "local:2", "--stop")
    assert [first.end()[0], second.end()[0]] == [0, 0]
    assert place.counts("term") == place.counts("saved") == [1, 1]


def test_stop_between_starts_holds_the_next_one_back(place):
    place.env["LAUNCH_BACKOFF"] = "6"
    process = place.launch("--hosts", "local:2", act="143")
    place.until(lambda: place.counts("start") == [1, 1] and "exit code" in place.log(1))
    assert "nothing runs" in place.start(LAUNCH, "--hosts", "local:2", "--stop").end()[1]
    assert process.end()[0] == 130
    assert place.counts("start") == [1, 1]


def test_stop_says_which_hosts_it_could_not_ask(place):
    code, output, errors = place.start(LAUNCH, "--hosts", "ssh:a,gone", "--stop").end()
    assert code == 5
    assert "nothing runs" in output
    assert "error: hosts gone: could not be asked" in errors


def test_setup_comes_before_every_start_on_every_host(place):
    (place.root / "set up.sh").write_text('echo "it\'s $(pwd)" >>setup\n[[ -f setup ]]\n')
    code, _, _ = place.run("--hosts", "local:2", "--setup", "set up.sh", act="1:kill,done")
    assert code == 0
    assert (place.root / "setup").read_text() == f"it's {place.root}\n" * 4


def test_failed_setup_starts_nothing(place):
    (place.root / "setup.sh").write_text("exit 1\n")
    options = ["--hosts", "local:2", "--setup", "setup.sh", "--max-restarts", 1]
    code, output, _ = place.run(*options)
    assert code == 1
    assert output.count("setting up 2 hosts") == 2
    assert not place.events()


# ---- A slice


def test_slice_gets_the_command_on_each_worker(place):
    odd = ["it's", 'a "b" $HOME `id`', "", "*"]
    flags = ["--gcloud-flag=--project=mine", "--gcloud-flag", "--internal-ip", "--dir", place.root / "a b"]
    (place.root / "a b").mkdir()
    shutil.copy(place.root / "program.py", place.root / "a b")
    code, output, _ = place.run(*POD, *flags, extra=odd)
    assert code == 0
    runs = place.calls("ssh")
    assert sorted(flag for call in runs for flag in call if "--worker" in flag) == [
        "--worker=0", "--worker=1"]  # fmt: skip
    for call in runs:
        assert {"--zone=here", "--project=mine", "--internal-ip", "--quiet"} <= set(call)
        assert "--ssh-flag=-oServerAliveInterval=15" in call
    events = [json.loads(line) for line in (place.root / "a b" / "events.jsonl").open()]
    assert sorted(event["place"] for event in events if event["what"] == "start") == [0, 1]
    assert {tuple(event["args"]) for event in events} == {("done", *odd)}  # no coordinator
    assert "place 1: done" in place.log(1, "pod")
    assert "place 0: done" in output


def test_missing_slice_is_one_line(place):
    (place.root / "states").write_text("MISSING")
    code, _, errors = place.run(*POD)
    assert code == 2
    assert errors.startswith("error: pod: there is no such slice in --zone=here - create it")


def test_refusal_of_gcloud_is_shown(place):
    (place.root / "states").write_text("DENIED")
    code, _, errors = place.run(*POD)
    assert code == 5
    assert "PERMISSION_DENIED" in errors
    assert "error: pod: gcloud cannot describe it" in errors


def test_preempted_slice_is_created_anew(place):
    (place.root / "states").write_text("READY PREEMPTED")
    folder = place.root / "new"
    (place.root / "setup.sh").write_text(f"touch ready; mkdir -p {folder}; cp ../*.py {folder}\n")
    flags = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
    create = ["--recreate", " ".join(flags), "--setup", "setup.sh", "--dir", folder]
    code, output, _ = place.run(*POD, *create, act="143,done")
    assert code == 0
    assert [call[:2] for call in place.calls("delete")] == [["pod", "--zone=here"]]
    assert place.calls("create") == [["pod", "--zone=here", *flags]]
    assert output.count("place 0:") == 2
    assert "is PREEMPTED: creating it anew" in output
    assert (place.root / "host1" / "ready").exists()


def test_preempted_slice_is_waited_for(place):
    (place.root / "states").write_text("READY PREEMPTED PREEMPTED MAINTENANCE READY")
    code, output, _ = place.run(*POD, "--dir", place.root, act="143,done")
    assert code == 0
    assert output.count("is PREEMPTED: waiting") == 1
    assert "a preempted one never is" in output
    assert "--recreate" in output
    assert place.counts("start") == [2, 2]
    assert {call[3] for call in map(json.loads, (place.root / "calls.jsonl").open())} == {
        "describe", "ssh"}  # fmt: skip


def test_lost_connection_starts_all_again(place):
    code, output, _ = place.run(*POD, "--dir", place.root, act="1:lose,done")
    assert code == 0
    assert place.counts("start") == [2, 2]
    assert place.counts("saved") == [1, 1]  # the one that nobody was connected to, too
    assert "the connection was lost" in place.log(1, "pod")
    assert "1:71" in output


def test_stop_reaches_every_host_of_a_slice(place):
    process = place.launch(*POD, "--dir", place.root, act="run")
    place.wait_for("start", [1, 1])
    process.send_signal(signal.SIGINT)
    assert process.end()[0] == 130
    assert place.counts("saved") == [1, 1]
    assert len(place.calls("ssh")) == 4


# ---- Other machines


def test_machines_meet_at_the_first(place):
    code, _, _ = place.run("--hosts", "ssh:me@a,b", "--port", 8476, "--dir", place.root)
    assert code == 0
    tails = sorted(event["args"][1:] for event in place.events("start"))
    flags = ["--coordinator", "a:8476", "--num-processes", "2", "--process-id"]
    assert tails == [[*flags, "0"], [*flags, "1"]]
    assert "place 1: done" in place.log(1, "ssh-me-a-b")
