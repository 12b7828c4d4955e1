import jax
import numpy as np
import pytest

from convert import keymap
from deeplab_jax.config import get_config
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models import build_model
from deeplab_jax.train_state import init_variables


def _tensors(depth, seed=0):
    """A state dict of random values with the shapes of our model's variables."""
    config = get_config("folder", depth=depth).model
    config.width, config.head_channels = 8, 16
    shapes = jax.eval_shape(lambda: init_variables(build_model(config, "cpu"), 0))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(s.dtype), shapes)
    return keymap.to_tensors(variables, {}, depth), variables


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_round_trip_is_bit_equal_and_fills_every_variable(depth):
    tensors, variables = _tensors(depth)
    again, counters = keymap.to_variables(tensors, depth)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert set(counters.values()) == {0}
    back = keymap.to_tensors(again, counters, depth)
    assert list(back) == list(tensors)
    for key, value in tensors.items():
        assert value.tobytes() == back[key].tobytes(), key


@pytest.mark.parametrize("name", ["r50_d16_c21", "r101_d8_c150"])
def test_keys_order_and_shapes_are_the_references(golden, recipe, name):
    manifest = recipe.load_manifest(golden / f"manifest_{name}.json")
    weights = recipe.weights(manifest)
    depth = 101 if "r101" in name else 50
    variables, counters = keymap.to_variables(weights, depth)
    back = keymap.to_tensors(variables, counters, depth)
    assert list(back) == [entry["key"] for entry in manifest["entries"]]
    assert recipe.check(manifest, back)  # crc32 of every tensor's bytes


def test_counters_are_kept():
    tensors, variables = _tensors(18)
    key = "decoder.0.depthwise_bn.num_batches_tracked"
    tensors[key] = np.int64(39660)
    _, counters = keymap.to_variables(tensors, 18)
    assert keymap.to_tensors(variables, counters, 18)[key] == 39660


def test_missing_and_unexpected_tensors_are_named():
    tensors, _ = _tensors(18)
    del tensors["shortcut.0.weight"]
    tensors["fc.weight"] = np.zeros(3)
    with pytest.raises(CheckpointError, match=r"1 tensors missing \(shortcut.0.weight\), 1 unexp"):
        keymap.to_variables(tensors, 18)


def test_a_deeper_networks_weights_are_refused():
    tensors, _ = _tensors(101)
    with pytest.raises(CheckpointError, match="306 unexpected"):
        keymap.to_variables(tensors, 50)
