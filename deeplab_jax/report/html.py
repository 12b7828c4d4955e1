"""Building of markup: every child that is not `Html` is escaped; pictures become data URIs."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import NamedTuple

from PIL import Image

DASH = "\N{EN DASH}"  # in place of an undefined number
_VOID = ("br", "img", "input")


class Html(str):
    """Text that is markup."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Html:
    """Returns an element.

    In names of attributes "_" stands for "-", and a last "_" is dropped (`class_`). None and False
    leave an attribute out; True writes one without a value.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.removesuffix("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{escape(str(value))}"')
    parts.append(">")
    if name not in _VOID:
        parts += [join(children), f"</{name}>"]
    return Html("".join(parts))


def join(children: Iterable[object]) -> Html:
    """Returns the children's markup in a row."""
    return Html("".join(c if isinstance(c, Html) else escape(str(c)) for c in children))


class Section(NamedTuple):
    """A section of a page: its `id`, its name in the list of sections, its title, its content."""

    id: str
    name: str
    title: str
    content: Html


def page(
    title: str, headline: Html, sections: Sequence[Section], style: str = "", end: str = ""
) -> str:
    """Returns a page that loads no other file.

    Args:
      title: of the page, as text.
      headline: what stands above the sections.
      sections: in order.
      style: rules after those that all pages share.
      end: markup of scripts; without it none may run.
    """
    links = (Html(tag("a", section.name, href=f"#{section.id}") + " ") for section in sections)
    bodies = (
        Html(tag("section", tag("h2", title), content, id=id_) + "\n")
        for id_, _, title, content in sections
    )
    return Template(_read("frame.html")).substitute(
        title=tag("title", title),
        scripts="; script-src 'unsafe-inline'" if end else "",
        style=_read("style.css") + style,
        links=join(links).rstrip(),
        headline=headline,
        sections=join(bodies).rstrip("\n"),
        end=end,
    )


def _read(name: str) -> str:
    return files("deeplab_jax.report").joinpath(name).read_text("utf-8")


def percent(value: float | None, digits: int = 1) -> str:
    """Returns a fraction in percent; a dash where it is undefined."""
    # The space keeps number and sign on one line.
    return DASH if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def table(
    head: Iterable[object], rows: Iterable[Sequence[object]], label: str, class_: str
) -> Html:
    """Returns a table in a `scroller`.

    Args:
      head: titles of the columns.
      rows: cells; the first cell is the row's title.
      label: name of the region for screen readers.
      class_: "numbers" aligns all columns but the first to the right; "wrap" breaks long texts;
        "wide" fills the page.
    """
    top = tag("tr", *(tag("th", title, scope="col") for title in head))
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells))
        for first, *cells in rows
    ]
    return scroller(tag("table", tag("thead", top), tag("tbody", *body), class_=class_), label)


def scroller(inner: Html, label: str) -> Html:
    """Returns a box that scrolls sideways, also by keyboard, where it is wider than the page.

    The page's script shows the hint before it only then.
    """
    hint = tag(
        "p", "More columns: scroll sideways \N{RIGHTWARDS ARROW}", class_="hint", hidden=True
    )
    box = tag("div", inner, class_="scroller", tabindex=0, role="region", aria_label=label)
    return join([hint, box])


def data_uri(picture: Image.Image, kind: str, **options: object) -> str:
    """Returns a picture as JPEG or PNG in a data URI; `options` are those of Pillow."""
    file = io.BytesIO()
    picture.save(file, kind, quality=80, optimize=True, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
