"""The page of `deeplab preview`: transforms, classes, and the samples, in the report's style."""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.config.transforms import NAMED, REFERENCE, Spec, parse_all
from deeplab_jax.data.augment.named import MEAN_COLOR
from deeplab_jax.preview.samples import NUMBER, Pair, Preview
from deeplab_jax.report.html import Html, Section, data_uri, join, page, percent, table, tag
from deeplab_jax.utils.atomic import atomic_write

_SIDE = 320  # longer side of a picture, pixels
_RING = np.ones((3, 3), np.uint8)


def write(output: Path, preview: Preview) -> None:
    """Writes the page, which loads no other file."""
    text = build(preview)
    with atomic_write(output) as file:
        file.write(text.encode("utf-8", "replace"))  # ids may hold half a surrogate pair


def build(preview: Preview) -> str:
    """Returns the page as HTML."""
    figures = tag("div", *(_figure(pair, preview) for pair in preview.pairs), class_="samples")
    samples = join([_layers(), figures])
    sections = [
        Section("transforms", "Transforms", "Transforms, in order", _transforms(preview)),
        Section("classes", "Classes", "Classes", _classes(preview)),
        Section("samples", "Samples", "Samples before and after", samples),
    ]
    title = f"{preview.config.name}: what the network will see"
    style = files("deeplab_jax.preview").joinpath("style.css").read_text("utf-8")
    return page(title, _headline(preview), sections, style)


def _layers() -> Html:
    """Returns what chooses between picture and classes, by rules of the style alone."""
    labels = (
        tag(
            "label",
            tag("input", type="radio", name_="layer", id=layer, checked=layer == "both"),
            f" {word}",
        )
        for layer, word in (("picture", "Picture"), ("both", "Both"), ("labels", "Classes"))
    )
    choice = tag("fieldset", *labels, aria_label="What is shown")
    return tag("div", choice, class_="controls")


def _headline(preview: Preview) -> Html:
    data, dataset = preview.config.data, preview.dataset
    size = " x ".join(map(str, data.crop_size))
    about = f"The first {NUMBER} samples that a run with seed {preview.config.seed} sees, of"
    about += f" {len(dataset)} in {dataset.name}/{dataset.split}; {size} pixels (height x width)"
    help_ = "Left a sample as it is on the disk, right as the network gets it. Pixels that the loss"
    help_ += " ignores have a black and white outline and no colour; padding is grey."
    notes = [
        tag("p", f"{name} cannot be shown: {fault}", class_="note")
        for name, fault in preview.faults.items()
    ]
    title = tag("h1", f"{preview.config.name}: what the network will see")
    return join([title, tag("p", about, class_="about"), tag("p", help_, class_="help"), *notes])


def _transforms(preview: Preview) -> Html:
    names = preview.config.data.transforms
    rows = [[spec.name, _values(spec), _text(spec)] for spec in parse_all(names or REFERENCE)]
    what = "As config.data.transforms lists them." if names else "The reference's."
    found = table(["Transform", "Values", "What it does"], rows, "Transforms in order", "wrap")
    return join([tag("p", what), found])


def _values(spec: Spec) -> str:
    return ", ".join(f"{key}={value}" for key, value in spec.values.items())


def _text(spec: Spec) -> str:
    return "a function of your own" if spec.is_function else NAMED[spec.name].text.replace("`", "")


def _classes(preview: Preview) -> Html:
    """Returns the legend, with the share of each class before and after."""
    before = _counts(pair.before[1] for pair in preview.pairs)
    after = _counts(pair.after[1] for pair in preview.pairs)
    count = len(preview.dataset.class_names)
    shares = [part[:count].sum(0) / max(1, part[:count].sum()) for part in (before, after)]
    rows: list[list[object]] = []
    for number, name in enumerate(preview.dataset.class_names):
        color = ",".join(map(str, preview.dataset.palette[number]))
        swatch = tag("span", class_="swatch", style=f"background:rgb({color})", aria_hidden="true")
        held = [str((part[:, number] > 0).sum()) for part in (before, after)]
        part = [percent(float(share[number]), 2) for share in shares]
        rows.append([join([swatch, f"{number} {name}"]), *part, *held])
    ignored = [part[:, IGNORE_INDEX] for part in (before, after)]
    totals = [max(1, part.sum()) for part in (before, after)]
    part = [percent(float(i.sum() / total), 2) for i, total in zip(ignored, totals, strict=True)]
    rows.append(["ignored, of all pixels", *part, *(str((i > 0).sum()) for i in ignored)])
    head = ["Class", "Of the labelled pixels before", "after", "In samples before", "after"]
    return table(head, rows, "Classes of these samples", "numbers")


def _counts(labels: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the pixels of each value, int64 (samples, 256)."""
    return np.array([np.bincount(label.ravel(), minlength=256) for label in labels])


def _figure(pair: Pair, preview: Preview) -> Html:
    image, label = pair.after
    top, left, bottom, right = pair.box
    shown = np.empty_like(image)
    shown[:] = MEAN_COLOR  # the device makes padding 0 after it has normalised
    shown[top:bottom, left:right] = image[top:bottom, left:right]
    panels = (
        _panel(*pair.before, preview, f"{pair.name} before"),
        _panel(shown, label, preview, f"{pair.name} after"),
    )
    sizes = [" x ".join(map(str, part.shape)) for part in (pair.before[1], label)]
    caption = f"{pair.name}, step {pair.step}: {sizes[0]} to {sizes[1]}"
    pictures = tag("div", *panels, class_="panels")
    return tag("figure", pictures, tag("figcaption", caption), class_="sample")


def _panel(image: np.ndarray, label: np.ndarray, preview: Preview, words: str) -> Html:
    """Returns a picture with outlined void, and its classes above it."""
    height, width = label.shape
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    void = (label == IGNORE_INDEX).astype(np.uint8)
    image[(cv2.dilate(void, _RING) != void)] = 255
    image[(cv2.erode(void, _RING) != void)] = 0
    classes = Image.fromarray(np.where(cv2.dilate(void, _RING), np.uint8(IGNORE_INDEX), label))
    # All 256 colours: Pillow drops the transparency of one that is not there.
    classes.putpalette(preview.dataset.palette.tobytes().ljust(3 * 256, b"\0"))
    photo = data_uri(Image.fromarray(image), "JPEG")
    over = data_uri(classes, "PNG", transparency=IGNORE_INDEX)
    pictures = tag("img", src=photo, alt=words), tag("img", src=over, alt="", class_="classes")
    return tag("div", *pictures, class_="panel")
