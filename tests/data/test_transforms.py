import zlib
from json import loads

import cv2
import numpy as np
import pytest

from deeplab_jax.data import open_dataset, transforms
from deeplab_jax.models.preprocess import normalize

RESIZE_BASE, CROP = (256, 64), (64, 64)


def assert_samples(recipe, got, expected, atol=0):
    """Golden arrays are samples of whole ones."""
    np.testing.assert_allclose(recipe.sample(got, len(expected)), expected, atol=atol)


def as_network_input(image, box):
    """What the device makes of a sample: (3, h, w), normalised in the box and 0 around it."""
    top, left, bottom, right = box
    out = np.zeros(image.shape, np.float32)
    out[top:bottom, left:right] = normalize(image)[top:bottom, left:right]
    return out.transpose(2, 0, 1)


class FixedRng:
    """Gives the draws it was made with, whatever is asked for, and remembers what was asked."""

    def __init__(self, *draws):
        self.draws, self.asked = list(draws), []

    def random(self):
        return self.draws.pop(0)

    def integers(self, low, high):
        self.asked.append((low, high))
        return self.draws.pop(0)

    uniform = integers


# Resizing


def test_test_size_is_the_references(expected):
    assert len(expected["resize_dsize"]) > 20
    for case in expected["resize_dsize"]:
        size = transforms.fit_size(case["height"], case["width"], case["output_size"])
        assert size == (case["out_height"], case["out_width"]), case


def test_training_size_is_the_references(expected):
    assert len(expected["train_resize"]) > 20
    for case in expected["train_resize"]:
        shape, rng = (case["height"], case["width"]), FixedRng(case["u"])
        size = transforms.random_size(shape, rng, case["output_size"], (0.5, 2.0))
        assert size == (case["out_height"], case["out_width"]), case


def test_size_by_hand():
    assert transforms.fit_size(375, 500, (2048, 512)) == (512, 683)  # 500 * 512 / 375 = 682.7
    assert transforms.fit_size(500, 375, (2048, 512)) == (683, 512)  # a portrait: sides swap
    assert transforms.fit_size(100, 1000, (2048, 512)) == (205, 2048)  # the long side limits
    assert transforms.fit_size(1, 5000, (2048, 512)) == (1, 2048)  # never nothing


@pytest.mark.parametrize("number", range(5))
def test_resized_pixels_are_the_references(recipe, expected, arrays, number):
    case = expected["resize_cases"][number]
    name, shape = case["name"], (case["height"], case["width"])
    size = transforms.fit_size(*shape, case["output_size"])
    assert list(size) == case["out"]
    image = transforms.resize_image(recipe.draw_picture(name, *shape), size)
    label = transforms.resize_label(recipe.draw_labels(name, (1, *shape), 21)[0], size)
    assert_samples(recipe, image, arrays[f"{name}/image"])
    assert_samples(recipe, label, arrays[f"{name}/labels"])


def test_nearest_takes_the_source_pixel_of_the_written_formula():
    for source, target in [(37, 64), (64, 37), (49, 147), (90, 31)]:
        label = np.arange(source, dtype=np.uint8)[None]
        index = np.floor(np.arange(target) * (1.0 / (target / source))).astype(int)
        expected = np.minimum(index, source - 1)[None]
        np.testing.assert_array_equal(transforms.resize_label(label, (1, target)), expected)


@pytest.mark.parametrize("seed", range(3))
def test_window_of_a_resized_image_is_that_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    for number in range(200):
        image = rng.integers(0, 256, (*rng.integers(1, 150, 2), 3)).astype(np.uint8)
        # By any factors, by one as training does, and by those where OpenCV goes another way.
        scale = rng.uniform(0.3, 3) if number % 3 else rng.choice((0.25, 0.5, 1, 2, 3))
        size = transforms.fit_size(*image.shape[:2], [scale * side for side in image.shape[:2]])
        if number % 3 == 1:
            size = tuple(map(int, rng.integers(1, 300, 2)))
        if number % 7 == 0:  # OpenCV copies where a part's size stays
            size = tuple(side + int(rng.integers(0, 2)) for side in image.shape[:2])
        shape = [int(rng.integers(1, side + 1)) for side in size]
        start = [int(rng.integers(0, a - b + 1)) for a, b in zip(size, shape, strict=True)]
        window = tuple(slice(a, a + b) for a, b in zip(start, shape, strict=True))
        np.testing.assert_array_equal(
            transforms.resize_window(image, size, window),
            transforms.resize_image(image, size)[window],
            err_msg=f"{image.shape} to {size}, {window}",
        )


