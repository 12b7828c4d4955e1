"""Parity on the card: the self-test, and our network against PyTorch's on the same weights.

Logits, loss and gradient in float32 without TF32, and in bfloat16, against PyTorch's float32. Both
sides' distance from PyTorch's float64 stands beside: it tells whose rounding a difference is.
"""

import numpy as np

from evidence.commands import deeplab
from evidence.networks import Ours, Theirs, ade20k, draw
from evidence.record import Box, Item, Result

# Relative to PyTorch's float32, in the 2-norm; the gradient is that of all parameters together.
LIMITS = {"logits": 1e-5, "loss": 1e-5, "gradient": 2e-3}
LIMITS_BFLOAT16 = {"logits": 2e-2, "loss": 2e-2}
_NARROW = 5  # times the limits for the narrow network of a rehearsal


def items(box: Box) -> list[Item]:
    """Returns the self-test and two networks; a rehearsal has one."""
    strides = box.pick((16, 8), (16,))
    networks = [Item(f"R-50-D{s}", lambda s=s: _network(box, 50, s), 120) for s in strides]
    return [Item("selftest", lambda: _selftest(box), 60), *networks]


def _selftest(box: Box) -> Result:
    # A rehearsal compiles quickly; users' programs, which are checked here, are optimised.
    done = deeplab(box, ["selftest"], box.left, JAX_DISABLE_MOST_OPTIMIZATIONS="0")
    result = {"code": done.code, "output": done.text, "is_good": done.code == 0}
    return result | {"line": f"exit code {done.code}"}


def _network(box: Box, depth: int, stride: int) -> Result:
    sizes = {"batch": 8, "size": 320}  # every atrous rate reaches its neighbours
    config = ade20k(box, "float32", depth, stride, **sizes)
    weights, images, labels = draw(config)
    found = {}
    for name, side in (
        ("torch float64", lambda: Theirs(config, weights, "float64")),
        ("torch float32", lambda: Theirs(config, weights, "float32")),
        ("ours float32", lambda: Ours(config, weights)),
        ("ours bfloat16", lambda: Ours(ade20k(box, "bfloat16", depth, stride, **sizes), weights)),
    ):
        network = side()
        logits = network.logits(images)  # first: a step moves the running statistics
        loss, gradient = network.step(images, labels)
        found[name] = {"logits": logits, "loss": loss, "gradient": gradient}
    truth, theirs = found["torch float64"], found["torch float32"]
    checks = {
        f"{name} {quantity}": {"value": _difference(found[name], theirs, quantity), "limit": limit}
        for name, limits in (("ours float32", LIMITS), ("ours bfloat16", LIMITS_BFLOAT16))
        for quantity, limit in limits.items()
    }
    if box.is_rehearsal:  # sums of a narrow network are short
        for check in checks.values():
            check["limit"] *= _NARROW
    for check in checks.values():
        check["is_good"] = bool(check["value"] <= check["limit"])  # False where it is no number
    to_float64 = {
        f"{name} {quantity}": _difference(values, truth, quantity)
        for name, values in found.items()
        if name != "torch float64"
        for quantity in LIMITS
    }
    bad = [name for name, check in checks.items() if not check["is_good"]]
    line = f"beyond the limit: {', '.join(bad)}" if bad else "within all limits"
    return {"checks": checks, "to_float64": to_float64, "is_good": not bad, "line": line}


def _difference(ours: dict, theirs: dict, quantity: str) -> float:
    """Returns |ours - theirs| / |theirs|."""
    if quantity == "gradient":
        keys = list(theirs[quantity])
        a, b = (np.concatenate([side[quantity][key].ravel() for key in keys])
                for side in (ours, theirs))  # fmt: skip
    else:
        a, b = (np.asarray(side[quantity], np.float64) for side in (ours, theirs))
    return float(np.linalg.norm(np.asarray(a - b).ravel()) / np.linalg.norm(np.ravel(b)))
