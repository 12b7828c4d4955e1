import pytest

from deeplab_jax.errors import CheckpointError
from deeplab_jax.utils import steps


@pytest.fixture
def folder(tmp_path):
    """A checkpoint directory with steps 3 and 12, an unfinished save, and other things around."""
    for name in ("run/checkpoints/3", "run/checkpoints/12", "run/checkpoints/20.tmp", "empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").touch()
    (tmp_path / "net.pth").touch()
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_finished_steps_are_found_in_order(folder):
    assert steps.finished(folder / "run") == [3, 12]
    assert steps.latest_step(folder / "run") == 12
    assert steps.latest_step(folder / "empty") is None
    assert steps.latest_step(folder / "net.pth") is None
    for step in ("latest", "best", 3, "12"):
        assert steps.check(folder / "run", step) == [3, 12]


@pytest.mark.parametrize(
    ("path", "step", "text"),
    [
        ("run", 4, "there is no step 4 - use one of: 3, 12, latest, best"),
        ("rum", "latest", "there is no such directory - did you mean {}/run?"),
        ("nothing", "latest", "there is no such directory - give a work directory"),
        ("net.pth", "latest", "is a file, not a checkpoint directory - convert it first: "),
        ("notes.txt", "latest", "is a file, not a checkpoint directory - give a work directory"),
        ("run/checkpoints", "latest", "lies inside a checkpoint directory - give {}/run"),
        ("run/checkpoints/3", "latest", "lies inside a checkpoint directory - give {}/run"),
        ("begun", "latest", "goes on with it until the first save"),
        (".", "latest", "give one of those in it: {}/run"),
        ("empty", "latest", "(checkpoints/<step> is missing) - give a work directory"),
    ],
)
def test_what_is_no_checkpoint_is_told_with_what_is_there(folder, path, step, text):
    with pytest.raises(CheckpointError) as caught:
        steps.check(folder / path, step)
    assert text.format(folder) in str(caught.value)
