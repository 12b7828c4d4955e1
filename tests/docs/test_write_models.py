"""docs/models/ is what the script writes from the recipes and the figures that are known."""

import json

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
    assert "five optimiser steps" in card
    assert "| `h200` | float32 | 15.6 | 23 |" in card
    assert "five optimiser steps" not in pages["models/ade20k_r101_os8.md"].split("Optimiser")[0]


def test_counts_are_those_of_the_network(script):
    known = json.loads(script.COUNTS.read_text())
    assert [*known] == [*script.names()]
    assert script.count(script.read("voc_r50_os16")) == known["voc_r50_os16"]
