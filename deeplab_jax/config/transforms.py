"""What `config.data.transforms` may list: named transforms, their parameters, how they are written.

A transform is written as its name, with values as in a call of Python, `rotate(degrees=15)`, or as
`package.module:function` for a function of the user's. `data.augment` computes them.
"""

import ast
import difflib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from deeplab_jax.config.rules import Accepted, is_share, within
from deeplab_jax.errors import ConfigError, clip

FIELD = "config.data.transforms"
REFERENCE = ("scale", "crop", "flip", "photometric")  # what an empty list means
FOLDERS: list[str] = []  # of the recipes read in this process that name functions, oldest first
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_CALL = re.compile(r"([^\W\d]\w*)\s*(\(.*\))?", re.DOTALL)


class Parameter(NamedTuple):
    """A value of a transform; `default` None means that it must be given."""

    default: Any
    rule: Accepted
    text: str


class Named(NamedTuple):
    """What a named transform does, and its parameters."""

    text: str
    parameters: Mapping[str, Parameter]


class Spec(NamedTuple):
    """A transform as listed: its name with all its values, or a function's name and none."""

    text: str
    name: str
    values: Mapping[str, Any]

    @property
    def is_function(self) -> bool:
        """Whether it is a function of the user's."""
        return ":" in self.name


def _chance(default: float = 0.5) -> Parameter:
    return Parameter(default, is_share("chance"), "share of the samples that it changes")


NAMED: Mapping[str, Named] = MappingProxyType(
    {
        "scale": Named(
            "scales to fit `data.resize_base`, times a random number of `data.scale_range`", {}
        ),
        "crop": Named(
            "cuts out a window of at most `data.crop_size`, of ten tries the first in which no"
            " class dominates",
            {
                "max_share": Parameter(
                    0.75, is_share("max_share"), "of the valid pixels, below which no class does"
                )
            },
        ),
        "flip": Named("mirrors left and right", {"chance": _chance()}),
        "vertical_flip": Named("mirrors top and bottom", {"chance": _chance()}),
        "rotate": Named(
            "turns about the centre at the same size; what holds no picture is ignored",
            {
                "degrees": Parameter(10, within(0, 180), "largest angle, either way"),
                "chance": _chance(),
            },
        ),
        "photometric": Named(
            "changes brightness, contrast, saturation and hue, each by a coin",
            {
                "brightness": Parameter(32, within(0, 255), "most that is added, of 255"),
                "contrast": Parameter(0.5, within(0, 1), "factor is 1 - contrast to 1 + contrast"),
                "saturation": Parameter(0.5, within(0, 1), "factor is 1 - it to 1 + it"),
                "hue": Parameter(18, within(0, 90, whole=True), "most that hue turns by, of 180"),
            },
        ),
        "blur": Named(
            "blurs by a Gaussian",
            {
                "sigma": Parameter(1.5, within(0, 20), "largest standard deviation, in pixels"),
                "chance": _chance(),
            },
        ),
        "jpeg": Named(
            "compresses as JPEG and decodes",
            {
                "quality": Parameter(50, within(1, 95, whole=True), "lowest quality; highest 95"),
                "chance": _chance(),
            },
        ),
        "erase": Named(
            "fills a rectangle with the mean colour of ImageNet",
            {
                "max_share": Parameter(
                    0.2, is_share("max_share"), "of the picture's area, at most; at least 2 %"
                ),
                "void": Parameter(
                    False, Accepted("True or False", lambda v: isinstance(v, bool)),
                    "whether the rectangle is ignored in the loss; else it keeps its labels",
                ),
                "chance": _chance(),
            },
        ),
        "copy_paste": Named(
            "pastes the pixels of some classes from another sample, which `scale` scales if it is"
            " listed before; one of the classes is drawn, then the first of 20 random samples with"
            " it, and one of its pixels falls on a random place",
            {
                "classes": Parameter(
                    None,
                    Accepted(
                        'a list of numbers or names of classes, such as [3] or ["pole"]',
                        lambda v: (
                            isinstance(v, list | tuple)
                            and len(v) > 0
                            and all(type(c) in (int, str) and c != "" for c in v)
                            and len(set(v)) == len(v)
                        ),
                    ),
                    "classes that are pasted, such as rare ones",
                ),
                "chance": _chance(),
            },
        ),
    }
)  # fmt: skip
_OTHERS = {  # what other tools call a transform
    "scale": "resize random_resize random_scale randomresize randomscale scaling",
    "crop": "random_crop randomcrop cropping",
    "flip": "horizontal_flip hflip fliplr random_flip randomflip mirror horizontalflip"
    " random_horizontal_flip randomhorizontalflip",
    "vertical_flip": "vflip flipud verticalflip random_vertical_flip randomverticalflip",
    "rotate": "rotation random_rotation random_rotate randomrotation randomrotate degrees",
    "photometric": "color_jitter colorjitter jitter photometric_distortion brightness contrast hue"
    " photometricdistortion photo_metric_distortion photometricdistort saturation color colour",
    "blur": "gaussian_blur gaussianblur random_blur smooth",
    "jpeg": "jpeg_compression image_compression imagecompression compression jpg",
    "erase": "random_erasing randomerasing erasing cutout random_cutout coarse_dropout"
    " coarsedropout",
    "copy_paste": "copypaste class_mix classmix paste simple_copy_paste",
}
_MEANINGS = {word: name for name, words in _OTHERS.items() for word in words.split()}


