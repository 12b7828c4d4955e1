"""docs/errors/ is what the source can raise, in words that a reader can search."""

import ast
import re
import sys
from pathlib import Path

import pytest

from deeplab_jax import errors
from deeplab_jax.config.schema import fields

ROOT = Path(__file__).parents[2]
KINDS = [c for c in vars(errors).values()
         if isinstance(c, type) and issubclass(c, errors.DeepLabError)]  # fmt: skip
TREES = [ast.parse(file.read_text()) for top in ("deeplab_jax", "convert")
         for file in sorted((ROOT / top).rglob("*.py"))]  # fmt: skip


@pytest.fixture(scope="module")
def script(load_script):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        return load_script("write_errors", "docs")


@pytest.fixture(scope="module")
def pages():
    """Returns {file name: text}."""
    return {file.name: file.read_text() for file in (ROOT / "docs" / "errors").iterdir()}


@pytest.fixture(scope="module")
def page(pages):
    return "".join(pages.values())


def rows(page):
    """Returns the cells of each row of a page's tables."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return [tuple(re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines]


def test_the_pages_are_what_the_script_writes(script, pages):
    assert pages == script.pages(), (
        "docs/errors/ is out of date: run `python docs/write_errors.py`."
    )


def literal_texts(node):
    """Yields the texts of an expression that are written out, without those of its values."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def test_every_text_of_an_error_is_on_the_pages(page):
    kinds = {c.__name__ for c in KINDS}
    texts = set()
    for tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds:
                texts.update(text for part in node.args for text in literal_texts(part))
    texts = {" ".join(text.split()) for text in texts if len(text) > 12}
    assert len(texts) > 150
    assert not {text for text in texts if text.replace("|", "\\|") not in page}


def test_texts_that_a_helper_returns_are_on_the_pages(page):
    assert "a part of a whole model instead of its weights" in page  # convert/harmless.py
    assert "no folders match; folders with pictures are" in page


def test_every_exit_code_has_its_page(pages):
    codes = {c.exit_code for c in KINDS} - {1}
    titles = {text.splitlines()[0].partition(":")[0] for text in pages.values()}
    assert {f"# Exit code {code}" for code in codes} | {"# Exit code 130, 143, 141"} < titles


def test_every_field_has_its_row(page):
    wheres = {row[0].strip() for row in rows(page)}
    assert {f"`config.{key}`" for key in fields()} <= wheres


def test_rows_are_unique_and_searchable(pages):
    for text in pages.values():
        sections = [rows(section) for section in text.split("\n## ")]
        assert all(len({row[:2] for row in found}) == len(found) for found in sections)
    found = rows("".join(pages.values()))
    assert len(found) > 650
    for _, what, fix in found:
        assert re.search(r"\w{2}", re.sub(r"\{[a-z ]+\}", "", what + fix)), what


def test_words_in_braces_are_a_readers(script, page):
    known = set(sys.modules["read_errors"]._WORD.values())
    written = {"a,b", '"name": "road", "color": [128, 64, 128]', "toctree"}  # in errors, in MyST
    found = set(re.findall(r"\{([^{}]*)\}", page)) - written
    assert found <= known
    assert not {word for word in known if not re.fullmatch("[a-z][a-z ]+", word)}
    assert not known & {"fix", "what", "where", "get", "key", "self", "getattr", "readlink", "prog"}


def test_a_name_without_a_word_for_a_reader_is_refused(script):
    place = ast.parse("odd_name.readlink2()", mode="eval").body
    with pytest.raises(LookupError, match=r"a reader needs a word for one of .*'odd_name'"):
        sys.modules["read_errors"]._placeholder(place)


def test_names_parameters_helpers_loops_and_tables_are_followed(script, tmp_path, monkeypatch):
    source = """
_DEFAULT = "copy it again"
def check(path, size, is_new):
    what = f"holds {size} bytes"
    if is_new:
        what += ", and is new"
    _fail(path, what)
def _fail(path, what, fix=_DEFAULT):
    raise CheckpointError(str(path), what, fix)
def other(path, error):
    try:
        pass
    except DataError as error:
        raise DataError(error.where, error.what, error.fix)
    fix = "name one" if path else _advice()
    raise ConfigError("--flag", "is wrong", fix)
def _advice():
    return "see --help"
def third(config):
    for key, most in (("rate", 1), ("steps", 2 + 2)):
        what, fix = _pair(key)
        fix = "lower it a lot" if most > 1 else fix
        raise ConfigError(f"--{key}", f"{what}, above {most}", fix)
def _pair(key):
    return f"is {config.find(key)}", "lower it"
def fourth(paths):
    _leave(paths[0], f", and {_lost()}")
def _leave(path, what):
    raise CheckpointError(str(path), f"is cut short{what}", "copy it again")
def _lost():
    return "nothing is lost"
def fifth(path):
    if fault := _fault(path):
        raise DataError(str(path), f"has {fault}", "mend it")
def _fault(path):
    return "no end" if path else ""
"""
    room = tmp_path / "deeplab_jax" / "data"
    room.mkdir(parents=True)
    (room / "a.py").write_text(source)
    reader = sys.modules["read_errors"]
    monkeypatch.setattr(reader, "ROOT", tmp_path)
    assert [row[2:] for row in reader.read_rows()] == [
        (
            ("{path}",),
            ("holds {number} bytes", "holds {number} bytes, and is new"),
            ("copy it again",),
        ),
        (("--flag",), ("is wrong",), ("name one", "see --help")),
        (("{path}",), ("is cut short, and nothing is lost",), ("copy it again",)),
        (("--rate",), ("is {name}, above 1",), ("lower it",)),
        (("--steps",), ("is {name}, above 4",), ("lower it a lot",)),
        (("{path}",), ("has no end",), ("mend it",)),
    ]
