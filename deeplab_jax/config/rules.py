"""How a field of a configuration is declared, and rules that its values keep."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_CHANNELS = 65536  # far above any network's; keeps sizes of arrays within 64 bits


class Accepted(NamedTuple):
    """The values that a field accepts, whatever the others hold.

    Attributes:
      accepted: in words, after "must be".
      is_valid: whether a value of the field's type is accepted; by default all are, and
        `checks.validate` compares the value with other fields.
      fix: what to do; empty: the nearest of `names`, the recipe's value or the default is proposed.
      names: texts that are accepted.
    """

    accepted: str
    is_valid: Callable[[Any], bool] = lambda value: True
    fix: str = ""
    names: tuple[str, ...] = ()

    def near(self, value: Any) -> str:
        """Returns the name that a wrong text most likely means; "" where none is near."""
        word = str(value).lower().replace("-", "_")
        least = 3  # letters of which a name may be the start, or be started
        starts = [name for name in self.names if len(word) >= least
                  and (name.startswith(word) or word.startswith(name))]  # fmt: skip
        return next(iter(starts or difflib.get_close_matches(word, self.names, 1)), "")


def one_of(*values: Any, text: str = "") -> Accepted:
    """Accepts these values; `text` names them."""
    names = tuple(value for value in values if isinstance(value, str))
    words = text or " or ".join(map(str, values))
    return Accepted(words, lambda value: value in values, names=names)


def at_least(low: float, text: str = "") -> Accepted:
    """Accepts finite numbers from `low`."""
    return Accepted(text or f"{low} or more", lambda value: low <= value < math.inf)


def fraction(name: str) -> Accepted:
    """Accepts 0 <= value < 1."""
    return Accepted(f"0 <= {name} < 1", lambda value: 0 <= value < 1)


def positive(text: str) -> Accepted:
    """Accepts finite positive numbers."""
    return Accepted(text, lambda value: 0 < value < math.inf)


def within(low: float, high: float, whole: bool = False) -> Accepted:
    """Accepts numbers, with `whole` only whole ones, from `low` to `high`; no other type."""
    if whole:
        return Accepted(
            f"a whole number, {low} to {high}", lambda v: type(v) is int and low <= v <= high
        )
    return Accepted(
        f"a number, {low} to {high}", lambda v: type(v) in (int, float) and low <= v <= high
    )


def is_share(name: str) -> Accepted:
    """Accepts 0 < value <= 1; no other type."""
    return Accepted(
        f"0 < {name} <= 1", lambda value: type(value) in (int, float) and 0 < value <= 1
    )


def is_integers(value: Any, count: int) -> bool:
    """Tells whether `value` holds exactly `count` positive integers."""
    return len(value) == count and all(type(v) is int and v > 0 for v in value)


def integers(count: int, is_optional: bool = False) -> Accepted:
    """Accepts `count` positive integers."""
    return Accepted(
        f"{count} positive integers{', or empty' if is_optional else ''}",
        lambda value: (is_optional and not value) or is_integers(value, count),
    )


def are_numbers(value: Any) -> bool:
    """Tells whether all elements are numbers."""
    return all(isinstance(v, int | float) for v in value)


def is_project(value: str) -> bool:
    """Tells whether Weights & Biases takes `value` as the name of a project, or it is empty."""
    return re.fullmatch(r"[A-Za-z0-9_.-]{0,128}", value) is not None


def mask_values(largest: int) -> Accepted:
    """Accepts different whole numbers, 0 to `largest`."""
    return Accepted(
        f"different numbers in 0..{largest}",
        lambda value: (
            all(type(v) is int and 0 <= v <= largest for v in value)
            and len(set(value)) == len(value)
        ),
    )


VALUE_RANGE = Accepted(
    "2 whole numbers, 0 <= low < high <= 65535, or empty",
    lambda value: (
        not value
        or (
            len(value) == 2
            and all(type(v) is int for v in value)
            and 0 <= value[0] < value[1] <= 65535
        )
    ),
    "deeplab doctor finds it; 0,65535 keeps the upper 8 bits",
)
SCALES = Accepted(
    "different numbers from 0.25 to 4",
    lambda value: (
        are_numbers(value)
        and all(0.25 <= scale <= 4 for scale in value)
        and 0 < len(value) == len(set(value))
    ),
)
RANGE = Accepted(
    "(low, high), 0 < low <= high",
    lambda value: len(value) == 2 and are_numbers(value) and 0 < value[0] <= value[1] < math.inf,
)
STAGES = Accepted(
    "different stages, 1 to 4",
    lambda value: len(set(value)) == len(value) and set(value) <= {1, 2, 3, 4},
)
CLASSES = Accepted(
    "2 to 255", lambda value: 2 <= value <= 255, "count the classes, without the ignored one"
)
WIDTH = Accepted(
    f"an even number, 1 to {MAX_CHANNELS}",
    lambda value: value % 2 == 0 and 1 <= value <= MAX_CHANNELS,
)
CHANNELS = Accepted(f"1 to {MAX_CHANNELS}", lambda value: 1 <= value <= MAX_CHANNELS)
BACKBONE_PARTS = ("stem", "layer1", "layer2", "layer3", "layer4")
HEADS = ("aspp", "decoder", "classifier", "aux_head", "aux_classifier")  # all but the backbone
MODULES = ("backbone", *(f"backbone.{part}" for part in BACKBONE_PARTS), *HEADS)
FROZEN = Accepted(
    f"different modules of {', '.join(MODULES)}, none within another; or empty",
    lambda value: (
        all(name in MODULES for name in value)
        and len(set(value)) == len(value)
        and not any("backbone" in value and name.startswith("backbone.") for name in value)
    ),
    "name modules such as --config.train.freeze=backbone.stem,backbone.layer1",
)
EPOCHS = Accepted(
    "positive whole numbers, each greater than the one before, or empty",
    lambda value: (
        all(type(v) is int and v > 0 for v in value) and list(value) == sorted(set(value))
    ),
    "name them in order, such as --config.train.step_epochs=30,60",
)
SEED = Accepted("0 to 4294967295", lambda value: 0 <= value < 2**32)
BOOLEAN = Accepted("true or false")
SCORE = Accepted(
    "mean_iou, loss, boundary_iou, or iou/CLASS with the name of a class",
    lambda value: value in ("mean_iou", "loss", "boundary_iou") or value[:4] == "iou/" != value,
    names=("mean_iou", "loss", "boundary_iou", "iou/CLASS"),
)
WINDOW = Accepted("2 positive integers with config.eval.mode=slide, empty with whole")


def field(
    default: Any,
    text: str,
    rule: Accepted,
    *,
    unit: str = "",
    is_free: bool = False,
    is_local: bool = False,
) -> Any:
    """Declares a field.

    Args:
      default: its value in the template for a folder, ResNet-50 at output stride 16.
      text: its meaning.
      rule: accepted values.
      unit: of its numbers; empty where they have none.
      is_free: a continued run may change it: it changes no result of a run without a fault.
      is_local: hosts of one run may differ in it.
    """
    metadata = {
        "text": text, "rule": rule, "unit": unit, "is_free": is_free, "is_local": is_local
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)
