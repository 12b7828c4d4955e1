"""docs/results/ and the README say what docs/results.json holds."""

import json

import pytest

CLASSES = ["sky", "pole"]


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("write_results", "docs")


def test_pages_pictures_and_readme_are_what_the_script_writes(script, repository):
    results = json.loads(script.RESULTS.read_text())
    for path, text in script.files(results).items():
        page = (repository / path).read_text()
        assert page == text, f"{path} is out of date: run `python docs/write_results.py`."


def test_the_compared_seeds_are_at_least_three(script):
    results = json.loads(script.RESULTS.read_text())["learning"]
    for side in ("ours", "reference"):
        seeds = [run["seed"] for run in results[side]]
        assert len({*seeds}) == len(seeds) >= 3
        assert {len(run["loss"]) for run in results[side]} == {30}


def write_run(folder, losses, score):
    folder.mkdir(parents=True)
    lines = [{"event": "train", "step": i + 1, "loss": loss} for i, loss in enumerate(losses)]
    lines.append({"event": "eval", "step": len(losses), "mean_iou": score, "pixel_accuracy": 0.5,
                  "iou": [score, 0.0]})  # fmt: skip
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"data": {"class_names": CLASSES}}))


def reference(tmp_path, losses, score):
    iou = dict(zip(CLASSES, (score, 0.0), strict=True))
    half = {"miou": score, "pixel_accuracy": 0.5, "iou": iou}
    seed = {"loss_total": losses, "val": {"half_240x180": half}}
    supplement = {"seed3": seed, "seed0_channels_last": seed}
    curves = {"seeds": {"0": seed, "1": seed}, "supplement": supplement}
    (tmp_path / "curves.json").write_text(json.dumps(curves))
    return tmp_path / "curves.json"


@pytest.fixture
def learning(script, tmp_path):
    """Returns learning(loss, score) -> what is read beside a reference of loss 2 and score 0.2."""

    def learning(loss, score):
        for seed in (0, 1, 2):
            write_run(tmp_path / "runs" / f"seed_{seed}", [loss] * 300, score)
        return script.read_learning(tmp_path / "runs", reference(tmp_path, [2.0] * 300, 0.2))

    return learning


def test_seeds_of_both_sides_are_read(script, learning):
    found = learning(2.05, 0.25)
    assert [run["seed"] for run in found["reference"]] == [0, 1, 3]  # no repetition of a seed
    assert found["command"].endswith("--seeds 0,1,2")
    assert script.windows(found["ours"]) == [[pytest.approx(2.05)] * 3] * 6
    assert found["ours"][0]["iou"] == {"sky": 0.25, "pole": 0.0}


@pytest.mark.parametrize(
    ("loss", "score", "windows", "kept"),
    [(2.05, 0.25, 6, "inside"), (2.15, 0.25, 1, "inside"), (1.7, 0.1, 0, "**outside**")],
)
def test_the_verdict_follows_from_the_limits(script, learning, loss, score, windows, kept):
    text = script._verdict(learning(loss, score))
    assert f"{windows} of 6 windows" in text
    assert f": {kept} the 6 points" in text


def test_a_part_without_a_place_is_named(script):
    with pytest.raises(ValueError, match="0 places <!--losses-->"):
        script.rewrite("# Page\n", {"losses": ""})
    page = "a\n<!--losses-->\nold\n<!--end-->\nb\n"
    assert script.rewrite(page, {"losses": "new\n"}) == page.replace("old", "new")
