"""Evaluations, pages with names that want to be markup, and a browser to see them."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from deeplab_jax.config import freeze, get_config, to_dict
from deeplab_jax.data.classes import colormap
from deeplab_jax.evaluation import metrics, summary
from deeplab_jax.report import page, pictures
from deeplab_jax.training.log import Log

NASTY = ("<script>alert(1)</script>", "a\"b'&c", "</script>", "wall; plant life", "$title {x} \\")
ELEMENTS_WITHOUT_END = ("meta", "link", "img", "input", "br")


def counts(pairs, num_classes):
    """Returns (confusion, areas of each image)."""
    each = []
    for truth, prediction in pairs:
        cell = (num_classes * truth.astype(int) + prediction)[truth != 255]
        each.append(np.bincount(cell, minlength=num_classes**2).reshape(num_classes, -1))
    return np.sum(each, 0), np.stack([metrics.areas_of(matrix) for matrix in each])


class FakeDataset:
    """What pictures need of a data set: 14 images, of which the first is flat grey."""

    def __init__(self, num_classes, size=(40, 56)):
        rng = np.random.default_rng(5)
        self.ids = tuple(f'{i:02d}"><img src=x onerror=alert(1)>' for i in range(14))
        self.samples, self.predictions = [], []
        for i in range(14):
            image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            image[..., 2] = i  # the same as its position: `predict` looks it up
            truth = np.repeat(rng.integers(0, num_classes, (size[0], 1)), size[1], 1)
            wrong = rng.random(truth.shape) < 0.05 * (i + 1)
            prediction = np.where(wrong, rng.integers(0, num_classes, truth.shape), truth)
            truth[:, :3] = 255
            self.samples.append((image, truth.astype(np.uint8)))
            self.predictions.append(prediction.astype(np.uint8))

    def read(self, index):
        return self.samples[index]

    def predict(self, image):
        return self.predictions[image[0, 0, 2]]

    def pairs(self):
        return [(truth, p) for (_, truth), p in zip(self.samples, self.predictions, strict=True)]


class Parsed(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in ELEMENTS_WITHOUT_END:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data

    def of(self, name, **attributes):
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [have for n, have in self.elements if n == name and wanted.items() <= have.items()]


@pytest.fixture(scope="session")
def make_evaluation():
    """Returns make_evaluation(confusion, areas, ids, names, config=...) -> evaluation.json."""

    def make(confusion, areas, ids, names, config=None):
        config = config or freeze(get_config("folder"))
        scores = summary.summarize(confusion, areas, ids, names)
        where = {"checkpoint": "runs/x", "step": 7, "dataset": "folder", "split": "val"}
        how = {"overrides": [], "config": to_dict(config), "protocol": "whole image"}
        near = np.minimum(areas.sum(0), 9)
        bins = np.zeros((15, 3), np.int64)
        bins[[4, 14]] = [[100, 50, 100 * 20480], [300, 270, 300 * 61440]]  # 5 in 15, 1
        scores |= summary.summarize_further(1.25, near, 0.02, bins)
        rest = {"num_images": len(ids), "environment": summary.environment()}
        return json.loads(json.dumps({**where, **how, **scores, **rest}))

    return make


@pytest.fixture(scope="session")
def make_content(make_evaluation):
    """Returns make_content(num_classes=5, size=(40, 56)) -> the content of a page."""

    def make(num_classes=5, size=(40, 56)):
        dataset = FakeDataset(num_classes, size)
        names = [*NASTY, *(f"class number {i}" for i in range(num_classes))][:num_classes]
        c = get_config("folder", depth=18)
        c.name, c.model.num_classes = "<b>name</b>", num_classes
        c = freeze(c)
        evaluation = make_evaluation(*counts(dataset.pairs(), num_classes), dataset.ids, names, c)
        images = list(pictures.worst_and_best(evaluation, dataset, dataset.predict))
        train = {"loss": [(10.0 * i, 2 / (i + 1)) for i in range(900)], "lr": [(10.0, 0.1)]}
        log = Log(train, {"mean_iou": [(100.0, 0.2), (200.0, 0.4)]})
        palette, embedded = colormap(num_classes), pictures.embed(images)
        return page.PageContent(evaluation, c, log, palette, embedded, ["a <note>"])

    return make


@pytest.fixture(scope="session")
def content(make_content):
    return make_content()


@pytest.fixture(scope="session")
def html(content):
    return page.build(content)


@pytest.fixture(scope="session")
def parse():
    """Returns parse(text) -> the elements and the text of a page."""
    return Parsed


@pytest.fixture(scope="session")
def browser(load_script):
    """A running headless Chromium."""
    module = load_script("browser", "tests/report")
    if module.find_browser() is None:
        pytest.skip("no Chromium here")
    with module.Browser() as opened:
        yield opened


@pytest.fixture
def evaluated(content, tmp_path):
    """A folder with an `evaluation.json`, and no checkpoint."""
    (tmp_path / "evaluation.json").write_text(json.dumps(content.evaluation))
    return tmp_path
