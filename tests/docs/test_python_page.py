"""Every block of docs/python.md runs, in order; a tiny run and drawn images stand in."""

import dataclasses
import re
import shutil

import pytest

from deeplab_jax import checkpoint

MOST_WORDS = 900
CHANGES = "data.root = {!r}\ntrain.steps = 4\neval.every_epochs = 100\ncheckpoint.every_steps = 100"


@pytest.fixture
def page(repository):
    """The text of the page."""
    return (repository / "docs" / "python.md").read_text()


def test_page_is_short(page):
    assert len(page.split()) <= MOST_WORDS


@pytest.mark.process("trains and evaluates; what the blocks call has its tests in the first tier")
@pytest.mark.usefixtures("compile_quickly")
def test_blocks_of_the_page_run(
    page, saved_run, make_tree, tiny_recipe, monkeypatch, tmp_path, capsys
):
    run = tmp_path / "runs" / "mine"
    with checkpoint.Saver(run) as saver:  # of the same weights; a class that the page looks for
        for step in checkpoint.finished(saved_run.path):
            info = checkpoint.read_info(saved_run.path, step)
            arrays = checkpoint.read_arrays(saved_run.path, step, ("params", "batch_stats"))
            named = dataclasses.replace(info, class_names=("road", *info.class_names[1:]))
            saver.save(step, arrays, named, info.metrics)
    (tmp_path / "photos").mkdir()
    shutil.copy(saved_run.images[0], tmp_path / "street.jpg")
    shutil.copy(saved_run.images[1], tmp_path / "photos" / "a.jpg")
    (tmp_path / "photos" / "b.jpg").write_bytes(b"no image")
    root = make_tree("folder", num_val=2)
    (tmp_path / "mine.py").write_text(tiny_recipe(CHANGES.format(str(root))))
    monkeypatch.chdir(tmp_path)

    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 10
    names: dict = {}
    for block in blocks:
        exec(compile(block, f"docs/python.md: {block[:40]!r}", "exec"), names)
    out = capsys.readouterr().out
    assert "Prediction(street.jpg 65x97: " in out
    assert "left out: photos/b.jpg: looks like text" in out
    assert "missing.jpg\ncannot be read (No such file or directory)\ncheck the path" in out
    assert (
        "`image` must be uint8 or uint16, (H, W, 3) RGB or (H, W) grey, got float32 (360, 480, 3); "
        in out
    )
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("street*")}
    assert {"street_overlay.png", "street_mask.png", "out/street_probabilities.npz"} <= files
    assert {"out/street.png", "out/street_overlay.jpg", "out/street.json"} <= files
    assert (tmp_path / "runs" / "two" / "evaluation.json").is_file()
