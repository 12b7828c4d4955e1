import cv2
import numpy as np
import pytest

from deeplab_jax.evaluation.boundary import boundary_areas, dilation_ratio

CLASSES = 4


def published_boundary(mask, ratio):
    """The published `mask_to_boundary`: the mask less what d erosions by 3 x 3 leave of it."""
    d = max(1, round(ratio * np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2)))
    edged = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return mask & (cv2.erode(edged, np.ones((3, 3), np.uint8), iterations=d)[1:-1, 1:-1] == 0)


def draw(rng, size):
    """Returns blocks with discs over them, a class of one pixel, and a void corner."""
    blocks = rng.integers(0, 3, (5, 6)).astype(np.uint8)
    labels = cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_NEAREST)
    for _ in range(4):
        center = tuple(map(int, rng.integers(0, size[::-1])))
        cv2.circle(labels, center, max(size) // 6, int(rng.integers(0, 3)), -1)
    labels[size[0] // 2, size[1] // 2] = 3
    return labels


@pytest.mark.parametrize("size", [(120, 90), (64, 65), (7, 40), (1, 30), (1, 1)])
@pytest.mark.parametrize("ratio", [0.02, 0.005, 0.2])
def test_areas_equal_the_published_boundaries_of_each_class(size, ratio):
    rng = np.random.default_rng(sum(size))
    truth, prediction = draw(rng, size), draw(rng, size)
    truth[: size[0] // 3, : size[1] // 4] = 255
    got = boundary_areas(prediction, truth, CLASSES, ratio)
    assert got.dtype == np.int64
    for c in range(CLASSES):
        # Pixels without a truth belong to no mask, nor to that of the prediction.
        masks = truth == c, (prediction == c) & (truth != 255)
        ours, theirs = (published_boundary(mask, ratio) for mask in masks)
        assert got[:, c].tolist() == [(ours & theirs).sum(), ours.sum(), theirs.sum()]


def test_perfection_is_one_also_beside_void():
    truth = draw(np.random.default_rng(0), (60, 70))
    truth[20:40, 30:50] = 255
    prediction = np.where(truth == 255, np.uint8(1), truth)
    intersection, ours, theirs = boundary_areas(prediction, truth, CLASSES)
    assert (intersection == ours).all()
    assert (intersection == theirs).all()
    assert intersection[:3].all()


def test_large_images_have_the_published_ratio():
    assert [dilation_ratio(name) for name in ("cityscapes", "ade20k", "folder")] == [
        0.005, 0.02, 0.02
    ]  # fmt: skip
