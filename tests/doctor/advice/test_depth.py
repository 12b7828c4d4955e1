"""The range of 16-bit pictures, by the whole command."""

import cv2
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def deepen(make_tree):
    """Returns deepen(scale) -> root of a folder whose images are 16-bit PNG.

    `scale` maps the image's number and its 8-bit pixels to 16 bits, or to None: left at 8 bits.
    """

    def deepen(scale):
        root = make_tree("folder", num_train=8, num_val=2)
        for number, path in enumerate(sorted(root.rglob("images/*/*"))):
            image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            image[0, :2] = 0, 255  # all values are used
            if (wide := scale(number, image.astype(np.uint16))) is not None:
                path.unlink()
                assert cv2.imwrite(str(path.with_suffix(".png")), wide)
        return root

    return deepen


def found(report, severity):
    return [f for f in report["findings"] if (f["severity"], f["kind"]) == (severity, "depth")]


@pytest.mark.parametrize(
    ("scale", "value_range"),
    [
        (lambda _, image: image * 16, (0, 4080)),  # 12 bits
        (lambda _, image: image * 60 + 1000, (1000, 16300)),  # an X-ray's 14 bits
        (lambda _, image: image * 250 + 1000, (0, 64750)),  # 1000 is near 0 here
        (lambda _, image: image, (0, 255)),  # 8-bit values
    ],
)
def test_the_range_of_all_is_proposed_and_trained_with(
    deepen, doctor, recipe_of, scale, value_range
):
    root = deepen(scale)
    code, out, _, report = doctor("--data", root)
    assert code == 0
    assert "by --config.data.value_range={},{}, which".format(*value_range) in " ".join(out.split())
    assert not found(report, "warning")
    assert len(found(report, "note")) == 1
    assert recipe_of(root).data.value_range == value_range


def test_pictures_of_another_scale_and_depth_are_named(deepen, doctor):
    scales = {0: None, 1: 1, 2: 256}
    root = deepen(lambda number, image: (
        None if number == 0 else image * scales.get(number, 200)))  # fmt: skip
    code, _, _, report = doctor("--data", root)
    assert code == 0
    few, mixed = sorted(found(report, "warning"), key=lambda f: "keep" not in f["title"])
    assert few["title"] == "1 image of 16 bits a channel keeps fewer than 64 levels"
    assert few["items"] == ["images/train/001.png: values 0..255, 1 level"]
    assert mixed["title"] == "9 image(s) of 16 bits a channel among 1 of 8"
    assert mixed["items"] == ["images/train/000.jpg"]


def test_a_recipes_range_is_checked(deepen, doctor, recipe_flags):
    root = deepen(lambda _, image: image * 16)
    flags = recipe_flags(root)
    code, _, _, report = doctor(*flags)
    assert code == 3
    [error] = found(report, "error")
    assert error["title"] == "10 images are of 16 bits a channel, and the recipe has no range"
    assert "set --config.data.value_range=0,4080, or 0,65535" in error["fix"]
    assert not found(report, "note")
    _, _, _, report = doctor(*flags, "--config.data.value_range=0,4079")
    [clipped] = found(report, "warning")
    assert clipped["title"] == "10 images with values outside config.data.value_range"
    assert clipped["fix"].endswith("that of all images is --config.data.value_range=0,4080")
    _, _, _, report = doctor(*flags, "--config.data.value_range=0,65535")
    [few] = found(report, "warning")
    assert few["title"] == "10 images of 16 bits a channel keep fewer than 64 levels"
    assert few["items"][0] == "images/train/000.png: values 0..4080, 16 levels"
    assert found(report, "note")
    code, _, _, report = doctor(*flags, "--config.data.value_range=0,4095")
    assert (code, found(report, "warning")) == (0, [])


def test_dark_pictures_are_told_apart_and_colour_keeps_its_depth(deepen, doctor):
    root = deepen(lambda number, image: image % 2 + number)  # black in the upper 8 bits
    _, _, _, report = doctor("--data", root)
    kinds = {f["kind"] for f in report["findings"]}
    assert not kinds & {"duplicate", "leak", "image-mode"}
    for path in root.rglob("images/*/*"):
        path.unlink()
        Image.fromarray(np.zeros((65, 97), np.uint16)).save(path.with_suffix(".png"))
    assert "leak" in {f["kind"] for f in doctor("--data", root)[3]["findings"]}


def test_dead_pixels_do_not_spread_the_range(deepen, doctor, recipe_of):
    def with_dead(_, image):
        image = image * 4  # 10 bits
        image[5, 5] = 65535
        return image

    root = deepen(with_dead)
    code, _, _, report = doctor("--data", root)
    [clipped] = found(report, "warning")
    assert (code, len(clipped["items"])) == (0, 10)
    assert "65535, and most would keep fewer than 64 levels" in clipped["fix"]
    assert 500 < recipe_of(root).data.value_range[1] <= 1020
