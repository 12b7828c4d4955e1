"""Starts the server: address, checkpoint, the worker's thread, and the way it ends."""

import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import jax
import uvicorn

from deeplab_jax.errors import clip
from deeplab_jax.inference.buckets import Size
from deeplab_jax.inference.segmenter import Segmenter
from deeplab_jax.serve import app
from deeplab_jax.serve.connection import protocol_for
from deeplab_jax.serve.limits import Limits
from deeplab_jax.serve.worker import Worker


class Server(uvicorn.Server):
    """A server whose first signal ends it in peace, exit code 0, and whose second ends it at once.

    Attributes:
      worker: runs the network.
    """

    def __init__(self, model: Segmenter, limits: Limits):
        self.worker = Worker(model, limits.queue)
        super().__init__(
            uvicorn.Config(
                app.build(model, self.worker, limits),
                http=protocol_for(limits.timeout),
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=16 * 2**10,  # bytes of headers
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        """Handles Ctrl-C and SIGTERM while the block runs, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        both = signal.SIGINT, signal.SIGTERM
        before = {number: signal.signal(number, self.handle_exit) for number in both}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops accepting; the second time ends the process."""
        if self.should_exit:
            os._exit(128 + sig)
        self.stop()
        _say("stopping: what was accepted is finished; again: at once")

    def stop(self) -> None:
        """Stops accepting connections; `serve` returns when what was accepted is answered."""
        self.worker.is_stopping = True
        self.should_exit = True


def serve(
    listener: socket.socket, model: Segmenter, limits: Limits, sizes: Sequence[Size] = ()
) -> None:
    """Serves until a signal; says on standard output where.

    Args:
      listener: of `listen.bind`; it is closed at the end.
      model: the checkpoint.
      limits: of requests.
      sizes: of images, (height, width), for which the network is compiled first.

    Raises:
      DeepLabError: the network cannot be compiled for one of `sizes`.
    """
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    kind = f", {model.weights}" if model.weights else ""
    names = ", ".join(map(clip, model.class_names[:4]))
    count = f"{len(model.class_names)} classes: {names}"
    count += ", ..." if len(model.class_names) > 4 else ""
    print(f"{model.path}: {model.config.name}, step {model.step}{kind}; {count}")
    print(
        f"limits: {limits.max_bytes} bytes and {limits.max_pixels} pixels an image,"
        f" {limits.queue} waiting, {limits.timeout:g} s"
    )
    if not limits.is_local:
        print("other machines reach this server: it asks for no password and does not encrypt")
    shapes = ", ".join(f"{height}x{width}" for height, width in sizes)
    print(f"compiling for {shapes or 'no size yet'}", flush=True)
    server = Server(model, limits)

    def on_ready() -> None:
        if server.worker.error is not None:
            server.stop()
        else:
            # Sizes come from strangers: their programs are kept in memory, and few of them.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
            _say(f"ready: {address}")

    server.worker.start(sizes, on_ready)
    server.run(sockets=[listener])
    server.worker.stop()
    if server.worker.error is not None:
        raise server.worker.error
    _say("stopped")


def _say(text: str) -> None:
    """Prints a line; a server goes on also where nobody reads what it prints."""
    with suppress(BrokenPipeError):
        print(text, flush=True)
