"""The one command-line entry: `deeplab VERB ...`, also `python -m deeplab_jax.VERB ...`.

Importing this loads no JAX. A verb's module parses its arguments before it imports JAX.
"""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from deeplab_jax import __version__
from deeplab_jax.distributed import cluster
from deeplab_jax.errors import ConfigError, DeepLabError, Interrupted, as_resource_error
from deeplab_jax.utils.progress import discard

VERBS = {
    "train": "train a recipe, or continue an interrupted run",
    "evaluate": "measure a checkpoint's mean IoU on a validation set",
    "predict": "segment images: masks, overlays, probabilities, submissions",
    "report": "write a page about an evaluation: classes, images, confusions, curves",
    "doctor": "check a data set before training, and propose a recipe",
    "demo": "draw a small data set, train on it, evaluate, predict: minutes on a CPU",
    "recipes": "list the recipes that come with the package, or copy one for editing",
    "prepare": "put downloaded data sets into their layouts; decode a recipe's data once",
    "convert from-pytorch": "turn a file of PyTorch weights into a checkpoint",
    "convert to-pytorch": "write a checkpoint's weights as a file for PyTorch",
    "convert replay": "train on given batches, step by step as PyTorch would, to compare",
}
_ROOMS = ("demo", "doctor", "report")  # verbs that are folders; their `main` is in `__main__`


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `deeplab VERB ...` and exits."""
    run(dispatch, argv)


def dispatch(argv: list[str]) -> None:
    """Runs a verb in this process and returns; `argv` is "VERB ..." in words."""
    is_group = bool(argv) and any(verb.startswith(f"{argv[0]} ") for verb in VERBS)
    verb, rest = " ".join(argv[: 1 + is_group]), argv[1 + is_group :]
    if argv[is_group : is_group + 1] in ([], ["-h"], ["--help"]):
        print("usage: deeplab VERB ...\n\nverbs:")
        for name, text in VERBS.items():
            print(f"  {name:21} {text}")
        print("\nOptions of a verb: deeplab VERB --help")
        return
    if verb == "--version":
        print(describe_version())
        return
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, 1)
        fix = f"did you mean {close[0]}?" if close else f"use one of {', '.join(VERBS)}"
        raise ConfigError(f"deeplab {verb}", "there is no such verb", fix)
    import_module(module_of(verb)).main(rest)


def describe_version() -> str:
    """Returns the versions of this package and JAX, and the devices or why there are none."""
    import jax

    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS names what is not there
        why = " ".join(str(error).partition(" (set JAX_PLATFORMS=")[0].split())
        found = f"no devices ({why or 'JAX_PLATFORMS=' + os.environ.get('JAX_PLATFORMS', '')})"
    else:
        found = f"{len(devices)} x {devices[0].device_kind}"
    return f"deeplab_jax {__version__}, jax {jax.__version__}, {found}"


def module_of(verb: str) -> str:
    """Returns the name of the module whose `main` runs a verb."""
    package, _, name = verb.rpartition(" ")
    module = f"{package or 'deeplab_jax'}.{name.replace('-', '_')}"
    return f"{module}.__main__" if name in _ROOMS else module


def run(command: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a verb's main function and exits with its code; a `DeepLabError` becomes one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command(argv)
        code = 0
    except DeepLabError as error:
        code = render(error)
    except KeyboardInterrupt:
        _tell("\ninterrupted")
        code = 130
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        code = 141  # 128 + SIGPIPE
    except SystemExit as end:  # argparse's, after --help
        code = int(end.code or 0)
    except Exception as error:
        known = as_resource_error(error)
        if known is None and not cluster.is_initialized():
            raise  # a bug in this package: a report needs the traceback
        if known is None:
            traceback.print_exc()  # here: `shutdown` tells the other hosts and may end the process
        code = 1 if known is None else render(known)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the command itself was done
        discard(sys.stdout)
    cluster.shutdown(code)
    sys.exit(code)


def render(error: DeepLabError) -> int:
    """Prints an error as one line; returns its exit code."""
    if os.environ.get("DEEPLAB_DEBUG") == "1":
        traceback.print_exc()
    text = " ".join(str(error).split())
    _tell(text if isinstance(error, Interrupted) else f"error: {text}")
    return error.exit_code


def _tell(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:  # after Ctrl-C in `... 2>&1 | tee log`, which ends both
        discard(sys.stderr)


class Parser(argparse.ArgumentParser):
    """argparse that raises `ConfigError` and separates `--config.x=y`."""

    def __init__(self, verb: str, examples: str):
        super().__init__(
            prog=f"deeplab {verb}",
            description=VERBS[verb],
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Returns (arguments, the `--config.x=y` among them as written).

        Raises:
          ConfigError: an argument is unknown, missing or malformed.
        """
        argv = _join_overrides(argv)
        flags = [flag for action in self._actions for flag in action.option_strings]
        for name in (a.split("=")[0] for a in argv if a.startswith("--")):
            # Before argparse, which would first report the required flag that was misspelt.
            if name not in flags and not name.startswith("--config."):
                close = difflib.get_close_matches(name, flags, 1, 0.7)
                fix = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
                raise ConfigError(name, "there is no such argument", fix)
        overrides = [a for a in argv if a.startswith("--config.")]
        return self.parse_args([a for a in argv if not a.startswith("--config.")]), overrides

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and exiting."""
        raise ConfigError(self.prog, message, f"see {self.prog} --help")


def _join_overrides(argv: Sequence[str]) -> list[str]:
    """Turns "--config.a b" into "--config.a=b"."""
    joined: list[str] = []
    is_open = False
    for argument in argv:
        if is_open and not argument.startswith("--"):
            joined[-1] += f"={argument}"
            is_open = False
            continue
        joined.append(argument)
        is_open = argument.startswith("--config.") and "=" not in argument
    return joined
