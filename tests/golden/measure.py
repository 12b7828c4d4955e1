"""Our values beside the golden ones, for the tests and for docs/parity.md.

Everything here returns {quantity: (ours, the reference's)}, two arrays of one shape.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import recipe

from convert import keymap
from convert.dialects import detect, infer
from deeplab_jax.config import get_config
from deeplab_jax.data import transforms
from deeplab_jax.evaluation import metrics
from deeplab_jax.inference.counting import confusion_matrix
from deeplab_jax.inference.engine import network_logits
from deeplab_jax.models import build_model, ops
from deeplab_jax.models.preprocess import preprocess
from deeplab_jax.training.losses import row_weights, segmentation_loss
from deeplab_jax.training.optimizer import build_optimizer, poly_schedule
from deeplab_jax.training.state import eval_variables, initial_state
from deeplab_jax.training.step import make_update

DATASETS = {21: "voc", 150: "ade20k", 19: "cityscapes"}
_AREAS = ("intersect", "pred_area", "label_area")
# PyTorch's module -> ours, for every stage that is probed; the last block of a layer aside.
_PROBES = {
    "stem": "backbone/stem",
    **{f"layer{n}.0": f"backbone/layer{n}_0" for n in range(1, 5)},
    **{f"aspp_net.parallel_branches.{n}": f"aspp/branch{n}" for n in range(4)},
    "aspp_net.global_branch": "aspp/image_pool",
    "aspp_net.bottleneck": "aspp/merge",
    "shortcut": "decoder/low_level",
    "decoder.0": "decoder/refine0",
    "decoder.1": "decoder/refine1",
    "auxiliary_decoder.2": "aux_head",
    **{f"decode_head.aspp_modules.{n}": f"aspp/branch{n}" for n in range(4)},
    "decode_head.image_pool": "aspp/image_pool",
    "decode_head.bottleneck": "aspp/merge",
    "decode_head.c1_bottleneck": "decoder/low_level",
    "decode_head.sep_bottleneck.0": "decoder/refine0",
    "decode_head.sep_bottleneck.1": "decoder/refine1",
    "auxiliary_head.convs": "aux_head",
}


@functools.cache
def facts(file):
    """Returns the content of a JSON file of this folder."""
    return json.loads((recipe.FOLDER / file).read_text())


def parse(name):
    """Returns depth, output stride and classes of "r50_d8_c21" or "mmseg_r101_d16mg124_c19"."""
    depth, stride, classes = name.removeprefix("mmseg_").split("_")
    return int(depth[1:]), int(stride[1:].removesuffix("mg124")), int(classes[1:])


def network(name, dtype):
    """Returns (model, variables) of a golden network, as the converter makes them."""
    tensors = recipe.draw_weights(name)
    structure = infer({key: value.shape for key, value in tensors.items()}, detect(tensors, name))
    depth, stride, classes = parse(name)
    config = get_config(DATASETS[classes], depth, stride).model
    if name.startswith("mmseg"):
        config.update(structure.model)
        config.multi_grid = (1, 2, 4) if "mg124" in name else ()
    assert all(config[field] == value for field, value in structure.model.items())
    config.dtype = dtype
    variables, _ = keymap.to_variables(tensors, depth, structure.dialect)
    return build_model(config), jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)


def draw_images(name, shape):
    """Returns images (N, H, W, 3)."""
    return recipe.draw_image(name, shape).transpose(0, 2, 3, 1)


def forward(name, model, variables, is_long=False):
    """Yields (case, pairs): the small image with inner stages, or the long ones.

    In the long ones every dilation reaches past the centre.
    """
    arrays = np.load(recipe.FOLDER / "forward.npz")
    for case, fact in facts("forward.json")[name].items():
        if ("probes" in fact) == is_long:
            continue
        probes = {} if is_long else fact["probes"]
        output, extra = jax.jit(
            functools.partial(
                model.apply, capture_intermediates=bool(probes), mutable=["intermediates"]
            )
        )(variables, draw_images(fact["image"], fact["shape"]))
        pairs = {}
        for key, logits in (("logits", output.logits), ("aux", output.aux_logits)):
            expected = arrays[f"{name}/{case}/{key}"]
            pairs[key] = recipe.sample_pixels(logits, len(expected)), expected
        if f"{name}/{case}/upsampled" in arrays:
            expected = arrays[f"{name}/{case}/upsampled"]
            upsampled = ops.resize_bilinear(output.logits, fact["shape"][2:], "cpu_mesh")
            pairs["upsampled"] = recipe.sample_pixels(upsampled, len(expected)), expected
        if probes:
            pairs |= _probe(extra["intermediates"], probes)
        yield case, pairs


def _probe(intermediates, probes):
    pairs = {}
    for key, probe in probes.items():
        stage = key.removeprefix("backbone_net.").removeprefix("backbone.")
        if stage == "maxpool":
            continue  # not a module of ours; layer1.0 depends on it
        is_end = stage.startswith("layer") and "." not in stage
        path = f"backbone/{_last_block(intermediates, stage)}" if is_end else _PROBES[stage]
        node = functools.reduce(dict.__getitem__, path.split("/"), intermediates)
        value = np.asarray(node["__call__"][0]).transpose(0, 3, 1, 2)
        if value.shape[2:] == (1, 1):  # the image pool: ours is broadcast later
            value = np.broadcast_to(value, probe["shape"])
        assert list(value.shape) == probe["shape"], key
        expected = np.array(probe["value"])
        pairs[key] = recipe.sample(value, len(expected)), expected
    return pairs


def _last_block(intermediates, layer):
    blocks = [key for key in intermediates["backbone"] if key.startswith(f"{layer}_")]
    return max(blocks, key=lambda key: int(key.split("_")[1]))


def whole_image(dtype):
    """Returns the pair of the table's protocol: logits, resized straight to the final size."""
    case = facts("inference.json")["whole"]
    model, variables = network(case["config"], dtype)
    logits = jax.jit(functools.partial(network_logits, model))(
        variables, draw_images(case["image"], case["input_shape"])
    )
    scores = ops.resize_bilinear(logits, case["output_size"], "cpu_mesh")
    expected = np.load(recipe.FOLDER / "inference.npz")["whole/scores"]
    return {"scores": (recipe.sample_pixels(scores, len(expected)), expected)}


