import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax import checkpoint, config
from deeplab_jax.checkpoint import Info, Saver, folder
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.errors import CheckpointError, DamagedError, ResourceError

RUN = Info(kind="run")
TWO = ["--config.model.num_classes=2"]


def sharding(devices=1, spec=()):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
    return jax.NamedSharding(mesh, jax.P(*spec))


def make_items(seed=0, devices=1, size=32):
    rng = np.random.default_rng(seed)
    params = {
        "backbone": {"conv": {"kernel": rng.normal(size=(3, 3, 4, size)).astype(np.float32)}},
        "head": {"bias": rng.normal(size=(5,)).astype(np.float32)},
    }
    params = jax.device_put(params, sharding(devices))
    tx = optax.chain(
        optax.add_decayed_weights(5e-4),
        optax.sgd(optax.polynomial_schedule(0.01, 1e-4, 0.9, 100), momentum=0.9),
    )
    opt_state = jax.jit(tx.init, out_shardings=sharding(devices))(params)
    _, opt_state = tx.update(params, opt_state, params)  # a momentum that is not 0
    stats = {"backbone": {"bn": {"mean": jnp.arange(4.0)}}}
    return {"params": params, "batch_stats": stats, "opt_state": opt_state}


def abstract_of(items, devices=1):
    place = sharding(devices)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), items)


def to_numpy(items):
    return jax.tree.map(lambda x: np.array(x, copy=True), items)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def steps_on_disk(path):
    return sorted(entry.name for entry in (path / "checkpoints").iterdir())


@pytest.fixture
def saved(tmp_path):
    """A directory with one step, and its items."""
    items = make_items()
    checkpoint.save_once(tmp_path, items, RUN)
    return tmp_path, items


def test_run_comes_back_bit_for_bit(tmp_path):
    items = make_items()
    with Saver(tmp_path) as saver:
        assert saver.save(7, items, RUN)
    got = checkpoint.restore(tmp_path, "latest", abstract_of(items))
    assert_same(got, items)
    assert type(got["opt_state"][1][0]) is type(items["opt_state"][1][0])  # optax's NamedTuple
    assert all(leaf.sharding == sharding() for leaf in jax.tree.leaves(got))


def test_info_comes_back(tmp_path):
    palette = np.array([[0, 0, 0], [128, 64, 255]], np.uint8)
    info = Info(
        kind="weights",
        config=config.freeze(apply_overrides(config.get_config("folder", 101, 8), TWO)),
        class_names=("background", "chaise à bascule"),
        palette=palette,
        counters={"backbone.bn1": 1234},
        left_out=(7, 5),
        losses=(0.1 + 0.2, 1.0),
        metrics={"mean_iou": np.float32(0.5), "iou_per_class": np.array([0.25, 0.75])},
    )
    checkpoint.save_once(tmp_path, {"params": {"w": np.ones(2)}}, info)
    got = checkpoint.read_info(tmp_path)
    assert (got.kind, got.step, got.class_names) == ("weights", 0, info.class_names)
    assert got.config == info.config
    assert got.palette.dtype == np.uint8
    np.testing.assert_array_equal(got.palette, palette)
    assert got.counters == info.counters
    assert (got.left_out, got.losses) == (info.left_out, info.losses)
    assert got.metrics == {"mean_iou": 0.5, "iou_per_class": [0.25, 0.75]}


def test_backbone_needs_no_config(tmp_path):
    checkpoint.save_once(tmp_path, {"params": {"w": np.ones(2)}}, Info(kind="backbone"))
    got = checkpoint.read_info(tmp_path)
    assert got.config is None
    assert got.palette.shape == (0, 3)


def test_part_of_the_items_can_be_restored(saved):
    path, items = saved
    part = {name: items[name] for name in ("params", "batch_stats")}
    assert_same(checkpoint.restore(path, 0, abstract_of(part)), part)


def test_item_without_arrays_comes_back(tmp_path):
    items = {"params": {"w": jnp.ones(2)}, "opt_state": optax.sgd(0.1).init({"w": jnp.ones(2)})}
    checkpoint.save_once(tmp_path, items, RUN)
    assert_same(checkpoint.restore(tmp_path, 0, abstract_of(items)), items)


