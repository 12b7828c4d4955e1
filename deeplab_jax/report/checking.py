"""Check of a JSON value against the `evaluation.json` that this version writes."""

from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np

from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.summary import Amount, Evaluation, read_areas

_MAX_PIXELS = 2**62  # of a confusion matrix, so that its sums stay int64
_PER_CLASS = ("iou", "iou_interval", "accuracy", "precision", "f1", "frequency", "worst_image",
              "confusion", "boundary_iou_per_class")  # fmt: skip


def find_fault(result: Any) -> str:
    """Returns the first fault in the content of an `evaluation.json`, "" if there is none.

    Checks every field's presence and type, the numbers of classes and images, and whether IoU and
    frequency are those of the confusion matrix.
    """
    return (
        _fault_of_type(result, Evaluation, "")
        or _fault_of_lengths(result)
        or _fault_of_scores(result)
    )


def _fault_of_type(value: Any, kind: Any, place: str) -> str:
    """Compares a JSON value with an annotation; numbers are fractions, or counts if integers."""
    items = get_args(kind)
    if not _is_of(value, kind):
        words = _words(kind)
        return (
            f"{place or 'the whole'} is not {'an' if words.startswith('object') else 'a'} {words}"
        )
    if is_typeddict(kind):
        for name, inner in get_type_hints(kind).items():
            where = f"{place}.{name}".lstrip(".")
            if name not in value and name not in kind.__optional_keys__:
                return f"{where} is missing"
            if name in value and (fault := _fault_of_type(value[name], inner, where)):
                return fault
    if get_origin(kind) is list and is_typeddict(items[0]):
        faults = (_fault_of_type(item, items[0], f"{place}[{i}]") for i, item in enumerate(value))
        return next(filter(None, faults), "")
    return ""


def _is_of(value: Any, kind: Any) -> bool:
    """Tells whether a value has the type of an annotation, without the fields of objects."""
    items = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return value is None or _is_of(value, items[0])
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of(item, items[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is_of(item, items[1]) for item in value.values())
    if kind in (int, float, Amount):
        is_number = type(value) is int or (type(value) is float and kind is not int)
        return is_number and 0 <= value <= (1 if kind is float else np.inf)
    return kind is Any or isinstance(value, dict if is_typeddict(kind) else kind)


def _words(kind: Any, plural: str = "") -> str:
    items = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return f"{_words(items[0], plural)} or null"
    if get_origin(kind) is list:
        return f"list{plural} of {_words(items[0], 's')}"
    names = {str: "text{}", int: "whole number{} from 0", float: "number{} from 0 to 1",
             Amount: "number{} from 0"}  # fmt: skip
    of_items = " of texts" if items[1:] == (str,) else ""
    return names.get(kind, "object{}").format(plural) + of_items


def _fault_of_lengths(result: dict[str, Any]) -> str:
    count = len(result["class_names"])
    if not count:
        return "class_names is not a list of texts, for it is empty"
    for name in _PER_CLASS:
        if name in result and len(result[name]) != count:
            return f"class_names has {count} entries, {name} has {len(result[name])}"
    if any(len(row) != count for row in result["confusion"]):
        return f"confusion is not {count} x {count}, as class_names is long"
    if len(result["images"]) != result["num_images"]:
        return f"images has {len(result['images'])} entries, num_images is {result['num_images']}"
    return ""


def _fault_of_scores(result: dict[str, Any]) -> str:
    """Finds scores that are not those of the matrix, such as a null IoU of a class that occurs."""
    if sum(map(sum, result["confusion"])) > _MAX_PIXELS:
        return "confusion has more pixels than can be counted"
    total = metrics.areas_of(np.array(result["confusion"], np.int64))
    frequency = total[1] / max(total[1].sum(), 1)
    for name, values in (("iou", metrics.iou(total)), ("frequency", frequency)):
        have = np.array(result[name], np.float64)  # None becomes NaN
        if not np.allclose(have, values, rtol=1e-6, atol=0, equal_nan=True):
            return f"{name} is not what confusion makes it"
    return _fault_of_areas(result, total)


def _fault_of_areas(result: dict[str, Any], total: np.ndarray) -> str:
    """Compares the sums of the images' areas, where there are any, with those of the matrix."""
    if not all("areas" in image for image in result["images"]):
        return ""
    try:
        areas = read_areas(result["images"], total.shape[1])
    except ValueError:
        return "images has areas that are not three numbers for the number of a class"
    return "" if np.array_equal(areas.sum(0), total) else "areas of images are not confusion's"
