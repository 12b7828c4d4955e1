import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from deeplab_jax import checkpoint, config
from deeplab_jax.config import freeze
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.errors import CheckpointError, DamagedError
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.training import init_weights, loop
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.state import init_state

pytestmark = pytest.mark.usefixtures("compile_quickly")

CLASSIFIERS = ("aux_classifier", "classifier")
NAMES = ("sky", "road", "tree", "car")


@pytest.fixture
def recipe_text(tiny_recipe):
    return tiny_recipe("train.steps = 3\neval.every_epochs = 9")


@pytest.fixture
def make_config(recipe_text):
    """Returns make_config(**model) -> that recipe's, with fields of the model changed."""

    def make_config(**model):
        scope = {}
        exec(recipe_text, scope)
        c = scope["get_config"]()
        c.model.update(model)
        return c

    return make_config


def draw_variables(c, seed=0):
    """Returns random positive variables, also where a new network has zeros and ones."""
    shapes = jax.eval_shape(lambda: init_variables(build_model(c.model), 0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.uniform(size=x.shape).astype(np.float32), shapes)


@pytest.fixture
def write(make_config, tmp_path):
    """Returns write(kind, names, metrics, **model) -> (path, config, items): random, saved."""

    def write(kind="weights", names=NAMES, metrics=None, drawn="", **model):
        c = make_config(**model)
        items, info_config = draw_variables(c), freeze(c)
        if kind == "backbone":
            items = {name: tree["backbone"] for name, tree in items.items()}
            info_config, names = None, ()
        names = names[: c.model.num_classes]
        info = checkpoint.Info(kind=kind, config=info_config, class_names=names, drawn=drawn)
        path = tmp_path / f"{kind}{c.model.depth}"
        with checkpoint.Saver(path) as saver:
            saver.save(0 if kind == "weights" else 1200, items, info, metrics)
        return path, c, items

    return write


def new_state(c):
    optimizer, _ = build_optimizer(c.train, 3)
    shapes = jax.eval_shape(lambda: init_state(build_model(c.model), optimizer, 0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    whole = mesh_lib.replicated(mesh_lib.make_mesh(4))
    return jax.device_put(zeros | draw_variables(c, seed=1), whole)


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def split_classifiers(variables):
    """Returns (the classifiers' parameters, all other variables)."""
    params = dict(variables["params"])
    heads = {name: params.pop(name) for name in CLASSIFIERS}
    return heads, {"params": params, "batch_stats": variables["batch_stats"]}


def variables_of(state):
    return {name: state[name] for name in ("params", "batch_stats")}


# A checkpoint


def test_whole_network_is_loaded_and_nothing_else_changes(write, capsys):
    path, c, items = write("run", metrics={"mean_iou": 0.41})
    drawn = new_state(c)
    c.init.checkpoint = str(path)
    assert init_weights.check_init(c, NAMES) == []
    got = init_weights.load_init(drawn, c)
    assert_equal(variables_of(got), items)
    assert_equal([got["step"], got["opt_state"]], [drawn["step"], drawn["opt_state"]])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(got["opt_state"]))
    places = [leaf.sharding for leaf in jax.tree.leaves(got)]
    assert places == [leaf.sharding for leaf in jax.tree.leaves(drawn)]
    count = len(jax.tree.leaves(items))
    text = f"init: {count} of {count} tensors from {path} (step 1200, mean IoU 41.00 %)\n"
    assert capsys.readouterr().out == text


def test_what_was_drawn_when_weights_were_converted_is_told(write, capsys):
    path, c, _ = write(drawn="auxiliary head, from seed 0")
    c.init.checkpoint = str(path)
    init_weights.load_init(new_state(c), c)
    out = capsys.readouterr().out
    assert "(weights; drawn when it was converted: auxiliary head, from seed 0)" in out


@pytest.mark.parametrize("classes", [3, 4])
def test_skipped_head_is_as_drawn_and_all_else_is_loaded(write, make_config, capsys, classes):
    path, _, items = write()
    c = make_config(num_classes=classes)
    drawn = new_state(c)
    c.init.checkpoint, c.init.head = str(path), "skip"
    assert init_weights.check_init(c, tuple("abcd"[:classes])) == []
    heads, rest = split_classifiers(init_weights.load_init(drawn, c))
    assert_equal(heads, {name: drawn["params"][name] for name in CLASSIFIERS})
    assert_equal(rest, split_classifiers(items)[1])
    count = len(jax.tree.leaves(items))
    assert capsys.readouterr().out == (
        f"init: {count - 4} of {count} tensors from {path} (weights); not loaded:"
        " aux_classifier/bias, aux_classifier/kernel, classifier/bias, classifier/kernel"
        f" (new, {classes} classes)\n"
    )


def test_other_class_count_is_told_with_names_and_counts(write, make_config):
    path, *_ = write(num_classes=21, names=())
    c = make_config(num_classes=5)
    c.init.checkpoint = str(path)
    with pytest.raises(CheckpointError) as error:
        init_weights.check_init(c, ())
    text = str(error.value)
    assert text.startswith(f"{path}: does not fit: 21 classes there, 5 here; 0 parameters ")
    assert "4 of another shape - " in text
    assert text.endswith(" - new classifiers: --config.init.head=skip")


def test_class_count_is_no_matter_when_the_head_is_skipped(write, make_config):
    path, *_ = write(num_classes=21, names=())
    c = make_config(num_classes=5, head_channels=12)
    c.init.checkpoint, c.init.head = str(path), "skip"
    with pytest.raises(CheckpointError, match="does not fit: ") as error:
        init_weights.check_init(c, ())
    assert "classes there" not in str(error.value)


@pytest.mark.parametrize("head", ["load", "skip"])
@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"depth": 34}, "a ResNet-18 there, a ResNet-34 here; 80 parameters missing, "),
        ({"width": 16}, "width 8 there, 16 here; 0 parameters missing, 0 unexpected, 132 of"),
        ({"stem": "7x7"}, "a deep stem there, a 7x7 one here; 0 parameters missing, "),
        ({"head_channels": 12}, "head channels 16 there, 12 here; 0 parameters missing, "),
    ],
)
def test_other_network_is_told_by_name(write, make_config, head, model, text):
    path, *_ = write(num_classes=3)
    c = make_config(num_classes=3, **model)
    c.init.checkpoint, c.init.head = str(path), head
    with pytest.raises(CheckpointError, match="does not fit: ") as error:
        init_weights.check_init(c, NAMES)
    assert text in str(error.value)
    assert "head=skip" not in str(error.value)


