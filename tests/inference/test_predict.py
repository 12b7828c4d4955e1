import json
import os
import shutil
import struct
import zlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import deeplab_jax
from deeplab_jax import checkpoint, cli, config, predict
from deeplab_jax.data import open_dataset
from deeplab_jax.errors import CheckpointError, DataError
from deeplab_jax.inference import segmenter
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.models.preprocess import normalize

pytestmark = pytest.mark.usefixtures("compile_once")

CLASSES = 4
ENDS = (".png", "_overlay.jpg", ".json")  # of the files of an image


def random_variables(run_config, seed):
    """Returns variables that predict several classes within an image."""
    shapes = jax.eval_shape(lambda: init_variables(build_model(run_config.model), 0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if leaf.ndim < 4:  # of norms, and biases
            return np.full(leaf.shape, path[-1].key in ("var", "scale"), np.float32)
        kernel = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]) / 2)
        if path[1].key == "classifier":  # or the class that likes its mean input has all pixels
            kernel -= kernel.mean(2, keepdims=True)
        return kernel.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def memo():
    """What the tests of this file share; `make_tree` cannot be asked from a wider scope."""
    return {}


@pytest.fixture
def run(memo, make_tree, tmp_path_factory):
    """A work directory with steps 3 (the best) and 7 of a tiny network, and its data."""
    if "run" not in memo:
        root = make_tree("folder", num_train=1, num_val=3, num_classes=CLASSES)
        c = config.get_config("folder", depth=18, output_stride=16)
        c.model.num_classes = CLASSES
        c.model.atrous_rates = (1, 2, 3)
        c.model.width, c.model.head_channels = 8, 16
        c.model.low_level_channels, c.model.aux_channels = 4, 8
        c.data.root = str(root)
        c.eval.resize_base = (80, 64)  # not the images' size
        validation = open_dataset(c.data, CLASSES, "val")
        info = checkpoint.Info(
            kind="run",
            config=c,
            class_names=validation.class_names,
            palette=validation.palette,
        )
        path = tmp_path_factory.mktemp("run")
        with checkpoint.Saver(path) as saver:
            for step, score in ((3, 0.9), (7, 0.1)):
                saver.save(step, random_variables(c, step), info, {"mean_iou": score})
        memo["run"] = SimpleNamespace(path=path, root=root, validation=validation)
        memo["run"].images = sorted((root / "images" / "val").iterdir())
    return memo["run"]


@pytest.fixture
def model(memo, run):
    """The latest step, loaded."""
    if "model" not in memo:
        memo["model"] = deeplab_jax.load(run.path)
    return memo["model"]


@pytest.fixture
def call(capsys):
    """Returns call(*argv) -> (exit code, standard output, standard error)."""

    def call(*argv):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in argv])
        return end.value.code, *capsys.readouterr()

    return call


def confusion_of(prediction, label):
    """Counts with NumPy; row = truth, column = prediction."""
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(counts, (label[label != 255], prediction[label != 255]), 1)
    return counts


# predict


def test_predict_writes_indices_with_a_palette_and_an_overlay_at_the_images_own_size(
    run, model, call, tmp_path
):
    code, out, err = call(
        "predict", "--checkpoint", run.path, *run.images[:2], "--output", tmp_path / "out"
    )
    assert (code, err) == (0, "")
    assert out.startswith(f"2 of 2 images -> {tmp_path / 'out'}  ")
    assert out.endswith(" images/s\n")
    assert out.count("\n") == 1
    for image in run.images[:2]:
        prediction = model(image)
        size = Image.open(image).size
        mask = Image.open(tmp_path / "out" / f"{image.stem}.png")
        assert (mask.mode, mask.size) == ("P", size)
        np.testing.assert_array_equal(np.asarray(mask), prediction.labels)
        assert len(np.unique(prediction.labels)) > 1  # else any constant would do
        palette = np.array(mask.getpalette()).reshape(-1, 3)[:CLASSES]
        np.testing.assert_array_equal(palette, run.validation.palette)
        overlay = Image.open(tmp_path / "out" / f"{image.stem}_overlay.jpg")
        assert (overlay.format, overlay.size) == ("JPEG", size)
        mixed = (np.asarray(Image.open(image), int) + palette[prediction.labels]) / 2
        assert np.abs(np.asarray(overlay, int) - mixed).mean() < 20  # JPEG is not exact