# Cropping and flipping


def random_crop(image, label, rng, crop_size):
    window = transforms.random_window(label, rng, crop_size)
    return image[window], label[window]


def checkered(height, width, classes=4):
    """Returns a label whose classes all cover less than half, and an image that shows it."""
    label = np.random.default_rng(1).integers(0, classes, (height, width)).astype(np.uint8)
    return np.repeat(label[..., None], 3, 2), label


def test_crop_takes_the_window_drawn():
    image, label = checkered(20, 30)
    rng = FixedRng(3, 7)
    crop, crop_label = random_crop(image, label, rng, (8, 9))
    assert rng.asked == [(0, 13), (0, 22)]  # 20 - 8 + 1 and 30 - 9 + 1: every window can be drawn
    np.testing.assert_array_equal(crop, image[3:11, 7:16])
    np.testing.assert_array_equal(crop_label, label[3:11, 7:16])


def test_crop_larger_than_the_image_keeps_it():
    image, label = checkered(20, 30)
    crop, _ = random_crop(image, label, FixedRng(0, 4), (50, 16))
    np.testing.assert_array_equal(crop, image[:, 4:20])


def test_crop_draws_again_while_one_class_dominates():
    # Columns 0..3 hold class 0 alone; 4..7 three quarters of class 1: both are refused.
    label = np.zeros((4, 12), np.uint8)
    label[:, 4:7] = 1
    label[:, 8:] = np.arange(4)
    image = np.repeat(label[..., None], 3, 2)
    _, crop = random_crop(image, label, FixedRng(0, 0, 0, 4, 0, 8), (4, 4))
    np.testing.assert_array_equal(crop, label[:, 8:])


def test_share_of_a_class_counts_valid_pixels_only():
    label = np.full((2, 8), 255, np.uint8)
    label[0, :4] = 0, 0, 0, 1  # 3 of 4 valid pixels: refused
    label[0, 4:7] = 0, 0, 1  # 2 of 3: taken
    image = np.zeros((2, 8, 3), np.uint8)
    _, crop = random_crop(image, label, FixedRng(0, 0, 0, 4), (2, 4))
    np.testing.assert_array_equal(crop, label[:, 4:])


def test_tenth_crop_is_taken_as_it_is():
    label = np.zeros((4, 20), np.uint8)  # one class: no try succeeds
    image = np.arange(240, dtype=np.uint8).reshape(4, 20, 3)
    rng = FixedRng(*(value for left in range(10) for value in (0, left)))
    crop, _ = random_crop(image, label, rng, (4, 4))
    assert rng.draws == []
    np.testing.assert_array_equal(crop, image[:, 9:13])


def test_without_a_valid_pixel_in_the_tenth_crop_the_sample_stays_whole():
    label = np.full((4, 20), 255, np.uint8)
    label[:, :2] = 3
    image = np.zeros((4, 20, 3), np.uint8)
    draws = [value for left in (*range(9), 9) for value in (0, left)]
    assert random_crop(image, label, FixedRng(*draws), (4, 4))[1].shape == (4, 20)
    draws[-1] = 1  # one valid column in the tenth
    assert random_crop(image, label, FixedRng(*draws), (4, 4))[1].shape == (4, 4)


def test_flip_mirrors_both_or_neither():
    image, label = checkered(5, 7)
    image[..., 1] += 100
    for draw, is_flipped in [(0.0, True), (0.5, True), (0.501, False)]:
        out, out_label = transforms.random_flip(image, label, FixedRng(draw))
        step = -1 if is_flipped else 1
        np.testing.assert_array_equal(out, image[:, ::step])
        np.testing.assert_array_equal(out_label, label[:, ::step])


# Colours