def test_floating_types_are_converted(write):
    path, c, _ = write()
    c.init.checkpoint, c.model.dtype = str(path), "float64"
    with jax.enable_x64(True):
        assert init_weights.check_init(c, NAMES) == []
        wanted = init_weights._wanted(c, checkpoint.read_info(path))
    assert {leaf.dtype for leaf in jax.tree.leaves(wanted)} == {np.dtype("float64")}


def test_other_names_of_as_many_classes_are_warned_of(write):
    path, c, _ = write()
    c.init.checkpoint = str(path)
    (warning,) = init_weights.check_init(c, ("sky", "wall", "tree", "bus"))
    assert "(1: road -> wall, 3: car -> bus)" in warning
    assert "config.init.head=skip starts new classifiers" in warning
    c.init.head = "skip"
    assert init_weights.check_init(c, ("sky", "wall", "tree", "bus")) == []


def test_backbone_is_named_elsewhere(write, make_config):
    path, *_ = write("backbone")
    c = make_config()
    c.init.checkpoint = str(path)
    with pytest.raises(CheckpointError, match=f"give it as --config.init.backbone={path} instead"):
        init_weights.check_init(c, NAMES)


def remove(path):
    shutil.rmtree(path)


def break_description(path):
    (path / "checkpoints" / "0" / "_CHECKPOINT_METADATA").write_text("{")


def break_list(path):
    (path / "checkpoints" / "0" / "params" / "_METADATA").write_text("{")


@pytest.mark.parametrize("damage", [remove, break_description, break_list])
def test_checkpoint_that_cannot_be_read_is_told_before_anything_is_written(
    write, recipe_text, make_tree, call, tmp_path, damage
):
    path, *_ = write()
    damage(path)
    root = make_tree("folder", num_train=4, num_val=1)
    (root / "tiny.py").write_text(recipe_text)
    options = [f"--config.data.root={root}", f"--config.init.checkpoint={path}"]
    workdir = tmp_path / "run"
    code, out, err = call("train", "--config", root / "tiny.py", "--workdir", workdir, *options)
    assert code == 4
    assert (out, err.count("\n")) == ("", 1)
    assert f"error: {path}" in err
    assert not workdir.exists()


def test_table_row_starts_from_a_checkpoint_without_a_backbone(write):
    path, c, _ = write(num_classes=21, names=())
    row = config.get_config("voc", 18, 16)
    row.model.update(c.model)
    row.init.checkpoint = str(path)
    config.validate(row)
    assert init_weights.check_init(row, ()) == []


