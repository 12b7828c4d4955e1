import functools

import jax
import numpy as np
import pth_files as made
import pytest

import deeplab_jax
from convert import keymap
from convert.pth import write_pth, write_safetensors
from deeplab_jax import checkpoint
from deeplab_jax.config.forms import to_json
from deeplab_jax.config.recipe import RUN_CONFIG, load_recipe
from deeplab_jax.data.classes import CLASS_NAMES, PALETTES
from deeplab_jax.data.colors import safe_palette
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.errors import CheckpointError, ResourceError
from deeplab_jax.models import ComputePolicy, build_model
from deeplab_jax.models.resnet import ResNet
from deeplab_jax.training.init_weights import load_backbone

_DEEP = pytest.mark.parity("ResNet-50; ResNet-18 is in the first tier")


def test_converted_network_computes_what_its_weights_say(convert, make_tensors):
    tensors = make_tensors("sssegmentation")
    code, text, err, out = convert({"model": tensors}, "--output-stride", 16)
    assert (code, err) == (0, "")
    assert "sssegmentation's DeepLabV3+ with ResNet-18, 5 classes (class_0; class_1; cl" in text
    assert "taken as: output stride 16, atrous rates 6,12,18\n" in text
    assert f"{len(tensors)} tensors converted, 0 dropped\n" in text
    variables, counters = keymap.to_variables(tensors, 18)
    info = checkpoint.read_info(out)
    assert (info.kind, info.step, info.config.name) == ("weights", 0, "weights")
    assert info.counters == counters
    image = np.random.default_rng(1).standard_normal((1, 33, 49, 3)).astype(np.float32)
    expected = jax.jit(build_model(info.config.model).apply)(variables, image).logits
    np.testing.assert_array_equal(deeplab_jax.load(out).logits(image), expected)


@pytest.mark.parametrize("dialect", ["sssegmentation", "mmsegmentation"])
def test_every_variable_is_filled_from_its_tensor(convert, make_tensors, dialect):
    tensors = make_tensors(dialect, 50)
    code, _, _, out = convert(tensors, "--output-stride", 8)
    assert code == 0
    variables, _ = keymap.to_variables(tensors, 50, dialect)
    got = jax.device_get(deeplab_jax.load(out).variables)
    jax.tree.map(np.testing.assert_array_equal, got, variables)


def _wrap(layout, tensors):
    wrapped = {f"module.{key}": value for key, value in tensors.items()}
    history = {"state": {0: {"momentum_buffer": np.zeros(3)}}, "param_groups": [{"lr": 0.01}]}
    return {
        "plain": tensors,
        "today's": {"cur_epoch": 60, "cur_iter": 9, "optimizer": history, "model": tensors},
        "2020's": {"epoch": 60, "model": tensors, "optimizer": history},
        "state_dict": {"state_dict": tensors},
        "module.": wrapped,
        "module. in model": {"model": wrapped},
        "double": {"epoch": 1, "model": {"state_dict": tensors}},
    }[layout]


@pytest.mark.parametrize(
    "layout",
    ["plain", "today's", "2020's", "state_dict", "module.", "module. in model", "double"],
)
def test_every_top_level_layout_is_unwrapped(convert, make_tensors, layout):
    obj = _wrap(layout, make_tensors("sssegmentation"))
    code, text, _, out = convert(obj, "--output-stride", 16)
    assert code == 0
    assert ("not read:" in text) == ("epoch" in str(obj.keys()))
    assert checkpoint.latest_step(out) == 0


def test_safetensors_are_read_by_content(convert, make_tensors, tmp_path):
    tensors = make_tensors("sssegmentation")
    path = tmp_path / "named_wrongly.pth"
    write_safetensors(path, tensors)
    code, _, _, out = convert(path, "--output-stride", 8)
    assert code == 0
    got = checkpoint.read_arrays(out, 0, ["params", "batch_stats"])
    variables, _ = keymap.to_variables(tensors, 18)
    jax.tree.map(np.testing.assert_array_equal, got, variables)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_types_are_kept_and_loading_widens_or_narrows_them(convert, make_tensors, dtype):
    code, _, _, out = convert(make_tensors("sssegmentation", dtype=dtype), "--output-stride", 16)
    assert code == 0
    got = checkpoint.read_arrays(out, 0, ["params"])["params"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {dtype}
    loaded = deeplab_jax.load(out).variables
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"float32"}


