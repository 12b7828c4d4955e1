"""Checks a built site without a network: links, anchors, and that pages load nothing from outside.

python docs/check_site.py build/site/html
"""

import re
import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

_OUTSIDE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//|mailto:", re.IGNORECASE)
_LOADS = re.compile(r"""(?:@import\s+|url\(\s*)["']?((?:https?:)?//[^"')\s]+)""")


class Page(HTMLParser):
    """What one page names.

    Attributes:
      ids: anchors of the page.
      links: addresses that a reader follows.
      loads: addresses that the browser reads by itself.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        """Notes the tag's anchor and addresses."""
        values = dict(attrs)
        self.ids.update(value for name in ("id", "name") if (value := values.get(name)))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values.get("href", ""))
        if values.get("src"):
            self.loads.append(values["src"])
        self.loads += _LOADS.findall(values.get("style") or "")


def check(html: Path) -> tuple[list[str], list[str]]:
    """Returns faults, and all external links, both sorted."""
    pages = {
        path.resolve(): Page(path) for path in html.rglob("*.html") if path.parent.name != "_static"
    }
    faults, external = set(), set()
    for path, page in pages.items():
        where = path.relative_to(html.resolve()).as_posix()
        for address in page.loads:
            if _OUTSIDE.match(address):
                faults.add(f"{where}: loads {address}")
        for address in [*page.links, *page.loads]:
            if _OUTSIDE.match(address):
                external.add(address)
                continue
            parts = urllib.parse.urlsplit(address)
            if parts.scheme:  # data:, javascript:
                continue
            file = (
                (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            )
            anchor = urllib.parse.unquote(parts.fragment)
            if not file.is_file():
                faults.add(f"{where}: {address} leads to no file")
            elif anchor and file in pages and anchor not in pages[file].ids:
                faults.add(f"{where}: {address} has no such anchor")
    for path in html.rglob("*.css"):
        for address in _LOADS.findall(path.read_text("utf-8")):
            faults.add(f"{path.relative_to(html).as_posix()}: loads {address}")
    return sorted(faults), sorted(external)


def main(html: Path, listing: Path | None = None) -> None:
    """Prints what was found; writes external links, which are not fetched, into `listing`.

    Raises:
      SystemExit: there are faults.
    """
    faults, external = check(html)
    if listing:
        listing.write_text("\n".join([*external, ""]), "utf-8")
    print(f"{len(external)} external links are not fetched" + (f": {listing}" if listing else ""))
    if faults:
        sys.exit("\n".join(f"error: {fault}" for fault in faults))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
