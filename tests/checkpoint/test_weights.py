"""A step that holds weights and their average: which of both is the network."""

import jax
import numpy as np
import pytest

import deeplab_jax
from convert.pth import read_pth
from deeplab_jax import checkpoint
from deeplab_jax.errors import ConfigError
from deeplab_jax.models import build_model
from deeplab_jax.training.init_weights import load_checkpoint
from deeplab_jax.utils.trees import by_path, divide, merged


@pytest.fixture(scope="module")
def averaged(narrow_config, draw_variables, tmp_path_factory):
    """Returns averaged(freeze) -> a run with one step, its configuration, weights and average."""

    def make(freeze):
        c = narrow_config("train.ema_half_life=5", f"train.freeze={freeze}", "init.backbone=none")
        raw, other = (draw_variables(build_model(c.model), seed, 0.5) for seed in (0, 1))
        average = {name: divide(tree, c.train.freeze)[0] for name, tree in other.items()}
        items = raw | {"ema": {"count": np.array(9, np.int32), **average}}
        path = tmp_path_factory.mktemp("averaged")
        with checkpoint.Saver(path) as saver:
            scores = {"mean_iou": 0.5, "mean_iou_raw": 0.4, "loss": 1.0}
            saver.save(9, items, checkpoint.Info(kind="run", config=c), scores)
        seen = {name: merged(raw[name], average[name]) for name in raw}
        return path, c, raw, seen

    made = {}
    return lambda freeze: made.get(freeze) or made.setdefault(freeze, make(freeze))


def _assert_equal(got, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), expected)


@pytest.mark.parametrize("freeze", ["", "backbone,aspp"])
def test_average_is_loaded_unless_the_weights_are_asked_for(averaged, freeze):
    path, _, raw, seen = averaged(freeze)
    for weights, expected, kind in ((None, seen, "ema"), ("ema", seen, "ema"), ("raw", raw, "raw")):
        model = deeplab_jax.load(path, weights=weights)
        _assert_equal(model.variables, expected)
        assert model.weights == model.source["weights"] == kind
    if freeze:  # what is frozen is not saved twice
        _assert_equal(seen["params"]["aspp"], raw["params"]["aspp"])
        with pytest.raises(AssertionError):
            _assert_equal(seen["params"]["decoder"], raw["params"]["decoder"])


def test_average_is_exported_converted_and_started_from(averaged, call, tmp_path):
    path, c, raw, seen = averaged("backbone,aspp")
    for weights, expected in (([], seen), (["--weights", "raw"], raw)):
        name = "-".join(weights)
        copy, file = tmp_path / f"copy{name}", tmp_path / f"file{name}.pth"
        assert call("checkpoint", "export", path, "--output", copy, *weights).code == 0
        _assert_equal(checkpoint.read_arrays(copy, "latest", expected), expected)
        assert deeplab_jax.load(copy).weights == ""
        score = checkpoint.read_info(copy).metrics["mean_iou"]
        assert score == (0.4 if weights else 0.5)
        got = call("convert", "to-pytorch", "--checkpoint", path, "--output", file, *weights)
        assert (got.code, got.err) == (0, "")
        assert f"step 9, {weights[-1] if weights else 'ema'} weights: " in got.out
        kernel = expected["params"]["classifier"]["kernel"]
        theirs = read_pth(str(file))["model"]
        assert any(
            np.array_equal(np.transpose(tensor, (2, 3, 1, 0)), kernel)
            for tensor in theirs.values()
            if tensor.ndim == 4
        )
    config = deeplab_jax.config.recipe.apply_overrides(c, [f"--config.init.checkpoint={path}"])
    state = load_checkpoint({"step": jax.numpy.zeros(()), **raw}, config)
    _assert_equal({name: state[name] for name in seen}, seen)


def test_arrays_of_the_average_have_checksums(averaged):
    path, *_ = averaged("")
    arrays = checkpoint.description.read(path, 9).arrays
    assert {name.partition("/")[0] for name in arrays} == {"params", "batch_stats", "ema"}
    assert by_path({"ema": checkpoint.read_arrays(path, 9, ["ema"])["ema"]}).keys() <= arrays.keys()


def test_choice_is_refused_where_there_is_none(saved_run, averaged, call, tmp_path):
    for argv in (
        ["evaluate", "--checkpoint", saved_run.path],
        ["predict", "--checkpoint", saved_run.path, saved_run.images[0], "--output", tmp_path],
        ["convert", "to-pytorch", "--checkpoint", saved_run.path, "--output", tmp_path / "x.pth"],
        ["checkpoint", "export", saved_run.path, "--output", tmp_path / "x"],
    ):
        got = call(*argv, "--weights", "ema")
        assert got.code == 2
        assert "--weights: is ema, and step 7 holds one kind of weights - leave it out" in got.err
    with pytest.raises(ConfigError, match="must be ema or raw, got best"):
        deeplab_jax.load(averaged("")[0], weights="best")
    flags = "--optimizer", "--output", tmp_path / "y.pth"
    got = call("convert", "to-pytorch", "--checkpoint", averaged("")[0], *flags)
    assert (got.code, "add --weights raw" in got.err) == (2, True)