def test_flags_say_what_weights_do_not(convert, make_tensors):
    flags = ["--atrous-rates", "2,4,6", "--multi-grid=1,2", "--config.eval.resize_base=64,32"]
    code, text, _, out = convert(make_tensors("mmsegmentation"), "--output-stride", 8, *flags)
    assert code == 0
    assert "output stride 8, atrous rates 2,4,6, multi-grid 1,2\n" in text
    config = checkpoint.read_info(out).config
    assert (config.model.output_stride, config.model.atrous_rates) == (8, (2, 4, 6))
    assert (config.model.multi_grid, config.eval.resize_base) == ((1, 2), (64, 32))


def test_a_runs_directory_is_its_recipe_with_the_fields_it_was_trained_with(
    convert, make_tensors, make_recipe, tmp_path
):
    fields = "--config.model.atrous_rates=2,4,6", "--config.model.width=4"
    trained = load_recipe(str(make_recipe("model.width = 8")), fields)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_CONFIG).write_text(to_json(trained))
    code, text, err, out = convert(make_tensors("sssegmentation"), "--config", tmp_path / "run")
    assert (code, err) == (0, "")
    assert "\ntaken as: output stride 16, atrous rates 2,4,6\n" in text
    assert checkpoint.read_info(out).config.model == trained.model


# --- Classes


@pytest.mark.parametrize("is_new", [True, False])
def test_class_names_and_colours_come_from_mmsegmentations_envelope(convert, make_tensors, is_new):
    names, palette = ["a", "b", "c, d", "e", "f"], [[i, 2 * i, 255] for i in range(5)]
    old, new = {"CLASSES": names, "PALETTE": palette}, {"classes": names, "palette": palette}
    meta = {"epoch": 3, **({"dataset_meta": new} if is_new else old)}
    obj = {"meta": meta, "state_dict": make_tensors("mmsegmentation"), "message_hub": {}}
    code, text, _, out = convert(obj, "--output-stride", 16)
    assert code == 0
    assert "5 classes (a; b; c, d; ...)" in text
    assert "not read: message_hub\n" in text
    info = checkpoint.read_info(out)
    assert info.class_names == info.config.data.class_names == tuple(names)
    assert info.palette.tolist() == palette


@pytest.mark.parametrize(
    "meta", [{"CLASSES": ["a"] * 4}, {"CLASSES": [1] * 5}, {"CLASSES": 5}, {"dataset_meta": []}, 7]
)
def test_unusable_class_names_are_not_used(convert, make_tensors, meta):
    obj = {"meta": meta, "state_dict": make_tensors("mmsegmentation")}
    code, _, _, out = convert(obj, "--output-stride", 16)
    info = checkpoint.read_info(out)
    assert code == 0
    assert info.class_names == tuple(f"class_{i}" for i in range(5))
    np.testing.assert_array_equal(info.palette, safe_palette(5))


def test_bad_colours_leave_the_names(convert, make_tensors):
    meta = {"CLASSES": list("abcde"), "PALETTE": [[1, 2, 300]] * 5}
    _, _, _, out = convert(
        {"meta": meta, "state_dict": make_tensors("mmsegmentation")}, "--output-stride", 16
    )
    info = checkpoint.read_info(out)
    assert info.class_names == tuple("abcde")
    np.testing.assert_array_equal(info.palette, safe_palette(5))


def test_recipe_of_a_data_set_gives_its_classes(convert, make_tensors, make_recipe):
    tensors = make_tensors("sssegmentation", classes=19)
    code, _, err, out = convert(tensors, "--config", make_recipe(dataset="cityscapes", classes=19))
    assert (code, err) == (0, "")
    info = checkpoint.read_info(out)
    assert info.class_names == CLASS_NAMES["cityscapes"]
    np.testing.assert_array_equal(info.palette, PALETTES["cityscapes"])
    assert info.config.data.dataset == "cityscapes"


# --- Backbones


@pytest.mark.parametrize(("dialect", "depth"), [("v1c", 50), ("torchvision", 18)])
def test_run_starts_from_a_converted_backbone(
    convert, make_tensors, make_variables, dialect, depth
):
    tensors = make_tensors(dialect, depth)
    code, text, err, out = convert(tensors)
    assert (code, err) == (0, "")
    assert f"{dialect}'s ResNet-{depth}\n" in text
    assert "2 dropped (fc.weight, fc.bias: its ImageNet classes)\n" in text
    assert checkpoint.read_info(out).kind == "backbone"

    before = make_variables(depth, keymap.DIALECTS[dialect].stem, seed=1)
    whole = mesh_lib.replicated(mesh_lib.make_mesh(4))
    state = load_backbone(jax.device_put(before, whole), str(out))
    variables, _ = keymap.to_variables(tensors, depth, dialect)
    for name, tree in variables.items():
        jax.tree.map(np.testing.assert_array_equal, state[name]["backbone"], tree)
        rest = {key: part for key, part in before[name].items() if key != "backbone"}
        jax.tree.map(np.testing.assert_array_equal, {k: state[name][k] for k in rest}, rest)


