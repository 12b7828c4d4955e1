"""Reads a recipe file and applies `--config.section.field=value` to it."""

import ast
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config import flatten, get_config, unknown_key, validate
from deeplab_jax.errors import ConfigError, shorten

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def load_recipe(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the checked configuration of a recipe file.

    Args:
      path: a Python file that defines `get_config()`.
      overrides: "--config.train.lr=0.02" and the like, applied in order.

    Raises:
      ConfigError: the file or a value cannot be used.
    """
    file = Path(path)
    if not file.is_file():
        near = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        fix = f"such as {near[0]}" if near else "see configs/ in the repository"
        raise ConfigError(str(path), "there is no such recipe file", f"name one, {fix}")
    spec = importlib.util.spec_from_file_location("deeplab_jax_recipe", file)
    if spec is None or spec.loader is None:
        raise ConfigError(str(path), "is not a Python file", "a recipe defines get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except ConfigError:
        raise
    except Exception as error:  # whatever somebody's file does
        what = f"fails with {type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(str(path), what, "a recipe defines get_config(); see configs/") from error
    fix = "return what deeplab_jax.config.get_config(...) returns"
    if not isinstance(config, ConfigDict):
        raise ConfigError(str(path), f"get_config() returns {type(config).__name__}", fix)
    missing = flatten(get_config("folder")).keys() - flatten(config).keys()
    if missing:
        raise ConfigError(str(path), f"its configuration lacks {shorten(missing)}", fix)
    config.name = file.stem
    return apply_overrides(config, overrides)


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Sets fields of `config` in place, checks it, and returns it.

    Args:
      config: with every field of `deeplab_jax.config.get_config`.
      overrides: "--config.section.field=value"; values are typed like the field. Tuples are
        written 512,1024.

    Raises:
      ConfigError: there is no such field, a value has the wrong type, or `validate` refuses.
    """
    known = flatten(config)
    for override in overrides:
        name, has_value, text = override.removeprefix("--config.").partition("=")
        if name not in known:
            raise unknown_key(name, known)
        if not has_value:
            raise ConfigError(override, "has no value", f"write {override}=VALUE")
        *path, leaf = name.split(".")
        node = config
        for part in path:
            node = node[part]
        with node.ignore_type():  # tuples of another length or element type are checked below
            node[leaf] = _parse(name, text, known[name])
    validate(config)
    return config


def _parse(name: str, text: str, current: Any) -> Any:
    """Returns `text` as a value of the type of `current`."""
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