@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation", "hue"])
def test_photometric_pieces_are_the_references(recipe, arrays, operation):
    image = recipe.draw_picture("photometric", 24, 32)
    adjust = getattr(transforms, f"adjust_{operation}")
    keys = [key for key in arrays if key.startswith(f"photo/{operation}_")]
    assert len(keys) >= 2
    for key in keys:
        value = float(key.rsplit("_", 1)[1])
        out = adjust(image, int(value) if operation == "hue" else value)
        assert_samples(recipe, out, arrays[key])


def test_brightness_and_contrast_clip_and_cut():
    image = np.array([[[0, 100, 250]]], np.uint8)
    assert transforms.adjust_brightness(image, 10.7).tolist() == [[[10, 110, 255]]]
    assert transforms.adjust_brightness(image, -10.7).tolist() == [[[0, 89, 239]]]
    assert transforms.adjust_contrast(image, 1.5).tolist() == [[[0, 150, 255]]]
    assert transforms.adjust_contrast(image, 0.555).tolist() == [[[0, 55, 138]]]


@pytest.mark.parametrize("draws", [(1, 10.0, 1, 1, 1.5, 0, 0), (1, 10.0, 0, 0, 0, 1, 1.5)])
def test_contrast_comes_second_or_last(draws):
    image = np.full((2, 2, 3), 100, np.uint8)
    # Brightness +10, then the mode; contrast x 1.5 early or late, no saturation, no hue.
    rng = FixedRng(*draws)
    assert (transforms.photometric_distortion(image, rng) == 165).all()
    assert rng.draws == []


def test_colour_changes_are_those_one_after_another():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    early = [(transforms.adjust_brightness, 20.3), (transforms.adjust_contrast, 0.7)]
    colours = [(transforms.adjust_saturation, 1.4), (transforms.adjust_hue, -7)]
    late = [(transforms.adjust_contrast, 1.2)]
    for draws, steps in [
        ((1, 20.3, 1, 1, 0.7, 1, 1.4, 1, -7), early + colours),
        ((1, 20.3, 0, 0, 1, -7, 1, 1.2), early[:1] + colours[1:] + late),
        ((0, 0, 1, 1.4, 0, 1, 1.2), colours[:1] + late),
    ]:
        expected = image
        for adjust, value in steps:
            expected = adjust(expected, value)
        np.testing.assert_array_equal(
            transforms.photometric_distortion(image, FixedRng(*draws)), expected
        )


def test_all_tails_change_nothing():
    image, _ = checkered(4, 4)
    out = transforms.photometric_distortion(image, FixedRng(0, 0, 0, 0, 0))
    np.testing.assert_array_equal(out, image)


# Placing and normalising


@pytest.mark.parametrize("number", range(4))
def test_padding_is_the_references(recipe, expected, arrays, number):
    case = expected["pad_cases"][number]
    name, shape = case["name"], (case["height"], case["width"])
    image = recipe.draw_picture(name, *shape)
    label = recipe.draw_labels(name, (1, *shape), 21)[0]
    image, label, box = transforms.place(image, label, tuple(case["output_size"]))
    assert_samples(recipe, as_network_input(image, box), arrays[f"{name}/image"], atol=2e-3)
    assert_samples(recipe, label, arrays[f"{name}/labels"])


def test_place_centres_and_rounds_towards_the_top_left():
    image = np.full((2, 3, 3), 7, np.uint8)
    out, label, box = transforms.place(image, image[..., 0], (5, 6))
    assert box.dtype == np.int32
    assert box.tolist() == [1, 1, 3, 4]  # (5 - 2) // 2 and (6 - 3) // 2
    assert (out[1:3, 1:4] == 7).all()
    assert out.sum() == 7 * image.size
    assert (label[1:3, 1:4] == 7).all()
    assert (label == 255).sum() == 30 - 6


def test_place_cuts_the_middle_of_what_is_larger():
    image, label = checkered(9, 4)
    out, out_label, box = transforms.place(image, label, (4, 6))
    assert box.tolist() == [0, 1, 4, 5]
    # (4 - 9) // 2 = -3: three rows go above, two below.
    np.testing.assert_array_equal(out_label[:, 1:5], label[3:7])
    np.testing.assert_array_equal(out[:, 1:5], image[3:7])


