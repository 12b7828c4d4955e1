import json
import os
import re
import shutil
import signal
import sys

import pytest

LOCAL, POD = ("--hosts", "local:2"), ("--tpu", "pod", "--zone", "here")


# ---- What is asked for

_PLACES = pytest.mark.process(
    "seconds of waiting; a start, a restart and a stop are in the first tier"
)


def test_help_names_every_option(place):
    code, output, errors = place.start(place.launch_path, "--help").end()
    assert (code, errors) == (0, "")
    parsed = place.launch_path.read_text().split("\nwhile (($#)); do")[1].split("\ndone\n")[0]
    options = set(re.findall(r"--[a-z-]+", parsed)) - {"--help"}
    assert len(options) == 11
    assert not [option for option in options if option not in output]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--hosts", "--tpu"]),
        ([*LOCAL], ["COMMAND", "missing"]),
        ([*LOCAL, "--"], ["COMMAND", "missing"]),
        (["--hosts", "local:0", "--", "true"], ["--hosts", "local:0"]),
        (["--hosts", "ssh:", "--", "true"], ["--hosts", "ssh:"]),
        ([*LOCAL, *POD, "--", "true"], ["--hosts", "--tpu"]),
        (["--tpu", "pod", "--", "true"], ["--zone", "missing"]),
        ([*LOCAL, "deeplab", "train"], ["deeplab", "--"]),
        (["--host", "local:2", "--", "true"], ["--host", "no such"]),
        ([*LOCAL, "--port", "1m", "--", "true"], ["1m", "whole number"]),
        ([*LOCAL, "--setup", "none.sh", "--", "true"], ["--setup", "none.sh"]),
        ([*POD, "--recreate"], ["--recreate", "no value"]),
    ],
)
def test_mistakes_in_the_arguments_are_one_line(place, arguments, words):
    code, output, errors = place.start(place.launch_path, *arguments).end()
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert [word for word in words if word not in errors] == []
    assert not place.events()


def test_missing_gcloud_is_one_line(place):
    (place.root / "bash").mkdir()
    (place.root / "bash" / "bash").symlink_to(shutil.which("bash"))
    code, _, errors = place.run(*POD, PATH=place.root / "bash")  # and nothing else
    assert code == 5
    assert errors.startswith("error: gcloud: is not on the PATH - install")


# ---- Local processes


def test_each_host_has_its_place_and_log_and_the_first_is_shown(place):
    odd = ["it's", 'a "b" $HOME `id`', "", "--x=1;2", "*", "two\nlines", "\\", "ü"]
    code, output, _ = place.run(*LOCAL, extra=odd)
    assert code == 0
    places = {event["place"]: event["args"] for event in place.events("start")}
    for number in (0, 1):
        *args, flag, address, count_flag, count, place_flag, own = places[number]
        assert args == ["done", *odd]
        assert (flag, count_flag, place_flag) == (
            "--coordinator", "--num-processes", "--process-id")  # fmt: skip
        assert (count, own) == ("2", str(number))
        assert address.startswith("127.0.0.1:")
        assert address in places[1 - number]
        assert f"place {number}: done" in place.log(number)
        assert f"place {1 - number}" not in place.log(number)
    assert "place 0: done" in output
    assert "place 1" not in output
    assert {event["cwd"] for event in place.events()} == {str(place.root)}


def test_killed_process_stops_the_others_and_all_start_again(place):
    code, output, _ = place.run(*LOCAL, act="1:kill,done")
    assert code == 0
    what = [(event["place"], event["what"]) for event in place.events()]
    second = [i for i, event in enumerate(what) if event[1] == "start"][2]
    assert what.index((0, "saved")) < second  # it had its time, and no later start before
    assert place.counts("start") == [2, 2]
    assert place.counts("term") == [1, 0]
    assert "0:143 1:137" in output
    assert "restart 1 of 5" in output
    assert place.log(1).count("exit code") == 2  # of both starts


@_PLACES
def test_restarts_end_and_wait_twice_as_long_each_time(place):
    code, output, _ = place.run(*LOCAL, "--max-restarts", 2, act="143", LAUNCH_BACKOFF=1)
    assert code == 143
    assert place.counts("start") == [3, 3]
    assert "restart 1 of 2 in 1 s" in output
    assert "restart 2 of 2 in 2 s" in output
    assert "exit code 143 (host:code 0:143 1:143) after 2 restarts in a row" in output


@_PLACES
def test_long_run_ends_a_row_of_restarts(place):
    acts = "143,143,143,done"
    code, output, _ = place.run(*LOCAL, "--max-restarts", 1, act=acts, LAUNCH_HEALTHY=0)
    assert code == 0
    assert output.count("restart 1 of 1") == 3


