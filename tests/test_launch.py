"""The launchers of scripts/, executed: quoting, logs, restarts and stops are real.

Local processes stand in for hosts, small programs on the PATH for gcloud, ssh and Slurm's commands.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCH, SLURM = ROOT / "scripts" / "launch_tpu_pod.sh", ROOT / "scripts" / "train_slurm.sh"

# Stands in for `deeplab train`. Its first argument says what it does at its first, second, ...
# start, as "ACT" or "PLACE:ACT", commas between; the others run until told to stop. It notes what
# happens to it in events.jsonl, one write a line.
PROGRAM = r"""
import json, os, signal, sys, time

flags = dict(zip(sys.argv, sys.argv[1:]))
place = int(os.environ.get("PLACE") or os.environ.get("SLURM_PROCID") or flags["--process-id"])

def note(what):
    event = {"place": place, "what": what, "pid": os.getpid(), "args": sys.argv[1:]}
    event |= {"in": os.getcwd(), "pick": os.environ.get("PICK")}
    with open("events.jsonl", "ab", buffering=0) as file:
        file.write(json.dumps(event).encode() + b"\n")

def count():
    if not os.path.exists("events.jsonl"):
        return 0
    events = [json.loads(line) for line in open("events.jsonl")]
    return sum((event["place"], event["what"]) == (place, "start") for event in events)

acts = sys.argv[1].split(",")
who, _, act = acts[min(count(), len(acts) - 1)].rpartition(":")
act = act if not who or int(who) == place else "run"

def stop(number, frame):
    note("term")
    if act != "deaf":
        time.sleep(2 if act == "slow" else 0.5)
        note("saved")
        sys.exit(143)

signal.signal(signal.SIGTERM, stop)
note("start")
print(f"place {place}: {act}", flush=True)
if act == "kill":
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
if act == "lose":  # the connection, not this process
    os.kill(int(os.environ["CLIENT"]), signal.SIGKILL)
if act.isdigit():
    sys.exit(int(act))
while act != "done":
    time.sleep(0.05)
note("end")
"""

# Keeps its calls and the slice's state in files. `ssh` runs the command on this machine, and again
# where the connection is lost, as the real one does.
GCLOUD = r"""
import json, os, subprocess, sys

root, args = os.environ["CLOUD"], sys.argv[1:]
with open(f"{root}/calls.jsonl", "a") as file:
    file.write(json.dumps(args) + "\n")
assert args[:3] == ["compute", "tpus", "tpu-vm"], args
verb = args[3]
flags = dict(arg[2:].split("=", 1) for arg in args[5:] if "=" in arg)
assert args[4] == "pod" and flags["zone"] == "here", args
states = open(f"{root}/states").read().split()
if verb == "describe":
    if flags["format"] == "value(state)" and len(states) > 1:
        open(f"{root}/states", "w").write(" ".join(states[1:]))
    if states[0] == "MISSING":
        sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: no such node")
    if states[0] == "DENIED":
        sys.exit("ERROR: PERMISSION_DENIED")
    print(states[0] if flags["format"] == "value(state)" else "10.0.0.2\n10.0.0.3")
elif verb in ("create", "delete"):
    assert verb == "create" or "--quiet" in args
    open(f"{root}/states", "w").write({"create": "READY", "delete": "MISSING"}[verb])
elif verb == "ssh":
    home = f"{root}/host{flags['worker']}"
    os.makedirs(home, exist_ok=True)
    env = os.environ | {"HOME": home, "XDG_CACHE_HOME": home, "PLACE": flags["worker"]}
    client = ["bash", "-c", 'export CLIENT=$$; bash -c "$1" & wait $!', "client", flags["command"]]
    for _ in range(10):
        code = subprocess.run(client, cwd=home, env=env).returncode
        if 0 <= code < 255:
            sys.exit(code)
    sys.exit(255)
"""

SSH = r"""
import os, subprocess, sys

*options, host, command = sys.argv[1:]
assert {"-n", "-oBatchMode=yes"} <= set(options)
home = f"{os.environ['CLOUD']}/{host}"
os.makedirs(home, exist_ok=True)
env = os.environ | {"HOME": home, "XDG_CACHE_HOME": home}
sys.exit(subprocess.run(["bash", "-c", command], cwd=home, env=env).returncode)
"""

SRUN = r"""
import os, signal, subprocess, sys, time

args, count = sys.argv[1:], int(os.environ["SLURM_NTASKS"])
flags = {}
while args[0].startswith("--"):
    name, _, value = args.pop(0).partition("=")
    flags[name] = value
