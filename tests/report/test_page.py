import base64
import importlib.util
import io
import json
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from deeplab_jax import checkpoint, cli, config
from deeplab_jax.data.classes import colormap
from deeplab_jax.errors import ConfigError
from deeplab_jax.evaluation import metrics, summary
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.report import colors, page, pictures, plots, reading, write
from deeplab_jax.report.html import Html, tag

ROOT = Path(__file__).parents[2]
NASTY = ("<script>alert(1)</script>", "a\"b'&c", "</script>", "wall; plant life", "$title {x} \\")
ELEMENTS_WITHOUT_END = ("meta", "link", "img", "input", "br")

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
browser_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser_module)


def counts(pairs, num_classes):
    """Returns (confusion, areas of each image)."""
    each = []
    for truth, prediction in pairs:
        cell = (num_classes * truth.astype(int) + prediction)[truth != 255]
        each.append(np.bincount(cell, minlength=num_classes**2).reshape(num_classes, -1))
    return np.sum(each, 0), np.stack([metrics.areas_of(matrix) for matrix in each])


def evaluation(confusion, areas, ids, names, run_config):
    """Returns what `evaluate` writes."""
    scores = summary.summarize(confusion, areas, ids, names)
    where = {"checkpoint": "runs/x", "step": 7, "dataset": "folder", "split": "val"}
    how = {"overrides": [], "config": run_config.to_dict(), "protocol": "whole image"}
    rest = {"num_images": len(ids), "environment": summary.environment()}
    return json.loads(json.dumps({**where, **how, **scores, **rest}))


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


def make_facts(num_classes=5, size=(40, 56)):
    """Returns what a page shows, with names that want to be markup."""
    dataset = FakeDataset(num_classes, size)
    names = [*NASTY, *(f"class number {i}" for i in range(num_classes))][:num_classes]
    c = config.get_config("folder", depth=18)
    with c.unlocked():
        c.name = "<b>name</b>"
        c.model.num_classes = num_classes
    result = evaluation(*counts(dataset.pairs(), num_classes), dataset.ids, names, c)
    samples = list(pictures.draw_samples(result, dataset, dataset.predict))
    log = {
        "train": {"loss": [(10.0 * i, 2 / (i + 1)) for i in range(900)], "lr": [(10.0, 0.1)]},
        "eval": {"mean_iou": [(100.0, 0.2), (200.0, 0.4)]},
    }
    return page.Facts(result, c, log, colormap(num_classes), pictures.embed(samples), ["a <note>"])


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


@pytest.fixture(scope="module")
def facts():
    return make_facts()


@pytest.fixture(scope="module")
def html(facts):
    return page.build(facts)


def test_markup_is_escaped_unless_it_is_markup():
    inner = tag("b", 'a<"', title='"><i>', hidden=False, id=None, open=True)
    assert inner == '<b title="&quot;&gt;&lt;i&gt;" open>a&lt;&quot;</b>'
    assert tag("p", inner, "<br>", Html("<br>")) == f"<p>{inner}&lt;br&gt;<br></p>"
    assert tag("img", aria_label="x", class_="y") == '<img aria-label="x" class="y">'


def test_names_never_become_markup(html, facts):
    got = Parsed(html)
    assert len(got.of("script")) == 2
    assert not [e for e in got.elements if "onerror" in e[1] or e[1].get("src") == "x"]
    for name in (*NASTY, facts.config.name, "a <note>"):
        assert name in got.text
    assert facts.result["images"][0]["id"] in got.text
    assert html.count("<h1>") == 1


