"""Data, loss, transform and callbacks that a caller in Python gives to `train`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from deeplab_jax.config import Config
from deeplab_jax.data import Dataset, open_dataset
from deeplab_jax.data.augment.functions import Function, fingerprint, name_of
from deeplab_jax.data.sources.given import GivenData, open_given
from deeplab_jax.errors import ConfigError
from deeplab_jax.training.extend.events import Callback
from deeplab_jax.training.losses import UserLoss

_DATA, _FUNCTIONS = ("train_data", "val_data"), ("loss", "transform")
_CALLBACKS = "callbacks"  # change no weight: a continued run may have others


@dataclasses.dataclass(frozen=True)
class Given:
    """What takes the place of what the configuration names; see `training.loop.train`.

    Raises:
      TypeError: a function cannot be called.
    """

    train_data: GivenData | None = None
    val_data: GivenData | None = None
    loss: UserLoss | None = None
    transform: Function | None = None
    callbacks: tuple[Callback, ...] = ()

    def __post_init__(self) -> None:
        named = [(name, getattr(self, name)) for name in _FUNCTIONS]
        for name, function in [*named, *((_CALLBACKS, item) for item in self.callbacks)]:
            if function is not None and not callable(function):
                raise TypeError(f"`{name}` must be a function, got {type(function).__name__}.")

    @property
    def names(self) -> dict[str, str]:
        """Names by argument; those of loss and transform have a digest."""
        found = {name: getattr(self, name) for name in (*_DATA, *_FUNCTIONS)}
        names = {
            name: f"{name_of(value)}{_digest(value) if name in _FUNCTIONS else ''}"
            for name, value in found.items()
            if value is not None
        }
        return names | (
            {_CALLBACKS: ",".join(map(name_of, self.callbacks))} if self.callbacks else {}
        )

    def open(self, config: Config) -> tuple[Dataset, Dataset]:
        """Returns the training and the validation split.

        Raises:
          DataError: a data set cannot be used.
          ConfigError: its classes are not those of the configuration.
          TypeError: `train_data` or `val_data` lacks a member.
          ValueError: its ids or colours are not as many as samples or classes.
        """
        data, count = config.data, config.model.num_classes
        splits = data.train_split, data.val_split
        first, second = (
            open_dataset(data, count, split)
            if (own := getattr(self, name)) is None
            else open_given(own, name, count, split)
            for name, split in zip(_DATA, splits, strict=True)
        )
        is_own = self.train_data is not None or self.val_data is not None
        if is_own and first.class_names != second.class_names:
            what = f"has the classes {', '.join(second.class_names)}"
            what += f", and the training data {', '.join(first.class_names)}"
            raise ConfigError("the validation data", what, "give both the same class names")
        return first, second

    def check(self, workdir: object, saved: Mapping[str, str]) -> list[str]:
        """Compares with the names that a continued run was saved with.

        Returns:
          A line for each function whose text has changed since, and for other callbacks.

        Raises:
          ConfigError: a name differs.
        """
        notes, own = [], self.names
        if not own and saved.keys() - {_CALLBACKS}:
            listed = ", ".join(f"{name}={text.partition(' ')[0]}" for name, text in saved.items())
            names = ", ".join(f"{name}=..." for name in saved)
            call = f"deeplab_jax.train(config, workdir, {names})"
            what = f"its run was started from Python with {listed}"
            raise ConfigError(
                str(workdir), what, f"continue it from Python: {call}, or choose another workdir"
            )
        for name in dict.fromkeys((*saved, *own)):
            before, now = saved.get(name, ""), own.get(name, "")
            if name == _CALLBACKS:
                if before != now:
                    text = f"callbacks: {before or 'none'} when the run was saved"
                    notes.append(f"{text}, {now or 'none'} now")
                continue
            if before.partition(" ")[0] != now.partition(" ")[0]:
                what = f"was trained with {_told(name, before)}, and now with {_told(name, now)}"
                fix = f"call deeplab_jax.train with the same {name}, or choose another workdir"
                raise ConfigError(str(workdir), what, fix)
            if before != now:
                notes.append(f"{name} {now.partition(' ')[0]} has changed since the run was saved")
        return notes

    def limits(self) -> list[str]:
        """Returns a line for each thing of which a continued run does not notice a change."""
        lines = []
        for name in _DATA:
            if (data := getattr(self, name)) is not None and not hasattr(data, "fingerprint"):
                lines.append(
                    f"{name}: {name_of(data)} is known by its ids: other pixels under the same ids"
                    " are not noticed when the run is continued; give it a fingerprint()"
                )
        for name in _FUNCTIONS:
            if (function := getattr(self, name)) is not None:
                lines.append(
                    f"{name}: {name_of(function)} is known by its own text: a change of what it"
                    " calls is not noticed when the run is continued"
                )
        return lines


def _digest(function: Any) -> str:
    """Returns a space and a digest of a function's own text; "" where there is none."""
    found = fingerprint(function, is_own=True)
    return found and f" {found}"


def _told(name: str, value: str) -> str:
    return f"{name}={value.partition(' ')[0]}" if value else f"no {name} of the caller's"
