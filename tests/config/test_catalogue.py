import importlib
import re

import pytest

from deeplab_jax import config
from deeplab_jax.config import catalogue
from deeplab_jax.config.schema import fields


def test_every_field_has_a_row_with_accepted_values_and_a_sentence():
    rows = catalogue.rows()
    assert [row.name for row in rows] == [*fields()]
    assert all(row.accepted and row.text for row in rows)
    row = next(row for row in rows if row.name == "data.crop_size")
    assert row[1:3] == ("512,512", "pixels")


def test_defaults_are_accepted_as_they_are_written():
    overrides = [f"--config.{row.name}={row.default}" for row in catalogue.rows()]
    template = config.get_config("folder")
    assert config.recipe.apply_overrides(template, overrides) == config.freeze(template)


def test_common_names_are_no_fields_and_mean_one_each():
    words = [word for words in catalogue._COMMON.values() for word in words.split()]
    assert len(words) == len(set(words))
    assert not set(words) & fields().keys()
    assert catalogue._COMMON.keys() <= fields().keys()


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("train.log_every", "log.every_steps"),
        ("train.learning_rate", "train.lr"),
        ("optimizer.lr", "train.lr"),
        ("train.bs", "train.batch_size"),
        ("data.skip_bad", "data.max_bad_samples"),
        ("train.weight_decay_rate", "train.weight_decay"),
        ("data_dir", "data.root"),
        ("num_classes", "model.num_classes"),
        ("train.max_steps", "train.steps"),
        ("train.accumulate", "train.gradient_accumulation"),
        ("amp", "model.dtype"),
        ("pretrained", "init.backbone"),
        ("--num-workers", "data.num_workers"),
        ("ignore_index", "data.ignore_values"),
        ("image_size", "data.crop_size"),
        ("train.reference_processes", "train.loss_groups"),
        ("mesh.space", "mesh.spatial"),
        ("model.aspp_channels", "model.head_channels"),  # by its words
        ("optim.momentun", "train.momentum"),  # by spelling
        ("warmup_steps", "train.warmup_steps"),
        ("lr_scheduler", "train.schedule"),
        ("train.milestones", "train.step_epochs"),
        ("model_ema", "train.ema_half_life"),
        ("train.grad_clip", "train.clip_norm"),
        ("frozen_stages", "train.freeze"),
        ("backbone_lr", "train.head_lr_factor"),
        ("sync_bn", None),  # there is none, and no other field would do
        ("zzz", None),
    ],
)
def test_field_is_found_by_meaning_or_spelling(name, field):
    assert catalogue.suggest(name) == field


def test_search_finds_names_common_names_and_sentences():
    assert [row.name for row in catalogue.search("bn")] == ["model.freeze_batch_norm"]
    assert [row.name for row in catalogue.search("lr")][:2] == ["train.lr", "train.min_lr"]
    memory = [row.name for row in catalogue.search("memory")]
    assert memory == ["model.remat", "train.gradient_accumulation"]
    assert catalogue.search("zzz") == []


def test_help_of_train_shows_ten_fields_with_their_defaults():
    train = importlib.import_module("deeplab_jax.train")
    shown = re.findall(r"--config\.([\w.]+)=(\S+) ", train._FIELDS)
    defaults = {row.name: row.default for row in catalogue.rows()}
    assert len(shown) == 10
    assert [defaults[name] for name, _ in shown] == [default for _, default in shown]
