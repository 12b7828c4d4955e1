"""The one command-line entry: `deeplab VERB ...`, also `python -m deeplab_jax.VERB ...`.

Importing this loads no JAX. A verb's module parses its arguments before it imports JAX.
"""

import argparse
import difflib
import io
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from deeplab_jax import __version__
from deeplab_jax.distributed import cluster
from deeplab_jax.errors import ConfigError, DataError, DeepLabError, Interrupted, as_resource_error
from deeplab_jax.utils import background, machine
from deeplab_jax.utils.progress import discard

if TYPE_CHECKING:
    from deeplab_jax.config import Config

VERBS = {
    "train": "train a recipe, or continue an interrupted run",
    "evaluate": "measure a checkpoint's mean IoU on a validation set",
    "predict": "segment images: masks, overlays, probabilities, submissions",
    "export": "write a network as ONNX, StableHLO or safetensors, in a folder with its proof",
    "verify": "compare an exported folder with its sample, and on data with the network",
    "serve": "a page to try a checkpoint on, and its predictions over HTTP",
    "report": "write a page about an evaluation: classes, images, confusions, curves",
    "compare": "tell whether one evaluation is better than another: interval, classes, images",
    "goodput": "where the wall time of a run went: steps, waiting, lost work, stopped",
    "reproduce": "repeat the first steps of a run and compare their losses",
    "bench": "time training, inference and reading on this machine, beside PyTorch",
    "selftest": "compare the numbers of this jax and these devices with PyTorch's: a minute",
    "doctor": "check a data set before training, and propose a recipe",
    "preview": "a page with what the network will see: samples before and after augmentation",
    "demo": "draw a small data set, train on it, evaluate, predict: minutes on a CPU",
    "recipes": "list the recipes that come with the package, or copy one for editing",
    "prepare": "put downloaded data sets into their layouts; decode a recipe's data once",
    "config fields": "every field of a recipe: default, unit, accepted values, meaning",
    "config show": "a recipe's values, and where each comes from",
    "config diff": "the fields in which two recipes or runs differ",
    "checkpoint ls": "the steps of a directory: kind, size, score, date, and what is damaged",
    "checkpoint verify": "read every array of saved steps and compare its checksum",
    "checkpoint rm": "remove steps, ones set aside, or unfinished saves",
    "checkpoint export": "write a step without the optimiser's state as a checkpoint of its own",
    "checkpoint diff": "compare two steps: configuration, and the largest difference by array",
    "convert from-pytorch": "turn a file of PyTorch weights into a checkpoint",
    "convert to-pytorch": "write a checkpoint's weights as a file for PyTorch",
    "convert replay": "train on given batches, step by step as PyTorch would, to compare",
}
# What other tools call a verb.
_OTHERS = {"infer": "predict", "inference": "predict", "segment": "predict", "test": "evaluate",
           "val": "evaluate", "validate": "evaluate", "fit": "train", "resume": "train",
           "check": "doctor", "onnx": "export", "version": "--version",
           "-V": "--version", "-v": "--version", "benchmark": "bench",
           "profile": "bench", "speed": "bench", "diff": "compare", "server": "serve"}  # fmt: skip
_OF_DATA = ("--config.data.", "--config.model.num_classes=")  # what the doctor looks at
# Folders, with `main` in `__main__`.
_ROOMS = ("demo", "doctor", "export", "preview", "report", "selftest", "serve", "verify")
# Groups whose verbs are one module; its `main` takes the verb as the first argument.
_GROUPS = {
    "config": "deeplab_jax.config.__main__",
    "checkpoint": "deeplab_jax.checkpoint_verbs",
}


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
        print("\nOptions of a verb: deeplab VERB --help; versions and devices: deeplab --version")
        return
    if verb == "--version":
        print(describe_version())
        return
    if verb not in VERBS:
        close = [_OTHERS[verb]] if verb in _OTHERS else difflib.get_close_matches(verb, VERBS, 1)
        if verb == "help":
            close = [" ".join([*rest, "--help"])]
        fix = f"did you mean {close[0]}?" if close else f"use one of {', '.join(VERBS)}"
        raise ConfigError(f"deeplab {verb}", "there is no such verb", fix)
    import_module(module_of(verb)).main(argv[1:] if verb.partition(" ")[0] in _GROUPS else rest)


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
    if package in _GROUPS:
        return _GROUPS[package]
    module = f"{package or 'deeplab_jax'}.{name.replace('-', '_')}"
    return f"{module}.__main__" if name in _ROOMS else module


