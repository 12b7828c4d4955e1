import numpy as np
import pytest
from PIL import Image, ImageColor

from deeplab_jax.training.log import Log, picture


def curve(*values):
    return [(10.0 * (step + 1), value) for step, value in enumerate(values)]


TRAIN = {"loss": curve(3, 2, 2.5), "loss_smoothed": curve(3, 2.9, 2.8), "lr": curve(0.1, 0.05, 0)}


def thirds(image):
    """Returns the pixels of the three plots, from the left."""
    return np.split(np.asarray(image, int), 3, 1)


@pytest.mark.parametrize(("name", "number"), [("loss", 0), ("loss_smoothed", 0), ("lr", 1)])
def test_each_quantity_is_drawn_in_its_own_plot(name, number):
    rest = {key: values for key, values in TRAIN.items() if key != name}
    both = [thirds(picture.draw("tiny", Log(train, {}))) for train in (TRAIN, rest)]
    assert [(a != b).any() for a, b in zip(*both, strict=True)] == [k == number for k in range(3)]


def test_best_score_is_marked_and_the_ground_is_opaque_white():
    image = picture.draw("tiny, step 30", Log(TRAIN, {"mean_iou": curve(0.2, 0.5, 0.4)}))
    assert (image.mode, image.size) == ("RGB", picture.SIZE)
    color = ImageColor.getrgb(picture._BEST)
    assert [(part == color).all(-1).any() for part in thirds(image)] == [False, False, True]
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_validation_loss_is_drawn_beside_the_training_loss():
    both = [thirds(picture.draw("tiny", Log(TRAIN, log))) for log in ({}, {"loss": curve(2, 1)})]
    assert [(a != b).any() for a, b in zip(*both, strict=True)] == [True, False, False]


def test_title_says_over_how_many_classes_the_mean_is():
    log = {"mean_iou": curve(0.2), "num_classes_in_mean": curve(149), "num_classes": curve(150)}
    counts = [log | {"num_classes_in_mean": curve(150)}, {"mean_iou": curve(0.2)}, log]
    pictures = [thirds(picture.draw("tiny", Log(TRAIN, scores)))[2] for scores in counts]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()
    assert (pictures[2][:40] == pictures[1][:40]).all()  # below the title


@pytest.mark.parametrize(
    "log",
    [Log({}, {}), Log({"loss": curve(1.0)}, {"mean_iou": curve(0.0)}),
     Log({"loss": curve(*range(5000))}, {"mean_iou": curve(0.3, 0.3)})],
    ids=["nothing", "one", "many"],
)  # fmt: skip
def test_any_log_is_drawn(log):
    picture.draw("tiny", log)


def test_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    picture.write(tmp_path / "progress.png", "tiny", Log(TRAIN, {}))
    before = (tmp_path / "progress.png").read_bytes()
    assert Image.open(tmp_path / "progress.png").size == picture.SIZE

    def save(self, file, format):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space"):
        picture.write(tmp_path / "progress.png", "tiny", Log(TRAIN, {}))
    assert (tmp_path / "progress.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
