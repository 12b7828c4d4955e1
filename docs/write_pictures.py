"""Writes docs/quickstart.jpg, docs/report.png and docs/serve.png from a run of the quick start.

    deeplab demo
    python docs/write_pictures.py runs/demo/run

The run has been evaluated, so that its `report.html` is there. Screenshots need Chromium.
"""

import importlib.util
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

import deeplab_jax
from deeplab_jax.data import open_dataset
from deeplab_jax.inference.overlay import Entry, add_legend
from deeplab_jax.serve.limits import Limits
from deeplab_jax.serve.listen import bind
from deeplab_jax.serve.run import Server

ROOT = Path(__file__).resolve().parents[1]
_TILE, _GAP = (320, 256), 8  # (width, height) and space between, pixels
_ROWS = 3
_VIEW = (1100, 1000)  # (width, height) of a screenshot, pixels
_SERVED = (960, 790)


def main() -> None:
    """Writes the pictures."""
    [run] = map(Path, sys.argv[1:])
    draw_examples(run).save(ROOT / "docs" / "quickstart.jpg", quality=88)
    shoot_report(run / "report.html", ROOT / "docs" / "report.png")
    shoot_server(run, ROOT / "docs" / "serve.png")


def draw_examples(run: Path) -> Image.Image:
    """Returns rows of image, truth (ignored pixels white), prediction and overlay, and a legend."""
    model = deeplab_jax.load(run)
    config = model.config
    dataset = open_dataset(config.data, config.model.num_classes, config.data.val_split)
    wide = (i for i in range(len(dataset)) if np.subtract(*dataset.read(i)[1].shape) < 0)
    samples = [dataset.read(i) for _, i in zip(range(_ROWS), wide, strict=False)]
    predictions = model([image for image, _ in samples])
    width, height = _TILE
    size = 4 * (width + _GAP) - _GAP, len(samples) * (height + _GAP) - _GAP
    sheet = Image.new("RGB", size, "white")
    colors = np.full((256, 3), 255, np.uint8)  # of ignored pixels
    colors[: len(model.palette)] = model.palette
    for row, ((image, truth), prediction) in enumerate(zip(samples, predictions, strict=True)):
        tiles = image, colors[truth], colors[prediction.labels], prediction.overlay()
        for column, tile in enumerate(tiles):
            is_sharp = column in (1, 2)
            resample = Image.Resampling.NEAREST if is_sharp else Image.Resampling.BICUBIC
            picture = tile if isinstance(tile, Image.Image) else Image.fromarray(tile)
            place = column * (width + _GAP), row * (height + _GAP)
            sheet.paste(picture.resize(_TILE, resample), place)
    labels = np.concatenate([prediction.labels.ravel() for prediction in predictions])
    shares = np.bincount(labels, minlength=len(model.palette)) / labels.size
    classes = zip(model.class_names, shares, model.palette.tolist(), strict=True)
    entries = [Entry(name, share, tuple(color)) for name, share, color in classes if share]
    return add_legend(sheet, entries)


def shoot_report(page: Path, output: Path) -> None:
    """Writes a screenshot of the top of a report, the pictures half prediction and half errors."""
    with _load_browser().Browser(*_VIEW) as browser:
        browser.dark(False)
        browser.open(page)
        browser.wait("document.body.dataset.ready === 'true'")
        slider = "document.getElementById('layer')"
        browser.js(f"{slider}.value = 2.5; {slider}.dispatchEvent(new Event('input'))")
        browser.screenshot(output)


def shoot_server(run: Path, output: Path) -> None:
    """Writes a screenshot of the page of `deeplab serve` with a segmented picture."""
    model = deeplab_jax.load(run)
    config = model.config
    dataset = open_dataset(config.data, config.model.num_classes, config.data.val_split)
    images = (dataset.read(index)[0] for index in range(len(dataset)))
    image = next(image for image in images if image.shape[0] < image.shape[1])
    server, listener = Server(model, Limits()), bind("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    is_ready = threading.Event()
    server.worker.start([(image.shape[0], image.shape[1])], is_ready.set)
    is_ready.wait()
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    with tempfile.TemporaryDirectory() as folder, _load_browser().Browser(*_SERVED) as browser:
        file = Path(folder, "shapes.png")
        Image.fromarray(image).save(file)
        browser.dark(False)
        browser.open(address)
        browser.give("#file", file)
        browser.wait("document.getElementById('status').textContent.startsWith('Done')")
        browser.screenshot(output)
    server.stop()
    thread.join()
    server.worker.stop()


def _load_browser() -> ModuleType:
    spec = importlib.util.spec_from_file_location("browser", ROOT / "tests/report/browser.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
