import pytest


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--config.train.lr=1"], "--config.train.lr=1: the self-test has its own network - "),
        (["--config.model.dtype=float16"], "float16"),
        (["--config.mesh.spatial=3"], "or another config.mesh.spatial"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(call, argv, told):
    code, out, err = call("selftest", *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
