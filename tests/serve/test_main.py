import socket
import sys

import pytest

from deeplab_jax.serve.__main__ import _hosts, _sizes
from deeplab_jax.serve.guard import Guard
from deeplab_jax.serve.limits import Limits
from deeplab_jax.serve.listen import bind


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port", "70000"], "must be a whole number from 0 to 65535, got 70000"),
        (["--queue", "0"], "must be a whole number from 1 to 10000, got 0"),
        (["--max-pixels", "80000001"], "must be a whole number from 1 to 80000000"),
        (["--max-bytes", "1e6"], "must be a whole number"),
        (["--max-bytes", "268435457"], "must be a whole number from 1 to 268435456"),
        (["--timeout", "0"], "must be seconds from 0.1 to 3600, got 0"),
        (["--size", "360,480"], "--size: must be HEIGHTxWIDTH of 1 to 16000000 pixels, got '360'"),
        (["--size", "5000x5000"], "got '5000x5000' - give such as --size 360x480,720x960"),
        (["--size", ""], "got ''"),
        (["--host", "nowhere.invalid"], "--host: nowhere.invalid is no address"),
        (["--host", "192.0.2.1", "--port", "0"], "--host: 192.0.2.1 is no address of this machine"),
        (["--host", ""], "--host: is empty"),
        (["--allow-host", ""], "--allow-host: is empty"),
        (["--config.eval.flop=true"], "config.eval.flop: there is no such field"),
        (["--config.eval.flip=maybe"], "config.eval.flip"),
        (["--allow-host", "http://a.example"], "'http://a.example' is no name of a host"),
        (["--checkpoint", "nothing"], "nothing: "),
    ],
)
def test_wrong_flags_are_one_line(saved_run, call, arguments, text):
    got = call("serve", "--checkpoint", saved_run.path, *arguments)
    assert got.code in (2, 4)
    assert text in got.err
    assert got.err.count("\n") == 1


def test_what_cannot_change_an_export_is_named_as_typed(call, tmp_path):
    (tmp_path / "export.json").write_text("{}")
    for flags in (["--step", "7"], ["--weights", "raw"], ["--config.eval.flip=true"]):
        got = call("serve", "--checkpoint", tmp_path, *flags)
        assert (got.code, f"so {' '.join(flags)} cannot change it" in got.err) == (2, True), got.err


def test_a_taken_port_is_named(saved_run, call):
    with bind("127.0.0.1", 0) as taken:  # of a server that still loads
        port = taken.getsockname()[1]
        got = call("serve", "--checkpoint", saved_run.path, "--port", port)
    assert got.code == 5
    assert got.err.startswith(f"error: --port {port}: cannot be used on 127.0.0.1 (address already")


def test_a_missing_extra_is_named(saved_run, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as where it is not installed
    got = call("serve", "--checkpoint", saved_run.path)
    line = "error: deeplab serve: needs uvicorn, not installed - pip install 'deeplab_jax[serve]'\n"
    assert (got.code, got.err) == (5, line)


def test_sizes():
    assert _sizes("360x480, 72x96", 10**6) == [(360, 480), (72, 96)]
    assert _sizes(None, 1) == []


@pytest.mark.parametrize(
    ("listens", "allowed", "host", "is_own"),
    [
        ("127.0.0.1", "", "127.0.0.1:8000", True),
        ("127.0.0.1", "", "localhost", True),
        ("127.0.0.1", "", "[::1]:8000", True),
        ("127.0.0.1", "", "192.168.0.5", False),
        ("127.0.0.1", "", "", False),
        ("127.0.0.1", "", "localhost:evil", False),
        ("127.0.0.1", "", "evil.example:8000", False),
        ("127.0.0.1", "a.example,b.example", "B.example:443", True),
        ("0.0.0.0", "", "192.168.0.5:8000", True),
        ("0.0.0.0", "", "[fe80::1]:8000", True),
        ("0.0.0.0", "", socket.gethostname(), True),
        ("0.0.0.0", "", "evil.example", False),
        ("::1", "", "[::1]:8000", True),
    ],
)
def test_hosts_that_are_this_server(listens, allowed, host, is_own):
    hosts, is_local = _hosts(listens, allowed)
    assert is_local == (listens != "0.0.0.0")
    guard = Guard(None, Limits(hosts=hosts, is_local=is_local))
    assert guard._is_own(host) == is_own