def test_predict_takes_a_folder(run, call, tmp_path):
    folder = run.root / "images" / "val"
    code, *_ = call("predict", "--checkpoint", run.path, folder, "--output", tmp_path)
    assert code == 0
    names = [f"{image.stem}{end}" for image in run.images for end in ENDS]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_step_can_be_chosen(run, model, tmp_path, call):
    image = run.images[0]
    for step, number in (("best", 3), ("3", 3), ("latest", 7)):
        argv = ["--checkpoint", run.path, "--step", step, image, "--output", tmp_path / step]
        assert call("predict", *argv)[0] == 0
        assert deeplab_jax.load(run.path, step).step == number
    masks = {step: np.asarray(Image.open(tmp_path / step / f"{image.stem}.png"))
             for step in ("best", "3", "latest")}  # fmt: skip
    np.testing.assert_array_equal(masks["best"], masks["3"])
    np.testing.assert_array_equal(masks["latest"], model(image).labels)
    assert (masks["best"] != masks["latest"]).any()


def test_step_that_is_not_there_is_told_with_those_that_are(run, call, tmp_path):
    argv = ["--checkpoint", run.path, "--step", "5", run.images[0], "--output", tmp_path]
    code, _, err = call("predict", *argv)
    assert code == 4
    assert "there is no step 5 - use one of: 3, 7, latest, best" in err


def test_missing_image_is_told_before_anything_is_loaded(call, tmp_path):
    argv = ["--checkpoint", "nowhere", tmp_path / "a.jpg", "--output", tmp_path / "out"]
    code, out, err = call("predict", *argv)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert f"{tmp_path}/a.jpg: there is no such file" in err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def predict_into(run, call, tmp_path):
    """Returns predict_into(*argv) -> (exit code, standard output, standard error); into "out"."""
    argv = ["predict", "--checkpoint", run.path, "--output", tmp_path / "out"]
    return lambda *more: call(*argv, *more)


def test_every_file_tells_of_the_same_prediction(run, model, predict_into, tmp_path):
    image = run.images[0]
    code, _, err = predict_into(image, "--format", "probabilities,palette")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{image.stem}.json",
        f"{image.stem}.png",
        f"{image.stem}_probabilities.npz",
    ]
    labels = np.asarray(Image.open(tmp_path / "out" / f"{image.stem}.png"))
    with np.load(tmp_path / "out" / f"{image.stem}_probabilities.npz") as file:
        probabilities = file["probabilities"].astype(np.float64)
    np.testing.assert_array_equal(probabilities.argmax(-1), labels)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=CLASSES * 2**-11)
    prediction = model(image)
    np.testing.assert_array_equal(prediction.labels, labels)
    np.testing.assert_allclose(probabilities.max(-1), prediction.confidence, atol=2**-11)
    numbers = json.loads((tmp_path / "out" / f"{image.stem}.json").read_text())
    shares = np.bincount(labels.ravel(), minlength=CLASSES) / labels.size
    assert [entry["share"] for entry in numbers["classes"]] == shares.tolist()
    assert [entry["name"] for entry in numbers["classes"]] == list(run.validation.class_names)
    assert numbers["file"] == str(image)
    assert numbers["size"] == list(labels.shape)
    assert (numbers["checkpoint"], numbers["step"]) == (str(run.path), 7)
    assert numbers["protocol"].startswith("whole image, single scale, no flip")


@pytest.mark.parametrize("protocol", ["scales=0.5,1", "softmax_first=True"])
def test_probabilities_are_of_the_protocol(run, tmp_path, protocol):
    prediction = deeplab_jax.load(run.path, 7, [f"--config.eval.{protocol}"])(run.images[0])
    (path, numbers) = prediction.save(tmp_path, ["probabilities"])
    probabilities = np.load(path)["probabilities"]
    np.testing.assert_array_equal(probabilities.argmax(-1), prediction.labels)
    np.testing.assert_allclose(probabilities.max(-1), prediction.confidence, atol=2**-10)
    assert "scales 0.5 1" in numbers.read_text() or "probabilities resized" in numbers.read_text()


@pytest.mark.parametrize(
    ("formats", "what"),
    [
        ("palete", "there is no format 'palete' - did you mean palette?"),
        ("palette,", "there is no format '' - use some of palette,overlay,probabilities,"),
        ("cityscapes", "--format=cityscapes: is for the 19 classes of cityscapes; this network "),
        ("palette,ade", "--format=ade: is for the 150 classes of ade20k; this network has 4"),
    ],
)
def test_format_that_cannot_be(run, predict_into, tmp_path, formats, what):
    code, out, err = predict_into(run.images[0], "--format", formats)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert what in err
    assert not (tmp_path / "out").exists()


