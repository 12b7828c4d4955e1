"""The page in a browser."""

import numpy as np
import pytest

from deeplab_jax.data.colors import safe_palette
from deeplab_jax.report import page

CANVAS = "document.querySelector('.sample canvas').toDataURL()"
FOCUS = "(e => e.id || e.dataset.layer || e.dataset.class || e.tagName)(document.activeElement)"


@pytest.fixture
def shown(browser, html, tmp_path):
    """The browser with the page, all drawn."""
    (tmp_path / "report.html").write_text(html, "utf-8")
    browser.problems.clear()
    browser.resize(1280)
    browser.open(tmp_path / "report.html")
    browser.wait("document.body.dataset.ready === 'true'")
    return browser


def test_browser_says_nothing_and_asks_no_network(shown):
    for width in (1280, 390):
        shown.resize(width)
        shown.js("document.querySelectorAll('button, summary, #safe').forEach(b => b.click())")
    shown.dark()
    shown.dark(False)
    assert shown.problems == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("num_classes", [5, 30, 60])
def test_page_never_scrolls_sideways(browser, make_content, tmp_path, width, num_classes):
    (tmp_path / "report.html").write_text(page.build(make_content(num_classes)), "utf-8")
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
    links = ["A"] * 8
    pictures_ = ["layer", "0", "1", "2", "3", "safe", "0", "1", "2", "3", "4"]
    assert order[:19] == [*links, *pictures_]
    assert order[19:25] == [*["DIV"] * 5, "SUMMARY"]  # DIV: a table that may scroll


@pytest.mark.parametrize(("width", "is_wide"), [(1280, False), (390, True)])
def test_table_of_classes_fills_the_page_and_says_that_it_scrolls(shown, width, is_wide):
    shown.resize(width)
    box = "document.querySelector('#classes .scroller')"
    hint = "getComputedStyle(document.querySelector('#classes .hint')).display !== 'none'"
    shown.wait(f"({hint}) === {str(is_wide).lower()}")
    assert shown.js(f"{box}.scrollWidth > {box}.clientWidth") == is_wide
    assert shown.js(f"{box}.querySelector('table').offsetWidth >= {box}.clientWidth")
    texts = shown.js("[...document.querySelectorAll('.hint')].map(hint => hint.textContent)")
    assert set(texts) == {"More columns: scroll sideways →"}


def test_default_colours_need_no_switch(browser, content, tmp_path):
    palette = safe_palette(len(content.palette))
    (tmp_path / "report.html").write_text(page.build(content._replace(palette=palette)), "utf-8")
    browser.problems.clear()
    browser.open(tmp_path / "report.html")
    browser.wait("document.body.dataset.ready === 'true'")
    assert browser.js("document.getElementById('safe')") is None
    assert browser.problems == []


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


def test_canvas_shows_each_pixels_class(shown, content):
    """An isolated class covers nine tenths of its pixels' colour; others are grey."""
    shown.js("document.querySelector('[data-layer=\"1\"]').click()")
    shown.js("document.querySelector('#legend [data-class=\"2\"]').click()")
    canvas = "document.querySelector('.sample canvas')"
    context = f"{canvas}.getContext('2d').getImageData(0, 0, {canvas}.width, {canvas}.height)"
    drawn = np.array(shown.js(f"[...{context}.data]"), int)
    truth = content.pictures[0].scored.truth
    drawn = drawn.reshape(*truth.shape, 4)[..., :3]
    is_class = truth == 2
    assert is_class.any()
    color = content.palette[2].astype(int)
    assert (abs(drawn[is_class] - color) <= 0.1 * 255 + 1).all()
    others = drawn[~is_class]
    assert (others == others[:, :1]).all()
