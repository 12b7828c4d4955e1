import json

import pytest

from deeplab_jax import config
from deeplab_jax.config import rules
from deeplab_jax.config.forms import unknown_key
from deeplab_jax.errors import ConfigError
from deeplab_jax.training.plan import steps_per_epoch, total_steps


def changed(**fields):
    """Returns the folder template with fields such as train__lr=0.1 set, unchecked."""
    c = config.get_config("folder")
    with c.ignore_type():
        for name, value in fields.items():
            section, _, field = name.rpartition("__")
            (c[section] if section else c)[field] = value
    return c


@pytest.mark.parametrize(
    ("dataset", "samples", "batch", "per_epoch", "total"),
    [  # spec section 5
        ("voc", 10582, 16, 661, 39_660),
        ("ade20k", 20210, 16, 1263, 164_190),
        ("cityscapes", 2975, 8, 372, 81_840),
    ],
)
def test_epochs_of_the_table_are_as_long_as_the_reference_s(
    dataset, samples, batch, per_epoch, total
):
    c = config.get_config(dataset)
    assert c.train.batch_size == batch
    assert steps_per_epoch(c, samples) == per_epoch
    assert total_steps(c, samples) == total


def test_one_process_leaves_the_incomplete_batch_out():
    assert steps_per_epoch(changed(train__batch_size=4), 15) == 3


def test_named_steps_replace_epochs():
    assert total_steps(changed(train__steps=7), 1000) == 7


def test_misspelt_field_cannot_be_set():
    c = config.get_config("voc")
    with pytest.raises(AttributeError, match='Did you mean "output_stride"'):
        c.model.outputstride = 8


def test_unknown_data_set_is_refused():
    with pytest.raises(ConfigError, match="'coco' is unknown - use one of voc, ade20k"):
        config.get_config("coco")


@pytest.mark.parametrize("dataset", config.DATASETS)
@pytest.mark.parametrize("depth", [18, 50, 101])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_templates_are_valid(dataset, depth, output_stride):
    config.validate(config.get_config(dataset, depth, output_stride))


