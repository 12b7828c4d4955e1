"""Tells whether a JSON value is an evaluation as this version writes it, before a page uses it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deeplab_jax.evaluation import metrics

_MOST_PIXELS = 2**62  # in a confusion matrix; sums stay int64

_Test = Callable[[Any], bool]


def find_fault(result: Any) -> str:
    """Returns what is wrong with the content of an `evaluation.json`, "" if nothing is.

    Looks at every field's presence and type, and whether those of classes and of images agree in
    length and what they count.
    """
    fault = _fault_of_fields(result, _FIELDS, "")
    if fault:
        return fault
    for name, fields in (("mean_iou_interval", _INTERVAL), ("environment", _ENVIRONMENT)):
        fault = _fault_of_fields(result[name], fields, f"{name}.")
        if fault:
            return fault
    for index, image in enumerate(result["images"]):
        fault = _fault_of_fields(image, _IMAGE, f"images[{index}].")
        if fault:
            return fault
    return _fault_of_lengths(result) or _fault_of_counts(result)


def _fault_of_fields(have: Any, fields: Mapping[str, tuple[_Test, str]], prefix: str) -> str:
    if not isinstance(have, dict):
        return f"{prefix.removesuffix('.') or 'the whole'} is not an object"
    for name, (is_right, kind) in fields.items():
        if name not in have:
            return f"{prefix}{name} is missing"
        if not is_right(have[name]):
            return f"{prefix}{name} is not {kind}"
    return ""


def _fault_of_lengths(result: Mapping[str, Any]) -> str:
    count = len(result["class_names"])
    for name in _OF_CLASSES:
        if len(result[name]) != count:
            return f"class_names has {count} entries, {name} has {len(result[name])}"
    if any(len(row) != count for row in result["confusion"]):
        return f"confusion is not {count} x {count}, as class_names is long"
    if len(result["images"]) != result["num_images"]:
        return f"images has {len(result['images'])} entries, num_images is {result['num_images']}"
    return ""


def _fault_of_counts(result: Mapping[str, Any]) -> str:
    """Finds scores that are not those of the matrix, such as a class that occurs without an IoU."""
    if sum(map(sum, result["confusion"])) > _MOST_PIXELS:
        return "confusion has more pixels than can be counted"
    total = metrics.areas_of(np.array(result["confusion"], np.int64))
    counted = {"iou": metrics.iou(total), "frequency": total[1] / max(total[1].sum(), 1)}
    for name, values in counted.items():
        have = np.array(result[name], np.float64)  # None becomes NaN
        if not np.allclose(have, values, rtol=1e-6, atol=0, equal_nan=True):
            return f"{name} is not what confusion makes it"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _or_null(is_right: _Test) -> _Test:
    return lambda value: value is None or is_right(value)


def _list_of(is_right: _Test, least: int = 0) -> _Test:
    return lambda value: (
        isinstance(value, list) and len(value) >= least and all(map(is_right, value))
    )


def _is_texts_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


_TEXT = (_is_text, "a text")
_TEXT_OR_NULL = (_or_null(_is_text), "a text or null")
_COUNT = (_is_count, "a whole number from 0")
_FRACTION_OR_NULL = (_or_null(_is_fraction), "a number from 0 to 1 or null")
_FRACTIONS_OR_NULL = (_list_of(_or_null(_is_fraction)), "a list of numbers from 0 to 1 or null")

_FIELDS: dict[str, tuple[_Test, str]] = {
    **dict.fromkeys(("checkpoint", "dataset", "split", "protocol"), _TEXT),
    **dict.fromkeys(("step", "num_images"), _COUNT),
    **dict.fromkeys(
        (
            "mean_iou",
            "pixel_accuracy",
            "mean_accuracy",
            "mean_precision",
            "mean_f1",
            "frequency_weighted_iou",
            "best_constant_mean_iou",
        ),
        _FRACTION_OR_NULL,
    ),
    "mean_iou_interval": (_is_object, "an object"),
    "class_names": (_list_of(_is_text, 1), "a list of texts"),
    **dict.fromkeys(("iou", "accuracy", "precision", "f1"), _FRACTIONS_OR_NULL),
    "frequency": (_list_of(_is_fraction), "a list of numbers from 0 to 1"),
    "worst_image": (_list_of(_or_null(_is_text)), "a list of texts or null"),
    "confusion": (_list_of(_list_of(_is_count)), "a list of lists of whole numbers from 0"),
    "images": (_list_of(_is_object), "a list of objects"),
    "overrides": (_list_of(_is_text), "a list of texts"),
    "config": (_is_object, "an object"),
    "environment": (_is_object, "an object"),
}
_OF_CLASSES = ("iou", "accuracy", "precision", "f1", "frequency", "worst_image", "confusion")
_INTERVAL: dict[str, tuple[_Test, str]] = {
    "low": _FRACTION_OR_NULL,
    "high": _FRACTION_OR_NULL,
    "level": (_is_fraction, "a number from 0 to 1"),
    "method": _TEXT,
}
_IMAGE: dict[str, tuple[_Test, str]] = {"id": _TEXT, "mean_iou": _FRACTION_OR_NULL}
_ENVIRONMENT: dict[str, tuple[_Test, str]] = {
    **dict.fromkeys(("device", "platform", "commit"), _TEXT_OR_NULL),
    "packages": (_is_texts_by_name, "an object of texts"),
}
