import json

import numpy as np
import pytest

from deeplab_jax.config import freeze, get_config
from deeplab_jax.errors import CheckpointError
from deeplab_jax.evaluation import comparison, metrics
from deeplab_jax.report import compare

CLASSES = 3
IDS = tuple(f"<i>{i:02d}" for i in range(50))
NAMES = ("sky", "</script>", "a&b")


def draw(share, seed=0, images=30):
    """Returns (confusion, areas) of images; their truth is the same for all shares and seeds."""
    truth = np.random.default_rng(9).integers(200, 900, (images, CLASSES))
    rng = np.random.default_rng([seed, int(1000 * share)])
    confusions = np.zeros((images, CLASSES, CLASSES), np.int64)
    for image, pixels in enumerate(truth):
        for c, count in enumerate(pixels):
            hits = rng.binomial(count, np.clip(share + 0.01 * (image - 15), 0, 1))
            confusions[image, c, c], confusions[image, c, c - 1] = hits, count - hits
    return confusions.sum(0), np.stack([metrics.areas_of(x) for x in confusions])


@pytest.fixture
def place(make_evaluation, tmp_path, monkeypatch):
    """Returns place(folder, share, seed=0, number=30, **changes) -> what it writes there."""
    monkeypatch.chdir(tmp_path)

    def place(folder, share, seed=0, number=30, **changes):
        config = get_config("folder")
        config.model.num_classes = CLASSES
        scored = *draw(share, seed, number), IDS[:number], NAMES
        evaluation = make_evaluation(*scored, freeze(config)) | changes
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "evaluation.json").write_text(json.dumps(evaluation))
        return evaluation

    return place


def test_verdict_page_and_numbers_agree(place, call, parse, tmp_path):
    one, other = place("runs/a", 0.7), place("runs/b", 0.75)
    code, out, err = call("compare", "runs/a", "runs/b")
    assert (code, err) == (0, "")
    got = json.loads((tmp_path / "compare.json").read_text())
    pair = got["comparisons"][0]
    areas = [draw(share)[1][None] for share in (0.7, 0.75)]
    mean, classes = comparison.compare(*areas)
    assert pair["mean_iou"] == {"difference": mean.value, "low": mean.low, "high": mean.high}
    assert pair["mean_iou"]["difference"] == pytest.approx(other["mean_iou"] - one["mean_iou"])
    assert [x["low"] for x in pair["iou"]] == classes.low.tolist()
    assert pair["is_distinguishable"]
    assert [side["mean_iou"] for side in got["sides"]] == [one["mean_iou"], other["mean_iou"]]
    assert pair["verdict"].startswith("runs/b is better by 5.")
    few = "An interval from 30 images is too narrow: evaluate 50 or more."
    told = f"\n{pair['verdict']}\n{few}\nnumbers: compare.json\nresults: compare.html\n"
    assert told in out
    page = (tmp_path / "compare.html").read_text()
    shown = parse(page)
    assert pair["verdict"] in shown.text
    assert f'<p class="note">{few}</p>' in page
    assert all(name in shown.text for name in (*NAMES, "<i>"))
    assert len(shown.of("script")) == 2
    assert call("compare", "runs/a", "runs/b", "--output", "again.html").code == 0
    assert (tmp_path / "again.html").read_text() == page  # the same numbers are drawn


def test_of_enough_images_no_interval_is_called_narrow(place, call, tmp_path):
    place("a", 0.7, number=50)
    place("b", 0.75, number=50)
    code, out, err = call("compare", "a", "b")
    assert (code, err) == (0, "")
    assert "narrow" not in out + (tmp_path / "compare.html").read_text()


def test_images_are_listed_and_missing_weights_told(place, call, parse, tmp_path):
    place("a", 0.7)
    place("b", 0.7, seed=1)
    code, out, err = call("compare", "a", "b", "--by", "image")
    assert (code, err) == (0, "")
    assert out.startswith("warning: no pictures: a: holds no finished checkpoint")
    got = json.loads((tmp_path / "compare.json").read_text())["comparisons"][0]
    assert "not distinguishable with these 30 images (difference" in got["verdict"]
    changes = {x["id"]: x["mean_iou"][1] - x["mean_iou"][0] for x in got["images"]}
    order = sorted(changes, key=changes.get)
    listed = [line.split()[1] for line in out.splitlines() if "<i>" in line]
    assert listed == [*order[::-1][:10], *(i for i in order[:10] if changes[i] < 0)]
    assert "No pictures: a: " in parse((tmp_path / "compare.html").read_text()).text


def test_pictures_are_of_the_weights_that_were_evaluated(place, call, monkeypatch):
    asked = []

    def load(path, step, overrides, weights):
        asked.append(weights)
        raise CheckpointError(str(path), "is not there", "make one")

    monkeypatch.setattr(compare, "load", load)
    place("a", 0.7, weights="raw")
    place("b", 0.75)
    assert call("compare", "a", "b", "--by", "image").code == 0
    assert asked == ["raw"]