@pytest.mark.parametrize(
    ("field", "bad", "accepted"),
    [
        ("model__depth", 35, "18, 34, 50 or 101"),
        ("model__output_stride", 12, "8 or 16"),
        ("model__dtype", "float16", "float32 or bfloat16 or float64"),
        ("model__num_classes", 1, "2 to 255"),
        ("model__num_classes", 256, "2 to 255"),
        ("model__dropout_rate", 1.0, "0 <= rate < 1"),
        ("model__atrous_rates", (6, 12), "3 positive integers"),
        ("model__width", 9, "an even number"),
        ("data__dataset", "coco", "voc, ade20k, cityscapes, folder"),
        ("data__crop_size", (512,), "2 positive integers"),
        ("data__crop_size", (512, 0), "2 positive integers"),
        ("data__crop_size", (True, True), "2 positive integers"),
        ("data__resize_base", (512, 1.5), "2 positive integers"),
        ("eval__resize_base", (512,), "2 positive integers"),
        ("data__scale_range", (2.0, 0.5), "0 < low <= high"),
        ("data__scale_range", (0, 1), "0 < low <= high"),
        ("data__scale_range", (0.5, float("nan")), "0 < low <= high"),
        ("data__scale_range", ("a", "b"), "0 < low <= high"),
        ("data__scale_range", (0.5, float("inf")), "0 < low <= high"),
        ("data__class_names", ("a", "b", "c"), "2 names or none"),
        ("train__epochs", 0, "1 or more"),
        ("train__steps", -1, "0 or more"),
        ("train__lr", 0.0, "a positive rate"),
        ("train__lr", float("nan"), "a positive rate"),
        ("train__lr", float("inf"), "a positive rate"),
        ("train__min_lr", 0.011, "0 to config.train.lr (0.01)"),
        ("train__min_lr", -1e-9, "0 to config.train.lr (0.01)"),
        ("train__min_lr", float("nan"), "0 to config.train.lr (0.01)"),
        ("train__poly_power", 0.0, "a positive number"),
        ("train__poly_power", float("inf"), "a positive number"),
        ("train__poly_power", float("nan"), "a positive number"),
        ("train__momentum", 1.0, "0 <= momentum < 1"),
        ("train__momentum", float("nan"), "0 <= momentum < 1"),
        ("train__weight_decay", float("nan"), "0 or more"),
        ("train__weight_decay", float("inf"), "0 or more"),
        ("train__aux_weight", float("inf"), "0 or more"),
        ("data__num_workers", -1, "0 or more"),
        ("data__source", "zip", "folder, tfds, cache"),
        ("data__mask_format", "rgb", "index, color, binary"),
        ("data__images", "images", "different for each {split}"),
        ("data__ignore_values", (11, 65536), "different numbers in 0..65535"),
        ("data__ignore_values", (11, 11), "different numbers in 0..65535"),
        ("data__ignore_values", (True,), "different numbers in 0..65535"),
        ("data__ignore_values", (255, 1), "values that are no class (1 is one)"),
        ("data__value_range", (4095,), "2 whole numbers, 0 <= low < high <= 65535, or empty"),
        ("data__value_range", (9, 9), "2 whole numbers, 0 <= low < high <= 65535, or empty"),
        ("data__value_range", (0, 65536), "2 whole numbers, 0 <= low < high <= 65535, or empty"),
        ("data__value_range", (0.5, 9), "2 whole numbers, 0 <= low < high <= 65535, or empty"),
        ("data__class_values", (3,), "2 or no different numbers in 0..65535"),
        ("data__class_colors", (0, 0, 0), "6 or no numbers in 0..255"),
        ("data__max_bad_samples", -1, "0 or more"),
        ("seed", -1, "0 to 4294967295"),
        ("seed", 2**32, "0 to 4294967295"),
        ("init__head", "new", "load or skip"),
        ("init__head", "skip", "load without config.init.checkpoint"),
        ("model__width", 65538, "1 to 65536"),
        ("model__head_channels", 2 * 10**18, "1 to 65536"),
        ("model__low_level_channels", 65537, "1 to 65536"),
        ("model__aux_channels", 65537, "1 to 65536"),
        ("train__optimizer", "adam", "sgd or adamw"),
        ("train__schedule", "linear", "poly, cosine, constant, step"),
        ("train__step_epochs", (3, 2), "each greater than the one before"),
        ("train__step_epochs", (3,), "empty with config.train.schedule=poly"),
        ("train__step_factor", 0.5, "0.1 with config.train.schedule=poly"),
        ("train__step_factor", 1.0, "0 < factor < 1"),
        ("train__clip_norm", -1.0, "0 or more"),
        ("train__freeze", ("backbone.layer5",), "different modules of backbone, backbone.stem"),
        ("train__freeze", ("backbone", "backbone.stem"), "none within another"),
        ("train__freeze", (3,), "different modules of"),
        ("train__ema_half_life", 0.999, "0, or 1 or more"),
        ("eval__both_weights", True, "false with config.train.ema_half_life=0"),
    ],
)
def test_value_that_cannot_be_used_is_named_with_what_is_accepted(field, bad, accepted):
    with pytest.raises(ConfigError) as error:
        config.validate(changed(**{field: bad}))
    assert error.value.where == "config." + field.replace("__", ".")
    assert accepted in error.value.what