@pytest.mark.parametrize("code", [2, 3, 4, 6])
def test_mistake_of_one_host_ends_all(place, code):
    got, output, _ = place.run(*LOCAL, act=f"1:{code}")
    assert got == code
    assert place.counts("start") == [1, 1]
    assert place.counts("saved") == [1, 0]
    assert f"exit code {code} (host:code 0:143 1:{code})" in output


def test_mistake_counts_before_the_death_it_causes(place):
    script = "case ${*: -1} in 0) exit 134 ;; 1) sleep 0.7; exit 3 ;; esac"
    command = [*LOCAL, "--", "bash", "-c", script, "x"]
    code, output, _ = place.start(place.launch_path, *command, LAUNCH_SETTLE=5).end()
    assert code == 3
    assert "0:134 1:3" in output


def test_missing_command_is_not_tried_again(place):
    command = ["--hosts", "local:1", "--", "no-such-command"]
    code, output, _ = place.start(place.launch_path, *command).end()
    assert code == 127
    assert "no-such-command" in output


def test_what_does_not_stop_after_a_failure_is_killed(place):
    process = place.running("deaf", [*LOCAL, "--max-restarts", 0], LAUNCH_GRACE=1)
    os.kill(place.events("start")[0]["pid"], signal.SIGKILL)
    code, output, _ = process.end()
    assert code == 137
    assert "killing what is left" in output
    assert not place.alive()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_waits_for_the_save(place, number, code):
    process = place.running()
    os.killpg(process.pid, number)  # a terminal signals the whole group
    got, output, _ = process.end()
    assert got == code
    assert place.counts("term") == [1, 1]  # a second one would quit at once
    assert place.counts("saved") == place.counts("start") == [1, 1]
    assert "0:143 1:143" in output


@_PLACES
def test_asked_to_stop_waits_for_what_the_command_started(place):
    script = f'{sys.executable} program.py 1:slow "$@"; true'  # a shell that ends at once
    process = place.start(place.launch_path, *LOCAL, "--", "bash", "-c", script, "shell")
    place.wait_for("start", [1, 1])
    process.send_signal(signal.SIGTERM)
    assert process.end()[0] == 143
    assert place.counts("saved") == [1, 1]


def test_asked_to_stop_twice_kills(place):
    process = place.running("deaf")
    process.send_signal(signal.SIGTERM)
    place.wait_for("term", [1, 1])
    process.send_signal(signal.SIGTERM)
    code, output, _ = process.end()
    assert code == 143
    assert "0:137 1:137" in output
    assert not place.alive()


@_PLACES
def test_asked_to_stop_between_starts(place):
    process = place.launch(*LOCAL, act="143", LAUNCH_BACKOFF=60)
    place.until(lambda: "exit code" in place.log(0) and "exit code" in place.log(1))
    process.send_signal(signal.SIGTERM)
    assert process.end()[0] == 143
    assert place.counts("start") == [1, 1]


@_PLACES
def test_what_a_killed_launcher_left_is_found_and_stopped(place):
    place.running().kill()
    code, output, errors = place.run(*LOCAL)
    assert code == 2
    assert "another launch runs here" in output + errors
    assert "--stop" in output + errors
    code, output, _ = place.stop().end()
    assert code == 0
    assert output.count("is asked to save and end") == output.count("has ended") == 2
    assert place.counts("saved") == [1, 1]
    assert not place.alive()
    assert "nothing runs" in place.stop().end()[1]
    assert place.run(*LOCAL)[0] == 0


@_PLACES
def test_stop_ends_a_living_launcher_too(place):
    process = place.running()
    assert place.stop().end()[0] == 0
    assert place.counts("saved") == [1, 1]
    code, output, _ = process.end()
    assert code == 130
    assert "0:130 1:130" in output
    assert place.counts("start") == [1, 1]
    assert place.run(*LOCAL)[0] == 0  # another launch may


@_PLACES
def test_stop_twice_does_not_cut_the_save_off(place):
    place.running("slow")
    first = place.stop()
    place.wait_for("term", [1, 1])
    assert [place.stop().end()[0], first.end()[0]] == [0, 0]
    assert place.counts("term") == place.counts("saved") == [1, 1]


@_PLACES
def test_stop_between_starts_holds_the_next_one_back(place):
    process = place.launch(*LOCAL, act="143", LAUNCH_BACKOFF=6)
    place.until(lambda: "exit code" in place.log(0) and "exit code" in place.log(1))
    assert "nothing runs" in place.stop().end()[1]
    assert process.end()[0] == 130
    assert place.counts("start") == [1, 1]


def test_stop_says_which_hosts_it_could_not_ask(place):
    code, output, errors = place.stop("ssh:a,gone").end()
    assert code == 5
    assert "nothing runs" in output
    assert "error: hosts gone: could not be asked" in errors


