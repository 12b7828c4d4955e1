"""A tiny run, the data it trains on, and the command line around both."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(compile_quickly):
    """Every module here trains."""


@pytest.fixture
def fails(call):
    """Returns fails(argv, *parts, code=3): it ends so, with one line that has the parts."""

    def fails(argv, *parts, code=3):
        got, _, err = call(*argv)
        assert (got, err.count("error: ")) == (code, 1), err
        assert "Traceback" not in err
        last = err.splitlines()[-1]
        assert last.startswith("error: ")
        assert " - " in last
        for part in parts:
            assert str(part) in last
        return last

    return fails


@pytest.fixture(scope="package")
def memo():
    """The run that the tests share; `call` cannot be asked from a wider scope."""
    return {}


@pytest.fixture
def train(tmp_path, tiny_recipe):
    """Returns train(root, *overrides) -> the command, into a work directory of its own."""
    (tmp_path / "tiny.py").write_text(tiny_recipe("train.steps = 2"))

    def train(root, *overrides):
        flags = [f"--config.data.{override}" for override in overrides]
        argv = ["train", "--config", tmp_path / "tiny.py", f"--config.data.root={root}"]
        return [*argv, "--workdir", tmp_path / "run", *flags]

    return train


@pytest.fixture
def trained(memo, make_tree, train, call, tmp_path):
    """The work directory of a finished run."""
    if "trained" not in memo:
        code, _, err = call(*train(make_tree("folder", num_train=4, num_val=1)))
        assert code == 0, err
        memo["trained"] = (tmp_path / "run").rename(tmp_path / "trained")
    return memo["trained"]
