from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import deeplab_jax
from deeplab_jax import checkpoint
from deeplab_jax.config import freeze, get_config
from deeplab_jax.data import images
from deeplab_jax.data.pictures.windows import WindowedImage
from deeplab_jax.errors import CheckpointError, DataError
from deeplab_jax.inference import inputs, memory, segmenter
from deeplab_jax.models import build_model
from deeplab_jax.models.preprocess import normalize

pytestmark = pytest.mark.usefixtures("compile_once")


def test_logits_have_a_quarter_of_the_size_and_decide_the_labels(saved_run, model):
    image, _ = saved_run.validation.read(0)  # 65 x 97
    logits = model.logits(normalize(image)[None])
    assert (logits.shape, logits.dtype) == ((1, 17, 25, 4), np.float32)
    again = deeplab_jax.load(saved_run.path, 7, ["--config.eval.resize_base="])(image)
    resized = jax.image.resize(logits[0], (65, 97, 4), "linear", antialias=False)
    agree = np.argmax(resized, -1) == again.labels
    assert agree.mean() > 0.9  # corners are aligned otherwise there
    confidence = again.confidence
    assert (confidence.shape, confidence.dtype) == ((65, 97), np.float32)
    assert ((confidence >= 1 / 4 - 1e-6) & (confidence <= 1)).all()


@pytest.mark.parametrize("protocol", ["scales=0.5,1", "softmax_first=True"])
def test_probabilities_are_of_the_protocol(saved_run, tmp_path, protocol):
    prediction = deeplab_jax.load(saved_run.path, 7, [f"--config.eval.{protocol}"])(
        saved_run.images[0]
    )
    (path, numbers) = prediction.save(tmp_path, ["probabilities"])
    probabilities = np.load(path)["probabilities"]
    np.testing.assert_array_equal(probabilities.argmax(-1), prediction.labels)
    np.testing.assert_allclose(probabilities.max(-1), prediction.confidence, atol=2**-10)
    assert "scales 0.5 1" in numbers.read_text() or "probabilities resized" in numbers.read_text()


def test_array_gives_what_its_file_gives(saved_run, model, tmp_path):
    image, _ = saved_run.validation.read(0)
    Image.fromarray(image).save(tmp_path / "street.png")
    of_array, of_file = model(image), model(tmp_path / "street.png")
    np.testing.assert_array_equal(of_array.labels, of_file.labels)
    np.testing.assert_array_equal(of_array.confidence, of_file.confidence)
    assert (of_array.name, of_file.name) == ("image", "street")
    (tmp_path / "out").mkdir()
    assert [path.name for path in of_file.save(tmp_path / "out")] == [
        "street.png",
        "street_overlay.jpg",
        "street.json",
    ]
    assert (of_array.file, of_file.file) == (None, str(tmp_path / "street.png"))
    assert of_array.shares == of_file.shares


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), bool), np.zeros((8, 8, 4), "u1")]
)
def test_other_arrays_are_refused(model, image):
    with pytest.raises(
        ValueError, match=r"`image` must be uint8 or uint16, .H, W, 3. RGB or .H, W. grey, got"
    ):
        model(image)


def test_list_gives_a_list_in_order_whatever_it_holds(saved_run, model):
    path, turned = saved_run.images[:2]
    with Image.open(turned) as file:
        upright = file.convert("RGB")
    images = [str(path), np.asarray(upright), path, path.read_bytes(), upright.convert("L")]
    got = model([*images, np.asarray(upright.convert("L"))])
    single = [model(path), model(turned)]
    for place, want in ((0, 0), (1, 1), (2, 0), (3, 0)):
        np.testing.assert_array_equal(got[place].labels, single[want].labels)
    np.testing.assert_array_equal(got[4].labels, got[5].labels)  # grey
    assert [prediction.name for prediction in got] == [
        path.stem, "image_1", path.stem, "image_3", "image_4", "image_5"
    ]  # fmt: skip
    assert repr(got[0]).startswith("Prediction(000.jpg 65x97: class_")
    assert model((path,))[0].shares == single[0].shares


