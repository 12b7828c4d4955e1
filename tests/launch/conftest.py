"""Where the launchers of scripts/ run: quoting, logs, restarts and stops are real.

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
import os, subprocess, sys

*options, host, command = sys.argv[1:]
assert {"-n", "-oBatchMode=yes"} <= set(options)
if host == "gone":
    sys.exit(255)
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


class Process(subprocess.Popen):
    def end(self, seconds=60):
        """Returns (exit code, output, errors)."""
        output, errors = self.communicate(timeout=seconds)
        return self.returncode, output, errors


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
            "LAUNCH_POLL": "0",
            "LAUNCH_BACKOFF": "0",
        }
        for name in [name for name in self.env if name.startswith("SLURM_")]:
            del self.env[name]
        self.started = []

    def start(self, *command, **env):
        env = self.env | {name: str(value) for name, value in env.items()}
        process = Process(
            list(map(str, command)), cwd=self.root, env=env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def launch(self, *options, act="done", extra=()):
        program = [sys.executable, self.root / "program.py", act, *extra]
        return self.start(LAUNCH, *options, "--", *program)

    def run(self, *options, **more):
        return self.launch(*options, **more).end()

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
        self.until(lambda: self.counts(what) == counts)

    @staticmethod
    def until(is_true, seconds=30):
        limit = time.monotonic() + seconds
        while not is_true():
            assert time.monotonic() < limit
            time.sleep(0.02)

    def running(self):
        return [event["pid"] for event in self.events() if is_running(event["pid"])]

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


def is_running(pid):
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


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
