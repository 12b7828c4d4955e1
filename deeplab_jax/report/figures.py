"""Parts of a page that its script works on: pictures with their controls, swatches, palettes."""

import json
from collections.abc import Sequence
from importlib.resources import files

import numpy as np

from deeplab_jax.data.colors import safe_palette
from deeplab_jax.report.html import Html, Section, page, percent, tag
from deeplab_jax.report.pictures import Picture

_LAYERS = ("Image", "Truth", "Prediction", "Errors")
NO_SCRIPT = tag(
    "noscript",
    tag(
        "p", "Truth, prediction and errors are drawn by a script, which is off here.", class_="note"
    ),
)


def page_of(title: str, palette: np.ndarray, headline: Html, sections: Sequence[Section]) -> str:
    """Returns a page with the script that draws pictures; `palette` is uint8 (C, 3), RGB."""
    palettes = {"own": palette.tolist(), "safe": safe_palette(len(palette)).tolist()}
    script = files("deeplab_jax.report").joinpath("script.js").read_text("utf-8")
    data = tag("script", Html(json.dumps(palettes)), type="application/json", id="palettes")
    return page(title, headline, sections, end=f"{data}\n<script>\n{script}\n</script>")


def swatch(number: int) -> Html:
    """Returns a square in the colour of a class."""
    return tag("span", class_="swatch", data_class=number, aria_hidden="true")


def figure(picture: Picture) -> Html:
    """Returns a picture, whose layers the script draws."""
    name, score = picture.scored.name, percent(picture.scored.mean_iou)
    words = f"{name}, {score} mean IoU"
    image = tag("img", src=picture.image, alt=words)
    canvas = tag("canvas", role="img", aria_label=words, hidden=True)
    caption = tag("figcaption", tag("span", name), " ", tag("b", score))
    uris = {"data_truth": picture.truth, "data_prediction": picture.prediction}
    return tag("figure", image, canvas, caption, class_="sample", **uris)


def controls(
    pictures: Sequence[Picture],
    palette: np.ndarray,
    names: Sequence[str],
    iou: Sequence[float | None],
) -> Html:
    """Returns what chooses the layer and the class that all pictures show.

    Args:
      pictures: those of the page.
      palette: uint8 (C, 3), RGB.
      names: C names.
      iou: of each class.
    """
    buttons = [_button(name, data_layer=i) for i, name in enumerate(_LAYERS)]
    slider = tag("input", type="range", id="layer", min=0, max=3, step=0.02, value=2,
                 aria_label="Wipe from image over truth and prediction to errors")  # fmt: skip
    layers = tag("div", slider, tag("div", *buttons, class_="stops"), class_="layers")
    key = []
    if not np.array_equal(palette, safe_palette(len(palette))):
        box = tag("input", type="checkbox", id="safe")
        key.append(tag("label", box, "Colours safe for colour blindness"))
    key += [
        tag("span", tag("span", class_="swatch missed"), "wrong, or missed of the chosen class"),
        tag("span", tag("span", class_="swatch false"), "wrongly said to be the chosen class"),
    ]
    images = [picture.scored for picture in pictures]
    shown = set().union(*(np.unique(part) for x in images for part in (x.truth, x.prediction)))
    classes = [
        _button(swatch(c), names[c], " ", tag("small", percent(iou[c], 0)), data_class=c)
        for c in range(len(names))
        if c in shown
    ]
    legend = tag("div", *classes, class_="legend", id="legend", role="group",
                 aria_label="Classes; press one to see it alone")  # fmt: skip
    top = tag("div", layers, tag("div", *key, class_="key"), class_="row")
    return tag("div", top, legend, class_="controls")


def _button(*children: object, **data: object) -> Html:
    return tag("button", *children, type="button", **data, aria_pressed="false")
