import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax.config import get_config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.training.optimizer import (
    begin_average,
    build_optimizer,
    build_schedule,
    describe_schedule,
    joint_norm,
    next_average,
    poly_schedule,
)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_schedule_by_hand():
    schedule = poly_schedule(0.01, 1e-4, 0.9, 100)
    assert float(schedule(0)) == 0.01
    assert float(schedule(50)) == pytest.approx(0.0099 * 0.5**0.9 + 1e-4, rel=1e-12)
    assert float(schedule(99)) > 1e-4


def test_schedule_equals_the_references(measure):
    np.testing.assert_allclose(*measure.schedule()["rates"], rtol=1e-12)


def test_update_by_hand():
    # d = g + wd p;  v = 0.9 v + d, first v = d;  p = p - lr v: the rate multiplies last.
    optimizer, schedule = build_optimizer(get_config("voc").train, 10)
    params = {"kernel": jnp.array([2.0]), "scale": jnp.array([1.0])}
    state = optimizer.init(params)
    expected, velocity = {k: float(v[0]) for k, v in params.items()}, {}
    for step, gradient in enumerate([0.5, -0.25, 1.0]):
        grads = jax.tree.map(lambda p, g=gradient: jnp.full_like(p, g), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name in expected:
            decayed = gradient + 5e-4 * expected[name]  # norms are decayed too
            velocity[name] = 0.9 * velocity[name] + decayed if step else decayed
            expected[name] -= float(schedule(step)) * velocity[name]
            assert float(params[name][0]) == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.parametrize("shapes", [[(3,), (200, 200), (), (2, 5), (40000,)], [(3,)], [(200, 200)]])
def test_joint_norm_is_the_norm_of_all(shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    tree = {str(n): jax.random.normal(keys[n], shape) for n, shape in enumerate(shapes)}
    assert joint_norm(tree) == pytest.approx(float(optax.global_norm(tree)), rel=1e-13)
    # A single value that is not finite is seen, wherever it is.
    for name, leaf in tree.items():
        assert not jnp.isfinite(joint_norm(tree | {name: leaf.at[(-1,) * leaf.ndim].set(jnp.nan)}))


# Schedules, against PyTorch's and plain formulas

TOTAL = 40  # steps, of 4 epochs


def train_config(*changes):
    changes = [f"--config.train.{change}" for change in ("epochs=4", *changes)]
    return apply_overrides(get_config("voc"), changes).train


def torch_rates(*make):
    """Returns the rates of PyTorch's schedulers, one after the other, each for so many steps."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, dtype=torch.float64)], lr=0.01)
    schedulers = torch.optim.lr_scheduler
    parts = [build(schedulers, optimizer) for _, build in make]
    ends = np.cumsum([steps for steps, _ in make])[:-1].tolist()
    scheduler = schedulers.SequentialLR(optimizer, parts, ends)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


WARMUP = 7, lambda s, o: s.LinearLR(o, 1 / 8, total_iters=7)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        (["schedule=constant"], [(TOTAL, lambda s, o: s.ConstantLR(o, 1))]),
        (["schedule=constant", "warmup_steps=7"], [WARMUP, (33, lambda s, o: s.ConstantLR(o, 1))]),
        (["schedule=cosine"], [(TOTAL, lambda s, o: s.CosineAnnealingLR(o, TOTAL, 1e-4))]),
        (["schedule=cosine", "warmup_steps=7"],
         [WARMUP, (33, lambda s, o: s.CosineAnnealingLR(o, 33, 1e-4))]),
        (["min_lr=0", "poly_power=2"], [(TOTAL, lambda s, o: s.PolynomialLR(o, TOTAL, 2))]),
        (["min_lr=0", "warmup_steps=7"], [WARMUP, (33, lambda s, o: s.PolynomialLR(o, 33, 0.9))]),
        (["schedule=step", "step_epochs=1,3", "step_factor=0.3"],
         [(TOTAL, lambda s, o: s.MultiStepLR(o, [10, 30], 0.3))]),
        (["schedule=step", "step_epochs=1,3", "warmup_steps=7"],
         [WARMUP, (33, lambda s, o: s.MultiStepLR(o, [3, 23], 0.1))]),
    ],
)  # fmt: skip
def test_schedules_equal_pytorchs(changes, theirs):
    schedule = build_optimizer(train_config(*changes), TOTAL)[1]
    ours = [float(schedule(step)) for step in range(TOTAL)]
    np.testing.assert_allclose(ours, torch_rates(*theirs), rtol=1e-12)


def test_last_step_stays_above_the_end_and_what_is_unknown_is_no_error():
    for kind in ("poly", "cosine"):
        schedule = build_schedule(train_config(f"schedule={kind}", "warmup_steps=7"), TOTAL)
        assert float(schedule(6)) == pytest.approx(0.01 * 7 / 8, rel=1e-15)
        assert float(schedule(7)) == pytest.approx(0.01, rel=1e-15)
        assert 1e-4 < float(schedule(TOTAL - 1)) < 2e-3
        build_optimizer(train_config(f"schedule={kind}", "warmup_steps=7"), 1)  # for its state


def test_schedules_in_words():
    changes = "schedule=step", "step_epochs=1,3", "warmup_steps=7", "head_lr_factor=10"
    assert describe_schedule(train_config(*changes)) == (
        "step, x 0.1 after epochs 1, 3 after 7 steps of warm-up; x 10 outside the backbone"
    )
    assert describe_schedule(train_config()) == "poly 0.9"


# Optimisers, against PyTorch's


@pytest.mark.torch
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimisers_equal_pytorchs_with_groups_of_parameters(name):
    """Clipping, another rate for heads, and no decay of norms, which PyTorch takes as groups."""
    torch = pytest.importorskip("torch")
    changes = "clip_norm=2", "decay_norms=false", "lr=0.1", "head_lr_factor=3", "weight_decay=0.2"
    train = train_config(f"optimizer={name}", *changes, "freeze=backbone.stem")
    rng = np.random.default_rng(0)
    shapes = {("backbone", "kernel"): (3, 2), ("backbone", "scale"): (2,),
              ("aspp", "kernel"): (2, 2), ("aspp", "bias"): (2,)}  # fmt: skip
    values = {path: rng.standard_normal(shape) for path, shape in shapes.items()}
    theirs = {path: torch.tensor(value, requires_grad=True) for path, value in values.items()}
    groups = [
        {"params": [tensor], "lr": 0.1 * (3 if room == "aspp" else 1),
         "weight_decay": 0.2 if leaf == "kernel" else 0}
        for (room, leaf), tensor in theirs.items()
    ]  # fmt: skip
    make = {"sgd": lambda g: torch.optim.SGD(g, momentum=0.9), "adamw": torch.optim.AdamW}
    reference = make[name](groups)
    optimizer, schedule = build_optimizer(train, TOTAL)
    stem = {"kernel": jnp.ones(2)}
    params = {
        room: {leaf: jnp.asarray(value) for (own, leaf), value in values.items() if own == room}
        for room in ("backbone", "aspp")
    }
    learning = {"backbone": {"layer1_0": params["backbone"]}, "aspp": params["aspp"]}
    state = optimizer.init(learning | {"backbone": learning["backbone"] | {"stem": stem}})
    for step in range(6):
        gradients = {path: 3 * rng.standard_normal(shape) for path, shape in shapes.items()}
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
        scale = min(1, 2 / norm)
        for group, (room, _) in zip(reference.param_groups, theirs, strict=True):
            group["lr"] = float(schedule(step)) * (3 if room == "aspp" else 1)
        for path, tensor in theirs.items():
            tensor.grad = torch.tensor(gradients[path] * scale)
        reference.step()
        grads = {
            "backbone": {"layer1_0": {k: gradients["backbone", k] for k in ("kernel", "scale")}},
            "aspp": {k: gradients["aspp", k] for k in ("kernel", "bias")},
        }
        updates, state = optimizer.update(grads, state, learning)
        learning = optax.apply_updates(learning, updates)
        for (room, leaf), tensor in theirs.items():
            own = learning[room].get("layer1_0", learning[room])[leaf]
            np.testing.assert_allclose(own, tensor.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_clipping_leaves_small_gradients_and_zeros_alone():
    optimizer, _ = build_optimizer(
        train_config("clip_norm=5", "schedule=constant", "lr=1", "momentum=0", "weight_decay=0"), 1
    )
    params = {"backbone": {"kernel": jnp.zeros(2)}}
    for gradient, expected in (([3, 4], [3, 4]), ([6, 8], [3, 4]), ([0, 0], [0, 0])):
        grads = {"backbone": {"kernel": jnp.array(gradient, float)}}
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        np.testing.assert_allclose(updates["backbone"]["kernel"], -np.array(expected, float))


# The average


@pytest.mark.parametrize("half_life", [1, 3, 1e4])
def test_average_is_the_weighted_mean_of_all_steps(half_life):
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((9, 5))
    average = begin_average({"a": jnp.full(5, 99.0)}, {"b": jnp.ones(5)})
    decay, weighted, weights = 0.5 ** (1 / half_life), 0, 0
    for count, step in enumerate(steps, 1):
        average = next_average(average, {"a": jnp.asarray(step)}, {"b": jnp.ones(5)}, half_life)
        weighted = decay * weighted + (1 - decay) * step
        weights = decay * weights + (1 - decay)
        np.testing.assert_allclose(average["params"]["a"], weighted / weights, rtol=1e-11)
        assert (int(average["count"]), average["count"].dtype) == (count, jnp.int32)
    assert (average["batch_stats"]["b"] == 1).all()  # what stays the same does not move


def test_average_in_float32_forgets_what_was_before_the_first_step():
    average = begin_average({"a": jnp.full(3, 1e3, jnp.float32)}, {})
    average = next_average(average, {"a": jnp.arange(3, dtype=jnp.float32)}, {}, 1e6)
    np.testing.assert_allclose(average["params"]["a"], np.arange(3), atol=1e-4)
    assert average["params"]["a"].dtype == jnp.float32
