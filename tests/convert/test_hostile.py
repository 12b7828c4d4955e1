"""State dicts and optimiser states that no training wrote, through the whole command.

Each is refused in one line, after a table where tensors do not fit, and leaves nothing.
"""

import time

import numpy as np
import pytest

from convert import keymap
from convert.pth import write_pth

_STEM = "backbone_net.stem.6.weight"
_COUNTER = "backbone_net.stem.1.num_batches_tracked"
_CLASSIFIER = "decoder.3.weight"


def _empty(*shape):
    return np.empty(shape, np.float32)


def _tensor(key, value):
    return lambda obj: obj["model"].update({key: value})


def _group(**changes):
    return lambda obj: obj["optimizer"]["param_groups"][0].update(changes)


def _buffer(value):
    return lambda obj: obj["optimizer"]["state"].update({1: {"momentum_buffer": value}})


def _all(*changes):
    def change(obj):
        for one in changes:
            one(obj)

    return change


_HUGE = np.full((2,), 1e300)
_STATES = {
    "width of 1e15": _tensor(_STEM, _empty(10**15, 0, 3, 3)),
    "width of 2e18": _tensor(_STEM, _empty(2 * 10**18, 0)),
    "width of 0": _tensor(_STEM, _empty(0, 2, 3, 3)),
    "odd width": _tensor(_STEM, _empty(3, 2, 3, 3)),
    "width without axes": _tensor(_STEM, np.float32(1)),
    "head of 2e18": _tensor("aspp_net.bottleneck.0.weight", _empty(2 * 10**18, 0)),
    "shortcut of 2e18": _tensor("shortcut.0.weight", _empty(2 * 10**18, 0)),
    "auxiliary head of 2e18": _tensor("auxiliary_decoder.0.weight", _empty(2 * 10**18, 0)),
    "1e12 classes": _tensor(_CLASSIFIER, _empty(10**12, 0, 1, 1)),
    "not a number": _tensor("backbone_net.stem.1.weight", np.full(2, np.nan, np.float32)),
    "weights that are counts": _tensor("backbone_net.stem.1.weight", np.ones(2, int)),
    "weights that are booleans": _tensor("backbone_net.stem.1.weight", np.ones(2, bool)),
    "counter of 2**63 - 1": _tensor(_COUNTER, np.int64(2**63 - 1)),
    "negative counter": _tensor(_COUNTER, np.int64(-1)),
    "counter of 7.0": _tensor(_COUNTER, np.float32(7)),
    "counter with an axis": _tensor(_COUNTER, np.ones(1, int)),
    "one counter missing": lambda obj: obj["model"].pop(_COUNTER),
    "blocks of their own": _tensor("backbone_net.layer3.99.conv1.weight", _empty(1)),
    "odd name": _tensor("a\nerror: x\x1b[31m", _empty(1)),
    "long name": _tensor("k" * 10**5, _empty(1)),
    "number as a name": _tensor(1, _empty(1)),
    "no tensor": _tensor("a", {"b": 1}),
    "no tensors": lambda obj: obj["model"].clear(),
}
_OPTIMIZERS = {
    "weights beyond float32": _tensor("backbone_net.stem.1.weight", _HUGE),
    "statistics beyond float32": _tensor("backbone_net.stem.1.running_var", _HUGE),
    "momentum beyond float32": _buffer(_HUGE),
    "momentum that is not finite": _buffer(np.full(2, np.inf, np.float32)),
    "momentum of counts": _buffer(np.ones(2, int)),
    "momentum of 1e15": _buffer(_empty(10**15, 0)),
    "momentum that is text": _buffer("1"),
    "nesterov of tensors": _group(nesterov=np.zeros(2)),
    "nesterov of one tensor": _group(nesterov=np.zeros(())),
    "dampening of text": _group(dampening="0"),
    "dampening that is not a number": _group(dampening=float("nan")),
    "maximize of a list": _group(maximize=[]),
    "maximize of nothing": _group(maximize=None),
    "momentum number of tensors": _group(momentum=np.zeros(2)),
    "momentum number that is not a number": _group(momentum=float("nan")),
    "weight decay of a list": _group(weight_decay=[5e-4]),
    "parameters of tensors": _group(params=[np.zeros(2)] * 115),
    "parameters with equal hashes": _group(params=[2**61 * i - i + 1 for i in range(80_000)]),
    "parameters of text": _group(params="x" * 115),
    "groups that are a dict": lambda obj: obj["optimizer"].update(param_groups={}),
    "group that is a tensor": lambda obj: obj["optimizer"].update(param_groups=[np.zeros(2)]),
    "state that is a list": lambda obj: obj["optimizer"].update(state=[]),
    "entry that is a tensor": lambda obj: obj["optimizer"]["state"].update({1: np.zeros(2)}),
    "entry too many": lambda obj: obj["optimizer"]["state"].update({"a": {}}),
    "optimizer that is a tensor": lambda obj: obj.update(optimizer=np.zeros(2)),
    "iteration of a tensor": lambda obj: obj.update(cur_iter=np.zeros(2)),
    "negative iteration": lambda obj: obj.update(cur_iter=-1),
    "iteration of 2**400": lambda obj: obj.update(cur_iter=2**400),
    "all at once": _all(_group(nesterov=np.zeros(2)), _buffer(_HUGE), _tensor(_COUNTER, _empty(1))),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [*_STATES, *_OPTIMIZERS])
def test_hostile_states_are_refused_in_one_line(call, make_tensors, make_recipe, tmp_path, name):
    tensors = make_tensors("sssegmentation")
    keys = [key for kind, _, key in keymap.leaves(18) if kind == "params"]
    state = {i: {"momentum_buffer": np.zeros_like(tensors[key])} for i, key in enumerate(keys)}
    group = {"momentum": 0.9, "weight_decay": 5e-4, "params": list(range(len(keys)))}
    optimizer = {"state": state, "param_groups": [group]}
    obj = {"model": tensors, "optimizer": optimizer, "cur_iter": 7}
    (_STATES | _OPTIMIZERS)[name](obj)
    folder = tmp_path / "folder"
    write_pth(tmp_path / "x.pth", obj)
    folder.mkdir()
    argv = ["--checkpoint", tmp_path / "x.pth", "--output", folder / "out"]
    argv += (
        ["--output-stride=16"] if name in _STATES else ["--optimizer", "--config", make_recipe()]
    )
    start = time.process_time()
    code, text, err = call("convert", "from-pytorch", *argv)
    assert time.process_time() - start < 10
    *table, line = err.splitlines()
    assert (code, text) == (4, "")
    assert line.startswith(f"error: {tmp_path / 'x.pth'}: ")
    assert line.isprintable()
    assert len(line) < 1000
    assert len(table) <= 11
    assert all(row.isprintable() and row.startswith("  ") for row in table)
    assert list(folder.iterdir()) == []
