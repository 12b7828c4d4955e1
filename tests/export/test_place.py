import os
import subprocess
import sys

import pytest

from deeplab_jax.errors import ConfigError, ResourceError
from deeplab_jax.export import place


def test_a_new_or_empty_folder_is_free(tmp_path):
    place.check(str(tmp_path / "new/deeper"), force=False)
    place.check(str(tmp_path), force=False)


def test_what_is_there_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        place.check(str(tmp_path / "file"), force=True)
    with pytest.raises(ResourceError, match="file: is a file, not a folder - choose another"):
        place.check(str(tmp_path / "file/new"), force=False)
    with pytest.raises(ConfigError, match="holds files that are no export's"):
        place.check(str(tmp_path), force=True)


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed)  # root may write anywhere
    for output in (closed / "new", closed / "new/deeper"):
        with pytest.raises(ResourceError, match="closed: cannot be written into"):
            place.check(str(output), force=False)
    place.check(str(tmp_path / "other"), force=False)


def test_it_is_told_before_jax_loads_and_the_checkpoint_is_looked_at(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    code = (
        "import sys\n"
        "from deeplab_jax.errors import ConfigError\n"
        "from deeplab_jax.export.__main__ import main\n"
        "try:\n"
        "    main(['--checkpoint', 'none', '--format', 'onnx', '--output', 'full'])\n"
        "except ConfigError as error:\n"
        "    print(error.where, 'jax' in sys.modules)\n"
    )
    got = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (got.stdout, got.stderr) == ("full False\n", "")
