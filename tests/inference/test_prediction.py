import errno
import fnmatch
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import cli
from deeplab_jax.data.classes import CLASS_NAMES, PALETTES, colormap
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.inference.prediction import (
    FORMATS,
    Prediction,
    check_formats,
    check_free,
    output_paths,
)

# The ids of Cityscapes' published table, helpers/labels.py.
LABEL_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
NAMES = ("road", "sky", "tree", "car", "nothing of this")
SIZE = (37, 53)


def hand_out_of(probabilities, rows=16, columns=20):
    """Windows that reach beyond the image, as those of a fixed size do."""

    def hand_out(take):
        for top in range(0, probabilities.shape[0], rows):
            for left in range(0, probabilities.shape[1], columns):
                window = slice(top, top + rows), slice(left, left + columns)
                take(window, probabilities[window])

    return hand_out


def predict(name="street", names=NAMES, palette=None, num_seen=None, **kwargs):
    """A prediction with noise for probabilities; the last class has none by default."""
    rng = np.random.default_rng(0)
    num_seen = num_seen or len(names) - 1
    scores = rng.normal(size=(*SIZE, len(names))).astype(np.float32) * 2
    scores[..., num_seen:] = -9
    p = np.exp(scores)
    p /= p.sum(-1, keepdims=True)
    values = {
        "labels": p.argmax(-1).astype(np.uint8),
        "confidence": p.max(-1),
        "image": rng.integers(0, 256, (*SIZE, 3), np.uint8),
        "palette": colormap(len(names)) if palette is None else palette,
        "stream": hand_out_of(p),
    }
    return Prediction(**(values | {"name": name, "class_names": names} | kwargs)), p


def published(dataset):
    names = CLASS_NAMES[dataset]
    return {"names": names, "palette": PALETTES[dataset], "num_seen": len(names)}


def test_default_formats_and_numbers(tmp_path):
    prediction, _ = predict()
    paths = prediction.save(tmp_path / "out")
    assert [path.name for path in paths] == ["street.png", "street_overlay.jpg", "street.json"]
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())  # nothing else, no leftovers
    mask = Image.open(paths[0])
    assert (mask.mode, mask.size) == ("P", SIZE[::-1])
    np.testing.assert_array_equal(np.asarray(mask), prediction.labels)
    palette = np.array(mask.getpalette()).reshape(-1, 3)[: len(NAMES)]
    np.testing.assert_array_equal(palette, prediction.palette)
    overlay = Image.open(paths[1])
    assert (overlay.format, overlay.size) == ("JPEG", SIZE[::-1])


def test_overlay_mixes_image_and_colours(tmp_path):
    flat = np.full((*SIZE, 3), (200, 100, 0), np.uint8)
    prediction, _ = predict(image=flat, palette=np.full((5, 3), 50, np.uint8))
    (path, _) = prediction.save(tmp_path, ["overlay"])
    got = np.asarray(Image.open(path), int)
    assert np.abs(got - (125, 75, 25)).max() <= 3  # JPEG is not exact


def test_saved_overlay_has_a_legend_if_asked_for(tmp_path):
    prediction, _ = predict()
    (path, _) = prediction.save(tmp_path, ["overlay"], legend=True)
    with Image.open(path) as got, prediction.overlay(legend=True) as expected:
        assert got.size == expected.size
        assert np.abs(np.asarray(got, int) - np.asarray(expected, int)).mean() < 10  # JPEG


