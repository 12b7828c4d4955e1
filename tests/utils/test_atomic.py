import os
import signal
import subprocess
import sys

import pytest

from deeplab_jax.utils.atomic import atomic_write, remove_stale


def test_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as file:
        file.write(b"all")
        assert not path.exists()
    assert path.read_bytes() == b"all"
    assert list(path.parent.iterdir()) == [path]


def test_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")

    def fail():
        with atomic_write(path) as file:
            file.write(b"half")
            raise OSError(28, "no space")

    with pytest.raises(OSError, match="no space") as caught:
        fail()
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_remains_of_a_dead_process_are_removed_and_nothing_else(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from deeplab_jax.utils.atomic import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])): print('open', flush=True); time.sleep(99)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "street.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        partial = f".street.png.{process.pid}.tmp"
        remove_stale(tmp_path)
        assert os.listdir(tmp_path) == [partial]  # its process lives
        process.send_signal(signal.SIGKILL)
    kept = [".street.png.tmp", ".notes.doc.1.tmp", "street.png.1.tmp", ".a.png.1.tmp", "b.png"]
    for name in kept:  # no names of ours; process 1 runs
        (tmp_path / name).touch()
    (tmp_path / f".c.png.{process.pid}.tmp").symlink_to(tmp_path / "b.png")
    with atomic_write(tmp_path / "new.png"):
        (tmp_path / f".own.png.{os.getpid()}.tmp").touch()  # an earlier process had this number
        remove_stale(tmp_path)
        kept += [f".c.png.{process.pid}.tmp", f".new.png.{os.getpid()}.tmp"]
        assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_stale(tmp_path / "missing")