def test_page_needs_nothing_but_itself(html):
    got = Parsed(html)
    links = [
        value
        for _, attributes in got.elements
        for key, value in attributes.items()
        if key in ("src", "href", "data", "action", "srcset", "poster")
    ]
    assert links
    assert not [link for link in links if not link.startswith(("data:", "#"))]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)|fetch\(|XMLHttp", html)
    (policy,) = got.of("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]


def test_page_is_described_for_screen_readers(html, facts):
    got = Parsed(html)
    assert got.of("html", lang="en")
    assert all(image["alt"] for image in got.of("img"))
    assert all(canvas["aria-label"] for canvas in got.of("canvas"))
    plots_ = [svg for svg in got.of("svg") if svg.get("aria-hidden") != "true"]
    assert len(plots_) == 3
    assert "2 at step 0" in plots_[0]["aria-label"]
    assert got.of("input", id="layer")[0]["aria-label"]
    ids = {attributes.get("id") for _, attributes in got.elements}
    assert all(link["href"][1:] in ids for link in got.of("a"))


def test_embedded_pictures_hold_the_classes_themselves(html, facts):
    figures = Parsed(html).of("figure", class_="sample")
    assert len(figures) == 12
    for figure, picture in zip(figures, facts.pictures, strict=True):
        for kind in ("truth", "prediction"):
            data = base64.b64decode(figure[f"data-{kind}"].removeprefix("data:image/png;base64,"))
            labels = np.asarray(Image.open(io.BytesIO(data)))
            np.testing.assert_array_equal(labels, getattr(picture.sample, kind))


def test_worst_and_best_images_are_in_order_and_none_is_twice(facts):
    samples = [picture.sample for picture in facts.pictures]
    assert len({sample.name for sample in samples}) == 12
    assert [sample.is_worst for sample in samples] == [True] * 6 + [False] * 6
    scores = [sample.mean_iou for sample in samples]
    assert scores[:6] == sorted(scores[:6])
    assert scores[6:] == sorted(scores[6:], reverse=True)
    assert scores[5] < scores[11]
    assert all(sample.is_as_evaluated() for sample in samples)
    other = samples[0]._replace(prediction=samples[0].truth)
    assert not other.is_as_evaluated()


def test_pictures_are_bounded_whatever_they_show():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 150, (900, 1200)).astype(np.uint8)
    image = rng.integers(0, 256, (900, 1200, 3)).astype(np.uint8)
    sample = pictures.Sample("x", 0.5, True, image, noise, noise)
    embedded = pictures.embed([sample] * 12)
    assert 1e6 < sum(picture.size for picture in embedded) <= pictures.MAX_BYTES


def test_reading_help_says_what_fails_where_and_how_sure():
    # Class 1: 40 of 100 pixels found, 50 taken for class 2; class 3 is said, never true.
    confusion = np.array([[890, 0, 10, 0], [5, 40, 50, 5], [0, 0, 500, 0], [0, 0, 0, 0]])
    first = np.array([[490, 0, 0, 0], [0, 40, 0, 0], [0, 0, 250, 0], [0, 0, 0, 0]])
    areas = np.stack([metrics.areas_of(first), metrics.areas_of(confusion - first)])
    c = config.get_config("folder")
    result = evaluation(confusion, areas, ("good", "bad"), ("a", "b", "c", "d"), c)
    text = reading.reading_help(result).replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith(
        "Worst class: b (40.0 % IoU, 6.67 % of pixels), mostly taken for c (50.0 % of its pixels); "
        "most wrong pixels in bad. Predicted, not in the truth, and so counted as 0 %: d. "
        "Worst image: bad ("
    )
    assert re.search(r"expect a mean IoU from \d+\.\d % to 100\.0 % \(95 % interval\)\.$", text)
    first = reading.confusions(result["confusion"])[0]
    assert first == (1, 2, 50, 0.5, 50 / 70)


def test_reading_help_tells_false_alarms_from_misses():
    confusion = np.array([[60, 40], [0, 10]])  # class 1 is found, and said four times too often
    areas = metrics.areas_of(confusion)[None]
    result = evaluation(confusion, areas, ("x",), ("a", "b"), config.get_config("folder"))
    text = reading.reading_help(result).replace("\N{NO-BREAK SPACE}", " ")
    assert "b (20.0 % IoU, 9.09 % of pixels), mostly said where a is (80.0 % of what is" in text
    assert "interval" not in text  # of one image


@pytest.mark.parametrize("confusion", [np.zeros((2, 2), int), np.diag([3, 4])])
def test_nothing_and_perfection_make_a_page(confusion):
    areas = metrics.areas_of(confusion)[None]
    result = evaluation(confusion, areas, ("x",), ("a", "b"), config.get_config("folder"))
    text = page.build(page.Facts(result, config.get_config("folder"), reading.read_log(Path("no")),
                                 colormap(2), (), ["No pictures."]))  # fmt: skip
    assert "There is no log" in text
    assert ("Every class is found" in text) == bool(confusion.any())


def test_many_classes_show_confusions_instead_of_a_matrix():
    few, many = (page.build(make_facts(n, (40, 8))) for n in (30, 31))
    assert Parsed(few).of("table", class_="matrix")
    assert not Parsed(many).of("table", class_="matrix")
    assert "Most pixels lost" in many


def test_departures_are_from_the_row_of_the_table():
    c = config.get_config("ade20k", 50, 16)
    c.train.lr = 0.02
    name, changed = reading.departures(c)
    assert (
        name == "the table's recipe (published mean IoU 43.21 %) for ade20k, R-50, output stride 16"
    )
    assert changed == [("train.lr", 0.01, 0.02)]


def test_log_of_a_killed_run_is_read(tmp_path):
    lines = [
        '{"event": "train", "step": 10, "loss": 2.5, "lr": NaN}',
        '{"event": "eval", "step": 10, "mean_iou": 0.5, "iou": [0.5]}',
        '{"event": "end"}',
        "[]",
        '{"event": "tr',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    log = reading.read_log(tmp_path / "log.jsonl")
    assert log == {"train": {"loss": [(10, 2.5)]}, "eval": {"mean_iou": [(10, 0.5)]}}


@pytest.mark.parametrize("points", [[(5.0, 1.0)], [(1.0, 0.0), (2.0, 0.0)], [(1, -3), (9, 1e9)]])
def test_any_line_is_drawn_within_its_frame(points):
    text = plots.line_plot("x", [plots.Series(points, "strong")])
    numbers = re.findall(r'(?:c?[xy][12]?)="(-?[\d.]+)"', text)
    assert all(0 <= float(number) <= 400 for number in numbers)
    assert "nan" not in text


@pytest.mark.parametrize(("count", "least"), [(8, 0.07), (19, 0.07), (150, 0.014)])
def test_safe_colours_stay_apart_for_colour_blind_eyes(count, least):
    seen = colors.as_seen(colors.safe_palette(count))
    apart = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=-1).min(0)
    assert apart[~np.eye(count, dtype=bool)].min() > least


@pytest.fixture
def call(capsys):
    """Returns call(*argv) -> (exit code, standard output, standard error)."""

    def call(*argv):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in argv])
        return end.value.code, *capsys.readouterr()

    return call


