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
    """Returns what this process is called in messages."""
    return f"{platform.node()} (process {jax.process_index()})"


def own_share(items: Sequence[T], host: int | None = None) -> Sequence[T]:
    """Returns this host's share of the items: every n-th of them, where there are n hosts.

    Args:
      items: in the same order on all hosts.
      host: which process; this one by default.
    """
    return items[jax.process_index() if host is None else host :: jax.process_count()]


def all_gather(value: Any) -> list[Any]:
    """Returns every host's value, in order of processes.

    Args:
      value: what JSON can hold.
    """
    return [json.loads(data) for data in all_gather_bytes(json.dumps(value).encode())]


def all_gather_bytes(data: bytes) -> list[bytes]:
    """Returns every host's bytes, in order of processes."""
    if not are_multiple():
        return [data]
    # Bytes travel as they are; numbers would become 32 bits wide.
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.uint32))[:, 0]
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)  # few shapes to compile
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    gathered = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(gathered, sizes, strict=True)]


@contextmanager
def sync_errors() -> Iterator[None]:
    """Makes what fails in the block on one host fail on all, with the same line.

    Raises:
      DeepLabError: the first host's that has one, named if not all have it.
    """
    if not are_multiple():
        yield
        return
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if (common := synced_error(failure)) is not None:
        raise common from failure


def synced_error(failure: Exception | None) -> DeepLabError | None:
    """Returns the error that all hosts end with, if any has one.

    Args:
      failure: this host's error, if any. A bug's traceback is printed here.
    """
    if failure is not None:
        failure = errors.as_resource_error(failure) or failure
    if failure is not None and not isinstance(failure, DeepLabError):
        traceback.print_exception(failure)
    told = all_gather([name(), _described(failure)])
    found = [(host, error) for host, error in told if error]
    if not found:
        return None
    host, (kind, where, what, fix) = found[0]
    if [error for _, error in told] != [found[0][1]] * len(told):
        where = f"{where} on {host}"
    error: DeepLabError = getattr(errors, kind)(where, what, fix)
    return error


def _described(failure: Exception | None) -> list[str] | None:
    if failure is None:
        return None
    if isinstance(failure, DeepLabError):
        return [type(failure).__name__, failure.where, failure.what, failure.fix]
    what = f"{type(failure).__name__}: {failure}"
    return [ReaderError.__name__, "an error", what, "see what that host printed"]


def require_equal(facts: Mapping[str, object]) -> None:
    """Refuses to go on where hosts differ.

    Args:
      facts: text or numbers by name.

    Raises:
      ConfigError: says on which hosts what differs.
    """
    told = all_gather([name(), {key: str(value) for key, value in facts.items()}])
    differences = []
    for key in dict.fromkeys(key for _, own in told for key in own):
        values = [(own.get(key, "absent"), host) for host, own in told]
        counts = Counter(value for value, _ in values)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            others = [f"{value} on {host}" for value, host in values if value != usual]
            rest = f"{usual} on {shorten([h for value, h in values if value == usual], 1)}"
            differences.append(f"{key}: {shorten(others, 4)}, {rest}")
    if differences:
        fix = "start the same command with the same version and data on every host"
        raise ConfigError("hosts", f"differ in {'; '.join(differences)}", fix)


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
    """Returns the versions that hosts of a run must agree in, by name."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"deeplab_jax": code_version()} | versions


class Poll:
    """Asks all hosts for a number again and again, without waiting for the answer.

    With several processes an answer is that of the question before, which is there once the
    devices have done what was under way then; with one, that of the question itself.
    """

    def __init__(self) -> None:
        self._answer: jax.Array | None = None
        if are_multiple():
            mesh = Mesh(np.array(jax.devices()), ("hosts",))
            self._rows = NamedSharding(mesh, PartitionSpec("hosts"))
            self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(self, value: int) -> int:
        """Returns the largest value of any host, the same on all; 0 at first."""
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
    """Turns JAX's error about a lost host into ours.

    Args:
      workdir: what the run writes to, for the message.

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
    """Returns our error where `error` means that another host does not answer, else None.

    Args:
      where: what the run writes to, for the message.
      error: what JAX or Orbax raised.
    """
    text = str(error)
    is_of_disk = "os_error_code" in text or (isinstance(error, OSError) and error.errno)
    is_lost = not is_of_disk and any(word in text for word in _SIGNS_OF_LOSS)
    if not are_multiple() or not is_lost:
        return None
    fix = "see what the others printed, and repeat the command on all to go on"
    return ResourceError(str(where), f"{_LOST} ({' '.join(text.split())[:120]})", fix)