def test_backbone_with_the_other_stem_is_refused_by_a_run(convert, make_tensors, make_variables):
    _, text, _, out = convert(make_tensors("torchvision"))
    flags = "--config voc_r50_os16 --config.model.depth=18 --config.model.stem=7x7"
    command = f"next: deeplab train {flags} --config.model.width="
    assert command in text
    assert text.endswith(f" --config.init.backbone={out}\n")
    state = jax.device_put(make_variables(), jax.local_devices()[0])
    with pytest.raises(CheckpointError, match="does not fit"):
        load_backbone(state, str(out))


@pytest.mark.parametrize(
    "name",
    [
        "torchvision_resnet18",
        *(pytest.param(f"{stem}_resnet50", marks=_DEEP) for stem in ("v1c", "torchvision")),
    ],
)
def test_golden_stages_of_an_imagenet_network(convert, measure, recipe, name):
    code, _, err, out = convert(recipe.draw_weights(name))
    assert (code, err) == (0, "")
    facts = measure.facts("forward.json")[name]["64x96"]
    depth, stem = int(name[-2:]), "7x7" if "torchvision" in name else "deep"
    net = ResNet(depth, 16, ComputePolicy(), stem=stem)
    images = measure.draw_images(facts["image"], facts["shape"])
    variables = checkpoint.read_arrays(out, "latest", ["params", "batch_stats"])
    with jax.default_matmul_precision("highest"):
        _, extra = jax.jit(
            lambda v, x: net.apply(v, x, False, capture_intermediates=True, mutable="intermediates")
        )(variables, images)
    stages = {key: value["__call__"][0] for key, value in _calls(extra["intermediates"])}
    count = 0
    for key, probe in facts["probes"].items():
        if key == "maxpool" or (depth < 50 and key.startswith("layer4")):
            continue  # no module; and a basic block's second convolution is not dilated here
        blocks = keymap.BLOCKS[depth][int(key[5]) - 1] if key.startswith("layer") else 0
        ours = f"{key.split('.')[0]}_{0 if '.' in key else blocks - 1}" if blocks else "stem"
        value = np.asarray(stages[ours]).transpose(0, 3, 1, 2)
        # At output stride 16 layer 4 dilates; every second position is the strided network's.
        value = value[:, :, ::2, ::2] if key.startswith("layer4") else value
        assert list(value.shape) == probe["shape"], key
        expected = np.maximum(probe["value"], 0)  # "bn1" is probed before its ReLU
        noise = facts["pytorch_float32_error"][key]
        atol = max(5e-4, 5 * noise)
        got = recipe.sample(value, len(expected))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=atol, err_msg=key)
        count += 1
    assert count == (9 if depth == 50 else 7)


def _calls(intermediates):
    return [(key, value) for key, value in intermediates.items() if "__call__" in value]


# --- Golden networks


def _assert_golden(out, measure, name):
    model = deeplab_jax.load(out)
    for is_long in (False, True):
        for case, pairs in measure.forward(name, model.model, model.variables, is_long):
            noise = measure.facts("forward.json")[name][case]["pytorch_float32_error"]
            for key in ("logits", "aux"):
                got, expected = pairs[key]
                # The R-18's logits have a spread of 117: PyTorch's own error is above 5e-4.
                atol = max(5e-4, 5 * noise[key])
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=atol, err_msg=case)
                assert (np.argmax(got, -1) == np.argmax(expected, -1)).mean() > 0.995


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("mmseg_r18_d8_c19", ["--output-stride=8"]),
        ("mmseg_r50_d8_c21", ["--output-stride=8"]),
        pytest.param(
            "mmseg_r101_d8_c150",
            ["--output-stride=8"],
            marks=pytest.mark.slow("as R-50, and R-101 with a multi-grid"),
        ),
        ("mmseg_r101_d16mg124_c19", ["--output-stride=16", "--multi-grid=1,2,4"]),
    ],
)
@pytest.mark.parity("whole networks; narrow ones are converted and computed in the first tier")
def test_golden_logits_of_mmsegmentation(convert, measure, recipe, name, flags):
    code, _, err, out = convert({"meta": {}, "state_dict": recipe.draw_weights(name)}, *flags)
    assert (code, err) == (0, "")
    _assert_golden(out, measure, name)