@pytest.mark.process("trains twice; what is loaded is checked in the first tier")
def test_fine_tuning_to_other_classes_and_going_on_once_the_source_is_gone(
    write, recipe_text, make_tree, call, tmp_path, monkeypatch
):
    root = make_tree("folder", num_train=8, num_val=1, num_classes=3)
    (root / "tiny.py").write_text(recipe_text)
    source, workdir = write("run")[0], tmp_path / "tuned"
    devices = jax.devices()[:1]  # for one the step compiles sooner
    monkeypatch.setattr(jax, "devices", lambda: devices)
    plain = ["train", "--config", root / "tiny.py", "--workdir", workdir]
    plain += [f"--config.data.root={root}", "--config.model.num_classes=3"]
    plain += [f"--config.init.checkpoint={source}"]
    code, _, err = call(*plain)
    assert code == 4
    assert "does not fit: 4 classes there, 3 here; " in err
    assert " - new classifiers: --config.init.head=skip\n" in err
    assert not workdir.exists()

    tuned = [*plain, "--config.init.head=skip"]
    write_line = loop.JsonLog.write

    def write_then_stop(log, event, step, values):
        write_line(log, event, step, values)
        if (event, step) == ("train", 1):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.JsonLog, "write", write_then_stop)
        code, out, _ = call(*tuned)
        assert code == 143
    assert f"tensors from {source} (step 1200); not loaded: " in out
    assert "classifier/kernel (new, 3 classes)\n" in out
    shutil.rmtree(source)
    code, out, _ = call(*tuned)
    assert code == 0
    assert "continuing at step 1 of 3" in out
    assert "init:" not in out
    log = [json.loads(line) for line in (workdir / "log.jsonl").open()]
    steps = [line["step"] for line in log if line["event"] != "time"]
    assert steps == [1, 2, 3, 3, 3]  # the last is evaluated, and the end


# A backbone


def test_named_backbone_is_loaded_and_nothing_else_changes(write):
    path, c, items = write("backbone")
    drawn = new_state(c)
    c.init.backbone = str(path)
    assert init_weights.check_init(c, NAMES) == []
    got = init_weights.load_init(drawn, c)
    for name in ("params", "batch_stats"):
        assert_equal(got[name].pop("backbone"), items[name])
        drawn[name].pop("backbone")
    assert_equal(got, drawn)


def test_checkpoint_of_another_kind_is_no_backbone(write):
    path, c, _ = write()
    c.init.backbone = str(path)
    with pytest.raises(CheckpointError, match="of kind weights, not backbone"):
        init_weights.check_init(c, NAMES)


def test_backbone_with_another_stem_names_the_flag_before_anything_compiles(write, make_config):
    path, *_ = write("backbone", stem="7x7")
    c = make_config()
    c.init.backbone = str(path)
    with pytest.raises(CheckpointError) as error:
        init_weights.check_init(c, NAMES)
    what = "does not fit: a 7x7 stem there, a deep one here; "
    assert str(error.value).startswith(f"{path}: {what}")
    assert str(error.value).endswith(" - build its network: --config.model.stem=7x7")


def test_backbone_of_another_depth_does_not_fit(write, make_config):
    path, *_ = write("backbone", depth=50)
    c = make_config()
    c.init.backbone = str(path)
    with pytest.raises(CheckpointError, match=r"does not fit: \d+ parameters missing.*unexpected"):
        init_weights.load_init(new_state(c), c)


def test_fingerprint_changes_with_any_bit_of_the_newest_step(narrow_config, tmp_path):
    def saved(folder, value):
        items = {"params": {"a": np.float32([value])}, "batch_stats": {"b": np.float32([0])}}
        checkpoint.save_once(folder, items, checkpoint.Info(kind="backbone", step=12))
        return init_weights.init_fingerprint(narrow_config(f"init.backbone={folder}"))

    one, same = (saved(tmp_path / name, 1) for name in "ab")
    assert one == same != saved(tmp_path / "c", np.nextafter(np.float32(1), np.float32(2)))
    assert one.startswith("step 12 (")
    assert init_weights.init_fingerprint(narrow_config("init.backbone=none")) is None


def test_damaged_newest_step_is_refused_with_the_way_to_use_the_one_before(narrow_config, tmp_path):
    items = {"params": {"a": np.float32([1])}, "batch_stats": {"b": np.float32([0])}}
    c = narrow_config(f"init.checkpoint={tmp_path}")
    with checkpoint.Saver(tmp_path) as saver:
        for step in (3, 6):
            saver.save(step, items, checkpoint.Info(kind="weights", config=c))
    (tmp_path / "checkpoints" / "6" / "_CHECKPOINT_METADATA").write_text("{")
    command = f"deeplab checkpoint export {tmp_path} --step 3 --output DIR, and name DIR"
    with pytest.raises(DamagedError, match=re.escape(f"use step 3: {command}")):
        init_weights.check_init(c, NAMES)