@pytest.mark.parametrize(
    ("fields", "field", "accepted"),
    [
        ({"schedule": "constant", "min_lr": 1e-5}, "min_lr", "0.0001 with"),
        ({"schedule": "cosine", "poly_power": 1.0}, "poly_power", "0.9 with"),
        ({"schedule": "step"}, "step_epochs", "epochs below config.train.epochs (60)"),
        ({"schedule": "step", "step_epochs": (60,)}, "step_epochs", "epochs below"),
        ({"schedule": "step", "step_epochs": (3,), "steps": 9}, "steps", "0 with"),
        ({"steps": 9, "warmup_steps": 9}, "warmup_steps", "below config.train.steps (9)"),
        ({"decay_norms": False, "weight_decay": 0.0}, "decay_norms", "true without weight decay"),
        ({"freeze": ("backbone", *rules.HEADS)}, "freeze", "fewer modules"),
        ({"freeze": ("backbone",), "head_lr_factor": 2.0}, "head_lr_factor", "1 where"),
        ({"freeze": rules.HEADS, "head_lr_factor": 2.0}, "head_lr_factor", "1 where"),
    ],
)
def test_field_that_another_makes_meaningless_is_refused(fields, field, accepted):
    with pytest.raises(ConfigError) as error:
        config.validate(changed(**{f"train__{name}": value for name, value in fields.items()}))
    assert error.value.where == f"config.train.{field}"
    assert accepted in error.value.what


def test_rates_below_the_default_end_suit_a_constant_rate():
    config.validate(changed(train__lr=6e-5, train__schedule="constant"))


def test_frozen_weights_that_are_drawn_are_warned_of():
    c = config.freeze(changed(train__freeze=("backbone.stem",)))
    assert "keeps weights that are drawn at random" in config.warnings(c)[-1]
    c = changed(train__freeze=("backbone.stem",), init__backbone="weights/r50")
    assert config.warnings(config.freeze(c)) == []
    c.train.lr = 2e-4
    (warning,) = config.warnings(config.freeze(c))
    assert warning.endswith("--config.train.min_lr=2e-06 lets it fall as in the table")


@pytest.mark.parametrize(
    ("field", "bad", "fix"),
    [
        ("model__output_stride", 12, "such as the default: --config.model.output_stride=16"),
        ("data__crop_size", (512,), "such as the default: --config.data.crop_size=512,512"),
        ("model__num_classes", 256, "count the classes, without the ignored one"),
        ("data__class_names", ("a",), "or correct config.model.num_classes"),
        (
            "train__lr",
            1e-5,
            "lower it: --config.train.min_lr=1e-07, or raise config.train.lr",
        ),  # below the lowest rate
    ],
)
def test_value_that_cannot_be_used_gets_advice(field, bad, fix):
    with pytest.raises(ConfigError) as error:
        config.validate(changed(**{field: bad}))
    assert fix in error.value.fix


def test_backbone_beside_a_checkpoint_is_refused():
    both = {"init__checkpoint": "runs/a", "init__backbone": "weights/b"}
    with pytest.raises(ConfigError, match=r"weights/b is named beside .*checkpoint=runs/a"):
        config.validate(changed(**both))
    for backbone in ("", "none"):
        config.validate(changed(**both | {"init__backbone": backbone}))


@pytest.mark.parametrize(
    ("batch", "groups", "nearest"), [(12, 8, 16), (11, 8, 8), (3, 8, 8), (20, 8, 16)]
)
def test_batch_that_does_not_divide_into_the_groups_names_the_nearest(batch, groups, nearest):
    with pytest.raises(ConfigError, match=f"use {nearest}, or set config.train.loss_groups"):
        config.validate(changed(train__batch_size=batch, train__loss_groups=groups))


def test_batch_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"at least 2, got 1 .the image-pool norm"):
        config.validate(changed(train__batch_size=1))


def test_json_brings_every_field_back():
    c = config.freeze(
        changed(eval__resize_base=(240, 180), data__class_names=("a", "b"), train__lr=0.1)
    )
    got = config.from_dict(json.loads(config.to_json(c)))
    assert got == c


def test_field_that_an_older_version_lacked_keeps_its_default():
    tree = config.get_config("voc").to_dict()
    del tree["train"]["aux_weight"]
    assert config.from_dict(tree).train.aux_weight == 0.4


