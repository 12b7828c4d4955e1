"""Collectives between the processes of one run; with one process every call is a no-op.

Every host calls these functions in the same order, after `cluster.initialize` has joined them.
"""

import functools
import hashlib
import importlib.metadata
import json
import platform
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deeplab_jax import __version__, errors
from deeplab_jax.errors import ConfigError, DeepLabError, ReaderError, ResourceError, shorten

T = TypeVar("T")

_LOST = "a host of this run ended, failed or cannot be reached"
_SIGNS_OF_LOSS = ("Gloo", "onnection", "UNAVAILABLE", "oordination", "barrier")


def is_primary() -> bool:
    """Tells whether this process writes and prints for all."""
    return jax.process_index() == 0


def are_multiple() -> bool:
    """Tells whether the run has other processes."""
    return jax.process_count() > 1


def name() -> str:
    """Returns the name of this process in messages."""
    return f"{platform.node()} (process {jax.process_index()})"


def devices() -> dict[str, str | int]:
    """Returns platform, kind and number of the run's devices, and the number of its processes."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def own_share(items: Sequence[T], host: int | None = None) -> Sequence[T]:
    """Returns a host's share, every n-th of n hosts, of items in the same order on all hosts."""
    return items[jax.process_index() if host is None else host :: jax.process_count()]


def all_gather(value: Any) -> list[Any]:
    """Returns every host's value, which must be JSON's, in order of processes."""
    return [json.loads(data) for data in all_gather_bytes(json.dumps(value).encode())]


def all_gather_bytes(data: bytes) -> list[bytes]:
    """Returns every host's bytes, in order of processes."""
    if not are_multiple():
        return [data]
    # As bytes: JAX would make 64-bit numbers 32 bits wide.
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.uint32))[:, 0]
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)  # few shapes to compile
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    gathered = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(gathered, sizes, strict=True)]


@contextmanager
def sync_errors() -> Iterator[None]:
    """Makes a block that fails on one host fail on all, with the same error.

    Raises:
      DeepLabError: that of the first host with one, which is named if not all have the same.
    """
    with agreement():
        yield


def synced_error(failure: Exception | None) -> DeepLabError | None:
    """Returns the error that all hosts end with, if any has one.

    Args:
      failure: this host's error, if any. A bug's traceback is printed here.
    """
    return _first_error(all_gather([name(), _described(failure)]))


@contextmanager
def agreement() -> Iterator[dict[str, object]]:
    """Lets hosts find out what decides a run, each for itself, and compares it in one exchange.

    Yields:
      A dictionary that the block fills with facts by name, as it finds them.

    Raises:
      ConfigError: facts differ; names them, their values and the hosts.
      DeepLabError: the block failed on a host; the same error on all, unless facts explain it.
    """
    facts: dict[str, object] = {}
    if not are_multiple():
        yield facts
        return
    failure = None
    try:
        yield facts
    except Exception as error:
        failure = error
    own = {key: str(value) for key, value in facts.items()}
    told = all_gather([name(), own, _described(failure)])
    has_failed = any(error for *_, error in told)
    differences = _differences({host: found for host, found, _ in told}, has_failed)
    if differences:
        fix = "start the same command with the same version and data on every host"
        raise ConfigError("hosts", f"differ in {'; '.join(differences)}", fix) from failure
    if (common := _first_error([[host, error] for host, _, error in told])) is not None:
        raise common from failure


def _differences(told: Mapping[str, Mapping[str, str]], is_partial: bool) -> list[str]:
    """Returns a phrase for each fact that differs; absent ones count unless `is_partial`."""
    differences = []
    for key in dict.fromkeys(key for facts in told.values() for key in facts):
        values = {host: facts.get(key, "absent") for host, facts in told.items()}
        if is_partial:
            values = {host: facts[key] for host, facts in told.items() if key in facts}
        counts = Counter(values.values())
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            others = [f"{value} on {host}" for host, value in values.items() if value != usual]
            same = [host for host, value in values.items() if value == usual]
            differences.append(f"{key}: {shorten(others, 4)}, {usual} on {shorten(same, 1)}")
    return differences


def _first_error(told: list[list[Any]]) -> DeepLabError | None:
    """Returns the first host's error of those told, with the host unless all have the same."""
    found = [(host, error) for host, error in told if error]
    if not found:
        return None
    host, (kind, where, what, fix) = found[0]
    if [error for _, error in told] != [found[0][1]] * len(told):
        where = f"{where} on {host}"
    error: DeepLabError = getattr(errors, kind)(where, what, fix)
    return error


def _described(failure: Exception | None) -> list[str] | None:
    """Returns an error as texts; prints a bug's traceback."""
    if failure is None:
        return None
    failure = errors.as_resource_error(failure) or failure
    if isinstance(failure, DeepLabError):
        return [type(failure).__name__, failure.where, failure.what, failure.fix]
    traceback.print_exception(failure)
    what = f"{type(failure).__name__}: {failure}"
    return [ReaderError.__name__, "an error", what, "see what that host printed"]


@functools.cache
def code_version() -> str:
    """Returns the package's version and a hash of its source files."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return f"{__version__} ({digest.hexdigest()[:12]})"


def software() -> dict[str, str]:
    """Returns the versions that must be equal on the hosts of a run, by package."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"deeplab_jax": code_version()} | versions


class Poll:
    """Maximum of a number over hosts, asked for again and again without waiting for the devices.

    With several processes each call returns the maximum of the call before.
    """

    def __init__(self) -> None:
        self._answer: jax.Array | None = None
        if are_multiple():
            mesh = Mesh(np.array(jax.devices()), ("hosts",))
            self._rows = NamedSharding(mesh, PartitionSpec("hosts"))
            self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(self, value: int) -> int:
        """Returns the largest of all hosts' values in the call before, 0 in the first call.

        With one process returns `value`.
        """
        if not are_multiple():
            return value
        before = self._answer
        own = np.array([value], np.int32)
        shape = (jax.device_count(),)
        asked = jax.make_array_from_callback(shape, self._rows, lambda index: own)
        self._answer = self._max(asked)
        return 0 if before is None else int(before)


@contextmanager
def watched(workdir: object) -> Iterator[None]:
    """Turns JAX's error about a lost host into ours, which names `workdir`.

    Raises:
      ResourceError: a host is gone.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        lost = None if isinstance(error, DeepLabError) else lost_host(workdir, error)
        if lost is None:
            raise
        raise lost from error


def lost_host(where: object, error: BaseException) -> ResourceError | None:
    """Returns our error if one of JAX or Orbax means that another host is lost, else None."""
    text = str(error)
    is_of_disk = "os_error_code" in text or (isinstance(error, OSError) and error.errno)
    is_lost = not is_of_disk and any(word in text for word in _SIGNS_OF_LOSS)
    if not are_multiple() or not is_lost:
        return None
    fix = "see what the others printed, and repeat the command on all to go on"
    return ResourceError(str(where), f"{_LOST} ({' '.join(text.split())[:120]})", fix)