def test_seeds_of_a_folder_are_one_side(place, call, tmp_path):
    for side, share in (("a", 0.7), ("b", 0.75)):
        for seed in (0, 1, 10):
            place(f"{side}/seed_{seed}", share + seed / 500, seed)
    outs = []
    seeds = [f"{side}/seed_{seed}" for side in "ab" for seed in (0, 1, 10)]
    for argv in (["a", "b"], seeds):
        code, out, _ = call("compare", *argv)
        outs.append((code, out))
        got = json.loads((tmp_path / "compare.json").read_text())
        assert [(x["name"], len(x["files"])) for x in got["sides"]] == [("a", 3), ("b", 3)]
        values = got["sides"][0]["mean_iou_of_seeds"]
        assert got["sides"][0]["mean_iou"] == pytest.approx(np.mean(values))
    assert outs[0] == outs[1]
    assert call("compare", "a").code == 0  # its seeds, against the first
    got = json.loads((tmp_path / "compare.json").read_text())
    assert [x["name"] for x in got["sides"]] == ["a/seed_0", "a/seed_1", "a/seed_10"]
    (tmp_path / "b" / "seed_1" / "evaluation.json").unlink()
    (tmp_path / "b" / "seed_1" / "checkpoints" / "3").mkdir(parents=True)
    code, out, err = call("compare", "a", "b")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "make one: deeplab evaluate --checkpoint b/seed_1\n" in err


def test_seeds_of_one_side_are_of_the_same_weights(place, call):
    place("a/seed_0", 0.7, weights="ema")
    place("a/seed_1", 0.7, 1, weights="raw")
    place("b", 0.7)
    code, _, err = call("compare", "a", "b")
    assert (code, err.count("\n")) == (2, 1)
    assert "differs from a/seed_0/evaluation.json in weights: raw, there ema - evaluate al" in err
    assert "--checkpoint a/seed_1 --step 7 --weights ema\n" in err


def with_eval(evaluation, **fields):
    config = evaluation["config"]
    return {"config": config | {"eval": config["eval"] | fields}}


OTHERS = [
    (lambda e: {"split": "test"}, "in data set and split: folder/test, there folder/val"),
    (lambda e: {"class_names": ["x", *NAMES[1:]]}, "in class names: x, </script>, a&b, there sky"),
    (lambda e: with_eval(e, flip=True), "eval.flip=true, there eval.flip=false - evaluate alike: "
     "deeplab evaluate --checkpoint b --step 7 --config.eval.flip=false\n"),
    (lambda e: with_eval(e, flip=True) | {"weights": "raw"},
     "--checkpoint b --step 7 --weights raw --config.eval.flip=false\n"),
    (lambda e: with_eval(e, resize_base=[97, 65]), "--step 7 --config.eval.resize_base=\n"),
    (lambda e: {"images": [e["images"][0] | {"id": "z"}, *e["images"][1:]]}, "is in one alone): 3"),
    (lambda e: {"images": [{k: i[k] for k in ("id", "mean_iou")} for i in e["images"]]},
     "b/evaluation.json: is of an older version"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "what"), OTHERS)
def test_other_data_or_protocol_is_refused_by_name(place, call, tmp_path, change, what):
    evaluation = place("a", 0.7)
    place("b", 0.7, **change(evaluation))
    code, out, err = call("compare", "a", "b")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert what in err
    assert not (tmp_path / "compare.html").exists()


def test_masks_that_have_changed_are_refused(place, call, make_evaluation, tmp_path):
    place("a", 0.7)
    evaluation = place("b", 0.7)
    confusion, areas = draw(0.7)
    areas[3, :, 0] += 1
    confusion[0, 0] += 1
    changed = make_evaluation(confusion, areas, IDS[:30], NAMES)
    changed |= {"config": evaluation["config"]}
    (tmp_path / "b" / "evaluation.json").write_text(json.dumps(changed))
    code, _, err = call("compare", "a", "b")
    assert (code, err.count("\n")) == (2, 1)
    assert "b/evaluation.json: differs from a/evaluation.json in the masks of 1 images, first <i>03"
    assert "evaluate both again: deeplab evaluate --checkpoint a --step 7; deeplab evaluate" in err


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["a"], "a/evaluation.json: is one evaluation, and a comparison takes two - name another"),
        (["a", "a"], "a/evaluation.json: is given twice"),
        (["a", "nowhere"], "nowhere: is neither a file nor a folder"),
        (["a", "runs"], "runs: holds evaluations of several runs, no own one - name the sides: "
         "deeplab compare runs/x runs/y\n"),
        (["a", "b", "--config.data.root=x"], "--config.data.root=x: changes nothing without pict"),
        (["a", "b", "--output", "x.json"], "--output x.html"),
        (["a", "b", "--output", "no/x.html"], "--output"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_line(place, call, argv, what):
    for folder in ("a", "b", "runs/x", "runs/y"):
        place(folder, 0.7)
    code, out, err = call("compare", *argv)
    assert (out, err.count("\n")) == ("", 1)
    assert code in (2, 5)
    assert what in err


@pytest.mark.process("evaluates two steps and segments their images; numbers are in the first tier")
@pytest.mark.usefixtures("compile_quickly")
def test_pictures_of_both_sides(call, saved_run, parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (3, 7):
        argv = ["--checkpoint", saved_run.path, "--step", step, "--json", f"{step}.json"]
        assert call("evaluate", *argv).code == 0
    code, out, err = call("compare", "3.json", "7.json", "--by", "image")
    assert (code, err) == (0, "")
    assert "no pictures" not in out
    page = parse((tmp_path / "compare.html").read_text())
    assert "score otherwise" not in page.text
    figures = page.of("figure", class_="sample")
    assert len(figures) == 6  # three images, both sides
    masks = {figure["data-prediction"] for figure in figures}
    assert len(masks) > 3
    assert len({figure["data-truth"] for figure in figures}) == 3
