"""Protocols are the reference's."""

import jax
import numpy as np
import pytest

from deeplab_jax.config import freeze, get_config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.errors import ConfigError
from deeplab_jax.inference.engine import Engine, Item
from deeplab_jax.inference.protocol import EvalProtocol, read_protocol
from deeplab_jax.inference.resize import sampling

pytestmark = pytest.mark.usefixtures("compile_quickly")


def golden_protocol(case):
    forward, tta = case["forward"], case["tta"]
    return EvalProtocol(
        forward["mode"],
        tuple(forward["cropsize"] or ()),
        tuple(forward["stride"] or ()),
        tuple(map(float, tta["multiscale"])),
        tta["flip"],
        tta["use_probs_before_resize"],
    )


@pytest.mark.parity("ResNet-50; plain loops of the protocols are in test_engine.py")
def test_scores_of_every_protocol_equal_pytorchs(measure, recipe):
    with jax.enable_x64(True):
        cases = measure.facts("inference.json")
        model, variables = measure.network("r50_d16_c21", "float64")
        arrays = np.load(recipe.FOLDER / "inference.npz")
        for name, case in cases.items():
            engine = Engine(model, golden_protocol(case)).load(variables)
            image = measure.draw_images(case["image"], case["input_shape"])[0]
            [(_, [scores])] = engine.scores([Item(0, image, tuple(case["output_size"]))])
            expected = arrays[f"{name}/scores"]
            got = recipe.sample_pixels(scores[None], len(expected))
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6, err_msg=name)


def test_protocol_says_what_it_is():
    assert str(EvalProtocol()) == (
        "whole image, single scale, no flip, logits resized to the original size"
    )
    slide = EvalProtocol("slide", (65, 33), (43, 20), (0.5, 1.0), flip=True, softmax_first=True)
    assert str(slide) == (
        "sliding window 65x33, stride 43x20, scales 0.5 1, flip, "
        "probabilities resized to the original size"
    )


def test_protocol_comes_from_the_configuration():
    overrides = ["--config.eval.mode=slide", "--config.eval.crop_size=64,96",
                 "--config.eval.stride=40,60", "--config.eval.scales=0.75,1.0,1.25",
                 "--config.eval.flip=true", "--config.eval.softmax_first=true"]  # fmt: skip
    config = apply_overrides(get_config("folder"), overrides)
    expected = EvalProtocol("slide", (64, 96), (40, 60), (0.75, 1.0, 1.25), True, True)
    assert read_protocol(config.eval) == expected
    assert read_protocol(freeze(get_config("voc")).eval) == EvalProtocol()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"mode": "tile"}, "config.eval.mode: must be whole or slide"),
        ({"mode": "slide"}, "config.eval.crop_size: must be 2 positive integers"),
        ({"crop_size": (64, 64)}, "config.eval.crop_size: must be .* empty with whole"),
        ({"mode": "slide", "crop_size": (64, 64), "stride": (65, 64)}, "at most"),
        ({"scales": ()}, "config.eval.scales: must be different numbers from 0.25 to 4"),
        ({"scales": (0.0,)}, "config.eval.scales: must be different numbers from 0.25 to 4"),
        ({"scales": (1e9,)}, "config.eval.scales: must be different numbers from 0.25 to 4"),
        ({"scales": (1.0, float("nan"))}, "config.eval.scales: must be different numbers"),
        ({"scales": (1.0, 1)}, "config.eval.scales: must be different numbers"),
    ],
)
def test_protocols_that_cannot_be_are_refused(change, what):
    config = get_config("folder")
    config.eval.update(change)
    with pytest.raises(ConfigError, match=what):
        freeze(config)


def test_sampling_weights_are_rounded_once():
    for size, length in ((83, 25), (7, 90), (360, 90), (5, 1), (97, 97)):
        (low, high), weight = sampling(size, length)
        for i in range(size):
            source = min(max((2 * i + 1) * length - size, 0), 2 * size * (length - 1))
            assert (low[i], weight[1, i]) == (source // (2 * size), source % (2 * size) / 2 / size)
            assert high[i] == min(low[i] + 1, length - 1)
