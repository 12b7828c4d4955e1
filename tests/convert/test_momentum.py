"""A run of PyTorch's goes on here, and ours goes on there."""

import dataclasses
import json

import jax
import numpy as np
import pth_files as made
import pytest

from convert import keymap, replay
from convert.dialects import infer
from convert.momentum import Progress, read_progress, run_items, to_optimizer
from convert.pth import read_pth, write_pth, write_safetensors
from convert.source import PyTorchFile
from deeplab_jax import checkpoint, cli
from deeplab_jax.config import freeze, get_config
from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.models import build_model
from deeplab_jax.training.state import eval_variables, restore_state
from deeplab_jax.training.step import make_update

pytestmark = pytest.mark.usefixtures("compile_quickly")


# --- There and back


@pytest.mark.parametrize("dialect", ["sssegmentation", "mmsegmentation"])
@pytest.mark.parametrize("iteration", [7, 0])
def test_there_and_back_gives_equal_bytes_in_order(
    make_run, import_run, export, run_recipe, dialect, iteration
):
    path, obj = make_run(dialect, iteration)
    if iteration == 0:  # as before the first step
        obj["optimizer"]["state"] = {}
        write_pth(path, obj)
    code, text, err, directory = import_run(path)
    assert (code, err) == (0, "")
    assert f"momentum converted; step {iteration}\n" in text
    assert text.endswith(f"\nnext: deeplab train --config {run_recipe} --workdir {directory}\n")
    assert "optimizer" not in text.split("not read:")[-1]
    code, text, err, path = export(directory, "--optimizer", "--dialect", dialect)
    assert (code, err) == (0, "")
    assert f"momentum converted; iteration {iteration}, lr 0.0" in text
    got = read_pth(path)
    lr = got["optimizer"]["param_groups"][0]["lr"]
    assert lr == pytest.approx(obj["optimizer"]["param_groups"][0].pop("lr"), rel=1e-12)
    obj["optimizer"]["param_groups"][0] = {"lr": lr, **obj["optimizer"]["param_groups"][0]}
    if dialect == "mmsegmentation":
        assert got["meta"]["iter"] == obj["meta"]["iter"]
        obj["meta"] = got["meta"]
    made.assert_equal(got, obj)


def test_next_command_has_the_fields_without_which_it_is_refused(make_run, import_run, run_recipe):
    fields = "--config.model.atrous_rates=1,2,4", "--config.train.lr=0.02"
    code, text, err, directory = import_run(make_run()[0], *fields)
    assert (code, err) == (0, "")
    words = f"--config {run_recipe} {' '.join(fields)} --workdir {directory}"
    assert text.endswith(f"\nnext: deeplab train {words}\n")


def test_momenta_are_converted_like_their_parameters(make_run, import_run):
    path, obj = make_run("mmsegmentation")
    *_, directory = import_run(path)
    buffers = [entry["momentum_buffer"] for entry in obj["optimizer"]["state"].values()]
    keys = made.parameters(obj["state_dict"])
    moved = obj["state_dict"] | dict(zip(keys, buffers, strict=True))
    expected, _ = keymap.to_variables(moved, 18, "mmsegmentation")
    got = checkpoint.read_arrays(directory, 7, ["opt_state"])["opt_state"]
    assert {path[-1]: leaf for path, leaf in _flat(got).items()}["count"] == 7
    trace = {
        path[path.index("trace") + 1 :]: v for path, v in _flat(got).items() if "trace" in path
    }
    assert trace.keys() == _flat(expected["params"]).keys()
    for name, value in _flat(expected["params"]).items():
        np.testing.assert_array_equal(trace[name], value, err_msg=str(name))


def _flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        tuple(getattr(k, "key", getattr(k, "idx", None)) for k in path): v for path, v in leaves
    }


def test_2020s_layout_needs_the_iteration(make_run, import_run):
    path, obj = make_run()
    write_pth(path, {"epoch": 2, "model": obj["model"], "optimizer": obj["optimizer"]})
    code, _, err, directory = import_run(path)
    assert (code, err.count("\n")) == (4, 1)
    assert "does not say how many iterations it has done - give --iteration N" in err
    assert not directory.exists()
    code, *_ = import_run(path, "--iteration=9")
    assert (code, checkpoint.latest_step(directory)) == (0, 9)


