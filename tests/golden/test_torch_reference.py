"""The PyTorch network that other tests compare with is the reference's, and ours."""

from functools import partial

import jax
import numpy as np
import pytest

from convert import keymap
from convert.source import abstract_variables
from deeplab_jax.config import get_config
from deeplab_jax.models import build_model
from deeplab_jax.training.losses import row_weights, segmentation_loss

_DEEP = pytest.mark.parity("compiles ResNet-50; ResNet-18 is in the first tier")


@pytest.mark.parametrize(("depth", "stride"), [(18, 8), pytest.param(50, 16, marks=_DEEP)])
def test_network_and_loss_equal_ours(torch_reference, narrow_config, depth, stride):
    widths = "model.width=4", "model.head_channels=10", "model.low_level_channels=3"
    config = narrow_config(
        *widths, "model.aux_channels=7", "model.dtype=float64", depth=depth, output_stride=stride
    ).model
    rng = np.random.default_rng(0)
    tensors = {
        key: rng.uniform(0.5, 1.5, shape) if len(shape) < 4 else 0.3 * rng.standard_normal(shape)
        for key, shape in keymap.to_shapes(abstract_variables(config), depth).items()
    }
    counters = {key: np.asarray(7) for key in tensors if key.endswith(keymap.COUNTER)}
    net = torch_reference.network(config, torch_reference.torch.float64)
    assert list(net.state_dict()) == list(tensors)
    torch_reference.load(net, tensors | counters)

    images = rng.standard_normal((3, 65, 97, 3))
    labels = rng.integers(0, 5, (3, 65, 97))
    labels[:, :9] = 255
    main, aux = torch_reference.losses(
        net,
        torch_reference.torch.tensor(images).permute(0, 3, 1, 2),
        torch_reference.torch.tensor(labels),
    )
    with jax.enable_x64(True):
        variables, _ = keymap.to_variables(tensors | counters, depth)
        model = build_model(config, "cpu")

        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def apply(variables):
            output, updated = model.apply(variables, images, is_train=True, mutable=["batch_stats"])
            return segmentation_loss(
                *output, labels, weights=row_weights(labels, 1), platform="cpu"
            ), updated["batch_stats"]

        losses, batch_stats = apply(variables)
    assert float(losses["loss_main"]) == pytest.approx(main.item(), rel=1e-12)
    assert float(losses["loss_aux"]) == pytest.approx(aux.item(), rel=1e-12)
    after = variables | {"batch_stats": jax.device_get(batch_stats)}
    expected = keymap.to_tensors(after, dict.fromkeys(_norms(depth), 8), depth)
    for key, value in torch_reference.tensors(net).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-9, atol=1e-12, err_msg=key)


def _norms(depth):
    return [path for collection, path, _ in keymap.leaves(depth) if collection == "counters"]


@pytest.mark.slow("minutes of ResNet-50 in PyTorch's float64")
@pytest.mark.parametrize("name", ["r50_d16_c21", "r50_d8_c21"])
def test_training_equals_the_references(torch_reference, measure, recipe, name):
    facts = measure.facts("train.json")[name]
    config = get_config("voc", *measure.parse(name)[:2]).model
    net = torch_reference.network(config, torch_reference.torch.float64)
    assert [key for key, _ in net.named_parameters()] == facts["parameters"]
    before = recipe.draw_weights(name)
    torch_reference.load(net, before)
    batch, _, height, width = facts["input_shape"]
    images = measure.draw_images(facts["name"], facts["input_shape"])
    labels = recipe.draw_labels(facts["name"], (batch, height, width), 21).astype(int)
    records = torch_reference.train(
        net, torch_reference.sgd(net), images[None], labels[None], steps=5, total=10
    )
    for ours, theirs in (("lr", "lr"), ("loss_main", "loss_cls"), ("loss_aux", "loss_aux")):
        assert [r[ours] for r in records] == pytest.approx(facts[theirs], rel=1e-9)
    assert records[0]["grad_norm"] == pytest.approx(facts["grad_l2_total"], rel=1e-9)
    after = torch_reference.tensors(net)
    norms = [np.linalg.norm(after[key] - before[key]) for key in facts["parameters"]]
    expected = np.load(recipe.FOLDER / f"train_{name}.npz")["delta_after_5/l2"]
    np.testing.assert_allclose(norms, expected, rtol=1e-6)
