import numpy as np

from deeplab_jax.report import pictures


def test_worst_and_best_images_are_in_order_and_none_is_twice(content):
    images = [picture.scored for picture in content.pictures]
    assert len({image.name for image in images}) == 12
    assert [image.is_worst for image in images] == [True] * 6 + [False] * 6
    scores = [image.mean_iou for image in images]
    assert scores[:6] == sorted(scores[:6])
    assert scores[6:] == sorted(scores[6:], reverse=True)
    assert scores[5] < scores[11]
    assert all(image.is_as_evaluated() for image in images)
    other = images[0]._replace(prediction=images[0].truth)
    assert not other.is_as_evaluated()


def test_pictures_are_bounded_whatever_they_show():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 150, (900, 1200)).astype(np.uint8)
    image = rng.integers(0, 256, (900, 1200, 3)).astype(np.uint8)
    scored = pictures.ScoredImage("x", 0.5, True, image, noise, noise)
    embedded = pictures.embed([scored] * 12)
    assert 1e6 < sum(picture.size for picture in embedded) <= pictures.MAX_BYTES