def training(name, dtype):
    """Returns the pairs of five optimiser steps on one batch, dropout off.

    Norms ("l2") and samples ("value") are by parameter, or by running statistic.
    """
    expected, arrays = facts("train.json")[name], np.load(recipe.FOLDER / f"train_{name}.npz")
    config = get_config("voc", *parse(name)[:2])
    config.train.loss_groups, config.model.dtype = 1, dtype
    model, variables = network(name, dtype)
    optimizer, _ = build_optimizer(config.train, 10)
    state = initial_state(variables, optimizer)
    update = jax.jit(make_update(model, config, 10, use_dropout=False))
    batch, _, height, width = expected["input_shape"]
    images = draw_images(expected["name"], expected["input_shape"]).astype(dtype)
    labels = recipe.draw_labels(expected["name"], (batch, height, width), 21).astype(np.int32)
    before, records, pairs = _tensors(state), [], {}
    for step in range(1, 6):
        state, values = update(state, images, labels)
        records.append(jax.device_get(values))
        after = _tensors(state)
        if step == 1:
            momentum = optax.tree_utils.tree_get(state["opt_state"], "trace")
            velocity = _tensors(state | {"params": momentum})
            decay = config.train.weight_decay
            grads = [velocity[key] - decay * before[key] for key in expected["parameters"]]
            pairs |= _norms_and_samples("grad", grads, arrays)
            statistics = [recipe.sample(after[key], 16) for key in expected["statistics"]]
            pairs["bn_after_1/value"] = np.array(statistics), arrays["bn_after_1/value"]
        if step in (1, 5):
            changes = [after[key] - before[key] for key in expected["parameters"]]
            pairs |= _norms_and_samples(f"delta_after_{step}", changes, arrays)
    norms = [np.linalg.norm(after[key]) for key in expected["statistics"]]
    pairs["bn_after_5/l2"] = np.array(norms), arrays["bn_after_5/l2"]
    logits = jax.jit(model.apply)(eval_variables(state), images).logits
    wanted = arrays["eval_after_5/logits"]
    pairs["eval_after_5/logits"] = recipe.sample_pixels(logits, len(wanted)), wanted
    for ours, theirs in {"loss_main": "loss_cls", "loss_aux": "loss_aux", "loss": "loss_total",
                         "lr": "lr"}.items():  # fmt: skip
        pairs[ours] = np.array([values[ours] for values in records]), np.array(expected[theirs])
    pairs["grad_norm"] = records[0]["grad_norm"], np.array(expected["grad_l2_total"])
    return pairs