@_PLACES
def test_setup_comes_before_every_start_on_every_host(place):
    (place.root / "set up.sh").write_text('echo "it\'s $(pwd)" >>setup\n[[ -f setup ]]\n')
    assert place.run(*LOCAL, "--setup", "set up.sh", act="1:kill,done")[0] == 0
    assert (place.root / "setup").read_text() == f"it's {place.root}\n" * 4


def test_failed_setup_of_one_host_starts_nothing(place):
    (place.root / "setup.sh").write_text("mkdir once\n")  # the second of two fails
    code, output, _ = place.run(*LOCAL, "--setup", "setup.sh", "--max-restarts", 1)
    assert code == 1
    assert output.count("setting up 2 hosts") == 2
    assert not place.events()


# ---- A slice and other machines


def test_slice_gets_the_command_on_each_worker(place):
    odd = ["it's", 'a "b" $HOME `id`', "", "*"]
    folder = place.root / "a b"
    folder.mkdir()
    flags = ["--gcloud-flags", "--project=mine --internal-ip", "--dir", folder]
    code, output, _ = place.run(*POD, *flags, extra=odd)
    assert code == 0
    runs = place.calls("ssh")
    assert sorted(flag for call in runs for flag in call if "--worker" in flag) == [
        "--worker=0", "--worker=1"]  # fmt: skip
    for call in runs:
        assert {"--zone=here", "--project=mine", "--internal-ip", "--quiet"} <= set(call)
        assert "--ssh-flag=-oServerAliveInterval=15" in call
    events = [json.loads(line) for line in (folder / "events.jsonl").open()]
    assert sorted(event["place"] for event in events if event["what"] == "start") == [0, 1]
    assert {tuple(event["args"]) for event in events} == {("done", *odd)}  # no coordinator
    assert "place 1: done" in place.log(1, "pod")
    assert "place 0: done" in output


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [("MISSING", 2, "no such slice in here - create it"), ("DENIED", 5, "PERMISSION_DENIED")],
)
def test_slice_that_cannot_be_used_is_one_line(place, state, code, words):
    (place.root / "states").write_text(state)
    got, _, errors = place.run(*POD)
    assert got == code
    assert errors.startswith("error: pod: ")
    assert words in errors


@_PLACES
def test_preempted_slice_is_created_anew(place):
    (place.root / "states").write_text("READY PREEMPTED")
    folder = place.root / "new"
    (place.root / "setup.sh").write_text(f"touch ready; mkdir -p {folder}\n")
    flags = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
    options = ["--recreate", " ".join(flags), "--setup", "setup.sh", "--dir", folder]
    code, output, _ = place.run(*POD, *options, act="143,done")
    assert code == 0
    assert [call[:2] for call in place.calls("delete")] == [["pod", "--zone=here"]]
    assert place.calls("create") == [["pod", "--zone=here", *flags]]
    assert output.count("place 0:") == 2
    assert "is PREEMPTED: creating it anew" in output
    assert (place.root / "host1" / "ready").exists()


@_PLACES
def test_preempted_slice_is_waited_for(place):
    (place.root / "states").write_text("READY PREEMPTED PREEMPTED MAINTENANCE READY")
    code, output, _ = place.run(*POD, "--dir", place.root, act="143,done")
    assert code == 0
    assert output.count("is PREEMPTED: waiting") == 1
    assert "a preempted one never is" in output
    assert "--recreate" in output
    assert place.counts("start") == [2, 2]
    assert not place.calls("create") + place.calls("delete")


@_PLACES
def test_lost_connection_starts_all_again(place):
    code, output, _ = place.run(*POD, "--dir", place.root, act="1:lose,done")
    assert code == 0
    assert place.counts("start") == [2, 2]
    assert place.counts("saved") == [1, 1]  # the one that nobody was connected to, too
    assert "the connection was lost" in place.log(1, "pod")
    assert "1:71" in output


@_PLACES
def test_stop_reaches_every_host_of_a_slice(place):
    process = place.running(options=[*POD, "--dir", place.root])
    process.send_signal(signal.SIGINT)
    assert process.end()[0] == 130
    assert place.counts("saved") == [1, 1]
    assert len(place.calls("ssh")) == 4


def test_machines_meet_at_the_first(place):
    assert place.run("--hosts", "ssh:me@a,b", "--port", 8476, "--dir", place.root)[0] == 0
    tails = sorted(event["args"][1:] for event in place.events("start"))
    flags = ["--coordinator", "a:8476", "--num-processes", "2", "--process-id"]
    assert tails == [[*flags, "0"], [*flags, "1"]]
    assert "place 1: done" in place.log(1, "ssh-me-a-b")