def test_other_types_become_those_of_training(make_tensors, make_run, import_run):
    tensors = make_tensors("sssegmentation", dtype="float64")
    path, _ = make_run(model=tensors)
    code, _, _, directory = import_run(path)
    assert code == 0
    got = checkpoint.read_arrays(directory, 7, ["params", "batch_stats", "opt_state"])
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {"float32", "int32"}


# --- What is refused


@pytest.fixture
def source(make_tensors):
    tensors = make_tensors("sssegmentation")
    structure = infer({key: value.shape for key, value in tensors.items()}, "sssegmentation")
    optimizer = made.sgd_state(tensors, 7)
    no_colors = np.zeros((0, 3), np.uint8)
    return PyTorchFile("x.pth", tensors, structure, (), (), no_colors, optimizer, 7)


def _read(source, iteration=None):
    return read_progress(source, freeze(get_config("folder", depth=18)), iteration)


def _with_group(**changes):
    return lambda o: o["param_groups"][0].update(changes)


def _with_entry(entry):
    return lambda o: o["state"].update({3: entry})


def _adam(optimizer):
    optimizer["state"] = {
        i: {"step": 7, "exp_avg": np.zeros(1), "exp_avg_sq": np.zeros(1)}
        for i in optimizer["state"]
    }


def _with_value(value):
    def change(optimizer):
        optimizer["state"][1]["momentum_buffer"] = value

    return change


_BN = "backbone_net.stem.1.weight"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda o: o.clear(), "holds no state of a PyTorch optimiser"),
        (lambda o: o.update(state=[]), "holds no state of a PyTorch optimiser"),
        (lambda o: o.update(param_groups=[]), "holds no state of a PyTorch optimiser"),
        (lambda o: o.update(param_groups=[3]), "holds no state of a PyTorch optimiser"),
        (lambda o: o["param_groups"].append({}), "has 2 groups of parameters"),
        (lambda o: o["param_groups"][0].pop("momentum"), "is not SGD with momentum - name"),
        (_with_group(momentum="0.9"), "is not SGD with momentum - name"),
        (_adam, "is not SGD with momentum: it keeps exp_avg, exp_avg_sq, step - name"),
        (_with_group(nesterov=True), "its SGD has nesterov=True, which ours has not"),
        (_with_group(dampening=0.5), "its SGD has dampening=0.5"),
        (_with_group(maximize=True), "its SGD has maximize=True"),
        (_with_group(nesterov=np.zeros(2)), "its SGD has nesterov=[0. 0.], which ours has not"),
        (
            _with_group(momentum=0.95),
            "momentum 0.95, and the recipe config.train.momentum=0.9 - give "
            "--config.train.momentum=0.95 if",
        ),
        (_with_group(weight_decay=1e-4), "give --config.train.weight_decay=0.0001 if"),
        (_with_group(params=list(range(9))), "its SGD has 9 parameters, its network 115"),
        (_with_group(params=[0] * 115), "its SGD does not number its parameters"),
        (_with_group(params=[[]] * 115), "its SGD does not number its parameters"),
        (lambda o: o["state"].clear(), "has no momentum after 7 iterations"),
        (lambda o: o["state"].pop(1), f"of 114 of 115 parameters (missing: {_BN}; 114 in"),
        (_with_entry({"momentum_buffer": None}), "of 114 of 115 parameters (missing: "),
        (_with_entry({}), "of 114 of 115 parameters (missing: "),
        (_with_entry(None), "of 114 of 115 parameters (missing: "),
        (lambda o: o["state"].update({115: {}}), "of 115 of 115 parameters (missing: none; 116 in"),
        (_with_value(np.zeros((5,), "f")), f"{_BN}: (5,) float32, (2,) wanted"),
        (_with_value(np.zeros((2,), int)), f"{_BN}: (2,) int64, (2,) wanted"),
        (_with_value(np.array([0, np.nan])), f"1 momenta hold values that are not finite ({_BN})"),
    ],
)
def test_state_that_is_not_the_recipes_is_refused(source, change, text):
    change(source.optimizer)
    with pytest.raises(CheckpointError) as caught:
        _read(source)
    assert text in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("optimizer", [None, [], 3, {"state": {}}])
