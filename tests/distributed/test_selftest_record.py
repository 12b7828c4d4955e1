import json

import pytest

from deeplab_jax.distributed import selftest_record
from deeplab_jax.utils import compile_cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of results, which is not in the user's."""
    monkeypatch.setattr(compile_cache, "own_folder", lambda: tmp_path)
    return tmp_path


def test_run_says_once_a_start_that_the_selftest_has_not_passed(folder, narrow_config):
    config = narrow_config()
    (note,) = selftest_record.notes(config)
    assert note.startswith("note: the self-test has not run for deeplab_jax ")
    assert note.endswith(": deeplab selftest --config.model.dtype=float32")
    selftest_record.keep(config, ["logits", "loss_main"])
    (note,) = selftest_record.notes(config)
    assert note.startswith("warning: the self-test failed for ")
    assert "cpu, float32: logits, loss_main; see deeplab selftest" in note
    selftest_record.keep(config, [])
    assert selftest_record.notes(config) == []
    for field in ("model.dtype=bfloat16", "mesh.spatial=2"):  # other programs
        (note,) = selftest_record.notes(narrow_config(field))
        assert "has not run" in note
        assert note.endswith(f" --config.{field}")


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', "\udcff"])
def test_file_that_cannot_be_read_is_none(folder, narrow_config, content):
    path = folder / "selftest.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    (note,) = selftest_record.notes(narrow_config())
    assert "has not run" in note
    path.write_text(json.dumps({selftest_record.describe(narrow_config()): {"failed": 3}}))
    assert len(selftest_record.notes(narrow_config())) == 1


def test_nothing_is_said_where_nothing_is_kept(narrow_config):
    selftest_record.keep(narrow_config(), [])  # tests switch the cache off
    assert selftest_record.notes(narrow_config()) == []
