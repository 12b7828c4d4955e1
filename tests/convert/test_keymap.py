import jax
import numpy as np
import pytest

from convert import keymap
from deeplab_jax.errors import CheckpointError

_TABLE = [
    f"r{depth}_d{stride}_c{c}" for depth in (50, 101) for stride in (8, 16) for c in (21, 150, 19)
]
_MANIFESTS = {
    **dict.fromkeys(_TABLE, "sssegmentation"),
    "mmseg_r18_d8_c19": "mmsegmentation",
    "mmseg_r50_d8_c21": "mmsegmentation",
    "mmseg_r101_d8_c150": "mmsegmentation",
    "mmseg_r101_d16mg124_c19": "mmsegmentation",
    "v1c_resnet50": "v1c",
    "torchvision_resnet18": "torchvision",
    "torchvision_resnet50": "torchvision",
}


def _depth(name):
    return next(depth for depth in (18, 101, 50) if f"r{depth}" in name or f"net{depth}" in name)


def _assert_equal(got, wanted):
    """Keys, order, types, shapes and bytes."""
    assert list(got) == list(wanted)
    for key, value in wanted.items():
        assert (got[key].dtype, got[key].shape) == (value.dtype, value.shape), key
        assert got[key].tobytes() == value.tobytes(), key


def _without_drops(tensors):
    return {key: value for key, value in tensors.items() if not key.startswith("fc.")}


@pytest.mark.parametrize("dialect", keymap.DIALECTS)
@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_round_trip_is_bit_equal_and_fills_every_variable(
    make_tensors, make_variables, dialect, depth
):
    tensors = make_tensors(dialect, depth)
    variables, counters = keymap.to_variables(tensors, depth, dialect)
    expected = make_variables(depth, keymap.DIALECTS[dialect].stem)
    if not keymap.DIALECTS[dialect].heads:
        expected = {name: tree["backbone"] for name, tree in expected.items()}
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    back = keymap.to_tensors(variables, counters, depth, dialect)
    _assert_equal(back, _without_drops(tensors))
    shapes = keymap.to_shapes(expected, depth, dialect)
    assert shapes == {key: value.shape for key, value in back.items()}


@pytest.mark.parametrize("name", _MANIFESTS)
def test_round_trip_of_the_golden_weights_keeps_keys_order_and_bytes(recipe, name):
    weights, depth, dialect = recipe.draw_weights(name), _depth(name), _MANIFESTS[name]
    variables, counters = keymap.to_variables(weights, depth, dialect)
    back = keymap.to_tensors(variables, counters, depth, dialect)
    _assert_equal(back, _without_drops(weights))
    assert len(weights) - len(back) == (0 if keymap.DIALECTS[dialect].heads else 2)


def test_projection_comes_first_in_sssegmentation_and_last_elsewhere(make_tensors):
    for dialect, prefix in [("sssegmentation", "backbone_net."), ("mmsegmentation", "backbone.")]:
        start = f"{prefix}layer2.0."
        parts = [key.split(".")[3] for key in make_tensors(dialect, 50) if key.startswith(start)]
        is_first = dialect == "sssegmentation"
        assert parts.index("downsample") == (0 if is_first else len(parts) - 6)


def test_the_same_variables_have_other_names_and_order(make_tensors):
    ours, theirs = (make_tensors(name) for name in ("sssegmentation", "mmsegmentation"))
    assert not set(ours) & set(theirs)
    variables, counters = keymap.to_variables(theirs, 18, "mmsegmentation")
    again = keymap.to_tensors(variables, counters, 18)
    assert list(again) == list(ours)
    for key in again:
        if not key.endswith(keymap.COUNTER):
            np.testing.assert_array_equal(again[key], ours[key])


def test_image_pool_is_joined_first_in_mmsegmentation_and_last_here(make_tensors):
    tensors = make_tensors("mmsegmentation")
    theirs = tensors["decode_head.bottleneck.conv.weight"]  # (10, 50, 3, 3)
    ours = keymap.to_variables(tensors, 18, "mmsegmentation")[0]["params"]["aspp"]["merge"]
    ours = ours["conv"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(ours[:, 40:], theirs[:, :10])
    np.testing.assert_array_equal(ours[:, :40], theirs[:, 10:])


def test_counters_are_kept_and_none_at_all_stay_none(make_tensors):
    tensors = make_tensors("sssegmentation")
    key = "decoder.0.depthwise_bn.num_batches_tracked"
    tensors[key] = np.asarray(39660)
    variables, counters = keymap.to_variables(tensors, 18)
    assert keymap.to_tensors(variables, counters, 18)[key] == 39660
    back = keymap.to_tensors(variables, {}, 18)
    assert list(back) == [key for key in tensors if not key.endswith(keymap.COUNTER)]


def test_file_from_before_counters_existed_has_none(make_tensors):
    tensors = make_tensors("torchvision")
    old = {key: value for key, value in tensors.items() if not key.endswith(keymap.COUNTER)}
    variables, counters = keymap.to_variables(old, 18, "torchvision")
    assert counters == {}
    assert list(keymap.to_tensors(variables, counters, 18, "torchvision")) == list(old)[:-2]
    del tensors["layer1.0.bn1.num_batches_tracked"]
    with pytest.raises(CheckpointError, match=r"1 tensors missing \(layer1.0.bn1.num_batches"):
        keymap.to_variables(tensors, 18, "torchvision")


def test_missing_and_unexpected_tensors_are_named(make_tensors):
    tensors = make_tensors("sssegmentation")
    del tensors["shortcut.0.weight"]
    tensors["fc.weight"] = np.zeros(3)
    with pytest.raises(CheckpointError, match=r"1 tensors missing \(shortcut.0.weight\), 1 unexp"):
        keymap.to_variables(tensors, 18)


def test_a_deeper_networks_weights_are_refused_both_ways(make_tensors, make_variables):
    with pytest.raises(CheckpointError, match="306 unexpected"):
        keymap.to_variables(make_tensors("sssegmentation", 101), 50)
    with pytest.raises(CheckpointError, match=r"0 missing .*, 255 unexpected"):
        keymap.to_tensors(make_variables(101), {}, 50)


def test_a_network_is_no_backbone(make_variables):
    with pytest.raises(CheckpointError, match="missing"):
        keymap.to_tensors(make_variables(18), {}, 18, "v1c")
