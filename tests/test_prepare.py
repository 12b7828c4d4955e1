import pytest

OFFICIAL = ["voc", "--archives", "x", "--output", "y"]
CACHE = ["cache", "--config", "quickstart", "--output", "y"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["vocs", *OFFICIAL[1:]], "invalid choice: 'vocs'"),
        (["voc", "--output", "x"], "deeplab prepare voc: wants --archives - name the folder"),
        (["voc", "--archives", "x"], "--output"),
        ([*OFFICIAL, "--expect-counts", "3"], "'3' is not as 12,4"),
        (["voc", "--archive", "x", "--output", "y"], "did you mean --archives?"),
        ([*OFFICIAL, "--config.seed=1"], "--config.seed=1: means nothing for voc - drop it"),
        ([*OFFICIAL, "--config", "quickstart"], "--config: means nothing for voc"),
        ([*OFFICIAL, "--verify"], "--verify: means nothing for voc"),
        (["cache", "--output", "y"], "deeplab prepare cache: wants --config - name a recipe"),
        ([*CACHE, "--archives", "x"], "--archives: means nothing for cache"),
        ([*CACHE, "--format", "tfds"], "--format: means nothing for cache"),
        ([*CACHE, "--expect-counts", "3,2"], "--expect-counts: means nothing for cache"),
    ],
)
def test_wrong_arguments_are_one_line(call, argv, text):
    code, out, err = call("prepare", *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert text in err


def test_cache_of_a_recipe_names_the_command_that_reads_it(call, make_tree, tiny_recipe, tmp_path):
    recipe, output = tmp_path / "my recipe.py", tmp_path / "cache"
    recipe.write_text(tiny_recipe(""))
    argv = ["--config", recipe, f"--config.data.root={make_tree('folder')}", "--output", output]
    code, out, err = call("prepare", "cache", *argv, "--verify")
    assert (code, err) == (0, "")
    assert out.splitlines()[-2:] == [
        f"results: {output}",
        f"next: deeplab train --config '{recipe}' --config.data.source=cache"
        f" --config.data.root={output}",
    ]
    assert len(list(output.iterdir())) == 5
