import json
import re
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from deeplab_jax.data import images
from deeplab_jax.inference.engine import Engine
from deeplab_jax.inference.prediction import Prediction
from deeplab_jax.serve import __main__ as flags
from deeplab_jax.serve.app import ANSWERS
from deeplab_jax.serve.limits import MEMORY

FORM = {"Content-Type": "multipart/form-data; boundary=limit"}
FILES = {"png": "{}.png", "overlay": "{}_overlay.jpg", "json": "{}.json",
         "npz": "{}_probabilities.npz"}  # fmt: skip


def huge_png(side):
    """Returns a PNG that claims to be square and holds next to nothing."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture(scope="module")
def data(served):
    return served.run.images[0].read_bytes()


def test_answers_are_the_files_of_predict(served, call, tmp_path, monkeypatch):
    monkeypatch.chdir(served.run.images[0].parent)
    names = [path.name for path in served.run.images[:2]]  # 65 x 97 and 97 x 65
    for name in names:  # each by itself: together they could share a padded shape
        arguments = "--output", tmp_path, "--format", "palette,overlay,probabilities"
        got = call("predict", "--checkpoint", served.run.path, name, *arguments)
        assert got.code == 0, got.err
    asked = [(name, form) for _ in range(2) for name in names for form in ANSWERS]

    def ask(name, form):
        return served.upload((name, Path(name).read_bytes()), query=f"?format={form}")

    with ThreadPoolExecutor(6) as pool:  # at a time, sizes and formats in turn
        answers = list(pool.map(ask, *zip(*asked, strict=True)))
    for (name, form), answer in zip(asked, answers, strict=True):
        assert answer.status == 200, answer.body
        assert answer.headers["Content-Type"] == ANSWERS[form].media_type
        file = tmp_path / FILES[form].format(Path(name).stem)
        assert answer.body == file.read_bytes(), (name, form)
    plain = served.predict(Path(names[0]).read_bytes(), "?format=json")
    assert json.loads(plain.body)["file"] is None
    assert served.predict(Path(names[0]).read_bytes()).body == answers[0].body


def test_state_classes_and_description(served):
    assert served.health() == {
        "status": "ready",
        "model": "folder_r18_os16",
        "checkpoint": served.run.path.name,
        "step": 7,
        "waiting": 0,
        "queue": 8,
    }
    for path in ("/", "/docs"):
        page = served("GET", path).body.decode()
        assert f"Step 7 of {served.run.path.name}" in page
        assert str(served.run.path.parent) not in page
    labels = json.loads(served("GET", "/labels").body)["classes"]
    names = [label["name"] for label in labels]
    assert names == list(served.run.validation.class_names)
    assert [label["color"] for label in labels] == served.run.validation.palette.tolist()
    api = json.loads(served("GET", "/openapi.json").body)
    assert list(api["paths"]) == ["/predict", "/healthz", "/labels"]
    codes = set(api["paths"]["/predict"]["post"]["responses"])
    assert codes == {"200", "400", "403", "408", "413", "415", "421", "500", "503"}
    docs = served("GET", "/docs").body.decode()
    assert all(path in docs for path in (*api["paths"], "200000 bytes", "400000 pixels", "408"))


def test_pages_load_nothing_from_elsewhere(served):
    for path in ("/", "/docs", "/style.css", "/script.js"):
        answer = served("GET", path)
        assert answer.status == 200
        loads = re.findall(r"""(?:src|href)=["']([^"']*)|url\(|@import""", answer.body.decode())
        assert all(not target or target.startswith(("/", "data:")) for target in loads)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in answer.headers
        head = served("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(answer.body))


REFUSED = {
    "a text": ("POST", "/predict", {}, b"hello", 400, "image"),
    "an empty body": ("POST", "/predict", {}, b"", 400, "image"),
    "400 megapixels": ("POST", "/predict", {}, huge_png(20_000), 413, "image"),
    "4 million megapixels": ("POST", "/predict", {}, huge_png(2_000_000), 413, "image"),
    "pixels above the limit": ("POST", "/predict", {}, huge_png(640), 413, "image"),
    "bytes above the limit": ("POST", "/predict", {}, bytes(200_001), 413, "body"),
    "a media type": ("POST", "/predict", {"Content-Type": "text/plain"}, b"", 415, "Content-Type"),
    "no such format": ("POST", "/predict?format=gif", {}, b"x", 400, "format"),
    "two formats": ("POST", "/predict?format=png&format=png", {}, b"x", 400, "format"),
    "a parameter": ("POST", "/predict?size=<b>", {}, b"x", 400, "query"),
    "no form": ("POST", "/predict", FORM, b"garbage", 400, "body"),
    "no boundary": ("POST", "/predict", {"Content-Type": "multipart/form-data"}, b"x", 400,
                    "body"),
    "a cut form": ("POST", "/predict", FORM, b"--limit\r\nContent-Disp", 400, "body"),
    "no name": ("POST", "/predict", FORM, b"--limit\r\nA: b\r\n\r\nx\r\n--limit--\r\n", 400,
                "body"),
    "text in a form": ("POST", "/predict", FORM,
                       b'--limit\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n'
                       b"--limit--\r\n", 400, "body"),
    "another method": ("GET", "/predict", {}, None, 405, "method"),
    "HEAD": ("HEAD", "/predict", {}, None, 405, None),
    "preflight": ("OPTIONS", "/predict", {"Origin": "http://evil.example"}, None, 403, "Origin"),
    "DELETE of the page": ("DELETE", "/", {}, None, 405, "method"),
    "another path": ("GET", "/nothing", {}, None, 404, "path"),
    "a path that goes up": ("GET", "/../../etc/passwd", {}, None, 404, "path"),
    "the same in code": ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}, None, 404, "path"),
    "a file of the package": ("GET", "/app.py", {}, None, 404, "path"),
    "a slash more": ("POST", "/predict/", {}, b"x", 404, "path"),
    "a foreign host": ("GET", "/", {"Host": "evil.example"}, None, 421, "Host"),
    "a foreign host that begins as ours": ("GET", "/", {"Host": "localhost.evil.example:80"},
                                           None, 421, "Host"),
    "a foreign number": ("GET", "/", {"Host": "10.0.0.1"}, None, 421, "Host"),
    "a foreign origin": ("POST", "/predict", {"Origin": "http://evil.example"}, b"x", 403,
                         "Origin"),
    "an origin without a name": ("POST", "/predict", {"Origin": "null"}, b"x", 403, "Origin"),
    "another port's origin": ("POST", "/predict", {"Origin": "http://127.0.0.1:1"}, b"x", 403,
                              "Origin"),
}  # fmt: skip