def run(command: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a verb's main function and exits with its code; a `DeepLabError` becomes one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    machine.keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        # Names of classes and files hold what a terminal of another encoding cannot show.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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
    except OSError as error:  # the command itself was done
        discard(sys.stdout)
        full = None if isinstance(error, BrokenPipeError) else as_resource_error(error)
        code = code or (0 if full is None else render(full))
    cluster.shutdown(code)
    if background.is_left():  # XLA still compiles; the interpreter's end would wait or crash
        os._exit(code)
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


def finish(
    results: str | os.PathLike | None, *following: str | os.PathLike, note: str = ""
) -> None:
    """Prints where a verb's results are, and the next command, where there are any.

    A verb with several results or next commands calls it for each.

    Args:
      results: a file or folder.
      following: words of the next command, after "deeplab".
      note: about the last line, which it ends as a comment.
    """
    lines = [] if results is None else [f"results: {shlex.quote(str(results))}"]
    if following:
        lines.append(f"next: {shlex.join(['deeplab', *map(str, following)])}")
    print("\n".join(lines) + (f"  # {note}" if note else ""), flush=True)


def with_doctor(
    error: DataError, config: "Config", recipe: str, overrides: Sequence[str]
) -> DataError:
    """Returns an error of a run's data that also names the command that shows all faults."""
    told = ("deeplab doctor", "deeplab preview", "--config.")
    is_told = any(text in error.fix for text in told)
    if is_told or cluster.is_initialized() or not os.path.isdir(config.data.root):
        return error  # the fault is not in the files, or perhaps in those of another host
    kept = [text for text in overrides if text.startswith(_OF_DATA)]
    command = shlex.join(["deeplab", "doctor", "--config", recipe, *kept])
    return DataError(error.where, error.what, f"{error.fix}; see all: {command}")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that chooses between the weights of a step."""
    text = "of a run with train.ema_half_life: the average (default), or the weights as trained"
    parser.add_argument("--weights", choices=("ema", "raw"), help=text)


def refuse_empty(args: argparse.Namespace, *names: str) -> None:
    """Refuses arguments that were given as an empty text, as by a variable that is not set.

    Raises:
      ConfigError: one is; `names` are those of its flag or place, such as "--data" and "DIR".
    """
    for name in names:
        value = getattr(args, name.lstrip("-").replace("-", "_").lower())
        if value is not None and not value.strip():
            raise ConfigError(name, "is empty", "give a value, or leave a flag out")


def same_weights(step: int | str, weights: str | None) -> list[str]:
    """Returns the flags by which another verb takes the same weights."""
    flags = [] if step == "latest" else ["--step", str(step)]
    return [*flags, "--weights", weights] if weights else flags


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
        self._first = ""  # of the arguments, if it is no flag

    def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Returns (arguments, the `--config.x=y` among them as written).

        Raises:
          ConfigError: an argument is unknown, missing or malformed.
        """
        argv = _join_overrides(argv)
        flags = [flag for action in self._actions for flag in action.option_strings]
        for argument, following in zip(argv, [*argv[1:], ""], strict=False):
            # Before argparse, which would first report the required flag that was misspelt.
            name, _, value = argument.partition("=")
            is_flag = name.startswith("--") or (name[:1] == "-" and name[1:2].isalpha())
            if is_flag and name not in flags and not name.startswith("--config."):
                value = value or ("" if following.startswith("-") else following)
                from deeplab_jax.config.flags import unknown_flag

                raise unknown_flag(name, value, self.prog, flags)
        self._first = argv[0] if argv and not argv[0].startswith("-") else ""
        overrides = [a for a in argv if a.startswith("--config.")]
        return self.parse_args([a for a in argv if not a.startswith("--config.")]), overrides

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and exiting."""
        required = [a for a in self._actions if a.required]
        names = [" ".join([*a.option_strings[:1], str(a.metavar)]) for a in required]
        fix = f"see {self.prog} --help"
        if names and message.startswith("the following arguments are required"):
            fix = f"give {' '.join(names)}; {fix}"
        wanted = [a for a in self._actions if a.required or "--data" in a.option_strings]
        if self._first and wanted and wanted[0].option_strings:
            fix = f"did you mean {wanted[0].option_strings[0]} {self._first}?"
        # Of other tools a path; the values may be listed in quotes.
        if (path := re.search(r"argument --weights: invalid choice: '(.*?)'", message)) and names:
            message = message.partition(":")[0] + f": must be ema or raw, got {path[1]}"
            fix = f"did you mean --checkpoint {path[1]}?"
        if bare := re.search(r"unrecognized arguments: (config\.\S+)", message):
            fix = f"did you mean --{bare[1]}?"
        raise ConfigError(self.prog, message, fix)


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