def test_numbers_of_classes_are_those_of_a_plain_count(tmp_path):
    source = {"checkpoint": "runs/a", "step": 7, "protocol": "whole image"}
    prediction, _ = predict(file="photos/street.jpg", source=source)
    (_, path) = prediction.save(tmp_path, ["palette"])
    got = json.loads(path.read_text())
    assert got == prediction.summary()
    assert {key: got[key] for key in source} == source
    assert (got["file"], got["size"]) == ("photos/street.jpg", [37, 53])
    assert [entry["name"] for entry in got["classes"]] == list(NAMES)
    for index, entry in enumerate(got["classes"][:-1]):
        chosen = prediction.labels == index
        assert entry["share"] == chosen.mean()
        mean = prediction.confidence[chosen].astype(np.float64).mean()
        np.testing.assert_allclose(entry["confidence"], mean, rtol=1e-12)
    assert got["classes"][-1] == {"name": NAMES[-1], "share": 0, "confidence": None}
    np.testing.assert_allclose(sum(prediction.shares.values()), 1)
    assert prediction.shares == {entry["name"]: entry["share"] for entry in got["classes"]}
    assert list(prediction.shares) == list(NAMES)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_confidence_that_is_not_finite_is_null(tmp_path, value):
    prediction, _ = predict()
    prediction.confidence[prediction.labels == 1] = value
    paths = prediction.save(tmp_path, ["palette"])
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    classes = json.loads(paths[-1].read_text())["classes"]
    assert [entry["confidence"] is None for entry in classes] == [False, True, False, False, True]
    assert classes[1]["share"] > 0


def test_numbers_of_a_large_image_are_those_of_a_plain_count():
    rng, shape = np.random.default_rng(0), (1500, 1000)  # summed in two strips
    labels = rng.integers(0, 4, shape, np.uint8)
    confidence = rng.random(shape, np.float32)
    prediction, _ = predict(labels=labels, confidence=confidence)
    for index, entry in enumerate(prediction.summary()["classes"][:-1]):
        chosen = labels == index
        assert entry["share"] == chosen.mean()
        mean = confidence[chosen].astype(np.float64).mean()
        np.testing.assert_allclose(entry["confidence"], mean, rtol=1e-12)


def test_probabilities_are_halves_whose_argmax_is_the_label(tmp_path):
    prediction, p = predict()
    p[:20, :, 0] = p[:20, :, 1] = 0.3  # ties, which the first class would win
    labels = p.argmax(-1).astype(np.uint8)
    labels[:10] = 1  # as another rounding would have decided
    prediction, _ = predict(labels=labels, stream=hand_out_of(p))
    is_close = p.max(-1) - np.take_along_axis(p, labels[..., None].astype(int), -1)[..., 0] == 0
    (path, _) = prediction.save(tmp_path, ["probabilities"])
    assert path.name == "street_probabilities.npz"
    with np.load(path) as file:
        assert file.files == ["probabilities"]
        got = file["probabilities"]
    assert (got.dtype, got.shape) == (np.float16, (*SIZE, len(NAMES)))
    np.testing.assert_array_equal(got.argmax(-1), labels)
    error = np.abs(got.astype(np.float64) - p)[is_close]
    assert error.max() <= 2**-10  # half a step of float16 by rounding, one more where it decides


def test_probabilities_are_computed_once_and_decide_as_the_labels_do():
    prediction, p = predict()
    p[:20, :, 0] = p[:20, :, 1] = 0.3  # ties, which the first class would win
    labels = p.argmax(-1).astype(np.uint8)
    labels[:10] = 1  # as another rounding would have decided
    calls = []

    def stream(give):
        calls.append(1)
        hand_out_of(p)(give)

    prediction, _ = predict(labels=labels, stream=stream)
    got = prediction.probabilities
    assert (got.dtype, got.shape) == (np.float32, (*SIZE, len(NAMES)))
    np.testing.assert_array_equal(got.argmax(-1), labels)
    is_tie = p.argmax(-1) != labels
    np.testing.assert_array_equal(got[~is_tie], p[~is_tie])
    assert prediction.probabilities is got
    assert len(calls) == 1


def test_overlay_of_any_weight():
    flat = np.full((*SIZE, 3), (200, 100, 0), np.uint8)
    prediction, _ = predict(image=flat)
    assert (prediction.overlay().mode, prediction.overlay().size) == ("RGB", SIZE[::-1])
    np.testing.assert_array_equal(prediction.overlay(alpha=0), flat)
    colors = prediction.palette[prediction.labels]
    np.testing.assert_array_equal(prediction.overlay(alpha=1), colors)
    mean = (flat.astype(int) + colors) / 2
    assert np.abs(np.asarray(prediction.overlay(), int) - mean).max() <= 0.5
    with pytest.raises(ValueError, match=r"`alpha` must be from 0 to 1, got 2; 0\.5 shows both"):
        prediction.overlay(alpha=2)


