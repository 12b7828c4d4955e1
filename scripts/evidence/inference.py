"""Inference at two sizes and two batches, and from files to masks.

A row of the first kind is a network's own work, bytes to labels at full size, ours with folded
norms against PyTorch eager in the same type, channels last. `deeplab bench` times the rest: the
network as the engine batches it, and files to labels.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.config import Config, get_config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.inference.engine import network_logits
from deeplab_jax.models import build_model, fold_batch_norm, ops
from deeplab_jax.models.preprocess import MEAN, STD, normalize
from evidence.environment import torch_wait
from evidence.networks import NARROW, Ours, Theirs, draw
from evidence.record import Box, Item, Result
from evidence.steps import bench
from evidence.timing import Way, alternate

_SIZES = ((512, 512), (1024, 2048))
_BATCHES = (1, 16)
# Largest share of pixels whose labels may differ; with drawn weights many classes are nearly tied,
# which the three digits of bfloat16 decide either way.
LIMITS = {"float32": 1e-3, "bfloat16": 0.1}


def items(box: Box) -> list[Item]:
    """Returns R-50-D16 with Cityscapes's 19 classes: compared in float32, timed in bfloat16."""
    rows = [
        Item(f"{h}x{w}, batch {batch}", partial(_infer, box, (h, w), batch), 60)
        for h, w in box.pick(_SIZES, ((64, 64),))
        for batch in box.pick(_BATCHES, (2,))
    ]
    cases = box.pick("inference,end-to-end", "end-to-end")
    recipe = box.pick("cityscapes_r50_os16", "camvid_r18_os16")  # small pictures
    overrides = _overrides(box, box.pick((512, 512), (64, 64)))
    overrides += box.pick([], ["--config.model.num_classes=11"])  # it names its classes
    run = partial(bench, box, recipe, cases, overrides)
    same = Item("labels in float32", partial(_compare, box, box.pick((512, 512), (64, 64))), 60)
    return [same, *rows, Item("deeplab bench", run, 120)]


def judge(dtype: str, first: np.ndarray, second: np.ndarray) -> Result:
    """Returns the share of labels that differ, its limit, and whether it is kept."""
    share, limit = float((first != second).mean()), LIMITS[dtype]
    return {"labels_that_differ": share, "limit": limit, "is_good": share <= limit}


def _in_words(found: Result) -> str:
    beyond = "" if found["is_good"] else f", beyond the limit of {found['limit']:g}"
    return f"{found['labels_that_differ']:.1e} of the labels differ{beyond}"


def _compare(box: Box, size: tuple[int, int]) -> Result:
    flags = [*_overrides(box, size, 2), "--config.model.dtype=float32"]
    config, weights, images = _drawn(flags, (2, *size, 3))
    ours, theirs = _our_labels(config, weights, images), _their_labels(config, weights, images)
    found = judge("float32", np.asarray(ours.call()), theirs.call().cpu().numpy())
    return {**found, "line": _in_words(found)}


def _drawn(
    flags: list[str], shape: tuple[int, ...]
) -> tuple[Config, dict[str, np.ndarray], np.ndarray]:
    """Returns the configuration, and weights and images that are drawn."""
    config = apply_overrides(get_config("cityscapes", 50, 16), flags)
    weights, _, _ = draw(apply_overrides(config, ["--config.data.crop_size=64,64"]))
    return config, weights, np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _overrides(box: Box, size: tuple[int, int], batch: int = 8) -> list[str]:
    dtype = box.pick("bfloat16", "float32")
    sizes = [f"--config.data.crop_size={size[0]},{size[1]}", f"--config.train.batch_size={batch}"]
    groups = "--config.train.loss_groups=1"
    return [*sizes, groups, f"--config.model.dtype={dtype}", *box.pick((), NARROW)]


def _infer(box: Box, size: tuple[int, int], batch: int) -> Result:
    config, weights, images = _drawn(_overrides(box, size, batch), (batch, *size, 3))
    ours, theirs = _our_labels(config, weights, images), _their_labels(config, weights, images)
    found = judge(config.model.dtype, np.asarray(ours.call()), theirs.call().cpu().numpy())
    times = alternate(box, {"ours": ours, "torch": theirs}, rounds=9)
    ratio = times["ours"]["median"] / times["torch"]["median"]
    rate = batch / times["ours"]["median"]
    return {
        "times": times,
        "ratio": ratio,
        "images_per_second": {name: batch / way["median"] for name, way in times.items()},
        **found,
        "line": f"{rate:.4g} images/s, {ratio:.2f} of torch; {_in_words(found)}",
    }


def _our_labels(config: Config, weights: dict[str, np.ndarray], images: np.ndarray) -> Way:
    model = build_model(config.model)
    folded = model.clone(policy=model.policy._replace(is_folded=True))
    variables = jax.device_put(fold_batch_norm(Ours(config, weights).variables))
    x = jnp.asarray(images)

    @jax.jit
    def labels(variables: Any, images: jax.Array) -> jax.Array:
        logits = network_logits(folded, variables, normalize(images))
        wide = ops.resize_bilinear(logits, images.shape[1:3], model.policy.platform)
        return jnp.argmax(wide, -1).astype(jnp.uint8)

    return Way(lambda: labels(variables, x), jax.block_until_ready)


def _their_labels(config: Config, weights: dict[str, np.ndarray], images: np.ndarray) -> Way:
    side = Theirs(config, weights, config.model.dtype)
    torch, net = side.torch, side.net.eval()
    resize = partial(torch.nn.functional.interpolate, mode="bilinear", align_corners=False)
    x = torch.from_numpy(images).to(side.device)
    mean, scale = (torch.tensor(y, device=side.device) for y in (MEAN, 1 / STD))

    def labels() -> Any:
        with torch.inference_mode():
            normal = ((x.float() - mean) * scale).to(side.dtype).permute(0, 3, 1, 2)
            low, _, _, top = net.backbone_net(normal)  # without the auxiliary head
            top = resize(net.aspp_net(top), low.shape[2:])
            logits = net.decoder(torch.cat([top, net.shortcut(low)], 1)).float()
            return resize(logits, x.shape[1:3]).argmax(1).to(torch.uint8)

    return Way(labels, torch_wait(torch))