def test_results_are_replaced_by_force_alone(run, call, predict_into, tmp_path):
    assert predict_into(run.images[0])[0] == 0
    mask = tmp_path / "out" / f"{run.images[0].stem}.png"
    before = mask.read_bytes()
    argv = ["--checkpoint", "nowhere", "--output", tmp_path / "out", *run.images]
    code, out, err = call("predict", *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{mask}, " in err
    assert "exist already - choose another folder, or replace them with --force" in err
    mask.write_bytes(b"old")
    assert predict_into(run.images[0], "--force")[0] == 0
    assert mask.read_bytes() == before
    assert not list((tmp_path / "out").glob(".*"))


def test_output_has_the_size_of_the_upright_image(run, model, predict_into, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    picture = Image.open(run.images[0])
    turned = tmp_path / "turned.png"
    picture.save(turned, exif=exif)
    code, *_ = predict_into(turned, "--format", "palette,overlay,probabilities")
    assert code == 0
    size = picture.size[::-1]
    assert size != picture.size
    assert Image.open(tmp_path / "out" / "turned_overlay.jpg").size == size
    mask = np.asarray(Image.open(tmp_path / "out" / "turned.png"))
    upright = np.ascontiguousarray(np.rot90(np.asarray(picture), -1))
    np.testing.assert_array_equal(mask, model(upright).labels)
    assert np.load(tmp_path / "out" / "turned_probabilities.npz")["probabilities"].shape == (
        *size[::-1],
        CLASSES,
    )


def bomb(width, height):
    """Returns a PNG that claims to be large."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9)))


def broken_images(folder, good):
    """Makes one of each kind; returns what each is told to be."""
    (folder / "page.jpg").write_text("<html>404")
    (folder / "zero.png").touch()
    (folder / "bomb.png").write_bytes(bomb(20000, 20000))
    (folder / "half.jpg").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    os.mkfifo(folder / "pipe.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    return {
        "bomb.png": "is too large to decode safely",
        "gone.jpg": "cannot be read",
        "half.jpg": "is damaged or cut short",
        "page.jpg": "looks like an HTML page",
        "pipe.jpg": "is a pipe, socket or device",
        "zero.png": "is an empty file",
    }


def test_broken_images_do_not_stop_the_others(run, model, predict_into, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for image in run.images:
        shutil.copy(image, folder)
    told = broken_images(folder, run.images[0])
    code, out, err = predict_into(folder)
    assert code == 3
    assert out.startswith(f"3 of 9 images -> {tmp_path / 'out'}")
    lines = err.splitlines()
    assert len(lines) == len(told)
    for line, (name, what) in zip(lines, told.items(), strict=True):
        assert line.startswith(f"error: {folder / name}: {what}")
    assert len(list((tmp_path / "out").iterdir())) == 3 * 3
    for image in run.images:
        mask = np.asarray(Image.open(tmp_path / "out" / f"{image.stem}.png"))
        np.testing.assert_array_equal(mask, model(image).labels)


def test_broken_images_alone(run, call, predict_into, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    told = broken_images(folder, run.images[0])
    code, out, err = predict_into(folder)
    assert (code, err.count("\n")) == (3, len(told))
    assert out.startswith("0 of 6 images")
    assert not (tmp_path / "out").exists()
    (folder / "half.jpg").unlink()  # the others are known by their beginning
    code, out, err = call("predict", "--checkpoint", "x", "--output", tmp_path / "out", folder)
    assert (code, out, err.count("\n")) == (3, "", len(told) - 1)


def test_interrupted_writing_leaves_whole_files(run, predict_into, tmp_path, monkeypatch):
    segment = segmenter.Segmenter.segment

    def interrupted(self, images):
        yield from segment(self, images[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(segmenter.Segmenter, "segment", interrupted)
    code, out, err = predict_into(*run.images)
    assert (code, out, err) == (130, "", "\ninterrupted\n")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names <= {f"{image.stem}{end}" for image in run.images[:2] for end in ENDS}
    for numbers in (tmp_path / "out").glob("*.json"):  # the last file of an image
        assert json.loads(numbers.read_text())["classes"]
        assert Image.open(numbers.with_suffix(".png")).load()


def test_folders_in_folders_keep_their_names(run, model, predict_into, tmp_path):
    for folder, image in zip(("", "a", "a/b", ".cache"), (*run.images, run.images[0]), strict=True):
        (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / "in" / folder / "same.v1.jpg")
    code, out, _ = predict_into(tmp_path / "in", "--format", "palette")
    assert (code, out[:6]) == (0, "3 of 3")
    for folder, image in zip(("", "a", "a/b"), run.images, strict=True):
        mask = np.asarray(Image.open(tmp_path / "out" / folder / "same.v1.png"))
        np.testing.assert_array_equal(mask, model(image).labels)
        assert (tmp_path / "out" / folder / "same.v1.json").is_file()
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(*paths, output=""):
    return predict.find_images(list(map(str, paths)), str(output))


def check(images, output, formats=("palette", "overlay"), force=False):
    predict.check_output(images, str(output), formats, force)


def test_images_of_a_folder_are_sorted_and_other_files_left_out(tmp_path):
    touch(tmp_path / "a", "2.jpg", "1.PNG", "notes.txt", "3.webp", "._2.jpg", ".DS_Store.jpg")
    touch(tmp_path / "a", "0/9.tif", ".git/1.jpg", "x.jpg/1.bmp")
    touch(tmp_path / "b", "0.jpeg")
    images = found(tmp_path / "b", tmp_path / "a")
    assert list(images.values()) == ["0", "1", "2", "3", "0/9", "x.jpg/1"]
    assert list(images)[-1] == tmp_path / "a" / "x.jpg" / "1.bmp"


def test_results_among_the_images_are_no_images(tmp_path):
    touch(tmp_path, "1.jpg", "out/1.png", "a/2.jpg")
    assert list(found(tmp_path, output=tmp_path / "out").values()) == ["1", "a/2"]


def test_image_named_twice_is_one(tmp_path):
    touch(tmp_path, "1.jpg")
    assert list(found(tmp_path, tmp_path / "1.jpg")) == [tmp_path / "1.jpg"]


@pytest.mark.parametrize(
    ("first", "second", "formats"),
    [
        ("a/1.jpg", "b/1.png", ["palette"]),
        ("a/1.jpg", "b/1.png", ["overlay"]),
        ("a/ulm_000000_000001_leftImg8bit.png", "b/ulm_000000_000001_foggy.png", ["cityscapes"]),
        ("ade/1.jpg", "1.jpg", ["palette", "ade"]),
    ],
)
def test_images_whose_results_would_have_one_name_are_refused(tmp_path, first, second, formats):
    touch(tmp_path, first, second)
    roots = [tmp_path] if first.startswith("ade") else [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(DataError, match="would overwrite the result of"):
        check(found(*roots), tmp_path / "out", formats)


def test_submissions_lie_in_one_folder(tmp_path):
    touch(tmp_path / "val", "a/ulm_000000_000001_x.png", "b/ulm_000000_000002_x.png", "b/1.png")
    check(found(tmp_path / "val"), tmp_path / "out", ["cityscapes", "ade"])
    touch(tmp_path / "val", "a/1.png")
    check(found(tmp_path / "val"), tmp_path / "out", ["palette"])
    with pytest.raises(DataError, match=r"b/1.png: would overwrite the result of .*a/1.png"):
        check(found(tmp_path / "val"), tmp_path / "out", ["ade"])


def test_folder_without_images_is_refused(tmp_path):
    touch(tmp_path / "a", "notes.txt")
    with pytest.raises(DataError, match="no images here"):
        found(tmp_path / "a")


def test_result_is_not_written_over_an_image_even_by_force(call, tmp_path):
    touch(tmp_path / "photos", "1.png")
    argv = ["--checkpoint", "nowhere", tmp_path / "photos", "--output", tmp_path / "photos"]
    code, _, err = call("predict", *argv, "--force")
    assert code == 3
    assert "photos/1.png: would be overwritten by the result" in err


def test_output_that_is_a_file_is_told_before_anything_is_loaded(call, tmp_path):
    touch(tmp_path, "1.jpg", "out")
    argv = ["--checkpoint", "nowhere", tmp_path / "1.jpg", "--output", tmp_path / "out"]
    code, _, err = call("predict", *argv)
    assert (code, err.count("\n")) == (5, 1)
    assert f"{tmp_path}/out: is a file, not a folder" in err


def test_result_may_lie_beside_the_image(tmp_path):
    touch(tmp_path, "1.jpg")
    check(found(tmp_path), tmp_path)


# evaluate


def test_evaluate_counts_what_predict_says(run, model, call, tmp_path):
    argv = ["--checkpoint", run.path, "--json", tmp_path / "numbers.json"]
    code, out, err = call("evaluate", *argv)
    assert (code, err) == (0, "")
    counts = sum(
        confusion_of(model(image).labels, run.validation.read(index)[1])
        for index, image in enumerate(run.images)
    )
    got = json.loads((tmp_path / "numbers.json").read_text())
    assert got["confusion"] == counts.tolist()
    assert (np.array(counts).sum(0) > 0).sum() > 1  # not one class everywhere

    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    iou = counts.diagonal() / union
    np.testing.assert_allclose(got["iou"], iou)
    np.testing.assert_allclose(got["mean_iou"], iou.mean())
    np.testing.assert_allclose(got["pixel_accuracy"], counts.trace() / counts.sum())
    truth = counts.sum(1)
    np.testing.assert_allclose(got["best_constant_mean_iou"], truth.max() / truth.sum() / CLASSES)
    assert (got["num_images"], got["step"], got["split"]) == (3, 7, "val")
    for name, value in zip(run.validation.class_names, iou, strict=True):
        (line,) = [line for line in out.splitlines() if f" {name} " in line]
        assert f" {100 * value:.2f} " in line
    assert f"mean IoU {100 * iou.mean():.2f} %" in out


def test_evaluate_obeys_step_and_overrides(run, call):
    argv = ["--checkpoint", run.path, "--step", "best", "--config.eval.resize_base="]
    assert call("evaluate", *argv)[0] == 0
    got = json.loads((run.path / "evaluation.json").read_text())
    at_own_size = deeplab_jax.load(run.path, 3, ["--config.eval.resize_base="])
    assert at_own_size.config.eval.resize_base == ()
    counts = sum(
        confusion_of(at_own_size(image).labels, run.validation.read(index)[1])
        for index, image in enumerate(run.images)
    )
    assert got["step"] == 3
    assert got["confusion"] == counts.tolist()


@pytest.mark.parametrize("place", ["nowhere/numbers.json", ""])
def test_numbers_that_cannot_be_written_are_told_before_anything_is_loaded(call, tmp_path, place):
    argv = ["--checkpoint", "nowhere", "--json", tmp_path / place]
    code, out, err = call("evaluate", *argv)
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert err.startswith(f"error: {tmp_path / place}: ")


def test_override_of_the_network_does_not_fit(run, call):
    code, _, err = call("evaluate", "--checkpoint", run.path, "--config.model.width=16")
    assert (code, err.count("\n")) == (4, 1)
    assert "does not fit" in err


# load


def test_logits_have_a_quarter_of_the_size_and_decide_the_labels(run, model):
    image, _ = run.validation.read(0)  # 65 x 97
    logits = model.logits(normalize(image)[None])
    assert (logits.shape, logits.dtype) == ((1, 17, 25, CLASSES), np.float32)
    again = deeplab_jax.load(run.path, 7, ["--config.eval.resize_base="])(image)
    resized = jax.image.resize(logits[0], (65, 97, CLASSES), "linear", antialias=False)
    agree = np.argmax(resized, -1) == again.labels
    assert agree.mean() > 0.9  # corners are aligned otherwise there
    confidence = again.confidence
    assert (confidence.shape, confidence.dtype) == ((65, 97), np.float32)
    assert ((confidence >= 1 / CLASSES - 1e-6) & (confidence <= 1)).all()


def test_array_gives_what_its_file_gives(run, model, tmp_path):
    image, _ = run.validation.read(0)
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
    np.testing.assert_array_equal(of_array.shares, of_file.shares)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), "u1")],
)
def test_other_arrays_are_refused(model, image):
    with pytest.raises(ValueError, match=r"`image` must be uint8 .H, W, 3. RGB, got"):
        model(image)


def test_backbone_is_no_segmentation_network(tmp_path):
    info = checkpoint.Info(kind="backbone")
    checkpoint.save_once(tmp_path, {"params": {"w": np.ones(2)}}, info)
    with pytest.raises(CheckpointError, match=r"train with --config.init.backbone="):
        deeplab_jax.load(tmp_path)
