"""Two optimiser steps of a narrow ResNet-18 in float64, dropout off: PyTorch's numbers and ours.

    python tests/golden/narrow.py

writes narrow.json with PyTorch, from torch_reference.py. `pytorch` and `ours` return the same
quantities: {name: list of numbers}.
"""

import json

import jax
import numpy as np
import recipe

from convert import keymap
from convert.source import abstract_variables
from deeplab_jax import config as config_lib
from deeplab_jax.models import build_model
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.state import eval_variables, initial_state
from deeplab_jax.training.step import make_update

PATH = recipe.FOLDER / "narrow.json"
DEPTH, CLASSES, GROUPS, STEPS, TOTAL = 18, 5, 2, 2, 10
_SHAPE, _NAME = (4, 65, 97), "narrow"
_PIXELS = 16  # of the logits that are kept


def config():
    """Returns the configuration: dilation in the backbone and in ASPP stays inside the maps."""
    c = config_lib.get_config("folder", DEPTH, output_stride=8)
    c.model.num_classes, c.model.atrous_rates, c.model.dtype = CLASSES, (1, 2, 3), "float64"
    c.model.width, c.model.head_channels = 8, 16
    c.model.low_level_channels, c.model.aux_channels = 4, 8
    c.train.batch_size, c.train.loss_groups = _SHAPE[0], GROUPS
    return config_lib.freeze(c)


def pytorch(reference):
    """Returns the quantities as PyTorch computes them.

    Args:
      reference: the module torch_reference.
    """
    weights, images, labels = _weights(), _images(), _labels()
    net = reference.network(config().model, reference.torch.float64)
    reference.load(net, weights)
    with reference.torch.no_grad():
        logits, aux = net.eval()(reference.torch.tensor(images).permute(0, 3, 1, 2))
    maps = (x.permute(0, 2, 3, 1).numpy() for x in (logits, aux))
    records = reference.train(
        net.train(), reference.sgd(net), images[None], labels[None], STEPS, TOTAL, processes=GROUPS
    )
    return _quantities(maps, records, weights, reference.tensors(net))


def ours():
    """Returns the quantities as this project computes them; needs 64-bit mode."""
    c, weights, images = config(), _weights(), _images()
    model = build_model(c.model, "cpu")
    variables, counters = keymap.to_variables(weights, DEPTH)
    optimizer, _ = build_optimizer(c.train, TOTAL)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    state = initial_state(wide, optimizer)
    maps = jax.jit(model.apply)(eval_variables(state), images)
    update = jax.jit(make_update(model, c, TOTAL, use_dropout=False))
    records = []
    for _ in range(STEPS):
        state, values = update(state, images, _labels())
        records.append(values)
    after = keymap.to_tensors(jax.device_get(eval_variables(state)), counters, DEPTH)
    return _quantities(maps, records, weights, after)


def _quantities(maps, records, before, after):
    quantities = {
        name: recipe.sample_pixels(np.asarray(values), _PIXELS).ravel()
        for name, values in zip(("logits", "aux_logits"), maps, strict=True)
    }
    for name in ("lr", "loss_main", "loss_aux", "grad_norm"):
        quantities[name] = [float(record[name]) for record in records]
    changes = {key: after[key] - before[key] for key in before if not key.endswith(keymap.COUNTER)}
    quantities["change/l2"] = [np.linalg.norm(change) for change in changes.values()]
    quantities["change/last"] = [change.ravel()[-1] for change in changes.values()]
    return {key: [float(f"{value:.12g}") for value in row] for key, row in quantities.items()}


def _weights():
    shapes = keymap.to_shapes(abstract_variables(config().model), DEPTH)
    return {key: recipe.draw_weight(key, shape, _NAME) for key, shape in shapes.items()}


def _images():
    batch, height, width = _SHAPE
    image = recipe.draw_image(_NAME, (batch, 3, height, width))
    return image.transpose(0, 2, 3, 1).astype(np.float64)


def _labels():
    labels = recipe.draw_labels(_NAME, _SHAPE, CLASSES).astype(np.int32)
    labels[0, :40] = 255  # the groups of the loss count differently
    return labels


def main():
    """Writes the file: a quantity a line."""
    import torch_reference

    rows = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in pytorch(torch_reference).items())
    PATH.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    print(f"{PATH}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