def test_file_without_an_optimiser_is_refused(source, optimizer):
    with pytest.raises(CheckpointError, match="holds no state of a PyTorch optimiser"):
        _read(dataclasses.replace(source, optimizer=optimizer))


@pytest.mark.parametrize("iteration", [-1, 2**31, 1.0, True, "7", np.zeros(3)])
def test_impossible_iterations_are_refused(source, iteration):
    with pytest.raises(CheckpointError, match=r"cannot have done .* give --iteration N"):
        _read(dataclasses.replace(source, iteration=iteration))


def test_given_iteration_goes_before_the_files(source):
    assert _read(source, 9).iteration == 9


def test_parameters_may_have_any_numbers(source):
    """Until 2020 they were addresses."""
    expected = _read(source)
    state = source.optimizer["state"]
    numbers = [139_000_000_000_000 - 8 * i for i in state]
    source.optimizer["param_groups"][0]["params"] = numbers
    source.optimizer["state"] = {n: state[i] for i, n in reversed(list(enumerate(numbers)))}
    got = _read(source)
    jax.tree.map(np.testing.assert_array_equal, got.momentum, expected.momentum)


def test_run_that_has_not_begun_has_no_momentum(source):
    source.optimizer["state"].clear()
    assert _read(source, 0) == Progress(0, None)


def test_refusals_are_one_line_and_leave_nothing(make_run, import_run):
    path, obj = make_run()
    obj["optimizer"]["param_groups"][0]["momentum"] = 0.5
    write_pth(path, obj)
    made.assert_refused(import_run(path), 4, f"error: {path}: its SGD has momentum 0.5, and")
    result = import_run(path, "--config.train.momentum=0.5")
    assert result[0] == 0


@pytest.mark.parametrize(
    ("change", "plain"),
    [("optimizer=adamw", "sgd"), ("decay_norms=false", "true"), ("head_lr_factor=2", "1.0"),
     ("freeze=backbone", "none"), ("ema_half_life=9", "0.0")],
)  # fmt: skip
def test_optimiser_that_pytorchs_is_not_is_refused(narrow_config, change, plain):
    config, field = narrow_config(f"train.{change}"), change.partition("=")[0]
    with pytest.raises(ConfigError, match=f"PyTorch's with {plain} alone") as caught:
        run_items("x", {}, Progress(), config)
    assert caught.value.where == f"config.train.{field}"
    assert f"--config.train.{field}=" in caught.value.fix
    if field != "ema_half_life":  # the weights as trained have their momentum
        with pytest.raises(ConfigError, match="leave out --optimizer"):
            to_optimizer({}, config, 1, None, "sssegmentation")


def test_safetensors_have_no_optimiser(make_tensors, import_run, tmp_path):
    write_safetensors(tmp_path / "x.safetensors", make_tensors("sssegmentation"))
    result = import_run(tmp_path / "x.safetensors")
    made.assert_refused(result, 4, "holds no state of a PyTorch optimiser")


def test_flags_need_each_other(call, make_run, tmp_path):
    path, _ = make_run()
    argv = ["convert", "from-pytorch", "--checkpoint", path, "--output", tmp_path / "c"]
    code, _, err = call(*argv, "--output-stride=16", "--optimizer")
    assert (code, err.startswith("error: --optimizer: needs --config")) == (2, True)
    code, _, err = call(*argv, "--optimizer", "--config=x", "--iteration=-3")
    assert (code, err.startswith("error: --iteration: must be from 0 to 2147483647")) == (2, True)
    code, _, err = call(*argv, "--output-stride=16", "--iteration=3")
    assert (code, err.startswith("error: --iteration: is given without --optimizer")) == (2, True)


def test_weights_have_no_optimiser_to_export(convert, make_run, export):
    path, _ = make_run()
    code, *_, weights = convert(path, "--output-stride=16")
    assert code == 0
    result = export(weights, "--optimizer")
    made.assert_refused(result, 4, "is of kind weights, which has no optimiser's")
    result = export(weights, "--optimizer", name="y.safetensors")
    made.assert_refused(result, 2, "a safetensors file, which holds tensors alone")


