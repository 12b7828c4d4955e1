import json
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import deeplab_jax
from deeplab_jax.errors import DataError
from deeplab_jax.inference import folder, segmenter

pytestmark = pytest.mark.usefixtures("compile_once")
ENDS = (".png", "_overlay.jpg", ".json")  # of the files of an image


@pytest.fixture
def predict_into(saved_run, call, tmp_path):
    """Returns predict_into(*argv) -> (exit code, standard output, standard error); into "out"."""
    argv = ["predict", "--checkpoint", saved_run.path, "--output", tmp_path / "out"]
    return lambda *more: call(*argv, *more)


def test_predict_writes_indices_with_a_palette_and_an_overlay_at_the_images_own_size(
    saved_run, model, call, tmp_path
):
    code, out, err = call(
        "predict",
        "--checkpoint",
        saved_run.path,
        *saved_run.images[:2],
        "--output",
        tmp_path / "out",
    )
    assert (code, err) == (0, "")
    assert f"2 of 2 images -> {tmp_path / 'out'}  " in out
    first, *last = out.splitlines()
    assert first.endswith(" images/s")
    assert last == [
        f"results: {tmp_path / 'out'}",
        f"next: deeplab evaluate --checkpoint {saved_run.path}",
    ]
    for image in saved_run.images[:2]:
        prediction = model(image)
        size = Image.open(image).size
        mask = Image.open(tmp_path / "out" / f"{image.stem}.png")
        assert (mask.mode, mask.size) == ("P", size)
        np.testing.assert_array_equal(np.asarray(mask), prediction.labels)
        assert len(np.unique(prediction.labels)) > 1  # else any constant would do
        palette = np.array(mask.getpalette()).reshape(-1, 3)[:4]
        np.testing.assert_array_equal(palette, saved_run.validation.palette)
        overlay = Image.open(tmp_path / "out" / f"{image.stem}_overlay.jpg")
        assert (overlay.format, overlay.size) == ("JPEG", size)
        mixed = (np.asarray(Image.open(image), int) + palette[prediction.labels]) / 2
        assert np.abs(np.asarray(overlay, int) - mixed).mean() < 20  # JPEG is not exact


def test_predict_takes_a_folder(saved_run, call, tmp_path):
    validation = saved_run.root / "images" / "val"
    argv = ["--checkpoint", saved_run.path, validation, "--output", tmp_path]
    assert call("predict", *argv, "--legend").code == 0
    names = [f"{image.stem}{end}" for image in saved_run.images for end in ENDS]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for image in saved_run.images:
        overlay, size = Image.open(tmp_path / f"{image.stem}_overlay.jpg"), Image.open(image).size
        assert (overlay.width, overlay.height > size[1]) == (240, True)  # with a legend


def test_step_can_be_chosen(saved_run, model, tmp_path, call):
    image = saved_run.images[0]
    for step, number in (("best", 3), ("3", 3), ("latest", 7)):
        argv = ["--checkpoint", saved_run.path, "--step", step, image, "--output", tmp_path / step]
        code, out, _ = call("predict", *argv)
        assert code == 0
        told = "" if step == "latest" else f" --step {step}"
        assert out.splitlines()[-1] == f"next: deeplab evaluate --checkpoint {saved_run.path}{told}"
        assert deeplab_jax.load(saved_run.path, step).step == number
    masks = {step: np.asarray(Image.open(tmp_path / step / f"{image.stem}.png"))
             for step in ("best", "3", "latest")}  # fmt: skip
    np.testing.assert_array_equal(masks["best"], masks["3"])
    np.testing.assert_array_equal(masks["latest"], model(image).labels)
    assert (masks["best"] != masks["latest"]).any()


def test_step_that_is_not_there_is_told_with_those_that_are(saved_run, call, tmp_path):
    argv = [
        "--checkpoint",
        saved_run.path,
        "--step",
        "5",
        saved_run.images[0],
        "--output",
        tmp_path,
    ]
    code, _, err = call("predict", *argv)
    assert code == 4
    assert "there is no step 5 - use one of: 3, 7, latest, best" in err


