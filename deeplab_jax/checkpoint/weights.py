"""Which weights of a step are the network: their average where a run keeps one, or as trained."""

from collections.abc import Mapping

import jax
import numpy as np

from deeplab_jax.checkpoint.description import Info
from deeplab_jax.errors import ConfigError
from deeplab_jax.utils.trees import PyTree, divide, merged

EVAL_ITEMS = {"params": "params", "batch_stats": "batch_stats"}  # variable -> item of a step
AVERAGE = "ema"  # item of a run that averages what learns; holds variables, and "count"
WEIGHTS = ("ema", "raw")


def weights_of(info: Info, asked: str | None = None) -> str:
    """Returns which weights of a step are taken: "ema" or "raw"; "" where it holds one kind.

    Args:
      info: the step's description.
      asked: "ema" or "raw", of a step that holds both; None: the average, if it holds one.

    Raises:
      ConfigError: `asked` is neither, or the step holds one kind alone.
    """
    if asked not in (None, *WEIGHTS):
        raise ConfigError("--weights", f"must be ema or raw, got {asked}", "leave it out for ema")
    if info.kind == "run" and info.config is not None and info.config.train.ema_half_life:
        return asked or "ema"
    if asked is not None:
        what = f"is {asked}, and step {info.step} holds one kind of weights"
        raise ConfigError("--weights", what, "leave it out")
    return ""


def item_names(info: Info, asked: str | None = None) -> tuple[str, ...]:
    """Returns the items of a step that `network` needs; raises as `weights_of`."""
    names = tuple(EVAL_ITEMS.values())
    if weights_of(info, asked) != "ema":
        return names
    assert info.config is not None  # a run's
    return (AVERAGE, *names) if info.config.train.freeze else (AVERAGE,)


def abstract_items(
    info: Info, variables: Mapping[str, PyTree], asked: str | None = None
) -> dict[str, PyTree]:
    """Returns what to restore for `network`; raises as `weights_of`.

    `variables` hold the `jax.ShapeDtypeStruct` of a network's params and batch_stats, with a
    sharding.
    """
    names = item_names(info, asked)
    items = {item: variables[name] for name, item in EVAL_ITEMS.items() if item in names}
    if AVERAGE in names:
        assert info.config is not None  # a run's
        frozen, sharding = info.config.train.freeze, jax.tree.leaves(variables)[0].sharding
        averages = {name: divide(tree, frozen)[0] for name, tree in variables.items()}
        count = jax.ShapeDtypeStruct((), np.int32, sharding=sharding)
        items[AVERAGE] = {"count": count, **averages}
    return items


def network(items: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Returns {"params", "batch_stats"}: the average among the items, the rest as trained."""
    average = items.get(AVERAGE, {})
    return {
        name: merged(items.get(item, {}), average.get(name, {}))
        for name, item in EVAL_ITEMS.items()
    }