def test_any_number_of_devices_restores(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    count = jnp.int32(3)
    items = {"params": {"kernel": jax.device_put(kernel, sharding(4, ["data"])), "count": count}}
    for step, devices in enumerate([1, 2, 4]):
        with Saver(tmp_path) as saver:
            saver.save(step, items, RUN)
        wanted = {
            "kernel": jax.ShapeDtypeStruct(
                (8, 6), np.float32, sharding=sharding(devices, ["data"])
            ),
            "count": jax.ShapeDtypeStruct((), np.int32, sharding=sharding(devices)),
        }
        items = checkpoint.restore(tmp_path, step, {"params": wanted})
        assert_same(items, {"params": {"kernel": kernel, "count": np.int32(3)}})
        assert len(items["params"]["kernel"].sharding.device_set) == devices


def test_single_device_sharding_restores(saved):
    path, items = saved
    place = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), items)
    got = checkpoint.restore(path, 0, wanted)
    assert_same(got, items)
    assert got["params"]["head"]["bias"].devices() == {jax.devices()[1]}


def test_donated_arrays_may_be_overwritten_at_once(tmp_path):
    items = make_items(devices=4, size=20_000)  # 6 MB, and as much momentum
    want = to_numpy(items)
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x * 3 + 1, tree), donate_argnums=0)
    jax.block_until_ready(bump(jax.tree.map(jnp.copy, items)))  # compile before the race
    with Saver(tmp_path) as saver:
        saver.save(1, items, RUN)
        for _ in range(3):
            items = bump(items)
        jax.block_until_ready(items)
    assert_same(to_numpy(checkpoint.restore(tmp_path, 1, abstract_of(items))), want)


@pytest.mark.parametrize(
    ("scores", "best", "keep", "kept"),
    [
        ([0.1, 0.5, 0.3], 1, 1, ["1", "2"]),
        ([0.1, 0.2, 0.5], 2, 1, ["2"]),
        ([0.5, 0.5, 0.4], 1, 1, ["1", "2"]),  # the later of equals
        ([0.5, None, None], 0, 1, ["0", "2"]),
        ([0.1, float("nan"), None], 0, 1, ["0", "2"]),
        ([None, None, 0.0], 2, 1, ["2"]),
        ([None, None, 0.0], 2, 2, ["1", "2"]),
        ([0.5, None, None], 0, 2, ["0", "1", "2"]),
    ],
)
def test_latest_and_best_are_kept(tmp_path, scores, best, keep, kept):
    items = {"params": {"w": jnp.ones(2)}}
    for saves in ([0, 1], [2]):  # the second run knows the first one's scores
        with Saver(tmp_path, keep) as saver:
            for step in saves:
                score = scores[step]
                saver.save(step, items, RUN, None if score is None else {"mean_iou": score})
    assert steps_on_disk(tmp_path) == kept
    assert checkpoint.find_step(tmp_path, "best") == best
    assert checkpoint.latest_step(tmp_path) == 2


def test_no_metrics_no_best(saved):
    with pytest.raises(CheckpointError, match="none is the best - use one of: 0"):
        checkpoint.find_step(saved[0], "best")


def test_steps_only_grow(tmp_path):
    items = {"params": {"w": jnp.ones(2)}}
    with Saver(tmp_path) as saver:
        assert saver.save(5, items, RUN)
        assert not saver.save(5, {"params": {"w": jnp.zeros(2)}}, RUN)
        with pytest.raises(CheckpointError, match="holds step 5, so step 4"):
            saver.save(4, items, RUN)
    assert_same(checkpoint.restore(tmp_path, 5, abstract_of(items)), items)


def test_save_once_overwrites_nothing(saved):
    path, items = saved
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        checkpoint.save_once(path, items, RUN)


def test_every_difference_is_counted(saved):
    path, items = saved
    wanted = abstract_of(items)
    bias = wanted["params"]["head"].pop("bias")
    extra = {f"layer{i:02}": bias for i in range(12)}
    wanted["params"]["backbone"] |= extra
    wanted["batch_stats"]["backbone"]["bn"]["mean"] = jax.ShapeDtypeStruct((7,), np.float32)
    del wanted["opt_state"]
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(path, 0, wanted)
    text = str(caught.value)
    assert "12 parameters missing (params/backbone/layer00, " in text
    assert "params/backbone/layer09, ... (2 more)), 1 unexpected (params/head/bias)" in text
    assert "1 of another shape (batch_stats/backbone/bn/mean: (4,) saved, (7,) wanted)" in text
    assert "\n" not in text


