"""Reads a recipe, by path or by name, and applies `--config.section.field=value` to it."""

import ast
import difflib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config.faults import DEFINES, explain
from deeplab_jax.config.forms import flatten, from_dict, from_flat, unknown_key
from deeplab_jax.config.schema import Config, fields
from deeplab_jax.config.table import PUBLISHED_MIOU, get_config
from deeplab_jax.errors import ConfigError, describe_cause, shorten

# Names of the table's rows, as their files in configs/ are called.
ROWS = {f"{name}_r{depth}_os{stride}": (name, depth, stride)
        for name, depth, stride in PUBLISHED_MIOU}  # fmt: skip
RUN_CONFIG = "config.json"  # in a run's work directory
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def load_recipe(path: str, overrides: Sequence[str] = ()) -> Config:
    """Returns the checked configuration of a recipe file, or of a row of the table.

    Args:
      path: a Python file that defines `get_config()`, the name of a row of the published table,
        such as "ade20k_r50_os16", or the work directory of a run.
      overrides: "--config.train.lr=0.02" and the like, applied in order.

    Raises:
      ConfigError: the file or a value cannot be used.
    """
    file = Path(path)
    if is_run(path):
        return apply_overrides(_read_run(file / RUN_CONFIG), overrides)
    if path in ROWS and not file.exists():
        return apply_overrides(get_config(*ROWS[path]), overrides)
    if not file.is_file():
        files = sorted(map(str, file.parent.glob("*.py"))) if file.parent.is_dir() else []
        known = [*files, *ROWS]
        near = (difflib.get_close_matches(str(path), known, 1) or known)[0]
        raise ConfigError(str(path), "there is no such recipe file", f"name one, such as {near}")
    spec = importlib.util.spec_from_file_location("deeplab_jax_recipe", file)
    if spec is None or spec.loader is None:
        fix = "name a recipe, such as configs/voc_r50_os16.py or voc_r50_os16"
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
    return apply_overrides(config, [f"--config.name={file.stem}", *overrides])


def is_run(path: str) -> bool:
    """Tells whether a path is the work directory of a run, with its configuration."""
    return (Path(path) / RUN_CONFIG).is_file()


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
    """
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
            parts = text.strip("()[] ").split(",")
            return tuple(_parse_element(part.strip()) for part in parts if part.strip())
        return kind(text)
    except (ValueError, KeyError):
        example = {bool: "true", int: "16", float: "0.01", tuple: "512,1024"}.get(kind, "text")
        raise ConfigError(
            f"--config.{name}", f"{text!r} is not a {kind.__name__}", f"give one such as {example}"
        ) from None


def _parse_element(text: str) -> Any:
    """Returns a number where `text` is one, else the text without quotes."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
