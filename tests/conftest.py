"""Strict JAX settings, the tiers, golden values, commands, and tiny data sets in every layout."""

import functools
import importlib.util
import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

# Before anything imports jax; commands that tests start inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("DEEPLAB_COMPILE_CACHE", "off")  # nothing in the user's folders
os.environ.setdefault("NPROC", "64")  # XLA's threads: enough for its collectives on few cores
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    devices = "--xla_force_host_platform_device_count=4"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()

# A shell's background job ignores Ctrl-C, and so would every process that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import cv2
import jax
import numpy as np
import pytest
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from deeplab_jax import checkpoint, cli, config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.data import open_dataset
from deeplab_jax.data.classes import colormap
from deeplab_jax.data.images import write_png_indices
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.utils import machine

# For a process of one command: this one would hold the memory of all tests.
machine.keep_freed_memory = lambda: None

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain and absl loggers ask for flags

_LAST = b"\0"  # ends what `terminal` reads
_ROOT = Path(__file__).resolve().parents[1]
_GOLDEN = _ROOT / "tests" / "golden"
sys.path.insert(0, str(_GOLDEN))  # its modules import each other
_SHARED = _ROOT.parent / "shared"
_TIERS = ("parity", "process", "slow")  # markers that keep a test out of the first tier
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_BLOCK = 8  # pixels a side; a 65 x 97 image has 117 blocks
_NARROW = (
    "model.num_classes=5",
    "model.width=8",
    "model.head_channels=16",
    "model.low_level_channels=4",
    "model.aux_channels=8",
)
_TINY = """
from deeplab_jax import config


def get_config():
    c = config.get_config("folder", depth=18, output_stride=16)
    c.model.num_classes = 4
    c.model.atrous_rates = (1, 2, 3)
    c.model.width, c.model.head_channels = 8, 16
    c.model.low_level_channels, c.model.aux_channels = 4, 8
    c.data.crop_size = (64, 64)
    c.data.resize_base = (97, 65)
    c.train.batch_size = 4
    c.log.every_steps = 1
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "shared" in item.fixturenames:
            item.add_marker(pytest.mark.data)
        if "torch_reference" in item.fixturenames:
            item.add_marker(pytest.mark.torch)
        for mark in item.iter_markers():
            if mark.name in _TIERS and not " ".join(map(str, mark.args)).strip():
                raise pytest.UsageError(
                    f"{item.nodeid}: `{mark.name}` has no reason; write "
                    f'@pytest.mark.{mark.name}("why it is not in the first tier").'
                )


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return _ROOT


@pytest.fixture(scope="session")
def load_script():
    """Returns load_script(name, folder="scripts") -> the module of a file outside the packages."""

    @functools.cache
    def load(name, folder="scripts"):
        spec = importlib.util.spec_from_file_location(name, _ROOT / folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


class Outcome(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys):
    """Returns call(*argv, command=cli.main) -> Outcome of a command run in this process."""

    def call(*argv, command=cli.main):
        capsys.readouterr()  # what came before is not the command's
        with pytest.raises(SystemExit) as end:
            command([str(argument) for argument in argv])
        return Outcome(end.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def terminal(monkeypatch):
    """Returns terminal(columns): a block whose output goes to a terminal; it yields what reads it.

    That function is called once, after what was to be written.
    """

    @contextmanager
    def terminal(columns):
        ours, theirs = os.openpty()
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        screen = os.fdopen(theirs, "w", encoding="utf-8")
        got = bytearray()

        def read():
            while not got.endswith(_LAST):
                got.extend(os.read(ours, 4096))

        def output():
            # Closing the writer's end first could lose what is not read yet.
            screen.write(_LAST.decode())
            screen.flush()
            reader.join()
            screen.close()
            os.close(ours)
            return got.removesuffix(_LAST).decode()

        reader = threading.Thread(target=read)
        reader.start()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            yield output

    return terminal


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout."""
    if not _SHARED.is_dir():
        pytest.skip(f"no reference material at {_SHARED}")
    return _SHARED


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden values, see its README.md."""
    return _GOLDEN


@pytest.fixture(scope="session")
def recipe():
    """The module that draws the golden values' weights, images and labels."""
    return importlib.import_module("recipe")


@pytest.fixture(scope="session")
def measure():
    """The module that computes our values beside the golden ones."""
    return importlib.import_module("measure")