def test_missing_item_is_a_difference(tmp_path):
    items = make_items()
    weights = {"params": items["params"], "batch_stats": items["batch_stats"]}
    checkpoint.save_once(tmp_path, weights, Info(kind="weights"))
    with pytest.raises(CheckpointError, match=r"3 parameters missing \(opt_state/1/0/trace/"):
        checkpoint.restore(tmp_path, 0, abstract_of(items))


def test_types_change_only_on_request(tmp_path):
    items = {"params": {"w": jnp.full((3,), 0.1, jnp.float32), "n": jnp.int32(4)}}
    checkpoint.save_once(tmp_path, items, RUN)
    wanted = abstract_of(items)
    half = {"w": jax.ShapeDtypeStruct((3,), jnp.bfloat16, sharding=sharding())}
    wanted["params"] |= half
    with pytest.raises(CheckpointError, match=r"params/w: float32 saved, bfloat16 wanted"):
        checkpoint.restore(tmp_path, 0, wanted)
    got = checkpoint.restore(tmp_path, 0, wanted, allow_cast=True)["params"]
    assert_same(got["w"], items["params"]["w"].astype(jnp.bfloat16))
    wanted["params"]["n"] = jax.ShapeDtypeStruct((), np.float32, sharding=sharding())
    with pytest.raises(CheckpointError, match=r"params/n: int32 saved, float32 wanted"):
        checkpoint.restore(tmp_path, 0, wanted, allow_cast=True)


@pytest.fixture
def x64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def test_float32_weights_load_as_float64(tmp_path, x64):
    items = {"params": {"w": np.float32([0.1, 1e-30])}}
    checkpoint.save_once(tmp_path, items, RUN)
    wanted = {"params": {"w": jax.ShapeDtypeStruct((2,), np.float64, sharding=sharding())}}
    got = checkpoint.restore(tmp_path, 0, wanted, allow_cast=True)["params"]["w"]
    assert_same(got, items["params"]["w"].astype(np.float64))


def test_float64_is_never_lost_silently(tmp_path):
    items = {"params": {"w": np.array([0.1])}}  # NumPy's: float64
    checkpoint.save_once(tmp_path, items, RUN)
    with jax.enable_x64(True), pytest.raises(CheckpointError, match="jax_enable_x64"):
        checkpoint.restore(tmp_path, 0, abstract_of(items))  # Orbax's threads do not see the `with`


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path / "nowhere", "no such directory"),
        (lambda path: path, "holds no finished checkpoint"),
        (lambda path: Path(__file__), "is a file, not a checkpoint directory"),
    ],
)
def test_what_is_not_a_checkpoint(tmp_path, make, text):
    path = make(tmp_path)
    assert checkpoint.latest_step(path) is None
    for read in (checkpoint.read_info, checkpoint.find_step):
        with pytest.raises(CheckpointError, match=text):
            read(path)
    with pytest.raises(CheckpointError, match=text):
        checkpoint.restore(path, "latest", {})


@pytest.mark.parametrize("inside", ["checkpoints", "checkpoints/0"])
def test_a_folder_inside_names_the_right_one(saved, inside):
    with pytest.raises(CheckpointError, match=f"give {saved[0]}$"):
        checkpoint.read_info(saved[0] / inside)


@pytest.mark.parametrize("step", [3, "3", "newest", -1, "-1", "²", ""])
def test_missing_step_lists_those_present(saved, step):
    with pytest.raises(CheckpointError, match=f"there is no step {step} - use one of: 0, latest"):
        checkpoint.find_step(saved[0], step)


def test_step_may_be_text(saved):
    assert checkpoint.find_step(saved[0], "0") == 0


