"""Classes of few pixels are named, and a loss is proposed."""

import shlex

import numpy as np
from PIL import Image

from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.data.images import read_label


def thin_out(root, keep=40):
    """Leaves `keep` pixels a mask of class 3, of 6305."""
    for path in root.rglob("*.png"):
        label = read_label(path)
        places = np.flatnonzero(label == 3)
        label.ravel()[places[keep:]] = 0
        Image.fromarray(label).save(path)


def test_rare_class_is_named_and_a_loss_is_proposed(make_tree, doctor, recipe_of, recipe_flags):
    root = make_tree("folder")
    assert recipe_of(root).loss.lovasz == 0
    thin_out(root)
    code, _, _, report = doctor("--data", root)
    (found,) = (f for f in report["findings"] if f["kind"] == "rare-class")
    assert (code, found["severity"], len(found["items"])) == (0, "note", 1)
    assert found["items"][0].startswith("3: class_3 (0.6")
    assert "--config.loss.lovasz=1" in found["fix"]
    flag = shlex.split(found["fix"])[-1]
    assert "copy_paste(classes=[3])" in flag
    changed = apply_overrides(recipe_of(root, "second.py"), [flag])
    assert (changed.loss.lovasz, len(changed.data.transforms)) == (1, 5)
    *_, report = doctor(*recipe_flags(root), "--config.loss.class_weighting=inverse")
    assert "rare-class" not in {f["kind"] for f in report["findings"]}


def test_class_without_a_pixel_is_not_rare(make_tree, doctor):
    root = make_tree("folder")
    thin_out(root, keep=0)
    *_, report = doctor(*("--data", root))
    assert "rare-class" not in {f["kind"] for f in report["findings"]}
