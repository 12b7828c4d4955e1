"""What stand-ins cannot show: training, what the real gcloud takes, what shellcheck finds."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
LAUNCH, SLURM = SCRIPTS / "launch_tpu_pod.sh", SCRIPTS / "train_slurm.sh"


def log_of(path):
    return [json.loads(line) for line in (path / "log.jsonl").open()]


def saved_step(path):
    folder = path / "checkpoints"
    return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)


@pytest.mark.slow
def test_training_goes_on_after_kill_9_where_it_was_saved(place, train):
    launcher = [LAUNCH, "--hosts", "local:2", "--backoff", 0, "--grace", 10]
    code, output, _ = train(*launcher, "--logs", "whole", "--", workdir="whole").end(400)
    assert code == 0, output
    process = train(*launcher, "--logs", "killed", "--", workdir="killed")
    place.until(lambda: saved_step(place.root / "killed") >= 6, 200)
    second = [p for p in (place.root / "cache/deeplab_jax/launch").glob("*-1")]
    pid = int(max(second, key=lambda p: p.stat().st_mtime).read_text().split()[0])
    assert "deeplab_jax.train" in Path(f"/proc/{pid}/cmdline").read_text()
    os.kill(pid, signal.SIGKILL)
    code, output, _ = process.end(400)
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
    place.until(lambda: saved_step(place.root / "run") >= 3, 200)
    os.killpg(process.pid, signal.SIGINT)
    code, output, _ = process.end(200)
    assert code == 130
    assert "0:143 1:143" in output
    step = saved_step(place.root / "run")
    assert f"stopped by SIGTERM and saved at step {step} of 30" in output
    code, output, _ = train(*launcher, "--", workdir="run").end(400)
    assert code == 0
    assert f"continuing at step {step} of 30" in output


@pytest.mark.slow
def test_slurm_tasks_find_each_other_and_train(place, train):
    env = {"SLURM_JOB_ID": os.getpid(), "SLURM_NTASKS": 2, "SLURM_CPUS_PER_TASK": 1}
    code, _, errors = train(SLURM, workdir="run", **env).end(400)
    log = (place.root / "runs" / "slurm" / f"{os.getpid()}-0.log").read_text()
    assert code == 0, errors + log
    assert "2 x cpu" in log
    assert "done: 30 steps" in log


@pytest.mark.slow
def test_gcloud_knows_every_argument(place):
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        pytest.skip("no gcloud here")
    (place.root / "states").write_text("PREEMPTED")
    pod = ["--tpu", "pod", "--zone", "here"]
    create = ["--recreate", "v5litepod-16", "--version", "v2-alpha-tpuv5-lite", "--spot"]
    flags = ["--project", "none", "--gcloud-flag", "--internal-ip", "--dir", place.root]
    assert place.run(*pod, *create, *flags)[0] == 0
    calls = {call[3]: call for call in map(json.loads, (place.root / "calls.jsonl").open())}
    assert sorted(calls) == ["create", "delete", "describe", "ssh"]
    # Without an account it ends when it has read its arguments.
    place.env |= {
        "CLOUDSDK_CONFIG": str(place.root / "config"),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
    }
    for call in calls.values():
        errors = place.start(gcloud, *call).end()[2]
        assert "do not currently have an active account" in errors, errors
    errors = place.start(gcloud, *calls["ssh"], "--no-such").end()[2]
    assert "unrecognized arguments" in errors


def test_scripts_are_clean():
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck here")
    got = subprocess.run([shellcheck, LAUNCH, SLURM], capture_output=True, text=True)
    assert got.stdout == ""
