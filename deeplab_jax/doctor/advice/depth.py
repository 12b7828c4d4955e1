"""16-bit pictures of a survey: their range of values, and which of them it serves badly."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deeplab_jax.data.pictures.depth import table, usable_high

if TYPE_CHECKING:
    from deeplab_jax.doctor.scan import SampleFacts
    from deeplab_jax.doctor.survey import Survey

FEW_LEVELS = 64  # of 256; fewer are warned of
_UNUSED = 32  # part of the levels below the smallest value from which on the range starts there


def deep(survey: "Survey") -> list["SampleFacts"]:
    """Returns the facts of the samples whose images have 16 bits a channel."""
    return [facts for facts in survey.facts if facts.image_values]


def proposed_range(survey: "Survey") -> tuple[int, int] | None:
    """Returns the (low, high) of all 16-bit images for `config.data.value_range`; None without.

    High is the largest value. Low is 0, or the smallest value where it is above 1/32 of the range.
    Where most images then keep few levels, as of dead pixels, 1 of 1000 values at each end of an
    image does not count.
    """
    found = deep(survey)
    if not found:
        return None
    whole = _range([facts.image_values for facts in found])
    if 2 * sum(has_few_levels(facts, whole) for facts in found) > len(found):
        return _range([facts.image_bulk for facts in found])
    return whole


def _range(values: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    low, high = min(low for low, _ in values), usable_high(max(high for _, high in values))
    return (low if _UNUSED * low > high and low < high else 0), high


def used_range(survey: "Survey") -> tuple[int, int] | None:
    """Returns the recipe's range, or the proposed one where it has none; None without 16 bits."""
    if not deep(survey):
        return None
    given = survey.data.value_range
    return (given[0], given[1]) if given else proposed_range(survey)


def in_words(survey: "Survey") -> str:
    """Returns the range of all 16-bit images as text."""
    values = [facts.image_values for facts in deep(survey)]
    return f"{min(low for low, _ in values)}..{max(high for _, high in values)}"


def as_flag(value_range: tuple[int, int] | None) -> str:
    """Returns the flag that sets a range."""
    return "--config.data.value_range=" + ",".join(map(str, value_range or ()))


def num_levels(facts: "SampleFacts", value_range: tuple[int, int]) -> int:
    """Returns the 8-bit levels between an image's smallest and largest value once it is scaled.

    Where these are 64 or more, only those that its values become count: one dead pixel spans all.
    """
    scaled = table(*value_range)[np.frombuffer(facts.image_levels, np.uint16)]
    span = int(scaled[-1]) - int(scaled[0]) + 1
    return span if span < FEW_LEVELS else len(np.unique(scaled))


def has_few_levels(facts: "SampleFacts", value_range: tuple[int, int]) -> bool:
    """Tells whether a 16-bit image keeps fewer than 64 levels of more."""
    levels = len(facts.image_levels) // 2
    return num_levels(facts, value_range) < min(FEW_LEVELS, levels)


def with_few_levels(survey: "Survey") -> Iterator[str]:
    """Yields the 16-bit images that keep fewer than 64 levels of more, each with its values."""
    value_range = used_range(survey)
    if value_range is None:
        return
    for facts in deep(survey):
        if has_few_levels(facts, value_range):
            levels, (low, high) = num_levels(facts, value_range), facts.image_values
            kept = f"{levels} level{'s' if levels > 1 else ''}"
            yield f"{survey.name(facts.pair.image)}: values {low}..{high}, {kept}"


def clipped(survey: "Survey") -> Iterator[str]:
    """Yields the 16-bit images with values outside the recipe's or the proposed range."""
    first, last = used_range(survey) or (0, 0)
    for facts in deep(survey):
        low, high = facts.image_values
        if low < first or high > last:
            yield f"{survey.name(facts.pair.image)}: values {low}..{high}"