def test_unusable_image_of_a_list_is_named(saved_run, model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no")
    path = saved_run.images[0]
    with pytest.raises(DataError, match=r"broken\.jpg: looks like text"):
        model([path, tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match=r"^images\[1\]: looks like text"):
        model([path, b"no", b""])
    with pytest.raises(DataError, match=r"^image: is an empty file"):
        model(b"")
    results = list(model.segment([path, b"no"]))
    assert [type(result) for result in results] == [segmenter.Prediction, DataError]
    with pytest.raises(
        ValueError, match="must hold at least one image, got an empty list; add one"
    ):
        model([])
    with pytest.raises(TypeError, match=r"^`images\[1\]` must be a path, .* got float"):
        model([path, 0.5])


def test_probabilities_decide_the_labels(saved_run, model):
    prediction = model(saved_run.images[0])
    probabilities = prediction.probabilities
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (65, 97, 4))
    np.testing.assert_array_equal(probabilities.argmax(-1), prediction.labels)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(probabilities.max(-1), prediction.confidence, rtol=1e-5)


def test_backbone_is_no_segmentation_network(tmp_path):
    info = checkpoint.Info(kind="backbone")
    checkpoint.save_once(tmp_path, {"params": {"w": np.ones(2)}}, info)
    with pytest.raises(CheckpointError, match=r"train with --config.init.backbone="):
        deeplab_jax.load(tmp_path)


def picture(seed, height):
    return np.random.default_rng(seed).integers(0, 256, (height, 48, 3), np.uint8)


def test_image_that_does_not_fit_is_an_error_in_its_place(draw_variables, tmp_path):
    config = get_config("folder", depth=18)
    config.model.num_classes, config.model.width, config.model.stem = 5, 8, "7x7"
    config.model.head_channels, config.model.low_level_channels = 8, 4
    config = freeze(config)
    variables = draw_variables(build_model(config.model))
    names = tuple("abcde")
    palette = np.zeros((5, 3), np.uint8)
    info = SimpleNamespace(step=1, class_names=names, palette=palette, given={})
    model = segmenter.Segmenter(tmp_path, info, config, variables)
    files = []
    for number, height in enumerate((40, 45, 50, 45)):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(picture(number, height)).save(files[-1])
    free = iter([None, 0, 0, None, 0, 0])  # asked until a shape's program may run
    model.engine.free_memory = lambda device: next(free)
    model.engine.plan = lambda sizes: list(sizes)  # in the files' order
    results = list(model.segment([*files[:2], tmp_path / "none.png", files[3], files[2]]))
    kinds = [type(result) for result in results]
    large, own = images.TooLargeError, segmenter.Prediction
    assert kinds == [own, large, DataError, large, own]
    assert str(results[1]).startswith(f"{files[1]}: image of 45 x 48 pixels needs ")
    assert "--config.eval.mode=slide" in str(results[1])
    assert str(results[2]).startswith(str(tmp_path / "none.png"))
    assert str(results[3]).startswith(f"{files[3]}: image of 45 x 48 pixels needs ")
    with pytest.raises(DataError, match=r"1\.png: image of 45 x 48 pixels needs"):
        model(files[1])
    with pytest.raises(DataError, match=r"^image of 45 x 48 pixels: needs"):
        model(picture(1, 45))


WINDOWS = ("eval.mode=slide", "eval.crop_size=32,40", "eval.stride=24,33", "eval.resize_base=",
           "eval.flip=true", "data.value_range=0,4095")  # fmt: skip


def test_a_picture_too_large_to_decode_is_read_by_windows(saved_run, tmp_path, monkeypatch):
    """Labels, confidence, probabilities and overlay equal those of the whole picture."""
    model = deeplab_jax.load(saved_run.path, 7, [f"--config.{text}" for text in WINDOWS])
    image = cv2.imread(str(saved_run.images[0]))
    options = [cv2.IMWRITE_TIFF_ROWSPERSTRIP, 8]
    paths = [tmp_path / name for name in ("a.tif", "b.png", "c.tif")]
    assert cv2.imwrite(str(paths[0]), image, options)
    assert cv2.imwrite(str(paths[1]), image)
    assert cv2.imwrite(str(paths[2]), image.astype(np.uint16) * 16, options)
    damaged = tmp_path / "d.tif"
    data = bytearray(paths[0].read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    expected = [model(path) for path in paths]
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    found = list(model.segment([*paths[:2], damaged, paths[2]]))
    assert isinstance(found.pop(2), DataError)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one.image, WindowedImage)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.confidence, other.confidence)
        np.testing.assert_array_equal(one.overlay(legend=True), other.overlay(legend=True))
        (one_path, _), (other_path, _) = (
            p.save(tmp_path / str(k), ["probabilities"], force=True)
            for k, p in enumerate((one, other))
        )
        assert one_path.read_bytes() == other_path.read_bytes()
    np.testing.assert_array_equal(model(paths[0].read_bytes()).labels, expected[0].labels)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ((), f"{memory.WINDOWS} --config.eval.resize_base="),
        (WINDOWS[:3], "--config.eval.resize_base="),
        ((*WINDOWS[:4], "eval.scales=1,2"), "--config.eval.scales=1"),
    ],
)
def test_without_windows_its_refusal_names_the_flags(saved_run, monkeypatch, changes, fix):
    model = deeplab_jax.load(saved_run.path, 7, [f"--config.{text}" for text in changes])
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(DataError) as error:
        model(saved_run.images[0])
    words = "is too large to decode safely (65 x 97 pixels, limit 1000) - read it by windows: "
    assert str(error.value) == f"{saved_run.images[0]}: {words}{fix}; or cut it into tiles"
    deeplab_jax.load(saved_run.path, 7, [f"--config.{text}" for text in changes] + fix.split())


def test_memory_is_looked_at_before_windows(saved_run, monkeypatch):
    model = deeplab_jax.load(saved_run.path, 7, [f"--config.{text}" for text in WINDOWS])
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    monkeypatch.setattr(inputs, "host_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"of 65 x 97 pixels needs 0\.0 GiB of memory with its"):
        model(saved_run.images[0])


def test_the_range_of_16_bits_is_the_checkpoints_or_given(saved_run, tmp_path):
    wide = saved_run.validation.read(0)[0].astype(np.uint16) * 16
    assert cv2.imwrite(str(tmp_path / "a.png"), wide[..., ::-1])
    with pytest.raises(DataError, match=r"--config\.data\.value_range=0,\d+ .*, or 0,65535 for"):
        deeplab_jax.load(saved_run.path)(wide)
    model = deeplab_jax.load(saved_run.path, 7, ["--config.data.value_range=0,4095"])
    assert model.class_names == deeplab_jax.load(saved_run.path).class_names
    expected = model((wide // 16).astype(np.uint8))
    for image in (wide, tmp_path / "a.png"):
        np.testing.assert_array_equal(model(image).labels, expected.labels)


def test_twin_shares_the_weights_and_no_program(model):
    image = np.zeros((64, 80, 3), np.uint8)
    model(image)
    twin = model.twin()
    assert model.engine.programs
    assert not twin.engine.programs
    assert twin.engine._variables is model.engine._variables
    assert twin.engine.buckets is not model.engine.buckets
    assert (twin.step, twin.config) == (model.step, model.config)
