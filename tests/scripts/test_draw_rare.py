"""scripts/draw_rare.py: a data set that one command trains on, with a class that is rare."""

import importlib.util

import numpy as np

from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.data import open_dataset


def test_drawn_data_fit_their_recipe_and_the_spots_are_rare(repository, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("r", repository / "scripts" / "draw_rare.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "TRAIN", 20)
    monkeypatch.setattr(script, "VAL", 4)
    script.main(tmp_path)
    config = load_recipe(tmp_path / "rare.py")
    dataset = open_dataset(config.data, config.model.num_classes, "train")
    assert dataset.class_names == script.CLASSES
    labels = [dataset.read(k)[1] for k in range(len(dataset))]
    shares = np.bincount(np.concatenate(labels, None)) / np.size(labels)
    assert len(labels) == 20
    assert 0.002 < shares[2] < 0.01 < shares[1]
