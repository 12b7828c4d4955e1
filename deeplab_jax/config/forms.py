"""A configuration as `ConfigDict`, flat mapping and JSON, and the difference of two."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config.catalogue import advice
from deeplab_jax.config.checks import get, validate
from deeplab_jax.config.schema import Config, fields
from deeplab_jax.errors import ConfigError


def freeze(config: Config | ConfigDict) -> Config:
    """Returns the checked configuration, frozen; absent fields have their defaults.

    Raises:
      ConfigError: a field is unknown, or its value cannot be used.
      TypeError: `config` is something else, such as the name of a recipe.
    """
    if not isinstance(config, Config | ConfigDict):
        fix = "load_recipe(NAME)" if isinstance(config, str) else "get_config(...)"
        kind = type(config).__name__
        raise TypeError(f"`config` must be a Config or ConfigDict, got {kind}; give {fix}.")
    return from_flat(flatten(config))


def from_flat(
    values: Mapping[str, Any], recipe: Mapping[str, Any] = MappingProxyType({})
) -> Config:
    """Returns the checked configuration of {"train.lr": ..., ...}; absent fields keep defaults.

    `recipe` holds the values to propose in place of wrong ones; see `validate`.

    Raises:
      ConfigError: a field is unknown, or its value cannot be used.
    """
    known = fields()
    for key in values:
        if key not in known:
            raise unknown_key(key, known)
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = tuple(value) if isinstance(value, list) else value
    top = sections.pop("", {})
    default = Config()
    built = {
        name: dataclasses.replace(getattr(default, name), **section)
        for name, section in sections.items()
    }
    config = Config(**top, **built)
    validate(config, recipe)
    return config


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Returns the configuration that `to_dict` or `to_json` wrote.

    Absent fields keep their defaults, so that older checkpoints stay readable.

    Raises:
      ConfigError: a field is unknown in this version, or its value cannot be used.
    """
    return from_flat(dict(_leaves(tree, "")))


def to_dict(config: Config) -> dict[str, Any]:
    """Returns nested dictionaries of plain values."""
    return dataclasses.asdict(config)


def to_json(config: Config) -> str:
    """Returns the configuration as indented JSON; tuples become lists."""
    return json.dumps(to_dict(config), indent=2)


def flatten(config: Config | ConfigDict) -> dict[str, Any]:
    """Returns {"name": ..., "model.depth": 50, ...}."""
    if isinstance(config, Config):
        return {key: get(config, key) for key in fields()}
    return dict(_leaves(config.to_dict(), ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def difference(old: Config, new: Config) -> list[str]:
    """Returns "key: old -> new" for every differing field that can change a run's results."""
    return [
        f"{key}: {get(old, key)} -> {get(new, key)}"
        for key, field in fields().items()
        if not field.metadata["is_free"] and get(old, key) != get(new, key)
    ]


def unknown_key(key: str, known: Iterable[str]) -> ConfigError:
    """Returns the error for a field that does not exist, with the one that is meant."""
    known = list(known)
    first = next((name for name in known if name.startswith(f"{key}.")), None)
    if first:
        fix = f"name one of its fields, such as config.{first}"
        return ConfigError(f"config.{key}", "is a group of fields, not a value", fix)
    return ConfigError(f"config.{key}", "there is no such field", advice(key, known))
