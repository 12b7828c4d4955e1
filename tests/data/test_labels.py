import json

import numpy as np
import pytest

from deeplab_jax.data import open_dataset
from deeplab_jax.data.classes import CLASS_NAMES, colormap
from deeplab_jax.data.colors import safe_palette
from deeplab_jax.data.labels import label_map
from deeplab_jax.errors import ConfigError

CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19, "folder": 4}


@pytest.mark.parametrize("name", ["voc", "ade20k", "cityscapes"])
def test_label_map_is_the_references(expected, data_config, name):
    golden = expected["label_map"][name]
    want = np.full(256, -1)
    want[golden["ids"]] = [255 if label < 0 else label for label in golden["labels"]]
    ours = label_map(data_config(name, "data"), CLASSES[name])
    assert ours.dtype == np.int16
    np.testing.assert_array_equal(ours[:256], want)
    assert (ours[256:] == -1).all()


@pytest.mark.parametrize(
    ("name", "fields", "classes"),
    [
        ("folder", {}, {0: 0, 2: 2, 3: -1, 254: -1, 255: 255, 256: -1}),
        ("folder", {"reduce_zero_label": True}, {0: 255, 1: 0, 3: 2, 4: -1, 255: 255}),
        ("folder", {"ignore_values": (11, 65535)}, {2: 2, 3: -1, 11: 255, 255: -1, 65535: 255}),
        ("folder", {"ignore_values": ()}, {2: 2, 255: -1}),
        ("folder", {"class_values": (7, 300, 0)}, {7: 0, 300: 1, 0: 2, 1: -1, 255: 255}),
        ("ade20k", {}, {0: 255, 1: 0, 3: 2, 4: -1, 255: -1}),
        ("cityscapes", {"mask_suffix": "_gtFine_labelTrainIds"}, {0: 0, 2: 2, 3: -1, 255: 255}),
    ],
)
def test_label_map_by_hand(data_config, name, fields, classes):
    ours = label_map(data_config(name, "data", **fields), 3)
    assert {value: ours[value] for value in classes} == classes


def test_label_map_of_binary_masks_and_cityscapes(data_config):
    ours = label_map(data_config("folder", "data", mask_format="binary"), 2)
    assert ours[[0, 1, 254, 255]].tolist() == [0, -1, -1, 1]
    ours = label_map(data_config("cityscapes", "data"), 19)
    assert ours[[0, 7, 9, 33, 34, 255]].tolist() == [255, 0, 255, 18, -1, -1]


def test_table_data_sets_have_their_own_classes(make_tree, data_config, open_error):
    data = data_config("voc", make_tree("voc"))
    assert open_dataset(data, 21, "val").class_names == CLASS_NAMES["voc"]
    message = open_error(data, 20, "val", ConfigError)
    assert message == "config.model.num_classes: is 20, but voc has 21 classes - set it to 21"


def test_folder_takes_names_from_json_then_config_then_numbers(make_tree, data_config, open_error):
    root = make_tree("folder")
    assert open_dataset(data_config("folder", root), 4, "val").class_names[3] == "class_3"

    data = data_config("folder", root, class_names=("a", "b", "c", "d"))
    dataset = open_dataset(data, 4, "val")
    assert dataset.class_names == ("a", "b", "c", "d")
    np.testing.assert_array_equal(dataset.palette, safe_palette(4))

    entries = ["sky", {"name": "road", "color": [1, 2, 3]}, "tree", {"name": "car"}]
    (root / "classes.json").write_text(json.dumps(entries))
    assert "its values differ from those of" in open_error(data, 4, "val", ConfigError)
    data = data_config("folder", root)
    dataset = open_dataset(data, 4, "val")
    assert dataset.class_names == ("sky", "road", "tree", "car")
    for mask_format, default in (("index", safe_palette(4)), ("color", colormap(4))):
        data = data_config("folder", root, mask_format=mask_format)
        palette = open_dataset(data, 4, "val").palette
        np.testing.assert_array_equal(palette, [default[0], [1, 2, 3], *default[2:]])
    data = data_config("folder", root)
    assert "classes.json has 4 classes" in open_error(data, 5, "val", ConfigError)


def test_classes_json_may_have_a_mark_and_no_other_encoding(make_tree, data_config, open_error):
    root, text = make_tree("folder"), '["空", "路", "树", "车"]'
    (root / "classes.json").write_text(text, "utf-8-sig")
    assert open_dataset(data_config("folder", root), 4, "val").class_names[1] == "路"
    for encoding in ("utf-16", "gbk"):
        (root / "classes.json").write_text(text, encoding)
        message = open_error(data_config("folder", root), 4, "val")
        assert message == f"{root}/classes.json: is no text in UTF-8 - save it as UTF-8"


@pytest.mark.parametrize(
    "text",
    ["{", '{"name": "a"}', "[1, 2, 3, 4]", '[{"color": [1, 2, 3]}]', "3",
     '[{"name": "a", "color": [1, 2]}]', '[{"name": "a", "color": [1, 2, 300]}]',
     pytest.param("[" * 100_000, id="deep")],
)  # fmt: skip
def test_unusable_classes_json_is_named(make_tree, data_config, text, open_error):
    root = make_tree("folder")
    (root / "classes.json").write_text(text)
    message = open_error(data_config("folder", root), 4, "val")
    assert message.startswith(f"{root}/classes.json: is no list of classes")
