import json

import jax
import pytest

from deeplab_jax.errors import ConfigError
from deeplab_jax.report import write


def test_without_an_evaluation_the_report_asks_for_one(call, tmp_path):
    code, _, err = call("report", tmp_path)
    assert code == 4
    assert f"{tmp_path}: holds no finished checkpoint" in err
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    code, out, err = call("report", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"make one: deeplab evaluate --checkpoint {tmp_path}\n" in err
    (tmp_path / "evaluation.json").write_text('{"mean_iou": 0.5}')
    with pytest.raises(ConfigError, match="again"):
        write.read_evaluation(tmp_path / "evaluation.json")


def test_names_that_no_file_can_hold_are_replaced(call, content, tmp_path):
    names = ["a\ud800", *content.evaluation["class_names"][1:]]
    (tmp_path / "evaluation.json").write_text(
        json.dumps(content.evaluation | {"class_names": names})
    )
    assert call("report", tmp_path)[0] == 0
    assert "a?" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("output", "what"),
    [("missing/x.html", "x.html: there is no folder "), ("folder", "folder: is a folder")],
)
def test_report_refuses_a_place_before_the_work(call, evaluated, output, what):
    (evaluated / "folder").mkdir()
    code, out, err = call("report", evaluated, "--output", evaluated / output)
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert what in err
    assert "--output" in err
    assert ".tmp" not in err
    assert {path.name for path in evaluated.iterdir()} == {"folder", "evaluation.json"}


def test_without_a_checkpoint_the_report_has_no_pictures_and_says_so(call, evaluated, parse):
    code, out, err = call("report", evaluated)
    assert (code, err) == (0, "")
    assert out.startswith("warning: no pictures: ")
    assert out.startswith(f"warning: no pictures: {evaluated}: ")
    text = parse((evaluated / "report.html").read_text("utf-8")).text
    assert f"No pictures: {evaluated}: " in text
    assert "Worst class" in text


def test_the_command_after_a_report_takes_the_weights_that_were_evaluated(call, evaluated, content):
    raw = content.evaluation | {"weights": "raw", "overrides": ["--config.eval.flip=true"]}
    (evaluated / "evaluation.json").write_text(json.dumps(raw))
    how = f"--step {raw['step']} --weights raw --config.eval.flip=true"
    told = f"next: deeplab predict --checkpoint {evaluated} {how} IMAGES --output out"
    assert call("report", evaluated).out.splitlines()[-1] == told


def test_page_with_pictures_is_not_replaced_by_one_without(call, evaluated):
    (evaluated / "report.html").write_text("pictures")
    code, out, err = call("report", evaluated)
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert err.startswith(f"error: {evaluated}: ")
    assert f"; {evaluated / 'report.html'} is kept, for a page without pictures name another" in err
    assert (evaluated / "report.html").read_text() == "pictures"
    assert call("report", evaluated, "--output", evaluated / "numbers.html")[0] == 0


@pytest.mark.process("evaluates and draws twice; test_page.py builds pages in the first tier")
def test_evaluate_writes_the_report_and_report_writes_it_again(call, saved_run, parse):
    run = saved_run.path
    (run / "log.jsonl").write_text('{"event": "train", "step": 7, "loss": 2.5}\n')
    code, out, err = call("evaluate", "--checkpoint", run, "--config.eval.resize_base=80,64")
    assert (code, err) == (0, "")
    assert f"results: {run / 'report.html'}\n" in out
    first = parse((run / "report.html").read_text("utf-8"))
    assert len(first.of("canvas")) == 3
    assert "Training loss" in first.text
    assert "score otherwise" not in first.text
    assert "eval.resize_base80,64" in first.text

    assert call("report", run, "--output", run / "again.html")[0] == 0
    again = parse((run / "again.html").read_text("utf-8"))
    assert again.elements == first.elements  # predictions included
    argv = ["report", run, "--config.data.root=nowhere"]
    code, _, err = call(*argv)
    assert (code, err.count("\n")) == (3, 1)
    assert f"{run / 'report.html'} is kept" in err
    assert parse((run / "report.html").read_text("utf-8")).elements == first.elements
    assert call(*argv, "--output", run / "numbers.html")[0] == 0
    text = parse((run / "numbers.html").read_text("utf-8")).text
    assert "No pictures: nowhere" in text
    assert "Training loss" in text

    result = json.loads((run / "evaluation.json").read_text())
    assert result["protocol"] in text
    assert {image["id"] for image in result["images"]} == {"000", "001", "002"}
    scores = [image["mean_iou"] for image in result["images"]]
    assert scores == sorted(scores)
    assert result["mean_iou_interval"]["low"] <= result["mean_iou"]
    assert result["environment"]["packages"]["jax"] == jax.__version__
