"""docs/errors/ is what the source can raise."""

import ast
import re

import pytest

from deeplab_jax import errors

KINDS = [c for c in vars(errors).values()
         if isinstance(c, type) and issubclass(c, errors.DeepLabError)]  # fmt: skip


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("write_errors", "docs")


@pytest.fixture(scope="module")
def pages(repository):
    """Returns {file name: text}."""
    return {file.name: file.read_text() for file in (repository / "docs" / "errors").iterdir()}


@pytest.fixture(scope="module")
def page(pages):
    return "".join(pages.values())


def test_the_pages_are_what_the_script_writes(script, pages):
    assert pages == script.pages(), (
        "docs/errors/ is out of date: run `python docs/write_errors.py`."
    )


def test_every_text_of_an_error_is_on_the_page(repository, page):
    kinds = {c.__name__ for c in KINDS}
    texts = set()
    for file in [*repository.glob("deeplab_jax/**/*.py"), *repository.glob("convert/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            is_error = isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds
            for argument in node.args if is_error else ():
                parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
                texts |= {part.value for part in parts if isinstance(part, ast.Constant)}
    texts = {" ".join(text.split()) for text in texts if len(str(text)) > 12}
    assert len(texts) > 150
    assert not {text for text in texts if text.replace("|", "\\|") not in page}


def test_every_exit_code_has_its_page(pages):
    codes = {c.exit_code for c in KINDS} - {1}
    titles = {text.splitlines()[0].partition(":")[0] for text in pages.values()}
    assert {f"# Exit code {code}" for code in codes} | {"# Exit code 130, 143, 141"} < titles


def test_words_in_braces_are_words_for_a_reader(page):
    texts = re.findall(r"(`+)(.+?)\1", page)
    words = {word for _, text in texts for word in re.findall(r"\{([^{}]*)\}", text)}
    told_at_run_time = {word for word in words if not word.startswith(('"', "a,b"))}
    assert len(told_at_run_time) > 200
    assert not {word for word in told_at_run_time if not re.fullmatch("[a-z][a-z ]*", word)}
    names = {"fix", "what", "where", "key", "self", "find", "close", "prog", "getattr", "readlink"}
    assert not told_at_run_time & names


def test_names_parameters_and_helpers_are_followed(script, tmp_path, monkeypatch):
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
    for key, most in (("rate", 1), ("steps", 2)):
        what, fix = _pair(key)
        raise ConfigError(f"--{key}", what, fix)
def _pair(key):
    return f"is {config.find(key)}", "lower it"
"""
    room = tmp_path / "deeplab_jax" / "data"
    room.mkdir(parents=True)
    (room / "a.py").write_text(source)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert [row[3:] for row in script.read_rows()] == [
        (("{path}",), ("holds {size} bytes", "holds {size} bytes, and is new"), ("copy it again",)),
        (("--flag",), ("is wrong",), ("name one", "see --help")),
        (("--rate", "--steps"), ("is {data set}",), ("lower it",)),
    ]
