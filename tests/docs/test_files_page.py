"""The names that docs/files.md lists are those of the code."""

import dataclasses
import re

import pytest

from deeplab_jax.checkpoint.description import Info
from deeplab_jax.doctor import text
from deeplab_jax.evaluation.summary import Evaluation


@pytest.fixture(scope="module")
def listed(repository):
    """Returns listed(marker) -> the names between that marker and the next end."""
    page = (repository / "docs" / "files.md").read_text()

    def listed(marker):
        found = re.search(f"<!-- {re.escape(marker)} -->\n(.*?)<!-- end -->", page, re.DOTALL)
        return re.findall("`(.*?)`", found[1])

    return listed


def test_fields_of_a_description_are_all_listed(listed):
    names = [field.name for field in dataclasses.fields(Info)]
    assert listed("fields: deeplab_jax/checkpoint/description.py Info") == names


def test_keys_of_an_evaluation_are_all_listed(listed):
    names = [*Evaluation.__annotations__]
    assert sorted(listed("keys: deeplab_jax/evaluation/summary.py Evaluation")) == sorted(names)


def test_keys_of_the_doctors_json_are_all_listed(listed, make_tree, tmp_path):
    from deeplab_jax.doctor import layouts, survey

    found = survey.survey_folder(layouts.guess(str(make_tree("folder", num_train=1, num_val=1))))
    names = [*text.summarize(found), "speed", "findings"]
    assert listed("doctor") == names
