import json
import os

import pytest

from deeplab_jax.benchmark.drawn import draw_pictures
from deeplab_jax.data import transforms


@pytest.fixture(scope="module")
def bench_input(load_script):
    return load_script("bench_input")


@pytest.fixture(autouse=True)
def affinity():
    cores = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cores)


def test_both_orders_make_one_batch_and_are_timed(bench_input, make_tree, tmp_path, capsys):
    root, path = make_tree("cityscapes"), tmp_path / "out.json"
    arguments = ["--data", root, "--dataset", "cityscapes", "--crop", 48, 64, "--base", 128, 96]
    arguments += ["--rounds", 2, "--batch-size", 12, "--images-per-second", 500, "--json", path]
    bench_input.main(list(map(str, arguments)))
    result = json.loads(path.read_text())
    for name in ("ours", "reference"):
        milliseconds = result[name]["milliseconds"]
        assert min(milliseconds[key] for key in ("image", "mask", "scale", "crop", "place")) > 0
        rate = result[name]["images_per_second_per_core"]
        assert result[name]["cores_needed"] == pytest.approx(500 / rate, abs=0.1)
    assert f"ratio {result['ratio']:.2f}" in capsys.readouterr().out


def test_different_batches_are_not_timed(bench_input, make_tree, monkeypatch):
    monkeypatch.setattr(transforms, "adjust_brightness", lambda image, delta: image)
    root = str(make_tree("cityscapes"))
    with pytest.raises(AssertionError, match="different batches"):
        bench_input.main(["--data", root, "--dataset", "cityscapes", "--rounds", "1"])


def test_drawn_pictures_are_those_of_the_seed(tmp_path):
    for name in ("a", "b"):
        draw_pictures(tmp_path / name, 3)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
