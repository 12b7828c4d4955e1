import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.account import goodput
from deeplab_jax.config import freeze, get_config
from deeplab_jax.data.classes import colormap
from deeplab_jax.evaluation import metrics
from deeplab_jax.report import page
from deeplab_jax.training.log import read_log


def test_names_never_become_markup(html, content, parse):
    got = parse(html)
    assert len(got.of("script")) == 2
    assert not [e for e in got.elements if "onerror" in e[1] or e[1].get("src") == "x"]
    for name in (*content.evaluation["class_names"], content.config.name, "a <note>"):
        assert name in got.text
    assert content.evaluation["images"][0]["id"] in got.text
    assert html.count("<h1>") == 1


def test_page_needs_nothing_but_itself(html, parse):
    got = parse(html)
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


def test_page_tells_where_the_hours_went(content, parse):
    seconds = dict.fromkeys(goodput.NAMES, 0.0) | {"steps": 90.0, "lost work": 10.0}
    lines = [goodput.Line("stop", 200.0, 40, {"steps": 100.0})]
    process = goodput.Process(100.0, 4, {"kind": "cpu", "count": 1}, lines)
    account = goodput.Account(seconds, [process], [90.0], 0, 30, 10, 0.0)
    got = parse(page.build(content._replace(hours=page.Hours(account, 0.5, 1e12))))
    assert "lost work10.0 s10.0 %10 steps computed again after a kill" in got.text
    assert "model FLOP utilisation 50.00 % of 1 TFLOP/s a device" in got.text
    assert "tells the times" not in got.text
    assert "No log beside this evaluation tells the times" in parse(page.build(content)).text


def test_page_is_described_for_screen_readers(html, content, parse):
    got = parse(html)
    assert got.of("html", lang="en")
    assert all(image["alt"] for image in got.of("img"))
    assert all(canvas["aria-label"] for canvas in got.of("canvas"))
    plots_ = [svg for svg in got.of("svg") if svg.get("aria-hidden") != "true"]
    assert len(plots_) == 4
    assert plots_[0]["aria-label"].startswith("Reliability diagram")
    assert "2 at step 0" in plots_[1]["aria-label"]
    assert got.of("input", id="layer")[0]["aria-label"]
    ids = {attributes.get("id") for _, attributes in got.elements}
    assert all(link["href"][1:] in ids for link in got.of("a"))


def test_page_tells_calibration_boundaries_and_means(html, content, parse):
    text = parse(html).text.replace("\N{NO-BREAK SPACE}", " ")
    # 100 pixels: 33.3 % sure, 50 % right; 300 pixels: 100 % sure, 90 % right.
    assert "Expected calibration error 11.7 %" in text
    assert "overconfident by 3.3 % on average" in text
    assert "26.7 to 33.3 %25.00 %33.3 %50.0 %" in text
    means = content.evaluation["means"]
    for kind, name in (("macro", "macro"), ("weighted", "frequency-weighted")):
        f1 = 100 * means[kind]["f1"]
        assert re.search(rf"recall \d+\.\d %, F1 {f1:.1f} % \({name}\)", text)
    assert (
        f"Boundary IoU{100 * content.evaluation['boundary_iou']:.1f} %, mean over classes" in text
    )
    older = {k: v for k, v in content.evaluation.items() if k not in ("calibration", "means")}
    assert "holds no confidences" in page.build(content._replace(evaluation=older))


def test_page_says_where_an_interval_comes_from_few_images(html, content):
    note = '<p class="note">An interval from 14 images is too narrow: evaluate 50 or more.</p>'
    assert html.count(note) == 1
    enough = content._replace(evaluation=content.evaluation | {"num_images": 50})
    assert "narrow: evaluate" not in page.build(enough)


def test_embedded_pictures_hold_the_classes_themselves(html, content, parse):
    figures = parse(html).of("figure", class_="sample")
    assert len(figures) == 12
    for figure, picture in zip(figures, content.pictures, strict=True):
        for kind in ("truth", "prediction"):
            data = base64.b64decode(figure[f"data-{kind}"].removeprefix("data:image/png;base64,"))
            labels = np.asarray(Image.open(io.BytesIO(data)))
            np.testing.assert_array_equal(labels, getattr(picture.scored, kind))


@pytest.mark.parametrize("confusion", [np.zeros((2, 2), int), np.diag([3, 4])])
def test_nothing_and_perfection_make_a_page(make_evaluation, confusion):
    evaluation = make_evaluation(confusion, metrics.areas_of(confusion)[None], ("x",), ("a", "b"))
    config, log = freeze(get_config("folder")), read_log(Path("no"))
    text = page.build(page.PageContent(evaluation, config, log, colormap(2), (), ["No pictures."]))
    assert "There is no log" in text
    assert ("Every class is found" in text) == bool(confusion.any())


def test_many_classes_show_confusions_instead_of_a_matrix(make_content, parse):
    few, many = (page.build(make_content(n, (40, 8))) for n in (30, 31))
    assert parse(few).of("table", class_="matrix")
    assert not parse(many).of("table", class_="matrix")
    assert "Most pixels lost" in many
