"""What hosts compare before a run; the other host is a stand-in that always says the same."""

import shutil
import subprocess
import sys

import pytest

from deeplab_jax.distributed import hosts
from deeplab_jax.errors import ConfigError, DataError


@pytest.fixture
def other_host(monkeypatch):
    """Returns other_host(facts, error): a second process that always answers with these."""

    def answer(facts, error=None):
        monkeypatch.setattr(hosts, "are_multiple", lambda: True)
        monkeypatch.setattr(hosts, "all_gather", lambda own: [own, ["b", facts, error]])

    return answer


def agree(facts, error=None):
    with hosts.agreement() as found:
        found |= facts
        if error is not None:
            raise error


def test_equal_facts_are_agreed_on_and_others_are_named(other_host):
    other_host({"lr": "0.1", "step": "3"})
    agree({"lr": 0.1, "step": 3})
    with pytest.raises(ConfigError, match=r"hosts: differ in step: 4 on .*, 3 on b|3 on b, 4 on"):
        agree({"lr": 0.1, "step": 4})
    with pytest.raises(ConfigError, match=r"differ in data: .*absent on b"):
        agree({"lr": 0.1, "step": 3, "data": "x"})


def test_fact_that_differs_explains_an_error_of_one_host(other_host):
    gone = DataError("images", "there is no such folder", "name another")
    other_host({"lr": "0.2"})
    with pytest.raises(ConfigError, match=r"differ in lr: "):  # not the folder that this lr has not
        agree({"lr": 0.1}, gone)
    other_host({"lr": "0.1", "data": "x"})
    with pytest.raises(DataError, match=r"images on .*: there is no such folder"):
        agree({"lr": 0.1}, gone)


def test_code_of_every_room_decides_the_version(repository, tmp_path):
    copy = tmp_path / "deeplab_jax"
    shutil.copytree(repository / "deeplab_jax", copy)
    code = "from deeplab_jax.distributed import hosts; print(hosts.code_version())"
    command = [sys.executable, "-c", code]

    def version():
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout

    before = version()
    (copy / "models" / "ops" / "resize.py").open("a").write("# changed\n")
    assert version() != before
