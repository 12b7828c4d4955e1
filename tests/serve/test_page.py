"""The page in a headless Chromium, with a camera that shows a test picture."""

import json

import cv2
import numpy as np
import pytest

WIDTHS = (390, 1280)
CAMERA = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
READY = "document.body.dataset.ready === 'true'"
DONE = "document.getElementById('status').textContent.startsWith('Done')"
FAILED = "!document.getElementById('error').hidden"


@pytest.fixture(scope="module")
def browser(load_script):
    module = load_script("browser", "tests/report")
    if module.find_browser() is None:
        pytest.skip("no Chromium here")
    with module.Browser(flags=CAMERA) as opened:
        yield opened


@pytest.fixture
def page(browser, served):
    browser.problems.clear()
    browser.open(f"{served.url}/")
    browser.wait(READY)
    return browser


def segment(page, served, tmp_path):
    """Gives the page an image; returns the mask that the server has for it."""
    path = served.run.images[0]
    page.give("#file", path)
    page.wait(DONE, 60)
    mask = served.predict(path.read_bytes()).body
    return cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_COLOR_RGB)


def pixels(page):
    """Returns the colours of the canvas, uint8 (H, W, 3)."""
    script = """(() => {
      const { width, height } = document.getElementById("canvas");
      const copy = new OffscreenCanvas(width, height);
      const context = copy.getContext("2d", { willReadFrequently: true });
      context.drawImage(document.getElementById("canvas"), 0, 0);
      return [height, ...context.getImageData(0, 0, width, height).data];
    })()"""
    height, *values = page.js(script)
    return np.array(values, np.uint8).reshape(height, -1, 4)[..., :3]


def slide(page, value):
    page.js(
        "(() => { const slider = document.getElementById('opacity');"
        f" slider.value = {value}; slider.dispatchEvent(new Event('input')); }})()"
    )


@pytest.mark.process("starts Chromium")
def test_overlay_legend_and_single_classes(page, served, tmp_path):
    names = page.js("[...document.querySelectorAll('#chips li')].map((e) => e.textContent)")
    assert names == list(served.run.validation.class_names)
    mask = segment(page, served, tmp_path)
    slide(page, 100)
    np.testing.assert_array_equal(pixels(page), mask)
    slide(page, 0)
    photo = cv2.imread(str(served.run.images[0]), cv2.IMREAD_COLOR_RGB)
    assert np.abs(pixels(page).astype(int) - photo).mean() < 2  # another decoder of JPEG
    slide(page, 100)

    summary = json.loads(served.predict(served.run.images[0].read_bytes(), "?format=json").body)
    shares = {c["name"]: c["share"] for c in summary["classes"] if c["share"]}
    rows = "[...document.querySelectorAll('#keys button')]"
    cells = "['.name', 'small'].map((name) => e.querySelector(name).textContent)"
    shown = page.js(f"{rows}.map((e) => {cells})")
    assert [name for name, _ in shown] == sorted(shares, key=shares.get, reverse=True)
    for name, text in shown:
        assert text in (f"{100 * shares[name] + 1e-9:.0f}\u00a0%", "<1\u00a0%")

    # By keyboard: the first class alone, the next, and all again.
    page.js("document.querySelector('#keys button').focus()")
    color = served.run.validation.palette[served.run.validation.class_names.index(shown[0][0])]
    page.press("Enter")
    assert page.js(f"{rows}.map((e) => e.ariaPressed)") == ["true"] + ["false"] * (len(shown) - 1)
    alone = (mask == color).all(-1)
    np.testing.assert_array_equal((pixels(page) == mask).all(-1) & alone, alone)
    assert (pixels(page)[~alone] != mask[~alone]).any(-1).mean() > 0.9
    page.press("Tab")
    page.press(" ")
    assert page.js(f"{rows}.map((e) => e.ariaPressed)")[:2] == ["false", "true"]
    page.press(" ")
    np.testing.assert_array_equal(pixels(page), mask)
    assert page.js("document.getElementById('canvas').ariaLabel").startswith("The picture under")
    assert page.js("document.getElementById('mask').href").startswith("blob:")
    assert page.problems == []


@pytest.mark.process("starts Chromium")
def test_errors_are_the_servers_words(page, served, tmp_path):
    bad = tmp_path / "<b>bad.jpg"
    bad.write_bytes(b"no picture")
    page.give("#file", bad)
    page.wait(FAILED)
    text = page.js("document.getElementById('error').textContent")
    assert text.startswith("<b>bad.jpg: looks like text, not an image")
    assert page.js("document.getElementById('error').getAttribute('role')") == "alert"
    segment(page, served, tmp_path)  # the next one works, and hides the error
    assert not page.js(FAILED)
    page.js(
        "(() => { const data = new DataTransfer();"
        " for (const name of ['a', 'b']) data.items.add(new File(['x'], name));"
        " document.dispatchEvent(new DragEvent('drop', { dataTransfer: data, cancelable: true }));"
        " })()"
    )
    page.wait(FAILED)
    assert "2 files at once" in page.js("document.getElementById('error').textContent")


@pytest.mark.process("starts Chromium")
def test_pictures_are_dropped_pasted_and_taken(page, served):
    page.js(
        "globalThis.give = async (kind) => {"
        " const canvas = document.createElement('canvas');"
        " canvas.width = 97; canvas.height = 65; canvas.getContext('2d').fillRect(0, 0, 50, 50);"
        " const blob = await new Promise((done) => canvas.toBlob(done));"
        " const data = new DataTransfer(); data.items.add(new File([blob], `${kind}.png`));"
        " document.dispatchEvent(kind === 'paste'"
        " ? new ClipboardEvent('paste', { clipboardData: data })"
        " : new DragEvent('drop', { dataTransfer: data, cancelable: true })); }"
    )
    for kind in ("drop", "paste"):
        page.js(f"give('{kind}')")
        page.wait(f"document.getElementById('caption').textContent.startsWith('{kind}.png')", 60)
    page.js("document.getElementById('camera').click()")
    page.wait("document.getElementById('video').videoWidth > 0")
    page.js("document.getElementById('take').click()")
    page.wait("document.getElementById('caption').textContent.startsWith('the camera')", 120)
    assert page.js("document.getElementById('shot').hidden")
    assert page.problems == []
    page.js(
        "Object.defineProperty(navigator, 'mediaDevices', { value: undefined });"
        "document.getElementById('camera').click()"
    )
    page.wait(FAILED)
    assert "http://localhost" in page.js("document.getElementById('error').textContent")


@pytest.mark.process("starts Chromium")
@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_and_is_readable(page, served, tmp_path, width):
    page.resize(width)
    for dark in (False, True):
        page.dark(dark)
        page.open(f"{served.url}/")
        page.wait(READY)
        segment(page, served, tmp_path)
        assert page.js("document.documentElement.scrollWidth") <= width
        small = page.js(
            "[...document.querySelectorAll('button, .button')]"
            ".filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 32).length"
        )
        assert small == 0
        gap = "document.querySelector('footer').getBoundingClientRect().top"
        gap += " - document.getElementById('result').getBoundingClientRect().bottom"
        assert page.js(gap) >= 24
        names = page.js(
            "[...document.querySelectorAll('button, a, input, canvas')]"
            ".filter((e) => e.checkVisibility())"
            ".map((e) => e.ariaLabel || e.labels?.[0]?.textContent || e.textContent)"
        )
        assert all(names)
        page.open(f"{served.url}/docs")
        assert page.js("document.documentElement.scrollWidth") <= width
    page.dark(False)
    page.resize(1280)
