"""Reads a recipe, by path or by name, and applies `--config.section.field=value` to it."""

import ast
import difflib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config import transforms
from deeplab_jax.config.faults import DEFINES, explain
from deeplab_jax.config.forms import flatten, from_dict, from_flat, unknown_key
from deeplab_jax.config.schema import Config, fields
from deeplab_jax.errors import ConfigError, describe_cause, shorten
from deeplab_jax.utils.places import as_place

_HERE = Path(__file__).parent
# The recipes that come with the package: of a wheel, or of the checkout it is imported from.
_RECIPES = _HERE / "recipes" if (_HERE / "recipes").is_dir() else _HERE.parents[1] / "configs"
RUN_CONFIG = "config.json"  # in a run's work directory
_KINDS = {  # of values that text can fail to be: in words, and an example
    bool: ("true or false", "true"),
    int: ("a whole number", "16"),
    float: ("a number", "0.01"),
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def recipe_files() -> dict[str, Path]:
    """Returns the files of the recipes that come with the package, by name, sorted."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.py"))}


def find_recipe(recipe: str) -> Path:
    """Returns the file of a recipe, given by its path or by the name of one in the package.

    A file at that path wins over a recipe of that name.

    Raises:
      ConfigError: there is neither; the error proposes the nearest.
    """
    file, files = Path(recipe), recipe_files()
    if file.is_file():
        return file
    if recipe in files:
        return files[recipe]
    if file.is_dir():
        fix = "name a file in it, or a name of `deeplab recipes`"
        raise ConfigError(recipe, "is a folder, not a recipe", fix)
    beside = sorted(map(str, file.parent.glob("*.py"))) if file.parent.is_dir() else []
    near = difflib.get_close_matches(recipe, beside, 1)
    near = near or difflib.get_close_matches(file.stem, files, 1)
    near = near or [name for name in files if file.stem and name.startswith(file.stem)]
    near = near or [*beside, *files]
    fix = f"name one, such as {near[0]}; deeplab recipes lists them"
    raise ConfigError(recipe, "there is no such recipe file", fix)


def load_recipe(path: str, overrides: Sequence[str] = ()) -> Config:
    """Returns the checked configuration of a recipe.

    Args:
      path: a Python file that defines `get_config()`, the name of a recipe in the package, such as
        "ade20k_r50_os16", or the work directory of a run. Its folder is one of those where
        functions that it names as transforms are searched for.
      overrides: "--config.train.lr=0.02" and the like, applied in order.

    Raises:
      ConfigError: the file or a value cannot be used.
    """
    if is_run(path):
        return apply_overrides(_read_run(as_place(path) / RUN_CONFIG), overrides)
    file = find_recipe(path)
    spec = importlib.util.spec_from_file_location("deeplab_jax_recipe", file)
    if spec is None or spec.loader is None:
        fix = "name a recipe, such as mine.py or voc_r50_os16"
        raise ConfigError(str(path), "is not a Python file", fix)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if hasattr(module, "get_config") else None
    except Exception as error:  # a user's file may raise anything
        raise explain(error, file) from error
    fix = "return what deeplab_jax.config.get_config(...) returns"
    if not hasattr(module, "get_config"):
        raise ConfigError(str(path), "defines no get_config()", DEFINES)
    if not isinstance(config, ConfigDict):
        raise ConfigError(str(path), f"get_config() returns {type(config).__name__}", fix)
    missing = fields().keys() - flatten(config).keys()
    if missing:
        raise ConfigError(str(path), f"its configuration lacks {shorten(missing)}", fix)
    _check_list(overrides)
    checked = apply_overrides(config, [f"--config.name={file.stem}", *overrides])
    if any(spec.is_function for spec in transforms.parse_all(checked.data.transforms)):
        transforms.FOLDERS.append(str(file.parent.absolute()))
    return checked


def is_run(path: str) -> bool:
    """Tells whether a path is the work directory of a run, with its configuration."""
    return (as_place(path) / RUN_CONFIG).is_file()


def _read_run(file: Path) -> Config:
    try:
        return from_dict(json.loads(file.read_text("utf-8")))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.where}", error.what, error.fix) from error
    except (OSError, ValueError, AttributeError, TypeError) as error:
        fix = "name the run's recipe instead"
        raise ConfigError(str(file), f"cannot be read ({describe_cause(error)})", fix) from error


def apply_overrides(config: Config | ConfigDict, overrides: Sequence[str]) -> Config:
    """Returns the checked configuration after changes.

    Args:
      config: with every field of `schema.Config`.
      overrides: "--config.section.field=value"; values are typed like the field. Tuples are
        written 512,1024.

    Raises:
      ConfigError: there is no such field, a value has the wrong type, or it cannot be used.
      TypeError: `overrides` is a text or a mapping.
    """
    _check_list(overrides)
    recipe = flatten(config)
    values = dict(recipe)
    for override in overrides:
        name, has_value, text = override.removeprefix("--config.").partition("=")
        if name not in values:
            raise unknown_key(name, values)
        if not has_value:
            raise ConfigError(override, "has no value", f"write {override}=VALUE")
        values[name] = parse_value(name, text, values[name])
    return from_flat(values, recipe)


def check_values(overrides: Sequence[str]) -> None:
    """Refuses overrides of no field, or with a value of another type, whatever the configuration.

    Raises:
      ConfigError: as `apply_overrides`, which also says whether a value can be used.
    """
    known = {key: field.default for key, field in fields().items()}
    for override in overrides:
        name, has_value, text = override.removeprefix("--config.").partition("=")
        if name not in known:
            raise unknown_key(name, known)
        if has_value:
            parse_value(name, text, known[name])


def _check_list(overrides: object) -> None:
    if isinstance(overrides, str | Mapping):
        kind, example = type(overrides).__name__, '["--config.train.lr=0.02"]'
        raise TypeError(f"`overrides` must be a list of texts, got {kind}; give {example}.")


def parse_value(name: str, text: str, current: Any) -> Any:
    """Returns `text` as a value of the type of `current`, the value of the field `name` so far.

    Raises:
      ConfigError: it is none.
    """
    kind = type(current)
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        if kind is tuple:
            has_calls = re.search(r"\w\(", text)  # as transforms have, whose last ")" is theirs
            parts = _split(text.strip("[] " if has_calls else "()[] "))
            return tuple(_parse_element(part.strip()) for part in parts if part.strip())
        return kind(text)
    except (ValueError, KeyError):
        what, example = _KINDS[kind]
        what = f"{text!r} is not {what}"
        raise ConfigError(f"--config.{name}", what, f"give one such as {example}") from None


def _split(text: str) -> list[str]:
    """Returns the parts of a text between its commas outside of brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _parse_element(text: str) -> Any:
    """Returns a number where `text` is one, else the text without quotes."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