@pytest.mark.slow("ResNet-101; smaller networks of every dialect are compared above")
@pytest.mark.parametrize(("name", "row"), [("r101_d16_c21", "voc_r101_os16")])
def test_golden_logits_of_a_table_row(repository, convert, measure, recipe, name, row):
    code, _, err, out = convert(
        {"model": recipe.draw_weights(name)}, "--config", repository / "configs" / f"{row}.py"
    )
    assert (code, err) == (0, "")
    _assert_golden(out, measure, name)


# --- Errors


_assert_refused = functools.partial(made.assert_refused, max_rows=11)


def test_head_of_another_class_count_is_refused(convert, make_tensors, make_recipe):
    result = convert(make_tensors("sssegmentation", classes=19), "--config", make_recipe())
    _assert_refused(
        result,
        4,
        "  differs     decoder.3.weight            (19, 10, 1, 1), (5, 10, 1, 1) wanted\n",
        "0 missing, 0 unexpected, 4 of another shape or type",
        "closest known layout: sssegmentation's DeepLabV3+ with ResNet-18",
        "or --config.model.num_classes=19 and the atrous rates they had\n",
    )


def test_that_advice_works(convert, make_tensors, make_recipe):
    tensors = make_tensors("sssegmentation", classes=19)
    flags = ["--config", make_recipe(), "--config.model.num_classes=19"]
    assert convert(tensors, *flags)[0] == 0


def test_weights_of_another_depth_are_refused(convert, make_tensors, make_recipe):
    result = convert(make_tensors("mmsegmentation", 34), "--config", make_recipe())
    texts = ["0 missing, 96 unexpected, 0 of another", "ResNet-34)", "--config.model.depth=34"]
    _assert_refused(result, 4, *texts, "\n  ... in all 0 missing, 96 unexpected")


def test_renamed_and_lost_tensors_are_refused(convert, make_tensors):
    tensors = make_tensors("sssegmentation")
    tensors["decoder.3.w"] = tensors.pop("decoder.3.weight")
    del tensors["shortcut.1.num_batches_tracked"]
    _assert_refused(
        convert(tensors, "--output-stride", 16),
        4,
        "  missing     decoder.3.weight                ",
        "  missing     shortcut.1.num_batches_tracked  () wanted\n",
        "  unexpected  decoder.3.w  ",
        "2 missing, 1 unexpected, 0 of another shape or type - ",
    )


def test_unknown_names_are_refused_with_the_closest_layout(convert, make_tensors):
    tensors = make_tensors("mmsegmentation")
    tensors = {key.replace("layer", "stage"): value for key, value in tensors.items()}
    texts = ["closest known layout: mmsegmentation's DeepLabV3+ with ResNet-18", "  missing  "]
    _assert_refused(convert(tensors, "--output-stride", 16), 4, *texts)


def test_image_classifier_is_no_network_of_a_recipe(convert, make_tensors, make_recipe):
    result = convert(make_tensors("torchvision"), "--config", make_recipe())
    texts = ["is an ImageNet classifier (torchvision's ResNet-18)", "--config.init.backbone=DIR"]
    _assert_refused(result, 4, *texts)


def test_smp_is_refused_by_name(convert):
    keys = ("encoder.conv1.weight", "decoder.aspp.0.weight", "segmentation_head.0.weight")
    result = convert({key: np.zeros((4, 4), np.float32) for key in keys}, "--output-stride", 16)
    _assert_refused(result, 4, "segmentation_models.pytorch")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(convert, make_tensors, value):
    tensors = make_tensors("v1c", dtype="float16")
    tensors["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    tensors["fc.bias"][0] = value
    texts = ["2 tensors hold values that are not finite (fc.bias, layer2.0.conv1.weight)"]
    _assert_refused(convert(tensors), 4, *texts)


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        ({}, "holds nothing, not a state dict"),
        ({"model": {}}, "holds nothing, not a state dict"),
        (
            {"epoch": 3, "net": {"a": np.zeros(2)}},
            "2 of 2 entries are no named tensors (epoch, net",
        ),
        ({"model": {3: np.zeros(2)}}, "1 of 1 entries are no named tensors (3)"),
    ],
)
def test_file_without_a_state_dict_is_refused(convert, obj, text):
    _assert_refused(convert(obj), 4, text, "under one of: model, state_dict")


def test_tensor_alone_is_refused(convert, tmp_path):
    write_pth(tmp_path / "x.pth", [np.zeros(3)])
    _assert_refused(convert(tmp_path / "x.pth"), 4, "holds a list, not a state dict")


