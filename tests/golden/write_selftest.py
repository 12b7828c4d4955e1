"""The self-test's numbers as PyTorch computes them in float64, from torch_reference.py.

    python tests/golden/write_selftest.py

writes deeplab_jax/selftest/golden.json.
"""

import json
from pathlib import Path

import numpy as np

from convert import keymap
from deeplab_jax.selftest import network

PATH = Path(network.__file__).with_name("golden.json")
# Spec 6.4; in float32, which the network's input is in every dtype.
_MEAN, _STD = np.float32((123.675, 116.28, 103.53)), np.float32((58.395, 57.12, 57.375))
_PROCESSES = 4


def pytorch(reference):
    """Returns the quantities of golden.json; `reference` is the module torch_reference."""
    torch = reference.torch
    weights = network.weights()
    counters = {path: 0 for kind, path, _ in keymap.leaves(network.DEPTH) if kind == "counters"}
    before = keymap.to_tensors(weights, counters, network.DEPTH)
    images, labels, boxes = network.batch()
    pictures = ((images.astype(np.float32) - _MEAN) * (1 / _STD)).astype(np.float64)
    for picture, (top, left, bottom, right) in zip(pictures, boxes, strict=True):
        inside = np.zeros(picture.shape[:2], bool)
        inside[top:bottom, left:right] = True
        picture[~inside] = 0
    net = reference.network(network.config().model, torch.float64)
    reference.load(net, before)
    with torch.no_grad():
        logits, _ = net.eval()(torch.tensor(pictures).permute(0, 3, 1, 2))
    golden = {"checksum": network.checksum()}
    golden["logits"] = network.sketch("logits", logits.permute(0, 2, 3, 1).numpy())
    net.train()
    optimizer, records = reference.sgd(net), []
    for step in range(network.STEPS):
        records += reference.train(
            net, optimizer, pictures[None], labels[None], 1, network.TOTAL, step, _PROCESSES
        )
        if step == 0:
            grads = {key: p.grad.numpy().copy() for key, p in net.named_parameters()}
            stats = _ours(reference.tensors(net))["batch_stats"]
            golden["gradient"] = network.sketches(_ours(reference.tensors(net) | grads)["params"])
            golden["statistics"] = network.sketches(stats)
    for name in ("loss_main", "loss_aux", "grad_norm"):
        golden[name] = [record[name] for record in records]
    after = _flat(_ours(reference.tensors(net))["params"])
    golden["change"] = network.sketch("change", after - _flat(weights["params"]))
    return _rounded(golden)


def _ours(tensors):
    return keymap.to_variables(tensors, network.DEPTH)[0]


def _flat(tree):
    leaves = network.by_path(tree)
    return np.concatenate([np.ravel(leaves[path]) for path in sorted(leaves)])


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [float(f"{number:.12g}") for number in value]
    return value


def main():
    """Writes the file."""
    import torch_reference

    golden = pytorch(torch_reference)
    rows = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    PATH.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    print(f"{PATH}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
