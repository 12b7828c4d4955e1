"""A description is that of its step, and of no other bytes."""

import json
import os

import jax
import numpy as np
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.checkpoint import Info
from deeplab_jax.errors import CheckpointError, DamagedError
from deeplab_jax.utils import steps

ITEMS = {"params": {"w": np.arange(12, dtype=np.float32)}}


@pytest.fixture
def saved(tmp_path, narrow_config):
    names, palette = tuple("abcde"), np.arange(15, dtype=np.uint8).reshape(5, 3)
    info = Info(kind="run", config=narrow_config(), class_names=names, palette=palette, data="7")
    checkpoint.save_once(tmp_path, ITEMS, info)
    return tmp_path


def file_of(path, step=0):
    return path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"


def rewrite(path, change, is_signed):
    """Applies `change` to the description of step 0."""
    tree = json.loads(file_of(path).read_text())
    change(tree)
    fields = tree.get("custom_metadata")
    if is_signed:
        fields.pop("sha256", None)
        tree["custom_metadata"] = steps.with_digest(fields)
    file_of(path).write_text(json.dumps(tree))


def as_old(fields):
    """Makes the fields those of a version without checksums."""
    for name in ("arrays", "drawn", "left_out", "losses", "sha256"):
        fields.pop(name, None)
    fields["format"] = 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 3}, "format 3 and kind 'run'"),
        ({"kind": "gan"}, "accepted: format 2, kind run"),
        ({"palette": None}, "'palette' is missing"),
        ({"config": {"lr": 1}}, "there is no such field"),
        ({"config": [1]}, "do not suit this version"),
        ({"class_names": ["a", "b"]}, "2 class names for 5 classes"),
        ({"palette": [[0, 0, 0]]}, "1 colours for 5 classes"),
    ],
)
def test_description_of_another_version(saved, change, text):
    def apply(tree):
        fields = tree["custom_metadata"]
        fields |= change
        if None in change.values():
            del fields["palette"]

    rewrite(saved, apply, is_signed=True)
    with pytest.raises(CheckpointError, match=text) as caught:
        checkpoint.read_info(saved)
    assert not isinstance(caught.value, DamagedError)  # nobody falls back because of it
    rewrite(saved, lambda tree: tree["custom_metadata"].update(sha256="0"), is_signed=False)
    with pytest.raises(DamagedError, match="does not have the checksum that was saved with it"):
        checkpoint.read_info(saved)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tree: tree.update(custom_metadata=None), "is not of this program"),
        (lambda tree: tree.pop("custom_metadata"), "'custom_metadata' is missing"),
        (lambda tree: tree["custom_metadata"].pop("sha256"), "has no checksum"),
        (lambda tree: tree["custom_metadata"].pop("palette"), "does not have the checksum"),
        (lambda tree: tree["custom_metadata"].update(format=1), "does not have the checksum"),
        (lambda tree: (tree["custom_metadata"].update(format=1),
                       tree["custom_metadata"].pop("sha256")), "has no checksum"),
        (lambda tree: (as_old(tree["custom_metadata"]),
                       tree["custom_metadata"].update(step=3)), "is that of step 3"),
    ],
)  # fmt: skip
def test_damaged_description(saved, change, text):
    rewrite(saved, change, is_signed=False)
    with pytest.raises(DamagedError, match=text):
        checkpoint.read_info(saved)
    assert not checkpoint.is_good(saved, 0)


def make_fifo(file):
    file.unlink()
    os.mkfifo(file)


