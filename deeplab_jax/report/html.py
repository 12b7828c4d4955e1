"""Markup that cannot be forgotten to be escaped: what is not `Html` is text."""

from html import escape
from typing import Any

DASH = "\N{EN DASH}"  # for what is undefined
_VOID = ("br", "img", "input")


class Html(str):
    """Text that is markup already; all else is escaped where it enters."""

    __slots__ = ()


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """Returns an element; children that are not `Html` are text.

    Args:
      name: of the element.
      children: what it holds.
      attributes: with "_" for "-" and a last "_" dropped (`class_`). None and False are left out,
        True has no value.
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


def join(children: Any) -> Html:
    """Returns several pieces in a row."""
    return Html("".join(c if isinstance(c, Html) else escape(str(c)) for c in children))


def percent(value: float | None, digits: int = 1) -> str:
    """Returns a fraction in percent; a dash where it is undefined."""
    # The space keeps number and sign on one line.
    return DASH if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def table(head: list[Any], rows: list[list[Any]], label: str, class_: str) -> Html:
    """Returns a table that scrolls by itself where it is wider than the page.

    Args:
      head: titles of the columns.
      rows: cells; the first of each is the row's title.
      label: what screen readers call the region.
      class_: "numbers", right-aligned but for columns of text, or "wrap", of long texts.
    """
    top = tag("tr", *(tag("th", title, scope="col") for title in head))
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells))
        for first, *cells in rows
    ]
    inner = tag("table", tag("thead", top), tag("tbody", *body), class_=class_)
    return scroller(inner, label)


def scroller(inner: Html, label: str) -> Html:
    """Returns a box that scrolls sideways, also by keyboard, and keeps the page from doing so."""
    return tag("div", inner, class_="scroller", tabindex=0, role="region", aria_label=label)