def test_field_of_a_newer_version_is_refused():
    tree = config.get_config("voc").to_dict()
    tree["train"]["ema"] = 0.9
    with pytest.raises(ConfigError, match=r"config.train.ema: there is no such field"):
        config.from_dict(tree)


def test_difference_names_what_changes_a_result_and_nothing_else():
    old = config.freeze(config.get_config("folder"))
    new = changed(
        train__lr=0.02,
        data__crop_size=(64, 64),
        data__root="elsewhere",
        data__num_workers=3,
        log__every_steps=1,
    )
    assert config.difference(old, config.freeze(new)) == [
        "data.crop_size: (512, 512) -> (64, 64)",
        "train.lr: 0.01 -> 0.02",
    ]
    assert config.difference(old, config.freeze(config.get_config("folder"))) == []


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("train.lrr", "did you mean config.train.lr?"),
        ("optim.momentun", "did you mean config.train.momentum?"),
        ("crop_sise", "did you mean config.data.crop_size?"),
        ("model", "name one of its fields, such as config.model."),
        ("zzz", "see all: deeplab config fields"),
    ],
)
def test_unknown_field_gets_advice(key, advice):
    error = unknown_key(key, config.flatten(config.get_config("folder")))
    assert error.where == f"config.{key}"
    assert advice in error.fix


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"mask_format": "binary", "num_classes": 3}, "model.num_classes"),
        ({"mask_format": "binary", "reduce_zero_label": True}, "data.reduce_zero_label"),
        ({"mask_format": "color", "ignore_values": (0,)}, "data.ignore_values"),
        ({"mask_format": "color", "class_values": (3, 4)}, "data.class_values"),
        ({"reduce_zero_label": True, "class_values": (3, 4)}, "data.class_values"),
        ({"reduce_zero_label": True, "ignore_values": (2,)}, "data.ignore_values"),
        ({"class_values": (3, 255)}, "data.ignore_values"),
        ({"dataset": "voc", "num_classes": 21, "ignore_values": (0,)}, "data.ignore_values"),
        ({"dataset": "voc", "num_classes": 21, "images": "x/{split}"}, "data.images"),
        ({"dataset": "cityscapes", "mask_suffix": "_mask"}, "data.mask_suffix"),
    ],
)
def test_fields_of_data_that_contradict_are_refused(fields, where):
    c = changed()
    for name, value in fields.items():
        section = c.model if name == "num_classes" else c.data
        with section.ignore_type():
            section[name] = value
    with pytest.raises(ConfigError) as error:
        config.validate(c)
    assert error.value.where == f"config.{where}"


def test_cityscapes_may_have_train_ids_and_one_split_no_pattern():
    c = config.get_config("cityscapes")
    c.data.mask_suffix = config.TRAIN_IDS
    config.validate(c)
    config.validate(changed(data__images="all", data__masks="all", data__val_split="train"))


@pytest.mark.parametrize(
    ("output_stride", "crop", "size"),
    [
        (16, (288, 512), "18x32"),  # as large as the rate is not larger
        (16, (192, 256), "12x16"),
        (8, (280, 280), "35x35"),
    ],
)
def test_crop_too_small_for_the_largest_rate_is_warned_of(output_stride, crop, size):
    c = config.get_config("folder", output_stride=output_stride)
    c.data.crop_size = crop
    (warning,) = config.warnings(c)
    assert f"{size} feature map" in warning
    assert f"rate {18 if output_stride == 16 else 36}:" in warning


@pytest.mark.parametrize(
    ("output_stride", "crop"), [(16, (512, 512)), (16, (289, 289)), (8, (512, 1024))]
)
def test_crop_large_enough_is_not_warned_of(output_stride, crop):
    c = config.get_config("folder", output_stride=output_stride)
    c.data.crop_size = crop
    assert config.warnings(c) == []
