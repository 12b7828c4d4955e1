"""A run never continues from a state that is not the one that was saved."""

import os
import shutil

import jax
import numpy as np
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.errors import CheckpointError, ConfigError, DamagedError
from deeplab_jax.training import setup
from deeplab_jax.training import workdir as workdir_lib
from deeplab_jax.training.setup import gather

_TRAINS = pytest.mark.process("trains first; what is chosen has unit tests in the first tier")


@pytest.fixture
def run(tmp_path, tiny_config):
    """A work directory with steps 3, 6 and 9, whose arrays are no network's."""
    items = {"params": {"w": np.arange(4000, dtype=np.float32)}}
    names = tuple(f"c{k}" for k in range(tiny_config.model.num_classes))
    info = checkpoint.Info(kind="run", config=tiny_config, class_names=names)
    with checkpoint.Saver(tmp_path / "run", keep=3) as saver:
        for step in (3, 6, 9):
            saver.save(step, items, info)
    return tmp_path / "run"


def damage_description(run, step):
    file = run / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace('"kind": "run"', '"kind": "ruN"'))


def damage_arrays(run, step):
    """Flips a bit of the largest file of the parameters, such that one of its values changes."""
    folder = run / "checkpoints" / str(step) / "params" / "ocdbt.process_0"
    largest = max(folder.glob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)


def names(run):
    return sorted(entry.name for entry in (run / "checkpoints").iterdir())


def test_newest_step_with_a_good_description_is_chosen(run, tiny_config):
    assert workdir_lib.choose(run, tiny_config).step == 9
    damage_description(run, 9)
    (run / "checkpoints" / "12").mkdir()  # an interrupted copy
    begin = workdir_lib.choose(run, tiny_config)
    assert (begin.step, begin.saved.step, list(begin.damaged)) == (6, 6, [12, 9])
    assert "it has no description" in begin.damaged[12]
    assert workdir_lib.choose(run, tiny_config, damaged={6: "is damaged: x"}).step == 3
    assert names(run) == ["12", "3", "6", "9"]  # nothing is changed


def test_step_that_is_asked_for_is_the_only_choice(run, tiny_config):
    begin = workdir_lib.choose(run, tiny_config, step="3")
    assert (begin.step, begin.replaced) == (3, (6, 9))
    damage_description(run, 6)
    with pytest.raises(DamagedError, match=r"/6: is damaged: .* good steps: 3, 9"):
        workdir_lib.choose(run, tiny_config, step=6)
    with pytest.raises(CheckpointError, match="there is no step 7 - use one of: 3, 6, 9"):
        workdir_lib.choose(run, tiny_config, step=7)


def test_without_a_good_step_each_is_listed_and_nothing_begins(run, tiny_config):
    assert workdir_lib.choose(run, tiny_config, restart=True).step == 9
    for step in (3, 6, 9):
        damage_description(run, step)
    checkpoint.set_aside(run, 6, "damaged")
    with pytest.raises(CheckpointError) as caught:
        workdir_lib.choose(run, tiny_config)
    for text in ("step 9 is damaged: its", "step 3 is damaged: its", "6.damaged was set aside"):
        assert text in str(caught.value)
    begin = workdir_lib.choose(run, tiny_config, restart=True)
    assert (begin.step, sorted(begin.damaged)) == (None, [3, 9])
    for step in (3, 9):
        checkpoint.set_aside(run, step, "damaged")
    with pytest.raises(CheckpointError, match=r"no step is good: 3.damaged was .*--restart"):
        workdir_lib.choose(run, tiny_config)


def test_configuration_of_another_run_is_no_damage(run, tiny_config):
    other = checkpoint.Info(kind="weights", config=tiny_config)
    with checkpoint.Saver(run) as saver:
        saver.save(12, {"params": {"w": np.ones(2)}}, other)
    with pytest.raises(ConfigError, match="of kind weights, not a run"):
        workdir_lib.choose(run, tiny_config)


# Links