def _tensors(state):
    return keymap.to_tensors(jax.device_get(eval_variables(state)), {}, 50)


def _norms_and_samples(record, values, arrays):
    samples = np.array([recipe.sample(value, 16) for value in values])
    return {
        f"{record}/l2": (np.array([np.linalg.norm(v) for v in values]), arrays[f"{record}/l2"]),
        f"{record}/value": (samples, arrays[f"{record}/value"]),
    }


class LegacyRng:
    """numpy.random's global generator under the names that Generator has for the same draws."""

    def __init__(self, seed):
        state = np.random.RandomState(seed)
        self.random, self.integers, self.uniform = state.random_sample, state.randint, state.uniform


def training_samples():
    """Returns the pairs of four samples as training prepares them, from one picture."""
    pairs, arrays = {"images": ([], []), "labels": ([], [])}, np.load(recipe.FOLDER / "data.npz")
    for seed in range(4):
        image, label, box = transforms.train_transform(
            recipe.draw_picture("pipeline", 90, 120),
            recipe.draw_labels("pipeline", (1, 90, 120), 21, share_ignored=0.05)[0],
            LegacyRng(seed),
            crop_size=(64, 64),
            resize_base=(256, 64),
            scale_range=(0.5, 2.0),
        )
        images, labels = preprocess(image[None], label[None], box[None])
        got = {"images": np.asarray(images[0]).transpose(2, 0, 1), "labels": np.asarray(labels[0])}
        for key, (ours, theirs) in pairs.items():
            expected = arrays[f"pipeline{seed}/{'image' if key == 'images' else 'labels'}"]
            ours.append(recipe.sample(got[key], len(expected)))
            theirs.append(expected)
    return {key: tuple(map(np.array, pair)) for key, pair in pairs.items()}


def loss():
    """Returns the pairs of a loss and its gradient."""
    expected = facts("data.json")["loss"]
    logits = jnp.asarray(draw_images("loss", (2, 21, 16, 24)), float)
    labels = recipe.draw_labels("loss", (2, 16, 24), 21, share_ignored=0.3).astype(np.int32)

    def weighted(logits):
        weights = row_weights(labels, 1)
        scale = expected["scale"]
        losses = segmentation_loss(
            logits, logits, labels, weights=weights, platform="cpu", aux_weight=scale
        )
        return losses["loss_aux"]

    value, grad = jax.value_and_grad(weighted)(logits)
    golden_grad = np.load(recipe.FOLDER / "data.npz")["loss/grad"]
    grad = recipe.sample(grad.transpose(0, 3, 1, 2), len(golden_grad))
    return {"value": (value, np.array(expected["value"])), "gradient": (grad, golden_grad)}


def schedule():
    """Returns the pair of the learning rates of every row's schedule."""
    got, expected = [], []
    for fact in facts("data.json")["poly"].values():
        rate = poly_schedule(0.01, fact["min_lr"], 0.9, fact["max_iters"])
        got += [float(rate(jnp.int32(step))) for step in fact["iteration"]]
        expected += fact["lr"]
    return {"rates": (np.array(got), np.array(expected))}


def evaluator(case):
    """Returns the pairs of counts and scores over a few predictions: "plain", "absent", "many"."""
    expected, arrays = facts("data.json")[f"eval_{case}"], np.load(recipe.FOLDER / "data.npz")
    classes = expected["num_classes"]
    total = np.zeros((classes, classes), np.int64)
    for index in range(expected["images"]):
        pair = (arrays[f"eval_{case}/{what}{index}"].astype(np.int32) for what in ("pred", "gt"))
        total += np.asarray(confusion_matrix(*pair, classes), np.int64)
    counts = np.stack([np.diag(total), total.sum(0), total.sum(1)])
    scores = metrics.mean_iou(total), metrics.pixel_accuracy(total)
    iou = np.array(expected["iou"], float)  # null is NaN: the class occurs nowhere
    return {
        "counts": (counts, np.array([expected[key] for key in _AREAS])),
        "iou": (metrics.iou_per_class(total), iou),
        "scores": (np.array(scores), np.array([expected["miou"], expected["all_accuracy"]])),
    }
