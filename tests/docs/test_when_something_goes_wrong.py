"""The error lines of docs/when-something-goes-wrong.md are those of its commands."""

import re
import shlex

import pytest

from deeplab_jax.demo.shapes import draw


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "runs" / "demo" / "data", train=5, val=5)


def test_error_lines_are_what_the_commands_print(repository, drawn, call):
    page = (repository / "docs" / "when-something-goes-wrong.md").read_text()
    examples = re.findall(r"^\$ deeplab (.*)\n(error: .*)$", page, re.MULTILINE)
    assert len(examples) >= 8
    for command, line in examples:
        outcome = call(*shlex.split(command))
        assert outcome.err == f"{line}\n", command
        assert outcome.code
