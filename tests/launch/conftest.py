"""Stand-ins for the launchers of scripts/: their quoting, logs, restarts and stops are real.

Local processes stand in for hosts, small programs on the PATH for gcloud, ssh and Slurm's commands.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH, SLURM = ROOT / "scripts" / "launch_tpu_pod.sh", ROOT / "scripts" / "train_slurm.sh"
LOCAL = ("--hosts", "local:2")

# Stands in for `deeplab train`. Its first argument lists what it does at its first, second, ...
# start: "ACT", or "PLACE:ACT" for one place while the other runs until it is told to stop. Each
# event is one line of events.jsonl.
PROGRAM = r"""
import json, os, signal, sys, time

flags = dict(zip(sys.argv, sys.argv[1:]))
place = int(os.environ.get("PLACE") or os.environ.get("SLURM_PROCID") or flags["--process-id"])

def note(what):
    event = dict(place=place, what=what, pid=os.getpid(), args=sys.argv[1:], cwd=os.getcwd())
    with open("events.jsonl", "ab", buffering=0) as file:
        file.write(json.dumps(event).encode() + b"\n")

def stop(number, frame):
    note("term")
    if act != "deaf":
        time.sleep(2 if act == "slow" else 0.5)
        note("saved")
        sys.exit(143)

signal.signal(signal.SIGTERM, stop)
note("start")

def starts(place):
    events = [json.loads(line) for line in open("events.jsonl")]
    return sum((event["place"], event["what"]) == (place, "start") for event in events)

acts, count = sys.argv[1].split(","), starts(place)
who, _, act = acts[min(count, len(acts)) - 1].rpartition(":")
act = act if who in ("", str(place)) else "run"
print(f"place {place}: {act}", flush=True)
while (act == "kill" or act.isdigit()) and starts(1 - place) < count:
    time.sleep(0.02)
if act == "kill":
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
verb, target = args[3:5]
flags = dict(arg[2:].split("=", 1) for arg in args[5:] if "=" in arg)
assert target == "pod" and flags["zone"] == "here", args
states = open(f"{root}/states").read().split()
if verb == "describe":
    if len(states) > 1:
        open(f"{root}/states", "w").write(" ".join(states[1:]))
    if states[0] == "MISSING":
        sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: no such node")
    if states[0] == "DENIED":
        sys.exit("ERROR: PERMISSION_DENIED")
    assert flags["format"] == "value(state,networkEndpoints.len())"
    print(states[0], 2, sep="\t")
elif verb in ("create", "delete"):
    assert verb == "create" or "--quiet" in args
    open(f"{root}/states", "w").write({"create": "READY", "delete": "MISSING"}[verb])
elif verb == "ssh":
    home = f"{root}/host{flags['worker']}"
    os.makedirs(home, exist_ok=True)
    env = os.environ | {"HOME": home, "XDG_CACHE_HOME": home, "PLACE": flags["worker"]}
    client = ["bash", "-c", 'export CLIENT=$$; bash -c "$1" & wait $!', "client", flags["command"]]
    for _ in range(10):
        code = subprocess.run(client, cwd=home, env=env, start_new_session=True).returncode
        if 0 <= code < 255:
            sys.exit(code)
    sys.exit(255)
