"""Classes that few pixels have, and what makes the loss look at them."""

from collections import Counter
from typing import TYPE_CHECKING

from deeplab_jax.config import IGNORE_INDEX

if TYPE_CHECKING:
    from deeplab_jax.doctor.survey import Survey

SHARE = 0.01  # of the pixels that count, in the training split; less is rare


def rare(survey: "Survey") -> dict[str, float]:
    """Returns {number and name of a rare class: its share of the pixels}, the rarest first.

    The classes are those of the training split; one without a pixel is not rare but absent.
    """
    total: Counter[int] = Counter()
    for facts in survey.of_split(survey.splits[0]):
        total.update(survey.class_counts(facts))
    total.pop(IGNORE_INDEX, None)
    shares = {number: count / total.total() for number, count in total.items() if count}
    return {
        f"{number}: {survey.class_names[number]}": share
        for number, share in sorted(shares.items(), key=lambda item: item[1])
        if share < SHARE
    }


def pasting(survey: "Survey") -> str:
    """Returns the value of `config.data.transforms` that pastes the rare classes."""
    numbers = sorted(int(name.partition(":")[0]) for name in rare(survey))
    return f"scale,crop,copy_paste(classes={numbers}),flip,photometric"


def fix(survey: "Survey") -> str:
    """Returns what makes training look at the rare classes."""
    return (
        "cross entropy counts each pixel alike, and may miss them: --config.loss.lovasz=1, which"
        " --write-config proposes, or --config.loss.class_weighting=median_frequency; where they"
        f' are small things, also "--config.data.transforms={pasting(survey)}"'
    )


def in_words(survey: "Survey") -> list[str]:
    """Returns a phrase for each rare class."""
    return [f"{name} ({100 * share:.2g} % of the pixels)" for name, share in rare(survey).items()]