def test_missing_output_stride_is_told(convert, make_tensors):
    result = convert(make_tensors("sssegmentation"))
    _assert_refused(result, 2, "--output-stride: is missing: the weights do not show it")


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--output-stride=12"], 2, "invalid choice: 12 (choose from 8, 16)"),
        (["--output-stride=8", "--atrous-rates=6,x"], 2, "'6,x' is not a list such as 1,2,4"),
        (["--output-stride=8", "--atrous-rates=6"], 2, "error: --atrous-rates: must be 3 pos"),
        (["--output-stride=8", "--multi-grid=1,2,4"], 2, "error: --multi-grid: must be 2 pos"),
        (["--output-strid=8"], 2, "did you mean --output-stride?"),
        (
            ["--output-stride=8", "--config.model.output_stride=16"],
            2,
            "--output-stride: is given beside --config.model.output_stride, which says",
        ),
    ],
)
def test_wrong_flags_are_told(convert, make_tensors, flags, code, text):
    _assert_refused(convert(make_tensors("sssegmentation"), *flags), code, text)


def test_flags_that_a_recipe_says_are_refused(convert, make_tensors, make_recipe):
    flags = ["--config", make_recipe(), "--output-stride=8"]
    result = convert(make_tensors("sssegmentation"), *flags)
    _assert_refused(result, 2, "--output-stride: is given beside --config, which says config.mod")


@pytest.mark.parametrize(
    "flag", ["--output-stride=8", "--atrous-rates=1,2,3", "--multi-grid=1,2", "--config.seed=3"]
)
def test_flags_that_a_backbone_does_not_depend_on_are_refused(convert, make_tensors, flag):
    name = flag.split("=")[0]
    result = convert(make_tensors("v1c"), flag)
    _assert_refused(result, 2, f"error: {name}: is given, and ", "is a backbone alone")


def test_empty_output_is_refused(call, make_tensors, tmp_path):
    write_pth(tmp_path / "w.pth", make_tensors("v1c"))
    code, _, err = call(
        "convert", "from-pytorch", "--checkpoint", tmp_path / "w.pth", "--output", ""
    )
    assert (code, err) == (2, "error: --output: is empty - give a path\n")


def test_an_empty_level_hides_no_state_dict(convert, make_tensors):
    code, text, _, _ = convert({"model": {}, "state_dict": make_tensors("v1c")})
    assert (code, "not read: model\n" in text) == (0, True)


def test_what_is_not_read_is_named_in_short(convert, make_tensors):
    obj = {f"key{i:03}": i for i in range(200)} | {"model": make_tensors("v1c")}
    _, text, *_ = convert(obj)
    assert "key008, key009, ... (190 more)\n" in text


@pytest.mark.parametrize("classes", [1, 300])
def test_network_that_we_do_not_build_is_refused(convert, make_tensors, classes):
    result = convert(make_tensors("sssegmentation", classes=classes), "--output-stride=8")
    _assert_refused(result, 4, f"config.model.num_classes must be 2 to 255, got {classes}")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_existing_output_is_refused_before_anything_is_read(convert, tmp_path, kind):
    out = tmp_path / "out"
    out.write_text("mine") if kind == "file" else out.mkdir()
    code, text, err, _ = convert(tmp_path / "is not there.pth")
    assert (code, text) == (4, "")
    assert err.startswith(f"error: {out}: exists already - choose another --output")
    assert out.read_text() == "mine" if kind == "file" else list(out.iterdir()) == []


def test_output_that_cannot_be_made_is_told(call, make_tensors, tmp_path):
    write_pth(tmp_path / "w.pth", make_tensors("v1c"))
    (tmp_path / "file").write_text("")
    argv = ["--checkpoint", tmp_path / "w.pth", "--output", tmp_path / "file" / "out"]
    code, _, err = call("convert", "from-pytorch", *argv)
    assert (code, err.count("\n")) == (5, 1)
    assert err.startswith(f"error: {tmp_path}/file")


def test_failed_save_leaves_nothing(convert, make_tensors, monkeypatch):
    def save_once(path, items, info):
        path.mkdir()
        raise ResourceError(str(path), "cannot save a checkpoint: full", "make room")

    monkeypatch.setattr(checkpoint, "save_once", save_once)
    result = convert(make_tensors("v1c"))
    _assert_refused(result, 5, "out: cannot save a checkpoint: full")


def test_output_has_the_modes_of_other_folders(convert, make_tensors, tmp_path):
    (tmp_path / "plain").mkdir()
    *_, out = convert(make_tensors("v1c"))
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode
