"""A server in this process, on a socket of its own, and clients of it."""

import contextlib
import http.client
import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest

import deeplab_jax
from deeplab_jax.serve.limits import Limits
from deeplab_jax.serve.listen import bind
from deeplab_jax.serve.run import Server

LIMITS = Limits(max_bytes=200_000, max_pixels=400_000, queue=8, timeout=1.0)


class Client:
    """Requests to a server at a port; each answer is (status, headers, body)."""

    def __init__(self, port):
        self.port = port

    def __call__(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        with contextlib.closing(connection):
            connection.connect()
            with contextlib.suppress(ConnectionError):  # refused before it was all sent
                connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return SimpleNamespace(status=answer.status, headers=answer.headers, body=answer.read())

    def predict(self, data, query="", is_patient=True, **headers):
        """Posts an image; a patient client tries again while the server has no time."""
        headers = {"Content-Type": "application/octet-stream"} | headers
        for _ in range(300):
            answer = self("POST", f"/predict{query}", data, headers)
            if answer.status != 503 or not is_patient:
                break
            time.sleep(0.2)
        return answer

    def upload(self, *files, query="", field="image"):
        """Sends a form; `files` are (name, bytes)."""
        parts = [
            b"--limit\r\nContent-Disposition: form-data; "
            + f'name="{field}"; filename="{name}"\r\n\r\n'.encode()
            + data
            + b"\r\n"
            for name, data in files
        ]
        kind = {"Content-Type": "multipart/form-data; boundary=limit"}
        return self.predict(b"".join([*parts, b"--limit--\r\n"]), query, **kind)

    def raw(self, *parts, pause=0.0):
        """Sends bytes as they are, with pauses between; returns all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=3600) as connection:
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)
            got = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(1 << 16):
                    got += part
            return got

    def health(self):
        return json.loads(self("GET", "/healthz").body)


@pytest.fixture(scope="module")
def served(saved_run, compile_quickly):
    """A client of a server of `saved_run`, with `limits`, `worker`, `url`, `run`, `environment`."""
    server = Server(deeplab_jax.load(saved_run.path), LIMITS)
    listener = bind("127.0.0.1", 0)
    client = Client(listener.getsockname()[1])
    client.limits, client.worker, client.run = LIMITS, server.worker, saved_run
    client.url, client.environment = f"http://127.0.0.1:{client.port}", compile_quickly
    ready = threading.Event()
    server.worker.start([(65, 97), (97, 65)], ready.set)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    assert ready.wait(600)
    assert server.worker.error is None
    yield client
    server.stop()
    thread.join(20)
    server.worker.stop()
    assert not thread.is_alive()