assert flags["--kill-on-bad-exit"] == "0" and flags["--open-mode"] == "append"
job, tasks = os.environ["SLURM_JOB_ID"], {}
for task in range(count):
    env = {"SLURM_PROCID": task, "SLURM_LOCALID": task, "SLURM_STEP_NODELIST": "localhost",
           "SLURM_STEP_NUM_NODES": 1, "SLURM_STEP_NUM_TASKS": count}
    env = os.environ | {name: str(value) for name, value in env.items()}
    log = open(flags["--output"].replace("%j", job).replace("%t", str(task)), "a")
    tasks[task] = subprocess.Popen(args, env=env, stdout=log, stderr=log, start_new_session=True)
with open(f"{os.environ['CLOUD']}/step", "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks.values()))
codes, end = [], None
while tasks:
    for number, task in list(tasks.items()):
        if task.poll() is None:
            continue
        code = tasks.pop(number).returncode
        codes.append(code if code >= 0 else 128 - code)
        end = end or time.time() + 1  # stands for --wait
        what = f"Exited with exit code {code}" if code > 0 else "Killed"
        if code:
            print(f"srun: error: node0: task {number}: {what}", file=sys.stderr, flush=True)
    if end and time.time() > end:
        for task in tasks.values():
            task.kill()
    time.sleep(0.02)
sys.exit(max(codes))
"""

SCANCEL = r"""
import os, signal, sys

assert sys.argv[1:] == ["--signal=TERM", os.environ["SLURM_JOB_ID"] + ".0"], sys.argv
for pid in open(f"{os.environ['CLOUD']}/step").read().split():
    os.kill(int(pid), signal.SIGTERM)
"""

SCONTROL = r"""
import os, sys

with open(f"{os.environ['CLOUD']}/requeued", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\n")
"""

STUBS = {"gcloud": GCLOUD, "ssh": SSH, "srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}


class Place:
    """A folder with the programs, where a launcher runs."""

    def __init__(self, root):
        self.root = root
        (root / "bin").mkdir()
        for name, text in STUBS.items():
            path = root / "bin" / name
            path.write_text(f"#!{sys.executable}\n{text}")
            path.chmod(0o755)
        (root / "program.py").write_text(PROGRAM)
        (root / "states").write_text("READY")
        self.env = os.environ | {
            "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
            "CLOUD": str(root),
            "XDG_CACHE_HOME": str(root / "cache"),
            "LAUNCH_SETTLE": "0",
            "LAUNCH_SLICE_POLL": "0",
        }
        for name in [name for name in self.env if name.startswith("SLURM_")]:
            del self.env[name]
        self.started = []

    def start(self, *command, **env):
        env = self.env | {name: str(value) for name, value in env.items()}
        process = subprocess.Popen(
            list(map(str, command)), cwd=self.root, env=env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def launch(self, *options, act="done", extra=()):
        program = [sys.executable, self.root / "program.py", act, *extra]
        return self.start(LAUNCH, "--backoff", 0, *options, "--", *program)

    def run(self, *options, **more):
        return end(self.launch(*options, **more))

    def slurm(self, act="done", *, tasks=2, **env):
        env = {"SLURM_JOB_ID": 7, "SLURM_NTASKS": tasks, "SLURM_CPUS_PER_TASK": 1} | env
        return self.start(SLURM, sys.executable, self.root / "program.py", act, **env)

    def events(self, what=None):
        path = self.root / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in events if what in (None, event["what"])]

    def counts(self, what):
        places = [event["place"] for event in self.events(what)]
        return [places.count(0), places.count(1)]

    def wait_for(self, what, counts):
        until(lambda: self.counts(what) == counts)

    def calls(self, verb):
        lines = (self.root / "calls.jsonl").read_text().splitlines()
        return [call[4:] for call in map(json.loads, lines) if call[3] == verb]

    def log(self, host, name="local-2"):
        return (self.root / "runs" / "launch" / name / f"host-{host}.log").read_text()

    def close(self):
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for pid in {event["pid"] for event in self.events()}:
            try:
                if "program.py" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass


def end(process, seconds=60):
    """Returns (exit code, output, errors)."""
    output, errors = process.communicate(timeout=seconds)
    return process.returncode, output, errors


def until(is_true, seconds=30):
    limit = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def is_running(pid):
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.close()


POD = ("--tpu", "pod", "--zone", "here")


# ---- What is asked for


def test_help_names_every_flag(place):
    code, output, errors = end(place.start(LAUNCH, "--help"))
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
        (["--hosts", "local:2", "--grace", "1m", "--", "true"], ["--grace", "1m"]),
        (["--hosts", "local:2", "--setup", "none.sh", "--", "true"], ["--setup", "none.sh"]),
        ([*POD, "--recreate", "v5litepod-16", "--", "true"], ["--recreate", "--version"]),
    ],
)
def test_mistakes_in_the_arguments_are_one_line(place, arguments, words):
    code, output, errors = end(place.start(LAUNCH, *arguments))
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
    command = ["--hosts", "local:2", "--backoff", 0, "--", "bash", "-c", script, "x"]
    code, output, _ = end(place.start(LAUNCH, *command))
    assert code == 3
    assert "0:134 1:3" in output


def test_missing_command_is_not_tried_again(place):
    code, output, _ = end(place.start(LAUNCH, "--hosts", "local:1", "--", "no-such-command"))
    assert code == 127
    assert "no-such-command" in output
    assert "would not help" in output


def test_what_does_not_stop_after_a_failure_is_killed(place):
    options = ["--hosts", "local:2", "--grace", 1, "--max-restarts", 0]
    process = place.launch(*options, act="deaf")
    place.wait_for("start", [1, 1])
    first, second = (event["pid"] for event in place.events("start"))
    os.kill(first, signal.SIGKILL)
    code, output, _ = end(process)
    assert code == 137
    assert "killing what is left" in output
    assert not is_running(second)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_waits_for_the_save(place, number, code):
    process = place.launch("--hosts", "local:2", act="run")
    place.wait_for("start", [1, 1])
    os.killpg(process.pid, number)  # a terminal signals the whole group
    got, output, _ = end(process)
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
    assert end(process)[0] == 143
    assert place.counts("saved") == [1, 1]


def test_asked_to_stop_twice_kills(place):
    process = place.launch("--hosts", "local:2", act="deaf")
    place.wait_for("start", [1, 1])
    process.send_signal(signal.SIGTERM)
    place.wait_for("term", [1, 1])
    process.send_signal(signal.SIGTERM)
    code, output, _ = end(process)
    assert code == 143
    assert "0:137 1:137" in output
    assert not [event for event in place.events() if is_running(event["pid"])]


def test_asked_to_stop_between_starts(place):
    options = ["--hosts", "local:2", "--backoff", "60"]
    process = place.launch(*options, act="143")
    until(lambda: place.counts("start") == [1, 1] and "exit code" in place.log(1))
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143
    assert place.counts("start") == [1, 1]


def test_what_a_killed_launcher_left_is_found_and_stopped(place):
    process = place.launch("--hosts", "local:2", act="run")
    place.wait_for("start", [1, 1])
    process.kill()
    code, output, errors = place.run("--hosts", "local:2")
    assert code == 2
    assert "another launch runs here" in output + errors
    assert "--stop" in output + errors
    code, output, _ = end(place.start(LAUNCH, "--hosts", "local:2", "--stop"))
    assert code == 0
    assert output.count("sent SIGTERM") == 2
    place.wait_for("saved", [1, 1])
    until(lambda: not [event for event in place.events() if is_running(event["pid"])])
    assert "nothing runs" in end(place.start(LAUNCH, "--hosts", "local:2", "--stop"))[1]
    assert place.run("--hosts", "local:2")[0] == 0


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
    assert output.count("--setup failed") == 2
    assert not place.events()


# ---- A slice


def test_slice_gets_the_command_on_each_worker(place):
    odd = ["it's", 'a "b" $HOME `id`', "", "*"]
    flags = ["--project", "mine", "--gcloud-flag", "--internal-ip", "--dir", place.root / "a b"]
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
    create = ["--recreate", "v5litepod-16", "--version", "v2-alpha-tpuv5-lite", "--spot"]
    create += ["--create-flag=--network=net", "--setup", "setup.sh", "--dir", folder]
    code, output, _ = place.run(*POD, *create, act="143,done")
    assert code == 0
    assert [call[:2] for call in place.calls("delete")] == [["pod", "--zone=here"]]
    assert place.calls("create") == [
        ["pod", "--zone=here", "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite",
         "--spot", "--network=net"]
    ]  # fmt: skip
    assert output.count("place 0:") == 2
    assert "is PREEMPTED: deleting it" in output
    assert (place.root / "host1" / "ready").exists()


def test_slice_that_goes_while_it_trains_is_created_anew(place):
    (place.root / "states").write_text("READY READY PREEMPTED")
    create = ["--recreate", "v5litepod-16", "--version", "v2-alpha-tpuv5-lite"]
    place.env["LAUNCH_SLICE_WATCH"] = "1"
    code, output, _ = place.run(*POD, *create, "--dir", place.root, act="run,done")
    assert code == 0
    assert output.count("is given up: the slice is PREEMPTED") == 2
    assert "0:71 1:71" in output
    assert place.counts("start") == [2, 2]
    assert place.counts("saved") == [1, 1]  # here the hosts still are: ended before the next start


def test_preempted_slice_is_waited_for(place):
    (place.root / "states").write_text("READY PREEMPTED PREEMPTED MAINTENANCE READY")
    code, output, _ = place.run(*POD, "--dir", place.root, act="143,done")
    assert code == 0
    assert output.count("is PREEMPTED: waiting") == 1
    assert "does not come back by itself" in output
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
    assert end(process)[0] == 130
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


# ---- Slurm


def requeues(place):
    path = place.root / "requeued"
    return path.read_text().splitlines() if path.exists() else []


def test_slurm_runs_a_task_for_each_place_with_its_log(place):
    code, output, _ = end(place.slurm())
    assert code == 0
    assert "done" in output
    assert place.counts("end") == [1, 1]
    for task in (0, 1):
        log = (place.root / "runs" / "slurm" / f"7-{task}.log").read_text()
        assert log == f"place {task}: done\n"
    assert not requeues(place)


def test_slurm_saves_before_the_limit_and_is_requeued(place):
    process = place.slurm("run,done")
    place.wait_for("start", [1, 1])
    until((place.root / "step").exists)
    process.send_signal(signal.SIGUSR1)
    code, output, _ = end(process)
    assert code == 0
    assert place.counts("term") == place.counts("saved") == [1, 1]
    assert requeues(place) == ["requeue 7"]
    assert "saved before the time limit: requeued, restart 1" in output
    assert end(place.slurm("run,done", SLURM_RESTART_COUNT=1))[0] == 0
    assert place.counts("end") == [1, 1]


@pytest.mark.parametrize("code", [3, 143])
def test_slurm_does_not_requeue_a_mistake_or_a_stop(place, code):
    assert end(place.slurm(f"1:{code}", MAX_RESTARTS=5))[0] == code
    assert not requeues(place)


def test_slurm_requeues_after_a_death_and_not_for_ever(place):
    code, output, errors = end(place.slurm("0:kill"))
    assert (code, requeues(place)) == (0, ["requeue 7"])
    assert "exit code 137" in output
    assert "task 0: Killed" in errors
    code, output, _ = end(place.slurm("kill", SLURM_RESTART_COUNT=3, MAX_RESTARTS=3))
    assert (code, requeues(place)) == (137, ["requeue 7"])
    assert "giving up" in output


def test_slurm_waits_for_cancelled_tasks(place):
    process = place.slurm("run")
    place.wait_for("start", [1, 1])
    for event in place.events("start"):  # as scancel does: tasks and the batch script
        os.kill(event["pid"], signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    code, output, _ = end(process)
    assert code == 143
    assert place.counts("saved") == [1, 1]
    assert "cancelled" in output
    assert not requeues(place)


def test_slurm_script_alone_says_how_it_is_used(place):
    code, output, _ = end(place.start(SLURM, "--help"))
    assert code == 0
    assert "sbatch --nodes=2" in output
    assert "#" not in output
    code, _, errors = end(place.start(SLURM))
    assert code == 2
    assert "COMMAND: is missing" in errors
    code, _, errors = end(place.start(SLURM, "true"))
    assert code == 2
    assert "sbatch" in errors


# ---- Real runs

TINY = """
from deeplab_jax import config


def get_config():
    c = config.get_config("folder", depth=18, output_stride=16)
    c.model.num_classes = 4
    c.model.atrous_rates = (1, 2, 3)
    c.model.width, c.model.head_channels = 8, 16
    c.model.low_level_channels, c.model.aux_channels = 4, 8
    c.data.crop_size = (64, 64)
    c.data.resize_base = (97, 65)
    c.train.batch_size = 4
    c.train.steps = 30
    c.eval.every_epochs = 5
    c.checkpoint.every_steps = 3
    c.log.every_steps = 1
    return c
"""


@pytest.fixture
def train(place, make_tree):
    """Returns train(launcher, arguments, workdir) -> the process; environments of one device."""
    root = make_tree("folder", num_train=16, num_val=4)
    (place.root / "tiny.py").write_text(TINY)
    place.env |= {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "PYTHONPATH": str(ROOT),
    }

    def start(*launcher, workdir, **env):
        command = ["--config", "tiny.py", f"--config.data.root={root}", "--workdir", workdir]
        return place.start(*launcher, sys.executable, "-m", "deeplab_jax.train", *command, **env)

    return start


def log_of(path):
    return [json.loads(line) for line in (path / "log.jsonl").open()]


def saved_step(path):
    folder = path / "checkpoints"
    return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)


@pytest.mark.slow
def test_gcloud_knows_every_argument(place):
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        pytest.skip("no gcloud here")
    (place.root / "states").write_text("PREEMPTED")
    create = ["--recreate", "v5litepod-16", "--version", "v2-alpha-tpuv5-lite", "--spot"]
    flags = ["--project", "none", "--gcloud-flag", "--internal-ip", "--dir", place.root]
    assert place.run(*POD, *create, *flags)[0] == 0
    calls = {call[3]: call for call in map(json.loads, (place.root / "calls.jsonl").open())}
    assert sorted(calls) == ["create", "delete", "describe", "ssh"]
    # Without an account it ends when it has read its arguments.
    place.env |= {
        "CLOUDSDK_CONFIG": str(place.root / "config"),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
    }
    for call in calls.values():
        errors = end(place.start(gcloud, *call))[2]
        assert "do not currently have an active account" in errors, errors
    errors = end(place.start(gcloud, *calls["ssh"], "--no-such"))[2]
    assert "unrecognized arguments" in errors


@pytest.mark.slow
def test_training_goes_on_after_kill_9_where_it_was_saved(place, train):
    launcher = [LAUNCH, "--hosts", "local:2", "--backoff", 0, "--grace", 10]
    code, output, _ = end(train(*launcher, "--logs", "whole", "--", workdir="whole"), 400)
    assert code == 0, output
    process = train(*launcher, "--logs", "killed", "--", workdir="killed")
    until(lambda: saved_step(place.root / "killed") >= 6, 200)
    second = [p for p in (place.root / "cache/deeplab_jax/launch").glob("*-1")]
    pid = int(max(second, key=lambda p: p.stat().st_mtime).read_text().split()[0])
    assert "deeplab_jax.train" in Path(f"/proc/{pid}/cmdline").read_text()
    os.kill(pid, signal.SIGKILL)
    code, output, _ = end(process, 400)
    assert code == 0, output
    assert "1:137" in output
    assert "continuing at step" in output
    whole, killed = log_of(place.root / "whole"), log_of(place.root / "killed")
    assert [line["params_sha256"] for line in killed if "params_sha256" in line] == [
        line["params_sha256"] for line in whole if "params_sha256" in line
    ]
    losses = [
        {line["step"]: line["loss"] for line in log if "loss" in line} for log in (whole, killed)
    ]
    assert sorted(losses[0]) == list(range(1, 31))
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_training_stops_with_one_save_for_all(place, train):
    launcher = [LAUNCH, "--hosts", "local:2", "--logs", "logs"]
    process = train(*launcher, "--", workdir="run")
    until(lambda: saved_step(place.root / "run") >= 3, 200)
    os.killpg(process.pid, signal.SIGINT)
    code, output, _ = end(process, 200)
    assert code == 130
    assert "0:143 1:143" in output
    step = saved_step(place.root / "run")
    assert f"stopped by SIGTERM and saved at step {step} of 30" in output
    code, output, _ = end(train(*launcher, "--", workdir="run"), 400)
    assert code == 0
    assert f"continuing at step {step} of 30" in output


@pytest.mark.slow
def test_slurm_tasks_find_each_other_and_train(place, train):
    env = {"SLURM_JOB_ID": os.getpid(), "SLURM_NTASKS": 2, "SLURM_CPUS_PER_TASK": 1}
    code, _, errors = end(train(SLURM, workdir="run", **env), 400)
    log = (place.root / "runs" / "slurm" / f"{os.getpid()}-0.log").read_text()
    assert code == 0, errors + log
    assert "2 x cpu" in log
    assert "done: 30 steps" in log


def test_scripts_are_clean():
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck here")
    got = subprocess.run([shellcheck, LAUNCH, SLURM], capture_output=True, text=True)
    assert got.stdout == ""
