"""docs/results/ and the README say what docs/results.json holds."""

import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

CLASSES = ["sky", "pole"]
START = {
    "began": 1767323045.0,  # 2026-01-02
    "code": "1.0 (abc)",
    "command": ["/opt/bin/deeplab", "train", "--config", "/mine/configs/camvid.py",
                "--config.data.root=/mine/data/camvid", "--seeds", "0,1,2"],
    "packages": {"jax": "0.10.2"},
    "processor": {"model": "EPYC", "cores": 2},
}  # fmt: skip
COMMAND = "deeplab train --config camvid --config.data.root=camvid --seeds 0,1,2"
EVALUATION = {
    "mean_iou": 0.25, "pixel_accuracy": 0.5, "step": 20, "num_images": 101, "class_names": CLASSES,
    "mean_iou_interval": {"low": 0.2, "high": 0.31, "level": 0.9, "method": "bootstrap"},
    "iou": [0.5, 0.0], "accuracy": [0.75, 0.125], "frequency": [0.98, 0.02],
}  # fmt: skip


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
    config = {"data": {"class_names": CLASSES}, "train": {"batch_size": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "env.json").write_text(json.dumps({"starts": [START, {}]}))


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
    assert found["command"] == COMMAND
    assert f"`{COMMAND}`, EPYC, 2 cores, jax 0.10.2, 2026-01-02." in script.verdict(found)
    assert script.windows(found["ours"]) == [[pytest.approx(2.05)] * 3] * 6
    assert found["ours"][0]["iou"] == {"sky": 0.25, "pole": 0.0}


@pytest.mark.parametrize(
    ("loss", "score", "windows", "kept"),
    [(2.05, 0.25, 6, "inside"), (2.15, 0.25, 1, "inside"), (1.7, 0.1, 0, "**outside**")],
)
def test_the_verdict_follows_from_the_limits(script, learning, loss, score, windows, kept):
    text = script.verdict(learning(loss, score))
    assert f"{windows} of 6 windows" in text
    assert f": {kept} the 6 points" in text


@pytest.mark.parametrize("without", ['"step": 7,', '"event": "eval"'])
def test_a_run_that_lacks_a_step_or_its_scores_is_refused(script, tmp_path, without):
    write_run(tmp_path / "seed_0", [1.0] * 20, 0.2)
    log = tmp_path / "seed_0/log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(line for line in lines if without not in line))
    with pytest.raises(ValueError, match="seed_0: not a loss of every step, and scores of the"):
        script.read_learning(tmp_path, reference(tmp_path, [1.0] * 20, 0.2))


@pytest.fixture
def camvid(script, tmp_path):
    """What is read of a run of three hours, which was continued after its first evaluation."""
    run = tmp_path / "run"
    write_run(run, [1.0] * 20, 0.25)
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    parts = dict.fromkeys(("starting", "compile", "input", "evaluation", "saving"), 0.0)
    began = {"event": "time", "step": 0, "at": "start", "time": 1000.0, "began": 1000.0,
             "batch_size": 4, "steps": 0.0, "devices": {"count": 1}}  # fmt: skip
    ended = {"event": "time", "step": 20, "at": "stop", "time": 11800.0, "steps": 10800.0}
    evals = [{"event": "eval", "step": 10, "mean_iou": score} for score in (0.26, 0.27)]
    lines = [began | parts, *evals, *map(json.loads, (run / "log.jsonl").read_text().splitlines())]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, ended | parts])
    (run / "log.jsonl").write_text(text)
    return json.loads(json.dumps(script.read_camvid(run)))  # as docs/results.json keeps it


def test_an_evaluated_run_is_told(script, learning, camvid):
    assert camvid["curve"] == [[10, 0.27], [20, 0.25]]
    made = script.texts({"learning": learning(2.05, 0.25), "camvid": camvid})
    assert (
        made["docs/results/camvid.md"]["reached"]
        == f"""\
Mean IoU **25.00 %**, 90 % interval 20.0 to 31.0
(bootstrap over images), pixel accuracy 50.0 %, after
20 steps of 4 images: 3.00 hours, evaluations
included. In the last 10 steps it changed by -2.0 points.

```
{COMMAND}
```

EPYC, 2 cores, jax 0.10.2, 2026-01-02.
"""
    )
    assert "| pole | 2.0 | 0.0 | 12.5 |\n" in made["docs/results/camvid.md"]["classes"]
    assert "3.0 hours: mean IoU 25.0 % on 101 validation" in made["README.md"]["camvid"]
    assert "standard deviation 25.0 % (0.0 over 3 seeds)," in made["README.md"]["learning"]


def test_results_of_one_kind_alone_leave_the_pages(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(script, "files", None)
    monkeypatch.setattr("sys.argv", ["write_results.py"])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 1
    assert "results.json has no camvid yet" in capsys.readouterr().err
    assert json.loads((tmp_path / "results.json").read_text()) == {}


def test_curves_are_drawn_within_the_frame(script):
    line, band = [(5.0, 2.0), (295.0, 1.0)], [(5.0, 1.8), (5.0, 2.5), (295.0, 0.9)]
    picture = script.draw("a & b", [("ours", "c < d", line, band), ("theirs", "e", line, [])])
    root = ElementTree.fromstring(picture)
    lines = root.findall("{*}polyline")
    places = [
        tuple(map(float, pair.split(",")))
        for shape in (*lines, *root.findall("{*}polygon"))
        for pair in shape.get("points").split()
    ]
    assert [shape.get("class") for shape in lines] == ["ours", "theirs"]
    assert len(places) == 2 + 2 + 3
    assert places[0][0] < places[1][0]
    assert places[0][1] < places[1][1]  # the larger loss is higher up
    assert all(46 <= x <= 748 and 34 <= y <= 326 for x, y in places)
    words = [text.text for text in root.findall("{*}text")]
    assert {"a & b", "c < d", "e", "step", "0"} <= {*words}


@pytest.mark.process("segments by a run; a picture of the pages, which no other test needs")
@pytest.mark.usefixtures("compile_once")
def test_frames_are_drawn_from_the_evaluated_step(script, saved_run, tmp_path, monkeypatch):
    loaded, load = [], script.deeplab_jax.load
    monkeypatch.setattr(
        script.deeplab_jax, "load", lambda *a, **kw: loaded.append((a[1], kw)) or load(*a, **kw)
    )
    run = tmp_path / "run"
    shutil.copytree(saved_run.path, run)
    (run / "evaluation.json").write_text(json.dumps({"step": 3}))
    picture = np.asarray(script.draw_frames(run))
    assert loaded == [(3, {"weights": None})]
    assert picture.shape[1] == 3 * 320 + 2 * 6
    colors = [
        {tuple(color) for color in np.unique(picture[rows, :320].reshape(-1, 3), axis=0).tolist()}
        for rows in (slice(240), slice(246, 486))
    ]
    assert colors[0] <= {tuple(color) for color in saved_run.validation.palette.tolist()}
    assert (200, 30, 30) in colors[1] <= {(225, 225, 225), (200, 30, 30), (255, 255, 255)}


def test_a_part_without_a_place_is_named(script):
    with pytest.raises(ValueError, match="0 places <!--losses-->"):
        script.rewrite("# Page\n", {"losses": ""})
    page = "a\n<!--losses-->\nold\n<!--end-->\nb\n"
    assert script.rewrite(page, {"losses": "new\n"}) == page.replace("old", "new")
