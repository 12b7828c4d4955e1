"""What stand-ins cannot show: training, what the real gcloud takes, what shellcheck finds."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest


def log_of(path):
    return [json.loads(line) for line in (path / "log.jsonl").open()]


def saved_step(path):
    folder = path / "checkpoints"
    return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)


@pytest.mark.slow("two runs on pairs of processes, one of them killed")
def test_training_goes_on_after_kill_9_where_it_was_saved(place, train):
    place.env |= {"LAUNCH_GRACE": "10", "LAUNCH_SETTLE": "3"}
    launcher = [place.launch_path, "--hosts", "local:2"]
    code, output, _ = train(*launcher, "--logs", "whole", "--", workdir="whole").end(400)
    assert code == 0, output
    process = train(*launcher, "--logs", "killed", "--", workdir=place.root / "killed")
    place.until(lambda: saved_step(place.root / "killed") >= 6, 200)
    second = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if (words := path.read_bytes().split(b"\0"))[-3:] == [b"--process-id", b"1", b""]
        and str(place.root / "killed").encode() in words
    ]
    os.kill(min(second), signal.SIGKILL)
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


@pytest.mark.slow("a run on a pair of processes, continued")
def test_training_stops_with_one_save_for_all(place, train):
    launcher = [place.launch_path, "--hosts", "local:2", "--logs", "logs"]
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


@pytest.mark.slow("a run on a pair of processes")
def test_slurm_tasks_find_each_other_and_train(place, train):
    env = {"SLURM_JOB_ID": os.getpid(), "SLURM_NTASKS": 2, "SLURM_CPUS_PER_TASK": 1}
    code, _, errors = train(place.slurm_path, workdir="run", **env).end(400)
    log = (place.root / "runs" / "slurm" / f"{os.getpid()}-0.log").read_text()
    assert code == 0, errors + log
    assert "2 x cpu" in log
    assert "done: 30 steps" in log


@pytest.mark.slow("needs the real gcloud")
def test_gcloud_knows_every_argument(place):
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        pytest.skip("no gcloud here")
    (place.root / "states").write_text("PREEMPTED")
    pod = ["--tpu", "pod", "--zone", "here"]
    create = "--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot"
    flags = ["--recreate", create, "--gcloud-flags", "--internal-ip"]
    assert place.run(*pod, *flags, "--dir", place.root)[0] == 0
    calls = {call[3]: call for call in map(json.loads, (place.root / "calls.jsonl").open())}
    assert sorted(calls) == ["create", "delete", "describe", "ssh"]
    # Without an account it ends when it has read its arguments.
    place.env |= {
        "CLOUDSDK_CONFIG": str(place.root / "config"),
        "CLOUDSDK_CORE_PROJECT": "none",
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
    }
    for call in calls.values():
        errors = place.start(gcloud, *call).end()[2]
        assert "do not currently have an active account" in errors, errors
    errors = place.start(gcloud, *calls["ssh"], "--no-such").end()[2]
    assert "unrecognized arguments" in errors


def test_scripts_are_clean(place):
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck here")
    assert place.start(shellcheck, place.launch_path, place.slurm_path).end()[1] == ""
