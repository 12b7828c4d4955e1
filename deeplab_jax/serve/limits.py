"""What the server accepts, how much memory requests may hold, and how a request is refused."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, NamedTuple

from deeplab_jax.data.images import TooLargeError
from deeplab_jax.errors import DataError

MEMORY = 512 * 2**20  # bytes of all bodies and answers held at a time
RATE = 64 * 2**10  # bytes a second of a body, after the first seconds
CONNECTIONS = 512  # open at a time
DRAIN = 3.0  # seconds for which the rest of a refused body is read
STALL = 30.0  # seconds for which a client may take nothing of its answer


class Limits(NamedTuple):
    """Limits of a request.

    Attributes:
      max_bytes: of an image file.
      max_pixels: of an image.
      queue: requests that may wait for the network.
      timeout: seconds a request waits for its turn, and a client may take for its headers and for
        the start of its body.
      hosts: what Host may name, in lower case.
      is_local: whether no other machine reaches the server; otherwise Host may be any address in
        numbers, too.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 16_000_000
    queue: int = 32
    timeout: float = 4.0
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    is_local: bool = True


class Refusal(Exception):
    """A request that is not served; becomes the answer {"error": {"where", "what", "fix"}}.

    Attributes:
      status: of HTTP.
      headers: of the answer, beside those of every answer.
      content: of the answer.
    """

    def __init__(
        self,
        status: int,
        where: str,
        what: str,
        fix: str,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, where, what, fix)
        self.status, self.headers = HTTPStatus(status), dict(headers or {})
        self.content: dict[str, Any] = {"error": {"where": where, "what": what, "fix": fix}}


class Gone(Exception):
    """The client has closed its connection."""


def busy(what: str, seconds: float) -> Refusal:
    """Returns the refusal of a request that may be repeated after some seconds."""
    whole = max(1, round(seconds + 0.5))
    fix = f"try again in {whole} s"
    return Refusal(503, "server", what, fix, {"Retry-After": str(whole)})


def too_large(where: str, what: str, fix: str) -> Refusal:
    """Returns the refusal of a body or image above a limit."""
    return Refusal(413, where, what, fix)


def of_data(error: DataError) -> Refusal:
    """Returns the refusal of an image that cannot be read, or is too large."""
    if isinstance(error, TooLargeError):
        return too_large("image", error.what, "send a smaller image")
    return Refusal(400, "image", error.what, error.fix)


class Budget:
    """Bytes of all requests at a time; used by one thread alone."""

    def __init__(self, limit: int = MEMORY):
        self.limit, self.used = limit, 0

    @contextmanager
    def held(self) -> Iterator["Held"]:
        """Holds what the block adds, until it ends."""
        held = Held(self)
        try:
            yield held
        finally:
            self.used -= held.num_bytes


class Held:
    """The bytes of one request."""

    def __init__(self, budget: Budget):
        self._budget, self.num_bytes = budget, 0

    def add(self, num_bytes: int) -> None:
        """Adds to the bytes that are held.

        Raises:
          Refusal: all requests together would hold too many.
        """
        if self._budget.used + num_bytes > self._budget.limit:
            raise busy("holds as much data of other requests as it may", 1)
        self._budget.used += num_bytes
        self.num_bytes += num_bytes