@pytest.mark.parametrize("how", ["missing", "halved", "garbage"])
def test_damage_is_one_line(saved, how):
    """Whatever file of the step is damaged: an error of ours, or no harm."""
    path, items = saved
    errors = []
    for file in [file for file in (path / "checkpoints").rglob("*") if file.is_file()]:
        content = file.read_bytes()
        if how == "missing":
            file.unlink()
        else:
            file.write_bytes(content[: len(content) // 2] if how == "halved" else b"{")
        try:
            checkpoint.read_info(path)
            assert_same(checkpoint.restore(path, 0, abstract_of(items)), items)
        except DamagedError as error:
            errors.append(str(error))
        file.write_bytes(content)
    assert len(errors) >= 8  # the description, the payload, the lists of arrays
    assert all(str(path) in text and "\n" not in text and len(text) < 600 for text in errors)


def test_leftovers_of_a_killed_save_are_ignored_and_removed(saved):
    path, items = saved
    leftover = path / "checkpoints" / "9.orbax-checkpoint-tmp"
    (leftover / "params.orbax-checkpoint-tmp").mkdir(parents=True)
    assert checkpoint.latest_step(path) == 0
    with Saver(path) as saver:
        saver.save(9, items, RUN)
    assert steps_on_disk(path) == ["0", "9"]


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="Not a directory"):
        Saver(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory_shows_at_once(saved):
    path, _ = saved
    (path / "checkpoints").chmod(0o500)
    try:
        with pytest.raises(ResourceError, match="Permission denied"):
            Saver(path)
    finally:
        (path / "checkpoints").chmod(0o700)


@pytest.fixture
def small_files():
    """Lets no file grow beyond 100 kB; Python ignores the signal, so writing fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_shows_before_anything_is_written(saved, monkeypatch):
    path, items = saved
    usage = SimpleNamespace(total=1000, free=10)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: usage)
    with Saver(path) as saver, pytest.raises(ResourceError, match=r"No space left.*make room"):
        saver.save(9, items, RUN)
    assert steps_on_disk(path) == ["0"]
    usage.total = usage.free = 0  # as mounted buckets may say
    with Saver(path) as saver:
        assert saver.save(9, items, RUN)


@pytest.mark.parametrize("notice", ["save", "wait", "leave"])
def test_failed_background_save_is_raised_later(tmp_path, small_files, notice, caplog):
    items = make_items(size=4000)
    saver = Saver(tmp_path)
    saver.save(1, items, RUN)
    saver.wait()
    small_files()
    saver.save(2, items, RUN)  # returns; the failure comes from a thread
    notices = {"save": lambda: saver.save(3, items, RUN), "wait": saver.wait, "leave": saver.close}
    with pytest.raises(ResourceError, match=r"File too large \(at most .* to write, .* free\)"):
        notices[notice]()
    saver.close()  # raises once only
    assert checkpoint.latest_step(tmp_path) == 1
    assert_same(checkpoint.restore(tmp_path, 1, abstract_of(items)), items)
    assert not caplog.records  # no traceback of Orbax's


SAVE_FOREVER = """
import itertools, sys
import numpy as np
from deeplab_jax.checkpoint import Info, Saver

with Saver(sys.argv[1]) as saver:
    for step in itertools.count(1):
        w = np.random.default_rng(step).integers(0, 2**32, size=1_500_000, dtype=np.uint32)
        saver.save(step, {"params": {"w": w}}, Info(kind="run"), {"mean_iou": step % 3 / 3})
        print(step, flush=True)
"""


_OTHER_MOMENTS = pytest.mark.slow("one moment of the kill is in the first tier")


@pytest.mark.parametrize(
    "seconds", [0.03, *(pytest.param(s / 50, marks=_OTHER_MOMENTS) for s in range(10))]
)
def test_sigkill_while_saving_leaves_a_whole_step(repository, tmp_path, seconds):
    command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)]
    child = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True)
    try:
        while int(child.stdout.readline()) < 4:
            pass
        time.sleep(seconds)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    step = checkpoint.latest_step(tmp_path)
    assert step >= 3  # step 4 had begun
    assert checkpoint.read_info(tmp_path).step == step
    want = np.random.default_rng(step).integers(0, 2**32, size=1_500_000, dtype=np.uint32)
    items = {"params": {"w": want}}
    assert_same(checkpoint.restore(tmp_path, "latest", abstract_of(items)), items)
    with Saver(tmp_path) as saver:  # the next run goes on
        assert saver.save(step + 1, items, RUN)
    assert not [name for name in steps_on_disk(tmp_path) if not name.isdigit()]
