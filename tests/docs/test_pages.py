"""The pages: links lead somewhere, and each page keeps its length."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
# Looked up rather than read: tables, the specification, and what scripts write.
REFERENCES = {"errors", "parity.md", "reference.md", "hardware.md", "performance.md", "cli.md",
              "config.md", "CHANGELOG.md", "ARCHITECTURE.md"}  # fmt: skip
WORDS = {"README.md": 1200}
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page):
    """Returns the anchors of a page's headings, as code forges make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.replace(" ", "-") for text in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_short_and_complete(page):
    assert not re.search(r"@[A-Z]+@|TODO|TBD", page.read_text())
    if not REFERENCES & {page.name, page.parent.name}:
        assert len(page.read_text().split()) <= WORDS.get(page.name, 1500)


def test_no_line_of_the_readme_is_long():
    assert max(map(len, (ROOT / "README.md").read_text().splitlines())) <= 120
