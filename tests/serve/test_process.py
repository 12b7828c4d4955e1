"""`deeplab serve` as a process: signals, load, memory."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def started(served, *options):
    """Yields (process, client) of a server that is ready."""
    command = [sys.executable, "-m", "deeplab_jax", "serve", "--checkpoint", str(served.run.path)]
    command += ["--port", "0", "--size", "65x97,97x65", *options]
    with subprocess.Popen(
        command, cwd=ROOT, env=served.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            for line in process.stdout:
                if line.startswith("ready: "):
                    break
            else:
                pytest.fail("the server ended")
            yield process, type(served)(int(line.rstrip("/\n").rpartition(":")[2]))
        finally:
            process.kill()


def memory(process):
    """Returns the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def offer(client, data, seconds, share):
    """Sends images one after the other, `share` of the time; returns how many."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        assert client.predict(data[count % len(data)]).status == 200
        count += 1
        time.sleep((time.monotonic() - began) * (1 / share - 1))
    return count


@pytest.fixture(scope="module")
def running(served):
    """A process and a client of it, for all tests but those that need one of their own."""
    with started(served, "--queue", "12") as opened:
        yield opened


@pytest.fixture(scope="module")
def data(served):
    return [path.read_bytes() for path in served.run.images]


@pytest.mark.process("half a load of a server for some seconds")
def test_memory_does_not_grow_under_half_load(running, data):
    check_growth(*running, data, warm=3, seconds=6)


@pytest.mark.process("floods a server")
def test_floods_are_answered_and_memory_is_bounded(running, data):
    process, client = running
    offer(client, data, 1, 1)
    before = memory(process)

    def ask(number):
        began = time.monotonic()
        status = client.predict(data[number % 2], is_patient=False).status
        return status, time.monotonic() - began

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    statuses = {status for status, _ in answers}
    assert 200 in statuses
    assert statuses <= {200, 503}
    assert max(seconds for _, seconds in answers) < 5
    assert client.predict(data[0]).status == 200

    endless = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1073741824\r\n\r\n"
    with ThreadPoolExecutor(8) as pool:
        floods = [pool.submit(client.raw, endless, *[bytes(1 << 20)] * 64) for _ in range(8)]
        assert all(flood.result().startswith(b"HTTP/1.1 413 ") for flood in floods)
    assert client.predict(data[0]).status == 200

    noise = np.random.default_rng(0).integers(0, 256, (603, 900, 3), np.uint8)
    large = cv2.imencode(".png", noise)[1].tobytes()  # 1.6 MB, of a known bucket
    for _ in range(30):
        leave(client.port, large)
    deadline = time.monotonic() + 5
    while client.health()["waiting"]:
        assert time.monotonic() < deadline
    assert client.predict(data[0]).status == 200
    assert memory(process) < before + 150


def leave(port, data):
    """Sends an image and closes the connection at once."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/predict", data)
    connection.close()


@pytest.mark.process("ends a server under load")
def test_what_was_accepted_is_finished_before_the_end(running, data):
    process, client = running
    begun = threading.Semaphore(0)

    def ask(number):
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=3600)
        with contextlib.closing(connection):
            connection.request("POST", "/predict", data[number % 2])
            begun.release()
            return connection.getresponse().status

    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, k) for k in range(12)]
        for _ in asked:
            begun.acquire()
        time.sleep(0.2)  # accepted
        process.send_signal(signal.SIGTERM)
        assert [job.result() for job in asked] == [200] * 12
    assert process.wait(20) == 0
    assert process.stdout.read().endswith("stopped\n")
    with pytest.raises(ConnectionRefusedError):
        client.health()


@pytest.mark.process("starts a server and ends it by two signals")
def test_a_second_signal_ends_it_at_once(served):
    with started(served, "--timeout", "60") as (process, client):
        slow = threading.Thread(
            target=client.raw,
            args=(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",),
        )
        slow.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None  # it waits for the body
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
        slow.join(10)


@pytest.mark.slow("half a load of a server for 30 minutes")
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_in_half_an_hour(served, data):
    with started(served, "--timeout", "3600") as opened:
        check_growth(*opened, data, warm=60, seconds=1800)


def check_growth(process, client, data, warm, seconds):
    offer(client, data, warm, 0.5)
    before = memory(process)
    count = offer(client, data, seconds, 0.5)
    after = memory(process)
    print(f"{count} images in {seconds} s: {before:.0f} MiB, then {after:.0f}")
    assert after < before + 20
