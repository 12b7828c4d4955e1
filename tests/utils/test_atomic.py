import pytest

from deeplab_jax.utils.atomic import atomic_write


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