def link(file):
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda file: file.write_text("[" * 100_000 + "]" * 100_000), "nested too deep"),
        (lambda file: file.write_text('{"custom_metadata":' * 100_000), "nested too deep"),
        (lambda file: file.write_bytes(b"\xff\xfe\0x"), "description is damaged"),
        (lambda file: file.write_text("7" * 10_000), "description is damaged"),
        (lambda file: file.write_text('{"custom_metadata": [1]}'), "is not of this program"),
        (lambda file: os.truncate(file, 1 << 30), "has 1073741824 bytes"),
        (lambda file: file.unlink(), "has no description"),
        (make_fifo, "is not a regular file"),
        (link, "is not a regular file"),
    ],
)
def test_what_is_no_description_is_one_line(saved, change, text):
    change(file_of(saved))
    with pytest.raises(DamagedError, match=text) as caught:
        checkpoint.read_info(saved)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_copy_under_another_number_is_no_step(saved):
    folder = saved / "checkpoints"
    (folder / "0").rename(folder / "52")
    with pytest.raises(DamagedError, match="its description is that of step 0"):
        checkpoint.read_info(saved)
    (folder / "0").symlink_to("52")
    with pytest.raises(DamagedError, match="it is a symbolic link"):
        checkpoint.read_info(saved, 0)
    for name in ("007", "²", "-1", "1.0", "9" * 30):
        (folder / name).mkdir()
    (folder / "3").touch()
    assert checkpoint.finished(saved) == [0, 3, 52]


def test_others_that_are_good_are_named(tmp_path):
    with checkpoint.Saver(tmp_path, keep=4) as saver:
        for step in (3, 5, 7, 9):
            saver.save(step, ITEMS, Info(kind="run"))
    for step in (5, 9):
        file_of(tmp_path, step).write_text("{")
    with pytest.raises(DamagedError, match=r"/9: is damaged: .* - use --step 7; good steps: 3, 7$"):
        checkpoint.read_info(tmp_path)
    with pytest.raises(DamagedError, match="/5: is damaged: "):  # it may be the best
        checkpoint.find_step(tmp_path, "best")


def test_steps_of_the_version_without_checksums_are_read_with_one_line(saved, capsys):
    rewrite(saved, lambda tree: as_old(tree["custom_metadata"]), is_signed=False)
    for _ in range(2):
        got = checkpoint.read_arrays(saved, 0, ["params"])["params"]["w"]
        np.testing.assert_array_equal(got, ITEMS["params"]["w"])
    assert capsys.readouterr().out.count("not verified") == 1


@pytest.mark.parametrize("count", [300])
def test_a_changed_byte_is_refused_or_changes_nothing(saved, count):
    file = file_of(saved)
    content, wanted = file.read_bytes(), steps.read_description(saved, 0)
    rng, equal = np.random.default_rng(0), 0
    for _ in range(count):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= rng.integers(1, 256)
        file.write_bytes(changed)
        try:
            assert json.dumps(steps.read_description(saved, 0)) == json.dumps(wanted)
            equal += 1
        except DamagedError:
            pass
    assert equal < count / 4  # Orbax's own times and names


def flips(path, want, count, seed=0):
    """Flips single bits of a step, one at a time; returns the number of refusals."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    sizes = np.array([file.stat().st_size for file in files])
    rng, refused = np.random.default_rng(seed), 0
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), want
    )
    for k in range(count):
        # Half of them by file, so that small files are met too.
        share = sizes / sizes.sum() if k % 2 else np.full(len(files), 1 / len(files))
        file = files[rng.choice(len(files), p=share * (sizes > 0) / (share * (sizes > 0)).sum())]
        content = file.read_bytes()
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        try:
            if k % 3:
                got = checkpoint.restore(path, "latest", abstract)
            else:
                got = checkpoint.read_arrays(path, "latest", list(want))
        except DamagedError as error:
            refused += "\n" not in str(error)
        else:
            assert jax.tree.structure(got) == jax.tree.structure(want)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), file
        file.write_bytes(content)
    return refused


@pytest.mark.parametrize(
    "count", [200, pytest.param(1000, marks=pytest.mark.slow("200 are in the first tier"))]
)
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, count):
    rng = np.random.default_rng(3)
    items = {
        "params": {"a": rng.normal(size=(40, 9)).astype(np.float32), "b": np.float32([0, 0, 1])},
        "opt_state": {"count": np.int32(7), "trace": rng.normal(size=5).astype(np.float32)},
    }
    items = jax.tree.map(np.asarray, items)
    checkpoint.save_once(tmp_path, items, Info(kind="run", data="12 images", counters={"bn": 1}))
    assert flips(tmp_path, items, count, seed=count) > count / 4