def test_link_in_place_of_the_lock_or_the_steps_is_refused(run, tiny_config, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    (run / ".lock").symlink_to(precious)
    with (
        pytest.raises(ConfigError, match=r"\.lock: is a symbolic link to .* - remove it: rm"),
        workdir_lib.lock(run),
    ):
        pass
    assert precious.read_text() == "keep me"
    (run / ".lock").unlink()
    os.mkfifo(run / ".lock")
    with pytest.raises(ConfigError, match="not a regular file"), workdir_lib.lock(run):
        pass
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "5.orbax-checkpoint-tmp").mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    for use in (lambda: gather(tiny_config, run), lambda: checkpoint.Saver(run)):
        with pytest.raises(ConfigError, match="checkpoints: is a symbolic link to"):
            use()
    assert (tmp_path / "elsewhere" / "5.orbax-checkpoint-tmp").is_dir()


# Whole runs


@pytest.fixture
def stopped(finished, tmp_path):
    """A copy of the finished run's directory, whose last steps are 12 and 14; 8 is the best."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


@_TRAINS
@pytest.mark.parametrize("damage", [damage_arrays, damage_description])
def test_train_goes_on_from_the_newest_good_step(call, tiny, finished, stopped, damage):
    want = call(*tiny, "--workdir", finished).out.split("parameters ")[1][:16]
    *_, before, last = checkpoint.finished(stopped)
    damage(stopped, last)
    outcome = call(*tiny, "--workdir", stopped)
    assert outcome.code == 0, outcome.err
    warnings = [line for line in outcome.out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert f"checkpoints/{last}: is damaged: " in warnings[0]
    assert ("params/" if damage is damage_arrays else "its description") in warnings[0]
    assert f"it is now {last}.damaged, going on from step {before}" in warnings[0]
    assert outcome.out.split("parameters ")[1][:16] == want
    assert f"{last}.damaged" in names(stopped)
    assert checkpoint.latest_step(stopped) == last
    assert workdir_lib.read_starts(stopped / workdir_lib.ENV)[-1]["step"] == before


@_TRAINS
def test_without_a_good_step_train_ends_and_restarts_on_request(call, tiny, stopped):
    steps = checkpoint.finished(stopped)
    for step in steps:
        damage_arrays(stopped, step)
    outcome = call(*tiny, "--workdir", stopped)
    assert outcome.code == 4
    assert outcome.err.count("\n") == 1
    assert all(f"step {step} is damaged: params/" in outcome.err for step in steps)
    assert checkpoint.finished(stopped) == steps
    outcome = call(*tiny, "--workdir", stopped, "--restart", "--config.checkpoint.keep=1")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("beginning anew") == len(steps)
    assert {f"{step}.damaged" for step in steps} < set(names(stopped))
    outcome = call(*tiny, "--workdir", stopped, "--restart")
    assert outcome.code == 2
    assert "leave it out, or choose another --workdir" in outcome.err


@_TRAINS
def test_train_goes_back_on_request(call, tiny, stopped):
    *_, before, last = checkpoint.finished(stopped)
    outcome = call(*tiny, "--workdir", stopped, "--step", before)
    assert outcome.code == 0, outcome.err
    assert f"step {last} is now " in outcome.out
    assert f"{last}.replaced: going on from step {before}" in outcome.out
    assert f"continuing at step {before} of" in outcome.out


@_TRAINS
def test_first_step_after_a_restore_suspects_the_checkpoint(call, tiny, stopped, monkeypatch):
    steps = checkpoint.finished(stopped)
    shutil.rmtree(stopped / "checkpoints" / str(steps[-1]))
    real = setup.restore_state

    def poisoned(*args):
        state = real(*args)
        return state | {"params": jax.tree.map(lambda leaf: leaf * np.nan, state["params"])}

    monkeypatch.setattr(setup, "restore_state", poisoned)
    outcome = call(*tiny, "--workdir", stopped)
    assert outcome.code == 6
    assert f"it follows the restored step {steps[-2]}, whose checkpoint may be d" in outcome.err
    assert "go back behind that step: --step N" in outcome.err
