import json
import subprocess

import jax

from deeplab_jax import __version__
from deeplab_jax.utils import environment


def test_environment_holds_named_variables_and_no_secret(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("DEEPLAB_API_TOKEN", "hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    found = environment.describe()
    assert found["variables"]["JAX_PLATFORMS"] == "cpu"
    assert "hush" not in json.dumps(found)
    assert found["packages"]["jax"] == jax.__version__
    assert found["packages"]["deeplab_jax"] == __version__
    assert found["processor"]["cores"] >= 1


def test_without_git_there_is_no_commit(monkeypatch):
    def fail(*args, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", fail)
    assert environment.commit() is None
    assert environment.describe()["git"] is None
