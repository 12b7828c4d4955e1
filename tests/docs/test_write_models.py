"""docs/models/ is what the script writes from the recipes and the figures that are known."""

import json
import re

import pytest


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("write_models", "docs")


def test_the_pages_are_what_the_script_writes(script, repository):
    pages = script.pages()
    folder = repository / "docs" / "models"
    assert {f"models/{file.name}" for file in folder.glob("*.md")} == set(pages)
    for path, text in pages.items():
        page = (repository / "docs" / path).read_text()
        assert page == text, f"{path} is out of date: run `python docs/write_models.py`."


def test_what_is_known_stands_in_a_card(script):
    pages = script.pages()
    assert len(pages) == 13
    card = pages["models/voc_r50_os16.md"]
    assert "| trained here | not measured |" in card
    assert "- Five optimiser steps: loss, every gradient" in card
    assert "| `h200` | float32 | 15.6 | 23 |" in card
    assert "- Five optimiser steps: compared on ResNet-50" in pages["models/ade20k_r101_os8.md"]


def test_no_cell_is_blank_and_hours_are_hours(script):
    for path, text in script.pages().items():
        rows = [line for line in text.splitlines() if line.startswith("|")]
        cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")]
        assert all(cells), path
        if path == "models/index.md":
            hours = [row.strip("| ").split(" | ")[-1] for row in rows[2:]]
            assert all(re.fullmatch(r"[\d.]+ to [\d.]+", value) for value in hours), hours


def test_counts_are_those_of_the_network(script):
    known = json.loads(script.COUNTS.read_text())
    assert [*known] == [*script.names()]
    assert script.count(script.read("voc_r50_os16")) == known["voc_r50_os16"]
