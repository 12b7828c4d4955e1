import os
import signal

import pytest

_TASKS = pytest.mark.process("seconds of waiting; a run and a requeue are in the first tier")


def requeues(place):
    path = place.root / "requeued"
    return path.read_text().splitlines() if path.exists() else []


def test_runs_a_task_for_each_place_with_its_log(place):
    code, output, _ = place.slurm().end()
    assert code == 0
    assert "exit code 0" in output
    assert place.counts("end") == [1, 1]
    for task in (0, 1):
        log = (place.root / "runs" / "slurm" / f"7-{task}.log").read_text()
        assert log == f"place {task}: done\n"
    assert not requeues(place)


def test_saves_before_the_limit_and_is_requeued(place):
    process = place.slurm("run,done")
    place.wait_for("start", [1, 1])
    place.until((place.root / "step").exists)
    process.send_signal(signal.SIGUSR1)
    code, output, _ = process.end()
    assert code == 0
    assert place.counts("term") == place.counts("saved") == [1, 1]
    assert requeues(place) == ["requeue 7"]
    assert "saved before the time limit: requeued, restart 1" in output
    assert place.slurm("run,done", SLURM_RESTART_COUNT=1).end()[0] == 0
    assert place.counts("end") == [1, 1]


@_TASKS
@pytest.mark.parametrize("code", [3, 143])
def test_does_not_requeue_a_mistake_or_a_stop(place, code):
    assert place.slurm(f"1:{code}", MAX_RESTARTS=5).end()[0] == code
    assert not requeues(place)


@_TASKS
def test_requeues_after_a_death_and_not_for_ever(place):
    code, output, errors = place.slurm("0:kill").end()
    assert (code, requeues(place)) == (0, ["requeue 7"])
    assert "exit code 137" in output
    assert "task 0: Killed" in errors
    code, output, _ = place.slurm("kill", SLURM_RESTART_COUNT=3, MAX_RESTARTS=3).end()
    assert (code, requeues(place)) == (137, ["requeue 7"])
    assert "giving up" in output


def test_waits_for_cancelled_tasks(place):
    process = place.slurm("run")
    place.wait_for("start", [1, 1])
    for event in place.events("start"):  # as scancel does: tasks and the batch script
        os.kill(event["pid"], signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    code, output, _ = process.end()
    assert code == 143
    assert place.counts("saved") == [1, 1]
    assert "cancelled" in output
    assert not requeues(place)


def test_script_alone_says_how_it_is_used(place):
    code, output, _ = place.start(place.slurm_path, "--help").end()
    assert code == 0
    assert "sbatch --nodes=2" in output
    assert "#" not in output
    code, _, errors = place.start(place.slurm_path).end()
    assert (code, errors.count("COMMAND: is missing")) == (2, 1)
    code, _, errors = place.start(place.slurm_path, "true").end()
    assert (code, errors.count("sbatch")) == (2, 1)