def test_run_without_momentum_is_refused(make_tensors, export, run_recipe, tmp_path):
    variables, _ = keymap.to_variables(make_tensors("sssegmentation"), 18)
    info = checkpoint.Info(kind="run", config=load_recipe(str(run_recipe)), step=3)
    items = variables | {"opt_state": {"a": np.zeros(3)}}
    checkpoint.save_once(tmp_path / "run", items, info)
    made.assert_refused(export(tmp_path / "run", "--optimizer"), 4, "holds no momentum of SGD")


# --- Going on


@pytest.mark.process("trains, exports and imports in turn; the parts are in the first tier")
def test_train_continues_an_imported_run(call, make_run, import_run, export, make_tree,
                                         run_recipe, monkeypatch):  # fmt: skip
    devices = jax.devices()[:1]  # for one the step compiles sooner
    monkeypatch.setattr(jax, "devices", lambda: devices)
    path, obj = make_run(iteration=8)
    root = make_tree("folder", num_train=8, num_val=1, num_classes=5)
    *_, directory = import_run(path)
    argv = ["--config", run_recipe, "--workdir", directory, f"--config.data.root={root}"]
    code, text, err = call("train", *argv, "--config.train.steps=11")
    assert (code, "train.steps: 12 -> 11" in err) == (2, True)  # the recipe must be the run's
    code, text, err = call("train", *argv)
    assert code == 0, err
    assert "on which data it was trained is not known" in text
    assert f"continuing at step 8 of {made.TOTAL}" in text
    log = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    log = [entry for entry in log if entry["event"] != "time"]
    # Two steps an epoch: step 8 is due to be evaluated, and was not yet.
    assert [(e["event"], e["step"]) for e in log] == [
        ("eval", 8), *(("train", step) for step in range(9, 13)), ("eval", 12), ("end", 12)
    ]  # fmt: skip
    info = checkpoint.read_info(directory)
    assert info.data.startswith("8 images")
    _, text, _, out = export(directory, "--optimizer")
    assert "lr 0.0001\n" in text  # where the schedule ends
    got = read_pth(out)
    assert (got["cur_epoch"], got["cur_iter"]) == (6, 12)
    for key, value in got["model"].items():
        if key.endswith(keymap.COUNTER):
            assert value == obj["model"][key] + 4
        else:
            assert not np.array_equal(value, obj["model"][key]), key
    other = make_tree("folder", num_train=6, num_val=1, num_classes=5)
    argv[-1] = f"--config.data.root={other}"
    code, _, err = call("train", *argv)
    assert (code, "trained on 8 images" in err) == (2, True)


@pytest.fixture(scope="module")
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


class _Story:
    """Three steps in PyTorch, saved; then five more there, and here in both ways."""

    def __init__(self, reference, folder, run_recipe):
        self.reference, self.folder, self.recipe_file = reference, folder, run_recipe
        self.flags = ["--config.model.dtype=float64", "--config.train.loss_groups=2"]
        self.config = load_recipe(str(run_recipe), self.flags)
        rng = np.random.default_rng(3)
        self.images = rng.standard_normal((2, 4, 33, 49, 3)).astype(np.float32)
        self.labels = rng.integers(0, 5, (2, 4, 33, 49))
        self.labels[:, 1:, :9] = 255
        np.savez(folder / "b.npz", images=self.images, labels=self.labels)
        torch = reference.torch
        torch.manual_seed(0)
        self.net = reference.network(self.config.model, torch.float64)
        self.sgd = reference.sgd(self.net)
        self.train_there(3, 0)
        self.path = folder / "x.pth"
        state = {"cur_epoch": 1, "cur_iter": 3, "optimizer": self.sgd.state_dict()}
        torch.save({**state, "model": self.net.state_dict()}, self.path)
        self.records = self.train_there(5, 3)
        self.tensors = reference.tensors(self.net)
        self.momentum = reference.momentum(self.net, self.sgd)

    def train_there(self, steps, start):
        return self.reference.train(
            self.net, self.sgd, self.images, self.labels, steps, made.TOTAL, start, processes=2
        )

    def assert_equal(self, tensors, momentum):
        assert list(tensors) == list(self.tensors)
        for key, value in self.tensors.items():
            np.testing.assert_allclose(tensors[key], value, rtol=1e-6, atol=1e-12, err_msg=key)
        assert list(momentum) == list(self.momentum)
        for key, value in self.momentum.items():
            np.testing.assert_allclose(momentum[key], value, rtol=1e-6, atol=1e-12, err_msg=key)

    def assert_equal_file(self, obj, step):
        assert list(obj) == ["cur_epoch", "cur_iter", "optimizer", "model"]
        assert obj["cur_iter"] == step
        state = obj["optimizer"]["state"]
        assert list(state) == list(range(len(self.momentum)))
        buffers = [np.asarray(entry["momentum_buffer"]) for entry in state.values()]
        self.assert_equal(obj["model"], dict(zip(self.momentum, buffers, strict=True)))