def test_picture_of_the_labels_has_the_palette():
    prediction, _ = predict()
    picture = prediction.to_pil()
    assert picture.mode == "P"
    np.testing.assert_array_equal(picture, prediction.labels)
    shown = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(shown, prediction.palette[prediction.labels])


def test_prediction_is_described_in_one_line():
    labels = np.zeros((100, 100), np.uint8)
    labels[:41], labels[41:61], labels[61], labels[62, :3] = 1, 2, 3, 4
    values = {"labels": labels, "confidence": np.ones((100, 100), np.float32)}
    names = ("road", "sky", "person, individual, someone, somebody", "a\nb", "car")
    prediction, _ = predict(names=names, num_seen=5, **values)
    text = "street 100x100: sky 41 %, road 38 %, person, individual, s... 20 %, 2 more"
    assert repr(prediction) == f"Prediction({text})"
    prediction, _ = predict(labels=labels * 0, confidence=values["confidence"], file="a/b.jpg")
    assert repr(prediction) == "Prediction(b.jpg 100x100: road 100 %)"


def test_notebook_shows_a_picture_of_bounded_size():
    shape = (40, 3000)
    values = {"labels": np.ones(shape, np.uint8), "confidence": np.ones(shape, np.float32)}
    prediction, _ = predict(image=np.zeros((*shape, 3), np.uint8), **values)
    with Image.open(io.BytesIO(prediction._repr_png_())) as picture:
        assert (picture.format, picture.width) == ("PNG", 1024)


def test_probabilities_that_are_not_to_be_had(tmp_path):
    prediction, _ = predict(stream=None)
    with pytest.raises(ConfigError, match="this prediction has none"):
        prediction.save(tmp_path, ["probabilities"])
    with pytest.raises(ConfigError, match="this prediction has none"):
        _ = prediction.probabilities
    assert not list(tmp_path.iterdir())


def evaluator_matches(folder, truth):
    """The rule by which cityscapesScripts finds the prediction of a truth, restated."""
    city, sequence, frame = truth.split("_")[:3]
    pattern = f"{city}_{sequence}_{frame}*.png"
    return [
        os.path.join(root, name)
        for root, _, names in os.walk(folder)
        for name in fnmatch.filter(names, pattern)
    ]


def test_cityscapes_ids_and_names(tmp_path):
    names = [f"val/frankfurt/frankfurt_000000_00{frame}_leftImg8bit" for frame in ("0294", "0576")]
    everything = ("palette", "overlay", "probabilities", "cityscapes")
    for name in names:
        prediction, _ = predict(name, **published("cityscapes"))
        paths = prediction.save(tmp_path, everything)
    ids = Image.open(paths[-2])
    assert (ids.mode, ids.size) == ("L", SIZE[::-1])
    table = np.array(list(LABEL_IDS.values()))
    np.testing.assert_array_equal(np.asarray(ids), table[prediction.labels])
    assert len(np.unique(prediction.labels)) == 19
    assert [name.replace(" ", "_") for name in LABEL_IDS] == list(CLASS_NAMES["cityscapes"])
    for name in names:
        truth = os.path.basename(name).replace("leftImg8bit", "gtFine_labelIds.png")
        (match,) = evaluator_matches(tmp_path / "cityscapes", truth)
        assert os.path.basename(match) == truth.replace("gtFine", "pred")


def test_cityscapes_own_script_finds_its_predictions(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    prediction, _ = predict("aachen_000000_000019_leftImg8bit", **published("cityscapes"))
    (path, _) = prediction.save(tmp_path, ["cityscapes"])
    script.args.predictionPath, script.args.predictionWalk = str(tmp_path / "cityscapes"), None
    truth = "gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds.png"
    assert script.getPrediction(script.args, truth) == str(path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a/b/ulm_000012_000019", "ulm_000012_000019"),
        ("ulm_000012_000019_leftImg8bit_foggy_beta_0.02", "ulm_000012_000019"),
        ("ulm_000012_000019b", "ulm_000012_000019b"),
        ("a/holiday", "holiday"),
    ],
)
def test_name_of_a_cityscapes_file(name, file):
    (path, _) = output_paths("out", name, ["cityscapes"])
    assert str(path) == f"out/cityscapes/{file}_pred_labelIds.png"


