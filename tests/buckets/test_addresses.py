import itertools
import json
import subprocess
import sys
import threading
import time

import pytest

from deeplab_jax.errors import ConfigError, ResourceError
from deeplab_jax.utils import buckets
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.buckets import lease
from deeplab_jax.utils.places import as_place

pytestmark = pytest.mark.process("starts servers, and processes that hold locks")


def test_address_behaves_as_a_path(server, top):
    folder = as_place(top)
    file = folder / "inner" / "a.txt"
    assert (str(file), file.name, file.parent.parent) == (f"{top}/inner/a.txt", "a.txt", folder)
    assert as_place(f"{top}/").absolute() == folder
    assert not folder.exists()
    assert not folder.is_dir()
    with pytest.raises(FileNotFoundError):
        list(folder.iterdir())
    with pytest.raises(FileNotFoundError):
        file.read_text()
    folder.mkdir(parents=True)
    with atomic_write(file) as stream:
        stream.write("ü".encode())
    (folder / "b").write_bytes(b"\xff")
    assert sorted(place.name for place in folder.iterdir()) == ["b", "inner"]
    assert (file.read_text(), (folder / "b").read_text(errors="replace")) == ("ü", "\ufffd")
    assert file.is_file()
    assert folder.is_dir()
    assert not folder.is_file()
    assert file.create(b"other") is False
    assert (folder / "c").create(b"new") is True
    file.unlink()
    file.unlink(missing_ok=True)
    assert [place.name for place in folder.iterdir() if place.is_dir()] == []
    with pytest.raises(RuntimeError), atomic_write(file):
        raise RuntimeError
    assert not file.exists()


def test_missing_bucket_is_not_made(server):
    place = as_place(f"{server.scheme}://there-is-none/run")
    place.mkdir(parents=True)
    for write in (place.write_bytes, place.create):
        with pytest.raises(ResourceError, match=r"there-is-none/run: there is no such bucket"):
            write(b"")


def test_request_is_repeated_until_the_server_answers(server, top, monkeypatch):
    place = as_place(top)
    place.write_bytes(b"before")
    server.stop()
    thread = threading.Timer(1.5, server.start)
    thread.start()
    place.write_bytes(b"after")
    thread.join()
    assert place.read_bytes() == b"after"


def test_refusal_is_told_at_once_and_silence_after_a_while(monkeypatch):
    place = buckets.Address("gs://silent/file")
    tries = []

    def fail(error):
        def request():
            tries.append(time.monotonic())
            raise error

        return request

    monkeypatch.setattr(buckets, "PATIENCE", 2.0)
    with pytest.raises(ResourceError, match="gs://silent/file: the bucket refuses: no, never - "):
        buckets.ask(place, fail(PermissionError("no, never")))
    assert len(tries) == 1
    with pytest.raises(ResourceError, match="gives no answer: nobody there") as told:
        buckets.ask(place, fail(ConnectionError("nobody there")))
    assert told.value.exit_code == 5
    began = time.monotonic()
    with pytest.raises(ResourceError, match="gives no answer: nobody there"):
        place.read_bytes()  # what follows at a run's end does not wait again
    assert time.monotonic() < began + 0.5
    pauses = [later - sooner for sooner, later in itertools.pairwise(tries[1:])]
    assert pauses == pytest.approx([0.5, 1.0], abs=0.3)


def _hold(top):
    """Starts a process that holds the lock of a folder; returns it once it does."""
    script = (
        "import sys, time; from deeplab_jax.utils.buckets import Address\n"
        "from deeplab_jax.utils.buckets.lease import Lease\n"
        "with Lease(Address(sys.argv[1])): print(flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, top], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"\n"
    return process


def test_lock_has_one_holder_and_is_free_when_it_ends_or_is_killed(server, top):
    folder = as_place(top)
    with lease.Lease(folder) as first:
        first.check()
        with pytest.raises(ConfigError, match=r"another process trains here \(pid \d+ on ") as told:
            lease.Lease(folder).__enter__()
        assert told.value.exit_code == 2
    process = _hold(top)
    with pytest.raises(ConfigError, match=rf"another process trains here \(pid {process.pid} on "):
        lease.Lease(folder).__enter__()
    process.kill()
    process.communicate()
    began = time.monotonic()
    with lease.Lease(folder):
        assert time.monotonic() - began < lease.SILENCE / 3
        assert [place.name for place in folder.iterdir()] == [".lock.3"]


def test_lock_of_another_machine_is_taken_when_it_gives_no_sign(server, top, monkeypatch, capsys):
    folder = as_place(top)
    monkeypatch.setattr(lease, "LOOK", 0.1)
    monkeypatch.setattr(lease, "SILENCE", 3.0)
    monkeypatch.setattr(lease, "BEAT", 0.2)
    other = lease.Lease(folder)
    other._content |= {"machine": "another", "host": "far", "pid": 7}
    with other:
        with pytest.raises(ConfigError, match=r"another process trains here \(pid 7 on far\)"):
            lease.Lease(folder).__enter__()
        monkeypatch.setattr(lease, "SILENCE", 0.5)
        other._left.set()  # it is suspended
        other._beating.join()
        with lease.Lease(folder) as own:
            assert f"{top}: locked by pid 7 on far; waiting" in capsys.readouterr().out
            own.check()
            with pytest.raises(ResourceError, match=r"pid \d+ on .* trains here since this proc"):
                other.check()
    # The one that was overtaken has not said that it ended.
    assert json.loads((folder / ".lock.2").read_bytes())["has_ended"] is True


def test_of_processes_that_find_a_dead_lock_at_once_one_takes_it(server, top):
    folder = as_place(top)
    with lease.Lease(folder):
        pass
    held, refused, gate = [], [], threading.Barrier(4)

    def take():
        own = lease.Lease(folder)
        gate.wait()
        try:
            own.__enter__()
            held.append(own)
        except ConfigError:
            refused.append(own)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)
    held[0].__exit__(None, None, None)
