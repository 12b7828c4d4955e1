"""Transforms of the user's, `(image, label, rng) -> (image, label)`: found, checked, called.

A fingerprint of their source tells a continued run whether they changed.
"""

import difflib
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deeplab_jax.config import IGNORE_INDEX, transforms
from deeplab_jax.config.transforms import FIELD
from deeplab_jax.errors import ConfigError, DataError, clip

Function = Callable[[np.ndarray, np.ndarray, np.random.Generator], Any]

_DEFINE = "define it as `def f(image, label, rng): ...; return image, label`"
_CORRECT = "correct the function, and try it: deeplab preview --config RECIPE"


def find(text: str) -> Function:
    """Returns the function that "package.module:function" names.

    Its module is searched for among what is installed, in the folders of the recipes that were
    read, the last first, and in the current folder. Those folders are added to `sys.path`, at its
    end and for worker processes, too.

    Raises:
      ConfigError: there is no such module or function, or importing the module fails.
    """
    module_name, _, name = text.partition(":")
    where = f"{FIELD}, {text}"
    own = list(dict.fromkeys([*reversed(transforms.FOLDERS), os.getcwd()]))
    sys.path += [folder for folder in own if folder not in sys.path]
    importlib.invalidate_caches()  # for a file written after another of its folder was imported
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's file may raise anything
        missing = getattr(error, "name", None) or ""
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing}."):
            what = f"there is no module {missing} in {' or '.join(own)}, nor installed"
            fix = "correct the name, or put the file into the recipe's folder or the current one"
            raise ConfigError(where, what, fix) from error
        what = f"importing {module_name} fails with {_told(error)}"
        raise ConfigError(where, what, "correct that module, or install what it needs") from error
    _check_not_hidden(module_name, getattr(module, "__file__", None), own, where)
    function = getattr(module, name, None)
    if not callable(function):
        what = f"{module_name} has no function {name}"
        what += "" if function is None else f": that is {type(function).__name__}"
        names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        near = difflib.get_close_matches(name, names, 1)
        fix = f"did you mean {module_name}:{near[0]}?" if near else _DEFINE
        raise ConfigError(where, what, fix)
    return function


def _check_not_hidden(module: str, found: str | None, folders: list[str], where: str) -> None:
    """Refuses a module that was found elsewhere where one of its name is in our folders."""
    path = Path(*module.split("."))
    for folder in folders:
        for file in (Path(folder, path, "__init__.py"), Path(folder, path.with_suffix(".py"))):
            if file.is_file():
                if found is None or not Path(found).samefile(file):
                    what = f"{file} is hidden by another module of its name, {found or 'built in'}"
                    raise ConfigError(where, what, "rename the file, and the module here")
                return


def check_sent(function: Function) -> None:
    """Refuses a function that cannot be sent to worker processes (ConfigError)."""
    import cloudpickle  # grain's

    try:
        cloudpickle.dumps(function)
    except Exception as error:  # whatever the function holds raises
        what = f"cannot be sent to worker processes: {_told(error)}"
        fix = "define it at the top of a module, or set --config.data.num_workers=0"
        raise ConfigError(_where(name_of(function)), what, fix) from error


def check(function: Function, name: str, sample: tuple[np.ndarray, np.ndarray],
          num_classes: int, sample_name: str) -> None:  # fmt: skip
    """Refuses a function that does not return an image and its label, or not twice the same.

    Raises:
      ConfigError: names what is wrong, on one line.
    """
    results = []
    for _ in range(2):
        try:
            rng = np.random.default_rng(0)
            results.append(apply(function, name, sample, rng, num_classes, sample_name))
        except DataError as error:
            raise ConfigError(error.where, error.what, error.fix) from error.__cause__
    if not all(map(np.array_equal, *results)):
        what = "two calls with the same sample and random numbers return different samples"
        fix = "draw every random number from `rng`, which is a numpy.random.Generator"
        raise ConfigError(_where(name), what, fix)


def apply(
    function: Function, name: str, sample: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator, num_classes: int, sample_name: str,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns what the function makes of copies of an image and its label.

    Raises:
      DataError: it fails, or returns something else than uint8 (h, w, 3) and uint8 (h, w) with
        classes and 255.
    """
    where = _where(name)
    try:
        result = function(sample[0].copy(), sample[1].copy(), rng)
    except Exception as error:  # a user's function may raise anything
        fix = f"{_CORRECT}; DEEPLAB_DEBUG=1 shows the traceback"
        is_called_wrongly = isinstance(error, TypeError) and _depth(error) == 1
        fix = _DEFINE if is_called_wrongly else fix
        what = f"fails on {sample_name} with {_told(error)}"
        raise DataError(where, what, fix) from error
    if fault := _fault(result, num_classes):
        raise DataError(where, f"on {sample_name} {fault}", _CORRECT)
    return np.ascontiguousarray(result[0]), np.ascontiguousarray(result[1])


def _where(name: str) -> str:
    return f"{FIELD}, {name}" if ":" in name else f"transform {name}"


def _fault(result: Any, num_classes: int) -> str:
    """Returns what is wrong with the result of a function; "" if nothing is."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        return f"it returns {_kind(result)}, not (image, label)"
    image, label = result
    for name, array, ndim in (("image", image, 3), ("label", label, 2)):
        wanted = "uint8 (h, w, 3)" if ndim == 3 else "uint8 (h, w)"
        is_good = isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == ndim
        if not is_good or not array.size or (ndim == 3 and array.shape[2] != 3):
            return f"its {name} is {_kind(array)}, not {wanted}"
    if image.shape[:2] != label.shape:
        return f"its image is {_kind(image)} and its label {_kind(label)}: their sizes differ"
    counts = cv2.calcHist([np.ascontiguousarray(label)], [0], None, [256], [0, 256]).ravel()
    bad = np.flatnonzero(counts[num_classes:IGNORE_INDEX])
    if bad.size:
        value = num_classes + bad[0]
        return f"its label has the value {value}; accepted are 0 to {num_classes - 1} and 255"
    return ""


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} ({', '.join(map(str, value.shape))})"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {clip(text, 200)}' if text else ''}"


def _depth(error: BaseException) -> int:
    """Returns the number of frames that an error passed: 1 where the call itself failed."""
    trace, depth = error.__traceback__, 0
    while trace is not None:
        trace, depth = trace.tb_next, depth + 1
    return depth


def name_of(value: Any) -> str:
    """Returns the name of a function, or of an object's class, without its module."""
    value = _inner(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__)).rpartition(">.")[2]


def fingerprint(function: Callable[..., Any], is_own: bool = False) -> str:
    """Returns twelve digits of the SHA-256 of a function's source; "" where there is none.

    The source is that of the whole file, since a function reads what stands beside it. With
    `is_own`, or where the file is a program's main file, it is the function's own, or that of an
    object's class.
    """
    function = _inner(function)
    try:
        module = inspect.getmodule(function)
        is_own |= module is None or module.__name__ == "__main__"
        if not is_own and inspect.isfunction(function):
            text = inspect.getsource(module)  # type: ignore[arg-type]
        else:
            is_code = inspect.isroutine(function) or inspect.isclass(function)
            text = inspect.getsource(function if is_code else type(function))
    except (OSError, TypeError):  # typed into an interpreter, or compiled
        return ""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _inner(function: Any) -> Any:
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    return function
