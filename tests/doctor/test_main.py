from pathlib import Path

import pytest

from deeplab_jax import cli

RECIPE = Path(__file__).parents[2] / "configs" / "camvid_r50_os16.py"


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        ([], "wants one of --data and --config"),
        (["--data", "x", "--config", "y"], "wants one of --data and --config"),
        (["--data", "x", "--config.seed=1"], "use --config"),
        (["--config", "x", "--write-config", "y.py"], "use it with --data"),
        (["--data", "x", "--val-fraction", "2"], "must be between 0 and 1"),
        (["--data", "x", "--seed", "-1"], "must not be negative"),
        (["--config", RECIPE, "--config.data.source=tfds"], "config.data.source"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(doctor, argv, advice):
    code, out, err, _ = doctor(*argv)
    assert (code, out) == (2, "")
    assert advice in err


def test_json_that_cannot_be_written_is_refused_before_the_work(make_tree, tmp_path, capsys):
    root, path = make_tree("folder"), tmp_path / "missing" / "report.json"
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--data", str(root), "--json", str(path)])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (5, "")
    assert "choose another --json, or create its folder" in err
