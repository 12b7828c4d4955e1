"""One connection: time limits that uvicorn's protocol does not have, and its errors as JSON.

Headers must be complete, and an answer must be taken, within some seconds. Otherwise clients that
send or read nothing could hold every connection.
"""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from deeplab_jax.serve.guard import HEADERS
from deeplab_jax.serve.limits import CONNECTIONS, STALL, Refusal, busy


def protocol_for(timeout: float) -> type[H11Protocol]:
    """Returns the class of connections whose headers must come within `timeout` seconds."""
    return type("Connection", (_Connection,), {"timeout": timeout})


class _Connection(H11Protocol):
    timeout = 0.0

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._late: asyncio.TimerHandle | None = None  # ends a wait for headers
        self._stalled: asyncio.TimerHandle | None = None  # ends a wait for the reader

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._refuse(busy(f"has {CONNECTIONS} connections, as many as it may", 1))
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            _cancel(self._late)
            self._late = None
        elif self._late is None and (self.cycle is None or self.conn.trailing_data[0]):
            self._late = self.loop.call_later(self.timeout, self._end_late)

    def _end_late(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            what = f"are not complete after {self.timeout:g} s"
            self._refuse(Refusal(408, "headers", what, "send them at once"))

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal(400, "request", "is no valid HTTP/1.1", "check the client"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answers beside the application, and closes."""
        if self.cycle is None or self.cycle.response_complete:
            body = json.dumps(refusal.content).encode() + b"\n"
            headers = {**HEADERS, **refusal.headers, "Content-Type": "application/json"}
            headers |= {"Content-Length": str(len(body)), "Connection": "close"}
            lines = [f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._late)
        _cancel(self._stalled)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