@pytest.fixture(scope="module")
def story(torch_reference, x64, run_recipe, tmp_path_factory):
    return _Story(torch_reference, tmp_path_factory.mktemp("story"), run_recipe)


@pytest.mark.parity("a long story of steps; three are replayed in test_replay.py")
def test_replay_continues_as_pytorch_does(story, capsys):
    out = story.folder / "replayed.pth"
    flags = ["--optimizer", *story.flags, f"--total-steps={made.TOTAL}", "--steps=5"]
    paths = ["--checkpoint", story.path, "--batches", story.folder / "b.npz", "--output", out]
    replay.main([*flags, *map(str, paths), "--config", str(story.recipe_file)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 5
    for got, expected in zip(lines, story.records, strict=True):
        assert got == pytest.approx(expected, rel=1e-6)
    story.assert_equal_file(read_pth(out), 8)


@pytest.mark.parity("a long story of steps; three are replayed in test_replay.py")
def test_import_continues_as_pytorch_does_and_goes_back(story):
    directory, back = story.folder / "run", story.folder / "back.pth"
    _run(["from-pytorch", "--checkpoint", story.path, "--output", directory, "--optimizer",
          "--config", story.recipe_file, *story.flags])  # fmt: skip
    config = story.config
    mesh = mesh_lib.make_mesh(config.train.batch_size)
    state = restore_state(directory, checkpoint.find_step(directory), config, mesh)
    state = jax.device_put(jax.device_get(state))
    update = make_update(build_model(config.model), config, made.TOTAL, use_dropout=False)
    step = jax.jit(update, donate_argnums=0)  # as in replay, so it is compiled already

    def train_here(state, steps):
        records = []
        for _ in range(steps):
            index = int(state["step"]) % 2
            state, metrics = step(state, story.images[index], story.labels[index].astype(np.int32))
            records.append({name: float(value) for name, value in metrics.items()})
        return state, records

    state, records = train_here(state, 5)
    for got, expected in zip(records, story.records, strict=True):
        for name in ("lr", "loss_main", "loss_aux", "loss", "grad_norm"):
            assert got[name] == pytest.approx(expected[name], rel=1e-6)

    info = checkpoint.read_info(directory)
    with checkpoint.Saver(directory) as saver:
        saver.save(8, {name: item for name, item in state.items() if name != "step"}, info)
    _run(["to-pytorch", "--checkpoint", directory, "--output", back, "--optimizer"])
    torch = story.reference.torch
    obj = torch.load(back, weights_only=True)
    story.assert_equal_file(obj, 8)

    net = story.reference.network(config.model, torch.float64)
    net.load_state_dict(obj["model"])
    sgd = story.reference.sgd(net)
    sgd.load_state_dict(obj["optimizer"])
    lr = (0.01 - 1e-4) * (1 - 8 / made.TOTAL) ** 0.9 + 1e-4
    assert sgd.param_groups[0]["lr"] == pytest.approx(lr, rel=1e-12)
    theirs = story.reference.train(net, sgd, story.images, story.labels, 2, made.TOTAL, 8, 2)
    state, ours = train_here(state, 2)
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], rel=1e-6)
    counters = {path: 10 for kind, path, _ in keymap.leaves(18) if kind == "counters"}
    expected = keymap.to_tensors(jax.device_get(eval_variables(state)), counters, 18)
    for key, value in story.reference.tensors(net).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-6, atol=1e-12, err_msg=key)


def _run(argv):
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["convert", *map(str, argv)])