def test_without_an_evaluation_the_report_asks_for_one(call, tmp_path):
    code, out, err = call("report", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"run deeplab evaluate --checkpoint {tmp_path} first" in err
    (tmp_path / "evaluation.json").write_text('{"mean_iou": 0.5}')
    with pytest.raises(ConfigError, match="again"):
        write.read_evaluation(tmp_path / "evaluation.json")


def _set(*path_and_value):
    """Returns a function that sets a value somewhere in a tree."""
    *path, leaf, value = path_and_value

    def damage(result):
        for key in path:
            result = result[key]
        result[leaf] = value

    return damage


DAMAGES = [
    (lambda r: r.pop("mean_iou"), "mean_iou is missing"),
    (_set("images", [{"id": "s00"}]), "images[0].mean_iou is missing"),
    (_set("images", [{"id": 3, "mean_iou": 0.5}]), "images[0].id is not a text"),
    (lambda r: r["images"].pop(), "images has 13 entries, num_images is 14"),
    (_set("environment", {}), "environment.device is missing"),
    (_set("environment", "packages", {"jax": 1}), "environment.packages is not an object of texts"),
    (_set("iou", ["x"] * 5), "iou is not a list of numbers from 0 to 1 or null"),
    (_set("iou", 0, True), "iou is not a list of"),
    (_set("iou", 0, float("nan")), "iou is not a list of"),
    (_set("iou", 0, None), "iou is not what confusion makes it"),
    (_set("frequency", 0, 0.5), "frequency is not what confusion makes it"),
    (lambda r: r["frequency"].pop(), "class_names has 5 entries, frequency has 4"),
    (lambda r: r["iou"].pop(), "class_names has 5 entries, iou has 4"),
    (_set("class_names", ["a", "b"]), "class_names has 2 entries, iou has 5"),
    (_set("class_names", []), "class_names is not a list of texts"),
    (lambda r: r["confusion"].pop(), "class_names has 5 entries, confusion has 4"),
    (lambda r: r["confusion"][1].pop(), "confusion is not 5 x 5"),
    (_set("confusion", 0, 0, -1), "confusion is not a list of lists of whole numbers from 0"),
    (_set("confusion", 0, 0, 10**30), "confusion has more pixels than can be counted"),
    (_set("mean_iou_interval", "low", "x"), "mean_iou_interval.low is not a number from 0 to 1"),
    (_set("step", "latest"), "step is not a whole number from 0"),
    (_set("overrides", [1]), "overrides is not a list of texts"),
    (_set("config", "train", "lr", "x"), "config: "),
]


@pytest.mark.parametrize(("damage", "what"), DAMAGES)
def test_damaged_evaluation_is_refused_in_one_line(call, facts, tmp_path, damage, what):
    result = json.loads(json.dumps(facts.result))
    damage(result)
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    code, out, err = call("report", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'evaluation.json'}: is not what evaluate writes ({what}" in err
    assert f"run deeplab evaluate --checkpoint {tmp_path} again" in err
    assert not (tmp_path / "report.html").exists()


def test_no_field_of_an_evaluation_may_be_missing_or_null_but_scores(facts, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(facts.result))
    assert write.read_evaluation(path) == facts.result
    for name in facts.result:
        rest = {key: value for key, value in facts.result.items() if key != name}
        path.write_text(json.dumps(rest))
        with pytest.raises(ConfigError, match=rf"\({name} is missing\) - run deeplab evaluate"):
            write.read_evaluation(path)
        path.write_text(json.dumps(rest | {name: None}))
        if isinstance(facts.result[name], float):
            write.read_evaluation(path)
        else:
            with pytest.raises(ConfigError, match=rf"\({name} is not a.*\) - run deeplab evaluate"):
                write.read_evaluation(path)


def test_names_that_no_file_can_hold_are_replaced(call, facts, tmp_path):
    names = ["a\ud800", *facts.result["class_names"][1:]]
    (tmp_path / "evaluation.json").write_text(json.dumps(facts.result | {"class_names": names}))
    assert call("report", tmp_path)[0] == 0
    assert "a?" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize("text", [b"\xff\xfe{", b"[]", b"3", b"{", b"[" * 100000])
def test_evaluation_that_is_no_object_is_refused(tmp_path, text):
    path = tmp_path / "evaluation.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"is not what evaluate writes .* again"):
        write.read_evaluation(path)


@pytest.mark.parametrize("confusion", [np.zeros((3, 3), int), np.diag([3, 0, 4]), np.eye(1)])
def test_undefined_scores_are_what_evaluate_writes(tmp_path, confusion):
    areas = metrics.areas_of(confusion.astype(np.int64))[None]
    names = "abc"[: len(confusion)]
    run_config = config.get_config("folder")
    result = evaluation(confusion.astype(np.int64), areas, ("x",), names, run_config)
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    assert write.read_evaluation(tmp_path / "evaluation.json") == result


@pytest.mark.parametrize(
    ("output", "what"),
    [("missing/x.html", "x.html: there is no folder "), ("folder", "folder: is a folder")],
)
def test_report_refuses_a_place_before_the_work(call, facts, tmp_path, output, what):
    (tmp_path / "folder").mkdir()
    (tmp_path / "evaluation.json").write_text(json.dumps(facts.result))
    code, out, err = call("report", tmp_path, "--output", tmp_path / output)
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert what in err
    assert "--output" in err
    assert ".tmp" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "evaluation.json"}


def test_without_a_checkpoint_the_report_has_no_pictures_and_says_so(call, facts, tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(facts.result))
    code, out, err = call("report", tmp_path)
    assert (code, err) == (0, "")
    assert "0 pictures" in out
    text = Parsed((tmp_path / "report.html").read_text("utf-8")).text
    assert f"No pictures: {tmp_path}: " in text
    assert "Worst class" in text


@pytest.fixture
def run(make_tree, tmp_path):
    """A work directory with step 7 of a tiny network, and a log."""
    c = config.get_config("folder", depth=18, output_stride=16)
    c.model.num_classes, c.model.atrous_rates = 4, (1, 2, 3)
    c.model.width, c.model.head_channels = 8, 16
    c.model.low_level_channels, c.model.aux_channels = 4, 8
    c.data.root = str(make_tree("folder", num_train=1, num_val=3, num_classes=4))
    names = tuple(f"class_{i}" for i in range(4))
    info = checkpoint.Info(kind="run", config=c, class_names=names, palette=colormap(4))
    shapes = jax.eval_shape(lambda: init_variables(build_model(c.model), 0))
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(shapes)
    drawn = [rng.uniform(0, 1, leaf.shape).astype(np.float32) for leaf in leaves]
    with checkpoint.Saver(tmp_path) as saver:
        saver.save(7, jax.tree.unflatten(structure, drawn), info)
    (tmp_path / "log.jsonl").write_text('{"event": "train", "step": 7, "loss": 2.5}\n')
    return tmp_path


def test_evaluate_writes_the_report_and_report_writes_it_again(call, run):
    code, out, err = call("evaluate", "--checkpoint", run, "--config.eval.resize_base=80,64")
    assert (code, err) == (0, "")
    assert f"report: {run / 'report.html'} " in out
    first = Parsed((run / "report.html").read_text("utf-8"))
    assert len(first.of("canvas")) == 3
    assert "Training loss" in first.text
    assert "score otherwise" not in first.text
    assert "eval.resize_base(80, 64)" in first.text

    assert call("report", run, "--output", run / "again.html")[0] == 0
    again = Parsed((run / "again.html").read_text("utf-8"))
    assert again.elements == first.elements  # predictions included
    code, _, _ = call("report", run, "--config.data.root=nowhere")
    assert code == 0
    text = Parsed((run / "report.html").read_text("utf-8")).text
    assert "No pictures: nowhere" in text
    assert "Training loss" in text

    result = json.loads((run / "evaluation.json").read_text())
    assert result["protocol"] in text
    assert {image["id"] for image in result["images"]} == {"000", "001", "002"}
    scores = [image["mean_iou"] for image in result["images"]]
    assert scores == sorted(scores)
    assert result["mean_iou_interval"]["low"] <= result["mean_iou"]
    assert result["environment"]["packages"]["jax"] == jax.__version__


def test_wheel_holds_the_page(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    for name in ("pyproject.toml", "README.md", "LICENSE", "deeplab_jax", "convert"):
        (tmp_path / name).symlink_to(ROOT / name)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("deeplab_jax/report/")}
    folder = ROOT / "deeplab_jax" / "report"
    expected = {f"deeplab_jax/report/{path.name}" for path in folder.iterdir() if path.is_file()}
    assert names == expected


# In a browser


@pytest.fixture(scope="module")
def browser():
    if browser_module.find_browser() is None:
        pytest.skip("no Chromium here")
    with browser_module.Browser() as opened:
        yield opened


@pytest.fixture
def shown(browser, html, tmp_path):
    """The browser with the page, all drawn."""
    (tmp_path / "report.html").write_text(html, "utf-8")
    browser.problems.clear()
    browser.resize(1280)
    browser.open(tmp_path / "report.html")
    browser.wait("document.body.dataset.ready === 'true'")
    return browser


CANVAS = "document.querySelector('.sample canvas').toDataURL()"
FOCUS = "(e => e.id || e.dataset.layer || e.dataset.class || e.tagName)(document.activeElement)"


def test_browser_says_nothing_and_asks_no_network(shown):
    for width in (1280, 390):
        shown.resize(width)
        shown.js("document.querySelectorAll('button, summary, #safe').forEach(b => b.click())")
    shown.dark()
    shown.dark(False)
    assert shown.problems == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("num_classes", [5, 30, 60])
def test_page_never_scrolls_sideways(browser, tmp_path, width, num_classes):
    (tmp_path / "report.html").write_text(page.build(make_facts(num_classes)), "utf-8")
    browser.resize(width)
    browser.open(tmp_path / "report.html")
    browser.wait("document.body.dataset.ready === 'true'")
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.js("document.documentElement.scrollWidth") == width


def test_everything_is_reached_by_keyboard_and_shows_it(shown):
    order = []
    for _ in range(40):
        shown.press("Tab")
        order.append(shown.js(FOCUS))
        if order[-1] == "BODY":
            break
        assert shown.js("getComputedStyle(document.activeElement).outlineStyle") != "none"
    links = ["A"] * 6
    pictures_ = ["layer", "0", "1", "2", "3", "safe", "0", "1", "2", "3", "4"]
    assert order[:18] == [*links, "DIV", *pictures_]  # DIV: a table that may scroll
    assert order[18:22] == ["DIV", "DIV", "DIV", "SUMMARY"]


def test_class_is_isolated_by_click_and_by_keyboard(shown):
    before = shown.js(CANVAS)
    shown.js("document.querySelector('#legend [data-class=\"2\"]').click()")
    alone = shown.js(CANVAS)
    assert alone != before
    shown.js("document.querySelector('#legend [data-class=\"3\"]').focus()")
    shown.press(" ")
    other = shown.js(CANVAS)
    assert other not in (before, alone)
    pressed = (
        "[...document.querySelectorAll('#legend [aria-pressed=true]')].map(b => b.dataset.class)"
    )
    assert shown.js(pressed) == ["3"]
    shown.press("Enter")  # again: all classes
    assert shown.js(CANVAS) == before
    shown.press("Enter")
    shown.press("Escape")
    assert shown.js(CANVAS) == before


def test_slider_and_palette_change_what_is_drawn(shown):
    seen = [shown.js(CANVAS)]
    shown.js("document.getElementById('layer').focus()")
    for _ in range(25):
        shown.press("ArrowLeft")
    words = shown.js("document.getElementById('layer').getAttribute('aria-valuetext')")
    assert words == "50 % prediction, else truth"
    seen.append(shown.js(CANVAS))
    shown.js("document.querySelector('[data-layer=\"3\"]').click()")
    seen.append(shown.js(CANVAS))
    shown.js("document.querySelector('[data-layer=\"2\"]').click()")
    assert shown.js(CANVAS) == seen[0]
    shown.js("document.getElementById('safe').click()")
    seen.append(shown.js(CANVAS))
    assert len(set(seen)) == 4


def test_canvas_shows_each_pixels_class(shown, facts):
    """An isolated class covers nine tenths of its pixels' colour; others are grey."""
    shown.js("document.querySelector('[data-layer=\"1\"]').click()")
    shown.js("document.querySelector('#legend [data-class=\"2\"]').click()")
    canvas = "document.querySelector('.sample canvas')"
    context = f"{canvas}.getContext('2d').getImageData(0, 0, {canvas}.width, {canvas}.height)"
    drawn = np.array(shown.js(f"[...{context}.data]"), int)
    truth = facts.pictures[0].sample.truth
    drawn = drawn.reshape(*truth.shape, 4)[..., :3]
    is_class = truth == 2
    assert is_class.any()
    color = facts.palette[2].astype(int)
    assert (abs(drawn[is_class] - color) <= 0.1 * 255 + 1).all()
    others = drawn[~is_class]
    assert (others == others[:, :1]).all()
