"""Compiled programs are kept in a folder of the user's own, or not at all."""

import os
import re
import subprocess
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from deeplab_jax.utils import compile_cache, progress


@pytest.fixture(autouse=True)
def settings_return():
    names = [name for name in jax.config.values if "_cache_" in name]
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)  # whatever other tests use
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_folder_is_the_users_alone(monkeypatch, tmp_path):
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compile_cache.enable()
    assert folder.parent == tmp_path / "deeplab_jax" / "xla"
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert jax.config.values["jax_compilation_cache_dir"] == str(folder)
    assert compile_cache.enable() is None  # what is set stays


@pytest.mark.parametrize("word", ["off", "OFF", "0"])
def test_it_can_be_off(monkeypatch, word):
    monkeypatch.setenv(compile_cache.VARIABLE, word)
    assert compile_cache.enable() is None
    assert not jax.config.values["jax_compilation_cache_dir"]


def test_it_can_be_elsewhere_and_leaves_folders_as_they_are(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(0o755)
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "mine"))
    folder = compile_cache.enable()
    assert folder.parent == tmp_path / "mine"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_cannot_be_is_no_error(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "file"))
    assert compile_cache.enable() is None
    assert "file is not used: " in capsys.readouterr().err
    assert compile_cache.own_folder() is None
    assert capsys.readouterr().err == ""  # told once


def test_nobody_without_a_home_is_no_error(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compile_cache.Path, "home", no_home)
    assert compile_cache.enable() is None


def test_what_others_could_put_there_is_not_run(monkeypatch, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "own")
    for name in ("shared", "link"):
        before = (tmp_path / name).stat().st_mode
        monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / name))
        assert compile_cache.enable() is None
        assert (tmp_path / name).stat().st_mode == before


@pytest.mark.parametrize(("mode", "is_used"), [(0o777, False), (0o775, False), (0o1777, True)])
def test_folder_that_others_could_replace_is_not_used(monkeypatch, tmp_path, capsys, mode, is_used):
    inner = tmp_path / "open" / "between" / "mine"
    inner.mkdir(parents=True)
    (tmp_path / "open").chmod(mode)
    (tmp_path / "link").symlink_to(inner.parent)  # is no way around
    for place in (inner, tmp_path / "link" / "mine"):
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv(compile_cache.VARIABLE, str(place))
        assert (compile_cache.enable() is not None) == is_used
        told = f"compile cache {place} is not used: others own {tmp_path / 'open'}, above it, or "
        error = capsys.readouterr().err
        assert error == "" if is_used else error.startswith(told)


def test_programs_outlive_the_process(tmp_path):
    code = (
        "import jax; from deeplab_jax.utils import compile_cache; compile_cache.enable();"
        "jax.block_until_ready(jax.jit(lambda x: x * 3 + 1)(2.0))"
    )
    environment = os.environ | {compile_cache.VARIABLE: str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        assert list(tmp_path.glob("*/*-cache"))


def test_compiling_says_whether_it_is_kept_and_how_long_it_took(monkeypatch, tmp_path, capsys):
    def compile_step():
        jax.clear_caches()  # as in another process
        with progress.Screen().open(), compile_cache.compiling("the step", is_told=True):
            jax.jit(lambda x: x * 7 + 2)(2.0)
        return re.sub(r"\d\.\d s", "N s", capsys.readouterr().out)

    compilation_cache.reset_cache()  # it remembers that there was none
    start = "compiling the step 0:00, once per shape; "
    assert compile_step() == f"{start}not cached\nthe step: compiled in N s\n"
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    compile_cache.enable()
    compilation_cache.reset_cache()
    assert compile_step() == f"{start}cached afterwards\nthe step: compiled in N s\n"
    assert compile_step() == f"{start}cached afterwards\nthe step: from the cache in N s\n"


def test_short_compiling_that_is_not_told_leaves_no_line(monkeypatch, capsys):
    with progress.Screen().open():
        with compile_cache.compiling("a network"):
            pass
        assert not capsys.readouterr().out
        monkeypatch.setattr(compile_cache, "PLAIN_SECONDS", 0.0)
        with compile_cache.compiling("a network"):
            pass
        with pytest.raises(KeyError), compile_cache.compiling("a network"):
            raise KeyError
    assert capsys.readouterr().out == "a network: compiled in 0.0 s\n"


@pytest.mark.parametrize(("level", "levels"), [("1", [3, 1]), ("0", []), ("2", [])])
def test_alarms_are_silent_while_compiling_unless_the_user_wants_them(monkeypatch, level, levels):
    got = []
    monkeypatch.setattr(compile_cache.jaxlib_utils, "absl_set_min_log_level", got.append)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    with pytest.raises(KeyError), compile_cache.without_alarms():
        raise KeyError
    assert got == levels
