"""What stays out of the first tier, and how a tier is chosen."""

import os
import subprocess

import pytest


def collect(request, mark):
    """Lets the conftest see a test with a mark."""

    @mark
    def test():
        pass

    item = pytest.Function.from_parent(request.node.parent, name="test", callobj=test)
    conftest = next(
        plugin
        for plugin in request.config.pluginmanager.get_plugins()
        if hasattr(plugin, "narrow_config")
    )
    conftest.pytest_collection_modifyitems([item])


@pytest.mark.parametrize("name", ["parity", "process", "slow"])
def test_a_test_out_of_the_first_tier_gives_a_reason(request, name):
    mark = getattr(pytest.mark, name)
    for silent in (mark, mark(), mark(" ")):
        with pytest.raises(pytest.UsageError, match=f"::test: `{name}` has no reason; write @"):
            collect(request, silent)
    collect(request, mark("kills a run"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], []),
        (["tests/models", "-x"], ["tests/models", "-x"]),
        (["--all"], ["-m", "not slow"]),
        (["-m", "slow"], ["-m", "slow"]),
        (["tests/a b", "--all"], ["tests/a b", "-m", "not slow"]),
    ],
)
def test_script_chooses_the_tier(repository, tmp_path, arguments, expected):
    (tmp_path / "bin").mkdir()
    for name in ("python", "ruff", "mypy", "pytest"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\n[ {name} != pytest ] || printf "<%s>" "$@" >&2\n')
        program.chmod(0o755)
    got = subprocess.run(
        ["bash", repository / "scripts" / "test.sh", *arguments],
        env=os.environ | {"VIRTUAL_ENV": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert got.returncode == 0
    usual = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    told = "".join(f"<{word}>" for word in [*usual, *expected])
    assert got.stderr == told


def test_installation_may_be_by_another_command(repository, tmp_path):
    (tmp_path / "bin").mkdir()
    for name, body in (("python", ""), ("deeplab", 'echo "ran $@"')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environ = os.environ | {"VIRTUAL_ENV": str(tmp_path), "INSTALL": "echo install --quiet"}
    script = repository / "scripts" / "quickstart.sh"
    got = subprocess.run(["bash", script], env=environ, capture_output=True, text=True, check=True)
    assert "\ninstall --quiet --editable .\n" in got.stdout
    assert "\nran demo\n" in got.stdout  # in its own folder, which the recipe quickstart reads