def test_missing_image_is_told_before_anything_is_loaded(call, tmp_path):
    argv = ["--checkpoint", "nowhere", tmp_path / "a.jpg", "--output", tmp_path / "out"]
    code, out, err = call("predict", *argv)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert f"{tmp_path}/a.jpg: there is no such file" in err
    assert not (tmp_path / "out").exists()


def test_every_file_tells_of_the_same_prediction(saved_run, model, predict_into, tmp_path):
    image = saved_run.images[0]
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
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=4 * 2**-11)
    prediction = model(image)
    np.testing.assert_array_equal(prediction.labels, labels)
    np.testing.assert_allclose(probabilities.max(-1), prediction.confidence, atol=2**-11)
    numbers = json.loads((tmp_path / "out" / f"{image.stem}.json").read_text())
    shares = np.bincount(labels.ravel(), minlength=4) / labels.size
    assert [entry["share"] for entry in numbers["classes"]] == shares.tolist()
    assert [entry["name"] for entry in numbers["classes"]] == list(saved_run.validation.class_names)
    assert numbers["file"] == str(image)
    assert numbers["size"] == list(labels.shape)
    assert (numbers["checkpoint"], numbers["step"]) == (str(saved_run.path), 7)
    assert numbers["protocol"].startswith("whole image, single scale, no flip")


@pytest.mark.parametrize(
    ("formats", "what"),
    [
        ("palete", "there is no format 'palete' - did you mean palette?"),
        ("palette,", "there is no format '' - use some of palette,overlay,probabilities,"),
        ("cityscapes", "--format=cityscapes: is for the 19 classes of cityscapes; this network "),
        (
            "palette --legend",
            "--legend: is for the overlay, which --format leaves out - add overlay",
        ),
        ("palette,ade", "--format=ade: is for the 150 classes of ade20k; this network has 4"),
    ],
)
def test_format_that_cannot_be(saved_run, predict_into, tmp_path, formats, what):
    code, out, err = predict_into(saved_run.images[0], "--format", *formats.split(" "))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert what in err
    assert not (tmp_path / "out").exists()


