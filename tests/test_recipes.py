import pytest

from deeplab_jax import config
from deeplab_jax.config.recipe import recipe_files


def test_table_holds_every_recipe_and_the_published_figures(call):
    code, out, err = call("recipes")
    assert (code, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.partition("\n\n")[0].splitlines())
    assert rows.keys() == {"name", *recipe_files()}
    for (dataset, depth, output_stride), miou in config.PUBLISHED_MIOU.items():
        assert rows[f"{dataset}_r{depth}_os{output_stride}"].startswith(f"{miou:.2f} ")
    assert rows["ade20k_r50_os16"].split() == ["43.21", "150", "512x512", "16", "130", "epochs"]
    assert rows["quickstart"].split() == ["-", "6", "128x128", "8", "120", "steps"]
    assert "sssegmentation's model zoo" in out
    assert max(map(len, out.splitlines())) <= 100


def test_copy_is_the_file_and_is_told_how_to_train(call, tmp_path):
    mine = tmp_path / "my own.py"
    code, out, err = call("recipes", "--copy", "voc_r50_os8", mine)
    assert (code, err) == (0, "")
    assert out == f"results: '{mine}'\nnext: deeplab train --config '{mine}'\n"
    assert mine.read_bytes() == recipe_files()["voc_r50_os8"].read_bytes()


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--copy", "voc_r50_os8", "there.py"], 2, "there.py: exists, and is not replaced"),
        (["--copy", "voc_r50_os9", "mine.py"], 2, "name one, such as voc_r50_os8; deeplab recipes"),
        (["--copy", "voc_r50_os8", "mine"], 2, "write --copy voc_r50_os8 mine.py"),
        (["--copy", "voc_r50_os8", "no/mine.py"], 5, "no/mine.py: there is no folder no"),
        (["--copy", "voc_r50_os8"], 2, "expected 2 arguments"),
        (["--config.seed=1"], 2, "--config.seed=1: changes a run"),
    ],
)
def test_copy_that_cannot_be_made_is_one_line(call, tmp_path, monkeypatch, argv, code, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.py").write_text("precious")
    got, out, err = call("recipes", *argv)
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert text in err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