"""

SSH = r"""
host=${*: -2:1}
[[ " $* " == *" -n -oBatchMode=yes "* && $host != gone ]] || exit 255
mkdir -p "$CLOUD/$host" && cd "$CLOUD/$host" || exit
HOME=$PWD XDG_CACHE_HOME=$PWD bash -c "${*: -1}"
"""

# One task ends: the others have a second, which stands for --wait.
SRUN = r"""
[[ " $* " == *" --open-mode=append --kill-on-bad-exit=0 "* ]] || exit 99
while [[ $1 == --* ]]; do [[ $1 != --output=* ]] || output=${1#*=}; shift; done
output=${output//%j/$SLURM_JOB_ID} end=999999 worst=0
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task setsid "$@" >>"${output//%t/$task}" 2>&1 &
  pids[task]=$!
done
echo "${pids[*]}" >"$CLOUD/step"
while ((${#pids[@]})); do
  for task in "${!pids[@]}"; do
    kill -0 "${pids[task]}" 2>/dev/null && continue
    wait "${pids[task]}" 2>/dev/null
    code=$? end=$((end < SECONDS + 2 ? end : SECONDS + 2))
    unset "pids[task]"
    ((code == 137)) && what=Killed || what="Exited with exit code $code"
    ((code)) && echo "srun: error: node0: task $task: $what" >&2
    ((code <= worst)) || worst=$code
  done
  ((SECONDS < end)) || kill -KILL "${pids[@]}"
  sleep 0.05
done
exit "$worst"
"""

SCANCEL = r"""
[[ $* == "--signal=TERM $SLURM_JOB_ID.0" ]] && kill -TERM $(<"$CLOUD/step")
"""

SCONTROL = 'echo "$@" >>"$CLOUD/requeued"'
STUBS = {"ssh": SSH, "srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}


class Process(subprocess.Popen):
    def end(self, seconds=60):
        """Returns (exit code, output, errors)."""
        output, errors = self.communicate(timeout=seconds)
        return self.returncode, output, errors


class Place:
    """A folder with the programs, where a launcher runs."""

    launch_path, slurm_path = LAUNCH, SLURM

    def __init__(self, root):
        self.root, self.started = root, []
        (root / "bin").mkdir()
        stubs = {name: f"#!/usr/bin/env bash\n{text}" for name, text in STUBS.items()}
        for name, text in (stubs | {"gcloud": f"#!{sys.executable}\n{GCLOUD}"}).items():
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)
        (root / "program.py").write_text(PROGRAM)
        (root / "states").write_text("READY")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        self.env |= {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "CLOUD": str(root)}
        self.env |= {"XDG_CACHE_HOME": str(root / "cache"), "LAUNCH_SETTLE": "0"}
        self.env |= {"LAUNCH_BACKOFF": "0", "LAUNCH_POLL": "0"}

    def start(self, *command, **env):
        env = self.env | {name: str(value) for name, value in env.items()}
        process = Process(
            list(map(str, command)), cwd=self.root, env=env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def launch(self, *options, act="done", extra=(), **env):
        program = [sys.executable, self.root / "program.py", act, *extra]
        return self.start(LAUNCH, *options, "--", *program, **env)

    def run(self, *options, **more):
        return self.launch(*options, **more).end()

    def running(self, act="run", options=LOCAL, **env):
        """Returns a launcher whose command runs in both places."""
        process = self.launch(*options, act=act, **env)
        self.wait_for("start", [1, 1])
        return process

    def stop(self, hosts="local:2"):
        return self.start(LAUNCH, "--hosts", hosts, "--stop")

    def slurm(self, act="done", **env):
        env = {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 2, "SLURM_CPUS_PER_TASK": 1} | env
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
        self.until(lambda: self.counts(what) == counts)

    @staticmethod
    def until(is_true, seconds=30):
        limit = time.monotonic() + seconds
        while not is_true():
            assert time.monotonic() < limit
            time.sleep(0.02)

    def alive(self):
        """Process numbers of the commands that still run."""
        pids = {event["pid"] for event in self.events()}
        return [pid for pid in pids if "program.py" in read(f"/proc/{pid}/cmdline")]

    def calls(self, verb=None):
        calls = map(json.loads, read(self.root / "calls.jsonl").splitlines())
        return [call[4:] for call in calls if verb in (None, call[3])]

    def log(self, host, name="local-2"):
        return read(self.root / "runs" / "launch" / name / f"host-{host}.log")

    def close(self):
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)


def read(path):
    return Path(path).read_text() if Path(path).exists() else ""  # a zombie's cmdline is empty


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.close()


@pytest.fixture
def train(place, make_tree, tiny_recipe):
    """Returns train(launcher, arguments, workdir) -> the process; environments of one device."""
    root = make_tree("folder", num_train=16, num_val=4)
    changes = "train.steps = 30\neval.every_epochs = 5\ncheckpoint.every_steps = 3"
    (place.root / "tiny.py").write_text(tiny_recipe(changes))
    place.env |= {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "PYTHONPATH": str(ROOT),
    }

    def start(*launcher, workdir, **env):
        command = ["--config", "tiny.py", f"--config.data.root={root}", "--workdir", workdir]
        return place.start(*launcher, sys.executable, "-m", "deeplab_jax.train", *command, **env)

    return start