@pytest.fixture(scope="session")
def torch_reference():
    """The module with the reference's network and training in PyTorch."""
    pytest.importorskip("torch")
    return importlib.import_module("torch_reference")


@pytest.fixture(scope="session")
def _compiled(tmp_path_factory):
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def compile_once(_compiled):
    """Compiles each program once in all modules that use this; yields the settings."""
    settings = {
        "jax_compilation_cache_dir": _compiled,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with _configured(settings):
        yield settings


@pytest.fixture(scope="module")
def compile_quickly(compile_once):
    """As `compile_once`, without optimising; yields an environment for commands to do likewise."""
    settings = {"jax_disable_most_optimizations": True}
    with _configured(settings):
        settings |= compile_once
        yield os.environ | {name.upper(): str(value) for name, value in settings.items()}


@contextmanager
def _configured(settings):
    before = {name: jax.config.values[name] for name in settings}
    for values in (settings, before):
        compilation_cache.reset_cache()  # it remembers the folder, or that there was none
        for name, value in values.items():
            jax.config.update(name, value)
        if values is settings:
            yield


@pytest.fixture(scope="session")
def narrow_config():
    """Returns narrow_config(*changes, dataset="folder", depth=18, output_stride=16) -> Config.

    The network is narrow, with 5 classes; changes are as "train.steps=2".
    """

    def make(*changes, dataset="folder", depth=18, output_stride=16):
        overrides = [f"--config.{change}" for change in (*_NARROW, *changes)]
        return apply_overrides(config.get_config(dataset, depth, output_stride), overrides)

    return make


@pytest.fixture(scope="session")
def tiny_recipe():
    """Returns tiny_recipe(changes) -> text of a recipe that trains on `make_tree("folder")`.

    Changes are one a line, as `train.steps = 2`.
    """

    def tiny_recipe(changes):
        lines = [f"    c.{change}\n" for change in changes.strip().splitlines()]
        return f"{_TINY}{''.join(lines)}    return c\n"

    return tiny_recipe


@pytest.fixture(scope="session")
def make_tree(tmp_path_factory):
    """Returns make_tree(dataset, **options) -> root of a freshly drawn tiny data set.

    Options, for all: num_train=12, num_val=4, seed=0, and "folder" alone num_classes=4. Images
    are 65 x 97 and 97 x 65 in turn; every split holds every class, and ignored pixels.
    """

    def make(dataset, **options):
        root = tmp_path_factory.mktemp(dataset)
        _TREES[dataset](root, **options)
        return root

    return make


@pytest.fixture(scope="session")
def draw_variables():
    """Returns draw_variables(model, seed=0, spread=0) -> variables, several classes an image.

    Scales and variances of norms are drawn from [1 - spread, 1 + spread].
    """

    def draw_variables(model, seed=0, spread=0):
        shapes = jax.eval_shape(lambda: init_variables(model, 0))
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            if leaf.ndim < 4:  # of norms, and biases
                ones = np.ones(leaf.shape)
                values = rng.uniform(1 - spread, 1 + spread, leaf.shape) if spread else ones
                return (values * (path[-1].key in ("var", "scale"))).astype(leaf.dtype)
            kernel = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]) / 2)
            if path[1].key == "classifier":  # or the class that likes its mean input has all pixels
                kernel -= kernel.mean(2, keepdims=True)
            return kernel.astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(draw, shapes)

    return draw_variables


@pytest.fixture(scope="module")
def saved_run(make_tree, narrow_config, draw_variables, tmp_path_factory):
    """A work directory with steps 3 (the best) and 7 of a tiny network, and its data."""
    root = make_tree("folder", num_train=1, num_val=3, num_classes=4)
    changes = "model.num_classes=4", "model.atrous_rates=1,2,3", f"data.root={root}"
    c = narrow_config(*changes, "eval.resize_base=80,64")  # not the images' size
    validation = open_dataset(c.data, 4, "val")
    info = checkpoint.Info(
        kind="run", config=c, class_names=validation.class_names, palette=validation.palette
    )
    path, model = tmp_path_factory.mktemp("run"), build_model(c.model)
    with checkpoint.Saver(path) as saver:
        for step, score in ((3, 0.9), (7, 0.1)):
            saver.save(step, draw_variables(model, step), info, {"mean_iou": score})
    images = sorted((root / "images" / "val").iterdir())
    return SimpleNamespace(path=path, root=root, validation=validation, images=images)


