"""The result of `deeplab selftest`, kept in the folder of the compile cache."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
from jaxlib.version import __version__ as jaxlib_version

from deeplab_jax import __version__
from deeplab_jax.config import Config
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.atomic import atomic_write


def describe(config: Config) -> str:
    """Returns what a result holds for: versions, kind of device, dtype, devices of an image."""
    versions = f"deeplab_jax {__version__}, jax {jax.__version__}, jaxlib {jaxlib_version}"
    spatial = config.mesh.spatial
    rows = f", rows of images over {spatial} devices" if spatial > 1 else ""
    return f"{versions}, {jax.devices()[0].device_kind}, {config.model.dtype}{rows}"


def keep(config: Config, failed: list[str]) -> None:
    """Keeps the names of the checks that failed; nothing where there is no folder for it."""
    path = _path()
    if path is None:
        return
    date = datetime.now(UTC).isoformat(timespec="seconds")
    results = _read(path) | {describe(config): {"date": date, "failed": failed}}
    try:
        with atomic_write(path) as file:
            file.write(json.dumps(results, indent=1).encode())
    except OSError:  # a full disk: the next run says that the self-test has not passed
        return


def notes(config: Config) -> list[str]:
    """Returns a line where the self-test has not passed for what `describe` says of a run.

    None of them where it has, and where no result can be kept (`DEEPLAB_COMPILE_CACHE=off`).
    """
    path = _path()
    if path is None:
        return []
    what = describe(config)
    command = f"deeplab selftest --config.model.dtype={config.model.dtype}"
    if config.mesh.spatial > 1:
        command += f" --config.mesh.spatial={config.mesh.spatial}"
    try:
        failed = ", ".join(map(str, _read(path)[what]["failed"]))
    except (KeyError, TypeError):  # not there, or not what `keep` wrote
        return [f"note: the self-test has not run for {what}; it takes a minute: {command}"]
    if not failed:
        return []
    return [f"warning: the self-test failed for {what}: {failed}; see {command}"]


def _path() -> Path | None:
    folder = compile_cache.own_folder()
    return None if folder is None else folder / "selftest.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