def test_every_fault_is_answered_and_the_next_request_works(served, data):
    for what, (method, path, headers, body, status, where) in REFUSED.items():
        began = time.monotonic()
        kind = {"Content-Type": "application/octet-stream"} if body is not None else {}
        answer = served(method, path, body, kind | headers)
        assert answer.status == status, (what, answer.body)
        assert time.monotonic() - began < 5, what
        if where is not None:
            error = json.loads(answer.body)["error"]
            assert error["where"] == where, (what, error)
            assert error["what"], what
            assert error["fix"], what
            assert b"<b>" not in answer.body or answer.headers["Content-Type"] == "application/json"
    cut = served.predict(data[: len(data) // 2])
    assert (cut.status, json.loads(cut.body)["error"]["what"]) == (400, "is damaged or cut short")
    several = served.upload(("a.jpg", data), ("b.jpg", data))
    assert (several.status, b"has 2 fields" in several.body) == (400, True)
    assert served.upload(("a.jpg", data), field="picture").status == 400
    assert served.predict(data).status == 200
    own = {"Origin": served.url, "Host": f"127.0.0.1:{served.port}"}
    assert served.predict(data, **own).status == 200
    assert served.predict(data, Host="LOCALHOST:99").status == 200  # the port of a tunnel


def test_file_names_are_repeated_and_no_more(served, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("<script>alert(1)</script>.jpg", "../../etc/passwd", "/etc/passwd", "ü☂.jpg"):
        answer = served.upload((name, data), query="?format=json")
        assert (answer.status, json.loads(answer.body)["file"]) == (200, name)
        assert answer.headers["Content-Type"] == "application/json"
    long = json.loads(served.upload(("x" * 1000, data), query="?format=json").body)["file"]
    assert len(long) == 255
    assert list(tmp_path.iterdir()) == []


def test_slow_clients_are_answered_in_time(served, data):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
    slow = [
        ((b"GET / HT", *[b"T"] * 15), b"headers"),
        ((head, *[b"A: b\r\n"] * 15), b"headers"),
        ((head + b"Content-Length: 1000\r\n\r\n", *[b"x"] * 15), b"body"),
        ((head + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 15), b"body"),
        ((), b"headers"),
    ]
    began = time.monotonic()
    with ThreadPoolExecutor(len(slow)) as pool:
        answers = list(pool.map(lambda case: served.raw(*case[0], pause=0.1), slow))
        assert served.predict(data).status == 200
    assert time.monotonic() - began < 5 + 1
    for (_, where), answer in zip(slow, answers, strict=True):
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert b'"where": "' + where in answer
    assert served.raw(b"NONSENSE\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert served.raw(b"GET / HTTP/1.1\r\nA: " + bytes(20_000)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_of_a_gigabyte_is_refused_while_it_comes(served, data, is_chunked):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
    head += (
        b"Transfer-Encoding: chunked\r\n\r\n"
        if is_chunked
        else b"Content-Length: 1073741824\r\n\r\n"
    )
    part = bytes(1 << 16)
    part = b"10000\r\n" + part + b"\r\n" if is_chunked else part
    began = time.monotonic()
    answer = served.raw(head, *[part] * 50)  # sent whole before the answer is read
    assert time.monotonic() - began < 5
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert served.predict(data).status == 200


@pytest.mark.process("compiles a network for four images at a time")
def test_rows_of_a_batch_do_not_see_each_other(served, monkeypatch):
    monkeypatch.setattr(Engine, "batch_size", lambda self, shape: 4)
    model = served.worker._model.twin()
    rng = np.random.default_rng(0)
    batch = [cv2.imencode(".png", rng.integers(0, 256, (64, 80, 3), np.uint8))[1].tobytes()
             for _ in range(4)]  # fmt: skip
    # By image and row: a processor may round differently from row to row, and in no other way.
    found: dict[tuple[int, int], Prediction] = {}
    for order in ([0, 1, 2, 3], [0, 3, 1, 3], [3, 1, 0, 2], [3, 0, 0, 0], [1, 1, 2, 2]):
        together = model.segment([batch[k] for k in order])
        for row, (k, result) in enumerate(zip(order, together, strict=True)):
            known = found.setdefault((k, row), result)
            np.testing.assert_array_equal(result.labels, known.labels)
            np.testing.assert_array_equal(result.confidence, known.confidence)
            alone = found.setdefault((k, 0), next(iter(model.segment([batch[k]]))))
            np.testing.assert_allclose(result.confidence, alone.confidence, rtol=1e-5)


def test_limits_of_flags_are_those_of_reading_and_of_memory():
    assert flags.MAX_PIXELS == images.MAX_PIXELS
    assert 2 * flags.MAX_BYTES == MEMORY