def test_ade_counts_from_one(tmp_path):
    prediction, _ = predict("testing/ADE_test_00000001", **published("ade20k"))
    path, numbers = prediction.save(tmp_path, ["ade"])
    assert path == tmp_path / "ade" / "ADE_test_00000001.png"
    assert numbers == tmp_path / "testing" / "ADE_test_00000001.json"
    mask = np.asarray(Image.open(path))
    np.testing.assert_array_equal(mask, prediction.labels.astype(int) + 1)
    assert (mask.min(), mask.max()) == (1, 150)


@pytest.mark.parametrize(("name", "count"), [("cityscapes", 19), ("ade", 150)])
def test_submission_format_for_other_classes(tmp_path, name, count):
    prediction, _ = predict()
    with pytest.raises(ConfigError, match=f"is for the {count} classes of .*; this network has 5"):
        prediction.save(tmp_path, ["palette", name])
    assert not list(tmp_path.iterdir())


def test_unknown_format():
    with pytest.raises(ConfigError, match="no format 'palete' - did you mean palette"):
        check_formats(["overlay", "palete"])
    with pytest.raises(ConfigError, match="no format '' - use some of palette,overlay,prob"):
        check_formats([])
    assert check_formats(["ade", "overlay", "ade"], legend=True) == ("ade", "overlay")
    with pytest.raises(ConfigError, match=r"--legend: is for the overlay, .* add overlay to"):
        check_formats(["ade"], legend=True)


def test_files_are_replaced_by_force_alone(tmp_path):
    prediction, _ = predict()
    paths = prediction.save(tmp_path)
    other, _ = predict(labels=np.zeros(SIZE, np.uint8))
    before = [path.read_bytes() for path in paths]
    with pytest.raises(
        ConfigError, match=r"street.png, .*street_overlay.jpg, .*street.json: exist"
    ):
        other.save(tmp_path)
    assert [path.read_bytes() for path in paths] == before
    assert other.save(tmp_path, force=True) == paths
    assert not np.asarray(Image.open(paths[0])).any()


def test_of_many_files_in_the_way_five_are_named(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(8)]
    for path in paths[1:]:
        path.touch()
    paths[0].symlink_to("nowhere")  # which is something, too
    with pytest.raises(ConfigError) as error:
        check_free(paths)
    assert str(error.value).count(".png") == 5
    assert "4.png, ... (8 files): exist already" in str(error.value)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_file_that_cannot_be_completed_does_not_appear(tmp_path, monkeypatch, capsys, error):
    def write(prediction, file):
        file.write(b"half")
        raise error

    prediction, _ = predict()
    old = prediction.save(tmp_path, ["palette"])
    before = [path.read_bytes() for path in old]
    monkeypatch.setitem(FORMATS, "palette", FORMATS["palette"]._replace(write=write))
    with pytest.raises(SystemExit) as end:
        cli.run(lambda argv: prediction.save(tmp_path, ["palette"], force=True), [])
    err = capsys.readouterr().err
    if isinstance(error, OSError):
        assert (end.value.code, err.count("\n")) == (5, 1)
        assert err.startswith(f"error: {tmp_path / 'street.png'}: the disk is full")
    else:
        assert end.value.code == 130
    assert sorted(tmp_path.iterdir()) == sorted(old)
    assert [path.read_bytes() for path in old] == before


def test_image_that_no_jpeg_can_hold(tmp_path):
    shape = (1, 65501)
    prediction, _ = predict(
        labels=np.zeros(shape, np.uint8),
        confidence=np.ones(shape, np.float32),
        image=np.zeros((*shape, 3), np.uint8),
        file="long.png",
    )
    with pytest.raises(DataError, match=r"long.png: is 1 x 65501 pixels; an overlay is a JPEG"):
        prediction.save(tmp_path)
    assert len(prediction.save(tmp_path / "b", ["palette"])) == 2
