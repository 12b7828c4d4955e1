import json

import numpy as np
import pytest

from deeplab_jax.errors import ConfigError
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.summary import Evaluation
from deeplab_jax.report import write


def _set(*path_and_value):
    """Returns a function that sets a value somewhere in a tree."""
    *path, leaf, value = path_and_value

    def damage(result):
        for key in path:
            result = result[key]
        result[leaf] = value

    return damage


DAMAGES = [
    (lambda r: r.pop("mean_iou"), "mean_iou is missing"),
    (_set("images", [{"id": "s00"}]), "images[0].mean_iou is missing"),
    (_set("images", [{"id": 3, "mean_iou": 0.5}]), "images[0].id is not a text"),
    (lambda r: r["images"].pop(), "images has 13 entries, num_images is 14"),
    (_set("environment", {}), "environment.device is missing"),
    (_set("environment", "packages", {"jax": 1}), "environment.packages is not an object of texts"),
    (_set("iou", ["x"] * 5), "iou is not a list of numbers from 0 to 1 or null"),
    (_set("iou", 0, True), "iou is not a list of"),
    (_set("iou", 0, float("nan")), "iou is not a list of"),
    (_set("iou", 0, None), "iou is not what confusion makes it"),
    (_set("frequency", 0, 0.5), "frequency is not what confusion makes it"),
    (lambda r: r["frequency"].pop(), "class_names has 5 entries, frequency has 4"),
    (lambda r: r["iou"].pop(), "class_names has 5 entries, iou has 4"),
    (lambda r: r.pop("iou_interval"), "iou_interval is missing"),
    (lambda r: r["iou_interval"].pop(), "class_names has 5 entries, iou_interval has 4"),
    (_set("iou_interval", 2, "low", 2), "iou_interval[2].low is not a number from 0 to 1 or null"),
    (_set("iou_interval", 1, {"low": 0.5}), "iou_interval[1].high is missing"),
    (_set("class_names", ["a", "b"]), "class_names has 2 entries, iou has 5"),
    (_set("class_names", []), "class_names is not a list of texts"),
    (lambda r: r["confusion"].pop(), "class_names has 5 entries, confusion has 4"),
    (lambda r: r["confusion"][1].pop(), "confusion is not 5 x 5"),
    (_set("confusion", 0, 0, -1), "confusion is not a list of lists of whole numbers from 0"),
    (_set("confusion", 0, 0, 10**30), "confusion has more pixels than can be counted"),
    (_set("mean_iou_interval", "low", "x"), "mean_iou_interval.low is not a number from 0 to 1"),
    (_set("step", "latest"), "step is not a whole number from 0"),
    (_set("overrides", [1]), "overrides is not a list of texts"),
    (_set("loss", -1.0), "loss is not a number from 0 or null"),
    (_set("boundary_iou", 2.0), "boundary_iou is not a number from 0 to 1 or null"),
    (
        lambda r: r["boundary_iou_per_class"].pop(),
        "class_names has 5 entries, boundary_iou_per_class has 4",
    ),
    (_set("calibration", "bins", 0, "pixels", 0.5), "calibration.bins[0].pixels is not a whole"),
    (_set("means", "macro", {}), "means.macro.iou is missing"),
    (_set("images", 0, "areas", {"7": [1, 1, 1]}), "images has areas that are not three numbers"),
    (_set("images", 0, "areas", {"0": [1, 1]}), "images has areas that are not three numbers"),
    (_set("images", 0, "areas", {}), "areas of images are not confusion's"),
    (_set("config", "train", "lr", "x"), "config: "),
]


@pytest.mark.parametrize(("damage", "what"), DAMAGES)
def test_damaged_evaluation_is_refused_in_one_line(call, content, tmp_path, damage, what):
    result = json.loads(json.dumps(content.evaluation))
    damage(result)
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    code, out, err = call("report", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'evaluation.json'}: is not what evaluate writes ({what}" in err
    assert f"run deeplab evaluate --checkpoint {tmp_path} again" in err
    assert not (tmp_path / "report.html").exists()


def test_no_field_of_an_evaluation_may_be_missing_or_null_but_scores(content, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(content.evaluation))
    assert write.read_evaluation(path) == content.evaluation
    newer = Evaluation.__optional_keys__
    older = {k: v for k, v in content.evaluation.items() if k not in newer}
    older["images"] = [
        {k: v for k, v in image.items() if k != "areas"} for image in older["images"]
    ]
    path.write_text(json.dumps(older))  # as version 0.2 wrote it
    assert write.read_evaluation(path) == older
    for name in older:
        rest = {key: value for key, value in content.evaluation.items() if key != name}
        path.write_text(json.dumps(rest))
        with pytest.raises(ConfigError, match=rf"\({name} is missing\) - run deeplab evaluate"):
            write.read_evaluation(path)
        path.write_text(json.dumps(rest | {name: None}))
        if isinstance(content.evaluation[name], float):
            write.read_evaluation(path)
        else:
            with pytest.raises(ConfigError, match=rf"\({name} is not a.*\) - run deeplab evaluate"):
                write.read_evaluation(path)


@pytest.mark.parametrize("text", [b"\xff\xfe{", b"[]", b"3", b"{", b"[" * 100000])
def test_evaluation_that_is_no_object_is_refused(tmp_path, text):
    path = tmp_path / "evaluation.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"is not what evaluate writes .* again"):
        write.read_evaluation(path)


@pytest.mark.parametrize("confusion", [np.zeros((3, 3), int), np.diag([3, 0, 4]), np.eye(1)])
def test_undefined_scores_are_what_evaluate_writes(make_evaluation, tmp_path, confusion):
    areas = metrics.areas_of(confusion.astype(np.int64))[None]
    names = "abc"[: len(confusion)]
    result = make_evaluation(confusion.astype(np.int64), areas, ("x",), names)
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    assert write.read_evaluation(tmp_path / "evaluation.json") == result