def parse(text: object) -> Spec:
    """Returns the transform that one entry of the list means, all its values filled in.

    Raises:
      ConfigError: it is neither a transform nor a function, or a value cannot be used.
    """
    if not isinstance(text, str):
        what = f"must be a list of names, got {clip(repr(text))} in it"
        raise ConfigError(FIELD, what, f"use such as {','.join(REFERENCE)}")
    text = text.strip()
    if _FUNCTION.fullmatch(text):
        return Spec(text, text, {})
    found = _CALL.fullmatch(text)
    if found is None:
        fix = 'write such as crop, "rotate(degrees=15)" or package.module:function'
        module, has_dot, function = text.rpartition(".")
        if has_dot and _FUNCTION.fullmatch(f"{module}:{function}"):
            fix = f"did you mean {module}:{function}?"
        raise ConfigError(FIELD, f"{clip(text)!r} is no name of a transform", fix)
    name, call = found[1], found[2]
    if name not in NAMED:
        near = _MEANINGS.get(name.lower())
        near = near or next(iter(difflib.get_close_matches(name.lower(), NAMED, 1)), None)
        fix = f"did you mean {near}?" if near else f"use one of {', '.join(NAMED)}"
        fix += "; a function of your own is named package.module:function"
        raise ConfigError(FIELD, f"there is no transform {clip(name)!r}", fix)
    return Spec(text, name, _values(text, name, _given(text, name) if call else {}))


def _given(text: str, name: str) -> dict[str, Any]:
    """Returns the values in the parentheses."""
    fix = f"write such as {example(name)}"
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            what = f"{clip(text)!r} has a value without its name"
            raise ConfigError(FIELD, what, fix)
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(FIELD, f"{clip(text)!r} cannot be read", fix) from None


def _values(text: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    known = NAMED[name].parameters
    for key, value in given.items():
        where = f"{FIELD}, {name}"
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            fix = f"did you mean {near[0]}?" if near else f"write {example(name)}"
            raise ConfigError(where, f"has no value {key!r}", fix)
        if not known[key].rule.is_valid(value):
            what = f"{key} must be {known[key].rule.accepted}, got {clip(repr(value))}"
            raise ConfigError(where, what, f"write such as {example(name)}")
    missing = [key for key, p in known.items() if p.default is None and key not in given]
    if missing:
        what = f"lacks {', '.join(missing)}, {known[missing[0]].rule.accepted}"
        raise ConfigError(f"{FIELD}, {name}", what, f"write such as {example(name)}")
    return {key: given.get(key, p.default) for key, p in known.items()}


def example(name: str) -> str:
    """Returns how a named transform is written in a recipe, with all its values."""
    values = [
        f"{key}={[3] if parameter.default is None else parameter.default}"
        for key, parameter in NAMED[name].parameters.items()
    ]
    return f'"{name}({", ".join(values)})"' if values else name


def parse_all(texts: Sequence[object]) -> tuple[Spec, ...]:
    """Returns the transforms of a list.

    Raises:
      ConfigError: an entry cannot be used, or a named transform is there twice.
    """
    specs = tuple(map(parse, texts))
    names = [spec.name for spec in specs]
    for spec in specs:
        if names.count(spec.name) > 1:
            what = f"names {spec.name} {names.count(spec.name)} times"
            raise ConfigError(FIELD, what, "name each transform once")
    return specs


def check(texts: Sequence[object], scale_range: tuple[float, float], usual: tuple[float, float],
          num_classes: int) -> None:  # fmt: skip
    """Checks the list, also against the fields that its transforms read.

    `usual` is the default of `scale_range`, which means nothing where the list lacks `scale`.

    Raises:
      ConfigError: an entry cannot be used.
    """
    specs = parse_all(texts)
    names = [spec.name for spec in specs]
    if specs and "scale" not in names and tuple(scale_range) != tuple(usual):
        what = f"is {scale_range[0]},{scale_range[1]}, and {FIELD} has no scale that reads it"
        low, high = usual
        fix = f"name scale there, or leave it out: --config.data.scale_range={low},{high}"
        raise ConfigError("config.data.scale_range", what, fix)
    for spec in specs:
        beyond = [c for c in spec.values.get("classes", ()) if type(c) is int]
        beyond = [c for c in beyond if not 0 <= c < num_classes]
        if beyond:
            what = f"classes holds {beyond[0]}, and classes are 0 to {num_classes - 1}"
            raise ConfigError(f"{FIELD}, {spec.name}", what, "give the numbers of classes")