def make_voc_tree(root, num_train=12, num_val=4, seed=0):
    """Masks are palette PNGs, as the development kit ships them."""
    top = root / "VOCdevkit" / "VOC2012"
    for split, prefix, samples in _splits(num_train, num_val, 21, seed, ("trainaug", "val")):
        ids = [f"{prefix}_{i:06d}" for i in range(len(samples))]
        for name, (image, label) in zip(ids, samples, strict=True):
            _write_image(top / "JPEGImages" / f"{name}.jpg", image)
            path = _parent(top / "SegmentationClass" / f"{name}.png")
            write_png_indices(path, label, colormap(256))
        list_file = _parent(top / "ImageSets" / "Segmentation" / f"{split}.txt")
        list_file.write_text("\n".join(ids) + "\n")


def make_ade20k_tree(root, num_train=12, num_val=4, seed=0):
    """As in the official archive: no lists; 0 means ignored, k the class k - 1."""
    top = root / "ADE20k" / "ADEChallengeData2016"
    for split, prefix, samples in _splits(
        num_train, num_val, 150, seed, ("training", "validation")
    ):
        for i, (image, label) in enumerate(samples):
            name = f"ADE_{prefix}_{i:08d}"
            _write_image(top / "images" / split / f"{name}.jpg", image)
            raw = np.where(label == 255, 0, label + 1).astype(np.uint8)
            _write_image(top / "annotations" / split / f"{name}.png", raw)


def make_cityscapes_tree(root, num_train=12, num_val=4, seed=0):
    """As in the official archives: no lists; two cities; labelIds, among files of other kinds."""
    ids = np.zeros(256, np.uint8)
    ids[: len(_CITYSCAPES_IDS)] = _CITYSCAPES_IDS
    for split, _, samples in _splits(num_train, num_val, 19, seed, ("train", "val")):
        for i, (image, label) in enumerate(samples):
            city = ("aachen", "bochum")[i % 2]
            stem = f"{split}/{city}/{city}_{i:06d}_000019"
            _write_image(root / "CityScapes" / "leftImg8bit" / f"{stem}_leftImg8bit.png", image)
            labels = root / "CityScapes" / "gtFine"
            _write_image(labels / f"{stem}_gtFine_labelIds.png", ids[label])
            _write_image(labels / f"{stem}_gtFine_color.png", image)


def make_folder_tree(root, num_train=12, num_val=4, seed=0, num_classes=4):
    for split, _, samples in _splits(num_train, num_val, num_classes, seed, ("train", "val")):
        for i, (image, label) in enumerate(samples):
            _write_image(root / "images" / split / f"{i:03d}.jpg", image)
            _write_image(root / "labels" / split / f"{i:03d}.png", label)


_TREES = {
    "voc": make_voc_tree,
    "ade20k": make_ade20k_tree,
    "cityscapes": make_cityscapes_tree,
    "folder": make_folder_tree,
}


def _splits(num_train, num_val, num_classes, seed, names):
    """Yields (name of the split, "train" or "val", its samples)."""
    rng = np.random.default_rng(seed)
    for name, prefix, count in zip(names, ("train", "val"), (num_train, num_val), strict=True):
        samples = []
        for i in range(count):
            height, width = (65, 97) if i % 2 == 0 else (97, 65)
            samples.append(_draw(rng, height, width, num_classes, i))
        yield name, prefix, samples


def _draw(rng, height, width, num_classes, number):
    """Returns an RGB picture of noisy blocks in their class's colour, and its classes."""
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    blocks = (np.arange(rows * columns) + number * rows * columns) % num_classes
    blocks = rng.permutation(blocks).reshape(rows, columns)
    label = blocks.repeat(_BLOCK, 0).repeat(_BLOCK, 1)[:height, :width].astype(np.uint8)
    noise = rng.integers(-20, 21, (height, width, 3))
    image = np.clip(colormap(num_classes + 1)[label + 1] + noise, 0, 255).astype(np.uint8)
    label[5:12, 20:31] = 255
    return image, label


def _write_image(path, image):
    array = image[..., ::-1] if image.ndim == 3 else image  # OpenCV writes BGR
    assert cv2.imwrite(str(_parent(path)), array)


def _parent(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
