"""The doctor's command, and faults to find."""

import json
import sys
from pathlib import Path

import pytest

from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.doctor import layouts, propose, recipe, survey
from deeplab_jax.doctor.hours import Machine

WITH_A_GPU = Machine(True, 8, 0.0)

sys.path.insert(0, str(Path(__file__).parent))  # test modules import `planted`


@pytest.fixture(scope="session")
def recipe_flags(repository):
    """Returns recipe_flags(root) -> flags of a recipe whose data is a `make_tree("folder")`."""

    def recipe_flags(root):
        fields = (f"data.root={root}", "model.num_classes=4", "data.class_names=")
        return [
            "--config",
            repository / "configs/camvid_r50_os16.py",
            *(f"--config.{field}" for field in fields),
        ]

    return recipe_flags


@pytest.fixture
def doctor(call, tmp_path):
    """Returns doctor(*argv) -> (exit code, output, errors, contents of --json or None)."""

    def doctor(*argv):
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        outcome = call("doctor", *argv, "--json", report)
        found = json.loads(report.read_text()) if report.exists() else None
        return *outcome, found

    return doctor


@pytest.fixture
def recipe_of(tmp_path):
    """Returns recipe_of(root) -> configuration of the recipe that is proposed for a folder.

    It is for a machine with a GPU unless another is given.
    """

    def make(root, name="mine.py", here=WITH_A_GPU):
        layout = layouts.guess(root)
        found = survey.survey_folder(layout)
        path = str(tmp_path / name)
        recipe.check_free(path, layout)
        recipe.write(propose.propose(found, layout, here), path, 0.25, 0)
        return load_recipe(path)

    return make