def test_results_are_replaced_by_force_alone(saved_run, call, predict_into, tmp_path):
    assert predict_into(saved_run.images[0])[0] == 0
    mask = tmp_path / "out" / f"{saved_run.images[0].stem}.png"
    before = mask.read_bytes()
    argv = ["--checkpoint", "nowhere", "--output", tmp_path / "out", *saved_run.images]
    code, out, err = call("predict", *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{mask}, " in err
    assert "exist already - choose another folder, or replace them with --force" in err
    mask.write_bytes(b"old")
    assert predict_into(saved_run.images[0], "--force")[0] == 0
    assert mask.read_bytes() == before
    assert not list((tmp_path / "out").glob(".*"))


def test_output_has_the_size_of_the_upright_image(saved_run, model, predict_into, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    picture = Image.open(saved_run.images[0])
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
        4,
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


def test_broken_images_do_not_stop_the_others(saved_run, model, predict_into, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for image in saved_run.images:
        shutil.copy(image, photos)
    told = broken_images(photos, saved_run.images[0])
    code, out, err = predict_into(photos)
    assert code == 3
    assert f"3 of 9 images -> {tmp_path / 'out'}" in out
    lines = err.splitlines()
    assert len(lines) == len(told)
    for line, (name, what) in zip(lines, told.items(), strict=True):
        assert line.startswith(f"error: {photos / name}: {what}")
    assert len(list((tmp_path / "out").iterdir())) == 3 * 3
    for image in saved_run.images:
        mask = np.asarray(Image.open(tmp_path / "out" / f"{image.stem}.png"))
        np.testing.assert_array_equal(mask, model(image).labels)


def test_broken_images_alone(saved_run, call, predict_into, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    told = broken_images(photos, saved_run.images[0])
    code, out, err = predict_into(photos)
    assert (code, err.count("\n")) == (3, len(told))
    assert "0 of 6 images" in out
    assert not (tmp_path / "out").exists()
    (photos / "half.jpg").unlink()  # the others are known by their beginning
    code, out, err = call("predict", "--checkpoint", "x", "--output", tmp_path / "out", photos)
    assert (code, out, err.count("\n")) == (3, "", len(told) - 1)


def test_interrupted_writing_leaves_whole_files(saved_run, predict_into, tmp_path, monkeypatch):
    segment = segmenter.Segmenter.segment

    def interrupted(self, images):
        yield from segment(self, images[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(segmenter.Segmenter, "segment", interrupted)
    code, out, err = predict_into(*saved_run.images)
    assert (code, out, err) == (130, "", "\ninterrupted\n")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names <= {f"{image.stem}{end}" for image in saved_run.images[:2] for end in ENDS}
    for numbers in (tmp_path / "out").glob("*.json"):  # the last file of an image
        assert json.loads(numbers.read_text())["classes"]
        assert Image.open(numbers.with_suffix(".png")).load()


def test_predict_goes_on_after_an_end_midway(saved_run, predict_into, tmp_path):
    first, second, third = saved_run.images
    out = tmp_path / "out"
    assert predict_into(*saved_run.images)[0] == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    kept = out / f"{first.stem}.png"
    kept.write_bytes(b"kept")
    # The second was cut off before its JSON, the third before its overlay.
    (out / f"{second.stem}.json").unlink()
    (out / f"{second.stem}.png").write_bytes(b"old")
    (out / f"{third.stem}_overlay.jpg").unlink()
    (out / f".{second.stem}.png.{2**22 + 1}.tmp").write_bytes(b"half")  # no such process can be
    code, told, err = predict_into(*saved_run.images, "--skip-existing")
    assert (code, err) == (0, "")
    assert "1 images had their results: --skip-existing\n" in told
    assert f"2 of 2 images -> {out} " in told
    assert kept.read_bytes() == b"kept"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole | {kept.name: b"kept"}
    code, told, err = predict_into(*saved_run.images, "--skip-existing")
    assert (code, told.splitlines()[0]) == (0, "3 images had their results: --skip-existing")

    code, _, err = predict_into(*saved_run.images, "--skip-existing", "--step", "best")
    json_file = out / f"{first.stem}.json"
    assert code == 2
    assert f"error: {json_file}: is of step 7, not 3 - go on with --step 7, or replace all" in err
    assert predict_into(first, "--skip-existing", "--force")[0] == 2

    json_file.write_text('{"shapes": []}')  # of another program
    code, _, err = predict_into(first, "--skip-existing")
    assert (code, err.startswith(f"error: {json_file}: exists already - ")) == (2, True)
    for path in out.glob("*.json"):
        path.unlink()
    code, _, err = predict_into(*saved_run.images, "--skip-existing")
    assert code == 2  # more than an end midway leaves
    assert f"{kept}, {out / second.stem}.png, " in err


def test_folders_in_folders_keep_their_names(saved_run, model, predict_into, tmp_path):
    for place, image in zip(
        ("", "a", "a/b", ".cache"), (*saved_run.images, saved_run.images[0]), strict=True
    ):
        (tmp_path / "in" / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / "in" / place / "same.v1.jpg")
    code, out, _ = predict_into(tmp_path / "in", "--format", "palette")
    assert (code, out[:6]) == (0, "3 of 3")
    for place, image in zip(("", "a", "a/b"), saved_run.images, strict=True):
        mask = np.asarray(Image.open(tmp_path / "out" / place / "same.v1.png"))
        np.testing.assert_array_equal(mask, model(image).labels)
        assert (tmp_path / "out" / place / "same.v1.json").is_file()
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def touch(place, *names):
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()


def found(*paths, output=""):
    return folder.find_images(list(map(str, paths)), str(output))


def check(images, output, formats=("palette", "overlay"), force=False):
    folder.check_output(images, str(output), formats, force)


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
