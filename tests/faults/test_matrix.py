"""The fault matrix runs: a few rows that train nothing."""

import subprocess
import sys

import pytest


def test_every_row_is_there(load_script):
    assert sorted(load_script("fault_matrix").ROWS) == [*range(1, 37)]


@pytest.mark.process("starts some fifteen commands; each row is tested at its own place")
def test_rows_of_the_matrix(repository):
    script = repository / "scripts" / "fault_matrix.py"
    command = [sys.executable, str(script), "--rows", "20,25,30,35", "--seeds", "1", "--jobs", "2"]
    got = subprocess.run(command, capture_output=True, text=True)
    assert got.returncode == 0, got.stdout + got.stderr
    assert got.stdout.endswith("\n4 rows passed of 4\n")