@pytest.mark.parametrize("shape", [(2, 3), (9, 4), (5, 6), (5, 4)])
def test_place_leaves_nothing_of_what_was_there(shape):
    image, label = checkered(*shape)
    out = np.full((5, 6, 3), 99, np.uint8), np.full((5, 6), 99, np.uint8)
    placed = transforms.place(image, label, (5, 6), out)
    assert placed[0] is out[0]
    assert placed[1] is out[1]
    for got, expected in zip(placed, transforms.place(image, label, (5, 6)), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert (out[0] != 99).all()
    assert (out[1] != 99).all()


def test_normalize_is_the_references(recipe, arrays):
    image = normalize(recipe.draw_picture("normalize", 24, 32))
    assert image.dtype == np.float32
    assert_samples(recipe, image.transpose(2, 0, 1), arrays["normalize/image"], atol=1e-5)


# All together

_MANY = pytest.mark.parity("300 batches; two seeds are in the first tier")


def test_pipeline_is_the_references(measure):
    pairs = measure.training_samples()
    np.testing.assert_array_equal(*pairs["labels"])
    np.testing.assert_allclose(*pairs["images"], atol=2e-3)  # float16 there


@pytest.mark.parametrize(
    ("seed", "iterations"), [pytest.param(0, 300, marks=_MANY), (1, 2), (2, 2)]
)
def test_batches_are_those_the_reference_trained_on(
    shared, data_config, legacy_rng, seed, iterations
):
    """The replay of camvid_twin: every image and draw of a run, checked where it was recorded."""
    twin = loads((shared / "reference" / "camvid_twin" / "curves.json").read_text())
    checks = {check["iteration"]: check for check in twin["batch_checks"][str(seed)]}
    dataset = open_dataset(data_config("folder", shared / "data" / "camvid"), 11, "train")
    cv2.setNumThreads(0)
    rng, num_checked = legacy_rng(seed), 0
    for iteration in range(iterations):
        epoch, step = divmod(iteration, 91)
        order = np.random.default_rng([seed, epoch]).permutation(len(dataset))
        rows = order[4 * step : 4 * step + 4]
        options = {"crop_size": (192, 256), "resize_base": (480, 360), "scale_range": (0.5, 2.0)}
        samples = [transforms.train_transform(*dataset.read(row), rng, **options) for row in rows]
        if iteration in checks:
            check, num_checked = checks[iteration], num_checked + 1
            labels = np.stack([label for _, label, _ in samples])
            images = np.stack([as_network_input(image, box) for image, _, box in samples])
            assert [dataset.ids[row] for row in rows] == check["ids"]
            assert zlib.crc32(labels.tobytes()) == check["labels_crc32"]
            assert (labels == 255).sum() == check["ignored_pixels"]
            assert images.mean(dtype=np.float64) == pytest.approx(check["image_mean"], abs=2e-6)
            mean = np.abs(images).mean(dtype=np.float64)
            assert mean == pytest.approx(check["image_abs_mean"], abs=1e-5)
    assert num_checked == (3 if iterations == 300 else 2)


def test_image_label_and_box_move_together():
    image, label = checkered(60, 90)
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(30):
        # Without colours: what is left of train_transform.
        scaled = random_crop(image, label, rng, (48, 64))
        out, out_label, box = transforms.place(*transforms.random_flip(*scaled, rng), (64, 64))
        top, left, bottom, right = box
        np.testing.assert_array_equal(
            out[top:bottom, left:right, 0], out_label[top:bottom, left:right]
        )
        assert (bottom - top, right - left) == (48, 64)
        seen.add(out_label.tobytes())
    assert len(seen) == 30


def test_one_seed_is_one_sample():
    image, label = checkered(60, 90)
    options = {"crop_size": (48, 64), "resize_base": (80, 60), "scale_range": (0.5, 2.0)}

    def draw(seed):
        return transforms.train_transform(image, label, np.random.default_rng(seed), **options)

    for first, again, other in zip(draw(0), draw(0), draw(5), strict=True):
        np.testing.assert_array_equal(first, again)
        assert first.shape == other.shape
    assert (draw(0)[0] != draw(5)[0]).any()
