"""The outermost layer of every request: who may ask, how bodies that nobody reads end, headers.

A page of another site must not use a server on this machine. Its requests carry its own Origin, or
by DNS rebinding its own name as Host; both are refused before anything is read.
"""

import asyncio
import contextlib
import ipaddress
import json
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from deeplab_jax.errors import clip
from deeplab_jax.serve.limits import DRAIN, Limits, Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_CHUNK = 64 * 2**10  # bytes of an answer that are written at a time
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' blob: data:; media-src 'self' blob: mediastream:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Answer:
    """A whole answer, written in parts so that a client that reads nothing is noticed."""

    def __init__(
        self,
        body: bytes,
        media_type: str,
        status: int = 200,
        headers: MutableMapping[str, str] | None = None,
    ):
        self.body, self.status = body, status
        self.headers = {"Content-Type": media_type, **(headers or {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        headers = {**HEADERS, **self.headers, "Content-Length": str(len(self.body))}
        raw = [(key.lower().encode(), value.encode("latin-1")) for key, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        for start in range(0, len(self.body), _CHUNK):
            part = self.body[start : start + _CHUNK]
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def as_answer(refusal: Refusal) -> Answer:
    """Returns a refusal as JSON."""
    body = json.dumps(refusal.content).encode() + b"\n"
    return Answer(body, "application/json", refusal.status, refusal.headers)


class Guard:
    """Refuses foreign hosts and origins; reads bodies that nobody has read.

    A client that sends a large body without looking at the answer would lose it if the connection
    were closed at once. So the answer is sent, and the body read and dropped for some seconds.
    """

    def __init__(self, app: App, limits: Limits):
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        is_open = True  # whether the body goes on
        headers = scope["headers"]

        async def receive_noted() -> Message:
            nonlocal is_open
            message = await receive()
            is_open = is_open and message["type"] == "http.request" and message["more_body"]
            return message

        async def drain() -> None:
            while is_open:
                await receive_noted()

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                if is_open and _has_body(headers):
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            elif not message.get("more_body") and is_open and _has_body(headers):
                await send({**message, "more_body": True})
                message = {**message, "body": b""}
                if not any(name == b"expect" for name, _ in headers):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(drain(), DRAIN)
            await send(message)

        try:
            self._check(headers)
            await self._app(scope, receive_noted, send_last)
        except Refusal as refusal:
            await as_answer(refusal)(scope, receive_noted, send_last)
        except Exception:  # answered by the application
            traceback.print_exc(file=sys.stderr)

    def _check(self, headers: list[tuple[bytes, bytes]]) -> None:
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        host = hosts[0] if len(hosts) == 1 else ""
        if not self._is_own(host):
            what = f"{clip(host)!r} is no name of this server"
            fix = "use the address that it printed, or start it with --allow-host"
            raise Refusal(421, "Host", what, fix)
        for name, value in headers:
            if name == b"origin":
                origin = value.decode("latin-1")
                if origin.partition("://")[2].lower() != host.lower():
                    what = f"{clip(origin)!r} is another site"
                    raise Refusal(403, "Origin", what, "use the server's own page, or no browser")

    def _is_own(self, host: str) -> bool:
        """Tells whether Host is a name of this server; the port may be a tunnel's."""
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "0")
        if not name:
            name, port = host, "0"
        name = name.lower().removesuffix(".")
        if not port.isdecimal():
            return False
        return name in self._limits.hosts or (not self._limits.is_local and _is_number(name))


def _is_number(name: str) -> bool:
    """Tells whether a host is given in numbers, which no foreign name resolves to."""
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in headers
    )
