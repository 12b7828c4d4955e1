import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.data import open_dataset, train_batches
from deeplab_jax.preview import samples


class Parsed(HTMLParser):
    """The pictures, the captions and the links of a page."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.links, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "img":
            self.pictures.append(found)
        self.links += [found[key] for key in ("src", "href") if found.get(key)]

    def handle_data(self, data):
        self.text.append(data)


def picture(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.fixture
def preview(call, make_tree, tmp_path):
    """Returns preview(*overrides, root=...) -> (Outcome, page) of a drawn data set."""

    def preview(*overrides, root=None, num_train=12):
        root = root or make_tree("folder", num_train=num_train)
        output = tmp_path / "page.html"
        changes = ["model.num_classes=4", "data.crop_size=64,96", "data.resize_base=97,65",
                   "train.batch_size=5", f"data.root={root}", *overrides]  # fmt: skip
        changes = [f"--config.{change}" for change in changes]
        outcome = call("preview", "--config", "voc_r50_os16", "--config.data.dataset=folder",
                       "--config.data.train_split=train", "--config.data.num_workers=0",
                       "--config.train.loss_groups=1", "--output", output, *changes)  # fmt: skip
        return outcome, output.read_text() if output.exists() else ""

    return preview


def test_page_shows_the_samples_that_a_run_sees(preview):
    names = "scale,crop,rotate(degrees=90,chance=1),copy_paste(classes=[3],chance=1)"
    outcome, page = preview(f"data.transforms={names}")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"^results: .*page\.html\nnext: deeplab train --config voc_r50_os16 ",
                     outcome.out, re.M)  # fmt: skip
    found = Parsed(page)
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert len(found.pictures) == 4 * 24  # photograph and classes, before and after
    text = "".join(found.text)
    for part in ("The first 24 samples that a run with seed 0 sees, of 12 in folder/train",
                 "64 x 96 pixels", "degrees=90, chance=1", "classes=[3], chance=1",
                 "0 class_0", "3 class_3", "step 1: 97 x 65 to 64 x 96"):  # fmt: skip
        assert part in text
    before, over, after, classes = found.pictures[:4]
    sizes = [picture(part["src"]).size for part in (before, over, after, classes)]
    assert sizes == [(65, 97)] * 2 + [(96, 64)] * 2
    for part in (over, classes):
        layer = picture(part["src"]).convert("RGBA")
        assert {0, 255} == set(np.unique(np.array(layer)[..., 3]))  # void is not painted
    outline = np.array(picture(after["src"]))
    is_void = np.array(picture(classes["src"]).convert("RGBA"))[..., 3] == 0
    assert outline[is_void].min() < 40
    assert outline[is_void].max() > 215


def test_samples_are_those_of_the_first_steps(make_tree, narrow_config):
    config = narrow_config("model.num_classes=4", f"data.root={make_tree('folder')}",
                           "data.crop_size=64,96", "train.batch_size=5", "seed=7")  # fmt: skip
    for names in ("", "scale,crop,photometric,erase"):
        config = apply_overrides(config, [f"--config.data.transforms={names}"])
        data = config.data
        shown = samples.gather(config).pairs
        dataset = open_dataset(data, 4, "train")
        batches = train_batches(
            dataset, seed=7, batch_size=5, steps_per_epoch=2, start=0, stop=5, rows=range(5),
            crop_size=data.crop_size, resize_base=data.resize_base, scale_range=data.scale_range,
            num_workers=0, names=data.transforms,
        )  # fmt: skip
        rows = [row for batch in batches for row in zip(*batch, strict=True)][:24]
        assert len(shown) == len(rows) == 24
        for pair, (index, image, label, box) in zip(shown, rows, strict=True):
            assert pair.name == dataset.ids[index]
            np.testing.assert_array_equal(pair.after[0], image)
            np.testing.assert_array_equal(pair.after[1], label)
            np.testing.assert_array_equal(pair.box, box)
    assert [pair.step for pair in shown] == [1 + k // 5 for k in range(24)]


def test_samples_that_cannot_be_read_are_named(preview, make_tree):
    root = make_tree("folder", num_train=5)
    broken = sorted((root / "labels" / "train").iterdir())
    broken[0].write_bytes(b"nonsense")
    outcome, page = preview(root=root)
    assert outcome.code == 0
    assert outcome.out.count(f"warning: {broken[0]}: looks like text, not an image") == 1
    assert f"{broken[0].stem} cannot be shown: {broken[0]}: looks like text" in page
    assert len(Parsed(page).pictures) < 4 * 24
    for path in broken:
        path.write_bytes(b"nonsense")
    outcome, _ = preview(root=root)
    assert (outcome.code, outcome.err.count("\n")) == (3, 1)
    assert "see all: deeplab doctor --config voc_r50_os16 " in outcome.err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["data.transforms=flp"], "there is no transform 'flp' - did you mean flip?"),
        (["data.transforms=copy_paste(classes=['clas_1'])"], "did you mean class_1?"),
        (["data.transforms=nowhere_:f"], "there is no module nowhere_ in "),
    ],
)
def test_wrong_transforms_are_one_line(preview, changes, told):
    outcome, page = preview(*changes)
    assert (outcome.code, outcome.err.count("\n"), page) == (2, 1, "")
    assert told in outcome.err


def test_place_that_cannot_be_written_is_told_before_the_work(call, tmp_path):
    output = tmp_path / "missing" / "page.html"
    outcome = call("preview", "--config", "nowhere", "--output", output)
    assert outcome.code == 5
    assert "choose another --output, or create its folder" in outcome.err


@pytest.mark.process("another process, whose imports are seen")
def test_no_jax_is_loaded():
    code = "import sys; from deeplab_jax.preview import page; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
