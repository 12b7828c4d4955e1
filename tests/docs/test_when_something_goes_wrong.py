"""The error lines of docs/when-something-goes-wrong.md are those of its commands."""

import re
import shlex
import shutil

import pytest

from deeplab_jax.demo.shapes import draw

# More of a command that trains: a narrow network.
SMALL = ("model.depth=18", "model.width=8", "model.head_channels=16", "model.low_level_channels=4",
         "model.aux_channels=8", "data.num_workers=0", "train.batch_size=4")  # fmt: skip


@pytest.fixture
def check(repository, tmp_path, monkeypatch, saved_run, call):
    """Returns check(is_wanted) -> number of examples checked, of those wanted.

    Beside it lie what the commands name: drawn data, and a run whose last step has a changed bit.
    """
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "runs" / "demo" / "data", train=8, val=5)
    shutil.copytree(saved_run.path, "runs/damaged")
    files = [
        file for file in (tmp_path / "runs/damaged/checkpoints/7").rglob("*") if file.is_file()
    ]
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    page = (repository / "docs" / "when-something-goes-wrong.md").read_text()
    examples = re.findall(r"^\$ deeplab (.*)\n(error: .*)$", page, re.MULTILINE)

    def check(is_wanted, *more):
        wanted = [(command, line) for command, line in examples if is_wanted(command)]
        for command, line in wanted:
            outcome = call(*shlex.split(command), *more)
            pattern = re.escape(line).replace(re.escape("..."), ".*")
            told = outcome.err.replace(f"{tmp_path}/", "")
            assert re.fullmatch(f"{pattern}\n", told), (command, told)
            assert outcome.code
        return len(wanted)

    return check


def test_error_lines_are_what_the_commands_print(check):
    assert check(lambda command: "train.lr=" not in command) >= 11


@pytest.mark.process("trains")
def test_lines_of_runs_are_what_they_print(check, compile_quickly):
    assert check(lambda command: "train.lr=" in command, *(f"--config.{x}" for x in SMALL)) == 1
