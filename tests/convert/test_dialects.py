import numpy as np
import pytest

from convert import keymap
from convert.dialects import MAX_LINES, MisfitError, compare, detect, infer, nearest_depth
from deeplab_jax.errors import CheckpointError


def _shapes(tensors):
    return {key: value.shape for key, value in tensors.items()}


@pytest.mark.parametrize("dialect", keymap.DIALECTS)
@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_keys_tell_the_dialect_and_shapes_the_structure(make_tensors, dialect, depth):
    tensors = make_tensors(dialect, depth)
    assert detect(tensors.keys(), "x.pth") == dialect
    structure = infer(_shapes(tensors), dialect)
    assert structure.depth == depth
    expected = {"depth": depth, "stem": keymap.DIALECTS[dialect].stem, "width": 4}
    if not structure.is_backbone:
        widths = {"head_channels": 10, "low_level_channels": 3, "aux_channels": 7}
        expected |= widths | {"num_classes": 5}
    assert structure.model == expected


def test_classifier_may_be_cut_off(make_tensors):
    for dialect in ("v1c", "torchvision"):
        keys = [key for key in make_tensors(dialect) if not key.startswith("fc.")]
        assert detect(keys, "x.pth") == dialect


def test_golden_dialects_are_told(recipe):
    tensors = recipe.draw_weights("mmseg_r18_d8_c19")
    widths = {"width": 64, "head_channels": 128, "low_level_channels": 12, "aux_channels": 64}
    structure = infer(_shapes(tensors), detect(tensors.keys(), "x.pth"))
    assert structure.model == {"depth": 18, "stem": "deep", "num_classes": 19, **widths}


def test_smp_is_named_and_refused():
    with pytest.raises(CheckpointError, match=r"segmentation_models.pytorch"):
        detect(["encoder.conv1.weight", "segmentation_head.0.weight"], "x.pth")


@pytest.mark.parametrize("dialect", keymap.DIALECTS)
def test_unknown_names_get_the_closest_layout(make_tensors, dialect):
    keys = [f"net.{key}" for key in make_tensors(dialect, 50)]
    closest = keymap.describe(dialect, 50).replace("+", r"\+")
    with pytest.raises(MisfitError, match=f"closest known layout: {closest} ") as caught:
        detect(keys, "x.pth")
    lines = caught.value.table.splitlines()
    assert len(lines) == MAX_LINES + 1
    assert sum(line.startswith("  missing ") for line in lines) == 5
    assert sum(line.startswith("  unexpected  net.") for line in lines) == 5


def test_names_without_any_likeness_still_get_an_answer():
    with pytest.raises(MisfitError, match="its 1 tensors have the names of no known layout"):
        detect(["weight"], "x.pth")


@pytest.mark.parametrize(
    ("blocks", "is_bottleneck", "depth"),
    [
        (2, False, 18),
        (6, False, 34),
        (6, True, 50),
        (23, True, 101),
        (36, True, 101),
        (0, True, 50),
    ],
)
def test_depth_is_the_nearest_of_its_kind(blocks, is_bottleneck, depth):
    assert nearest_depth(blocks, is_bottleneck) == depth


def _misfit(tensors, change):
    wanted = _shapes(tensors)
    tensors = dict(tensors)
    change(tensors)
    return compare(tensors, wanted, "sssegmentation")


def test_equal_tensors_fit(make_tensors):
    tensors = make_tensors("sssegmentation")
    assert not any(_misfit(tensors, lambda changed: None))
    halves = {k: v.astype("f2") if v.dtype.kind == "f" else v for k, v in tensors.items()}
    assert not any(compare(halves, _shapes(tensors), "sssegmentation"))


def test_every_difference_is_found_and_shown(make_tensors):
    def change(tensors):
        tensors["renamed\n"] = tensors.pop("shortcut.0.weight")
        tensors["decoder.3.bias"] = np.zeros(21, np.float32)
        tensors["shortcut.1.weight"] = np.zeros(3, np.int32)
        tensors["shortcut.1.num_batches_tracked"] = np.zeros((), np.float32)

    misfit = _misfit(make_tensors("sssegmentation"), change)
    assert misfit.counts() == "1 missing, 1 unexpected, 3 of another shape or type"
    assert misfit.table().splitlines() == [
        "  missing     shortcut.0.weight               (3, 4, 1, 1) wanted",
        "  unexpected  renamed\\n                       (3, 4, 1, 1) float32",
        "  differs     shortcut.1.weight               int32, a floating type wanted",
        "  differs     shortcut.1.num_batches_tracked  float32, int64 wanted",
        "  differs     decoder.3.bias                  (21,), (5,) wanted",
    ]


@pytest.mark.parametrize("count", [-1, 2**62 + 1, 2**63 - 1])
def test_counters_that_could_overflow_differ(make_tensors, count):
    key = "shortcut.1.num_batches_tracked"
    misfit = _misfit(make_tensors("sssegmentation"), lambda t: t.update({key: np.int64(count)}))
    assert misfit.changed == [(key, f"{count}, 0 to {2**62} wanted")]
    assert misfit.counts().endswith(" 1 of another shape or type")


def test_table_shows_ten_lines_and_then_counts(make_tensors):
    def change(tensors):
        for key in list(tensors)[:100]:
            tensors[f"x.{key}"] = tensors.pop(key)
        tensors["decoder.3.bias"] = np.zeros(21, np.float32)

    lines = _misfit(make_tensors("sssegmentation"), change).table().splitlines()
    assert len(lines) == 11
    assert sum(line.startswith("  differs") for line in lines) == 1
    expected = "  ... in all 100 missing, 100 unexpected, 1 of another shape or type"
    assert lines[-1] == expected
