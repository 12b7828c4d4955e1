import pytest


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        ([], "wants one of --data and --config"),
        (["--data", "x", "--config", "y"], "wants one of --data and --config"),
        (["--data", "x", "--config.seed=1"], "use --config"),
        (["--config", "x", "--write-config", "y.py"], "use it with --data"),
        (["--data", "x", "--val-fraction", "2"], "must be between 0 and 1"),
        (["--data", "x", "--seed", "-1"], "must not be negative"),
        (
            ["--config", "configs/camvid_r50_os16.py", "--config.data.source=tfds"],
            "config.data.source",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(repository, doctor, monkeypatch, argv, advice):
    monkeypatch.chdir(repository)
    code, out, err, _ = doctor(*argv)
    assert (code, out) == (2, "")
    assert advice in err


def test_json_that_cannot_be_written_is_refused_before_the_work(make_tree, call, tmp_path):
    root, path = make_tree("folder"), tmp_path / "missing" / "report.json"
    code, out, err = call("doctor", "--data", root, "--json", path)
    assert (code, out) == (5, "")
    assert "choose another --json, or create its folder" in err
