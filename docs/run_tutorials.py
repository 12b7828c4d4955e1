"""Runs the blocks of tutorials and inserts what they print; docs/build_site.py calls it.

In a page of docs/tutorials:

- A block without a language is run by bash, one after the other, in one empty folder. Its last
  line may end in `# exit code 3`; otherwise 0 is expected. What it prints follows it, notes once a
  page.
- `<!-- shows FILE: TEXT -->` becomes the picture, or the link to the page, that a block made.

A page runs again when its blocks, the package or jax changed.
"""

import concurrent.futures
import hashlib
import html
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHOWS = re.compile(r"<!-- shows (\S+): (.*?) -->")
_CODE = re.compile(r"# exit code (\d+)\s*$")
_HEAD, _TAIL = 30, 20  # lines of a long output that are shown
_LIMIT = 1200  # seconds for one block


def run(pages: Sequence[Path], output: Path) -> dict[Path, str]:
    """Returns the Markdown of each page with the output of its blocks.

    Args:
      pages: tutorials; two run at a time.
      output: folder; gets `tutorials/`, what the pages printed, and `made/`, what they show.

    Raises:
      SystemExit: a block ended with another code than its page says; every such block is printed.
    """
    stamp = _fingerprint()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda page: _run_page(page, output, stamp), pages))
    if failures := [text for text in texts if isinstance(text, Failure)]:
        sys.exit("\n".join(str(failure) for failure in failures))
    return dict(zip(pages, map(str, texts), strict=True))


class Failure(str):
    """What to print about a block that failed."""


def _fingerprint() -> str:
    """Returns a hash of the package, the recipes, the scripts, jax and this file."""
    digest = hashlib.sha256(importlib.metadata.version("jax").encode())
    for folder in ("deeplab_jax", "convert", "configs", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def _run_page(page: Path, output: Path, stamp: str) -> str:
    text = page.read_text("utf-8")
    blocks = _BLOCK.findall(text)
    parts = [stamp, *blocks, *(path for path, _ in _SHOWS.findall(text))]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    home = output / "tutorials" / page.stem
    record, made = home / "outputs.json", home / "made"
    saved = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    how = "unchanged, ran before in"
    if saved.get("key") != key:
        shutil.rmtree(home, ignore_errors=True)
        made.mkdir(parents=True)
        how, began, outputs = "ran in", time.perf_counter(), []
        # A short path: messages shorten long ones.
        with tempfile.TemporaryDirectory(prefix="tutorial") as name:
            work = Path(name).resolve()
            (work / "scripts").symlink_to(ROOT / "scripts")
            for block in blocks:
                code, printed = _run_block(block, work, output)
                if code != (expected := _expected(block)):
                    where = page.relative_to(ROOT)
                    why = f"a block ended with {code}, not {expected}"
                    return Failure(f"error: {where}: {why}:\n{block}{printed}")
                outputs.append(_without_notes(printed, outputs))
            for path, _ in _SHOWS.findall(text):
                shutil.copyfile(work / path, made / _flat(path))
        saved = {"key": key, "outputs": outputs, "seconds": time.perf_counter() - began}
        record.write_text(json.dumps(saved, indent=1), "utf-8")
    # One write: two threads print.
    sys.stdout.write(f"{page.relative_to(ROOT)}: {how} {saved['seconds']:.0f} s\n")
    sys.stdout.flush()
    shutil.copytree(made, output / "made" / page.stem, dirs_exist_ok=True)
    return _assemble(text, saved["outputs"], f"made/{page.stem}")


def _flat(path: str) -> str:
    return path.replace("/", "-")


def _expected(block: str) -> int:
    match = _CODE.search(block.rstrip())
    return int(match[1]) if match else 0


def _run_block(block: str, work: Path, output: Path) -> tuple[int, str]:
    """Returns the exit code of a block and what it printed."""
    shims = output / "bin"
    _write_shim(shims / "deeplab", f'exec "{sys.executable}" -m deeplab_jax "$@"\n')
    _write_shim(shims / "python", f'exec "{sys.executable}" "$@"\n')
    environment = {
        **os.environ,
        "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu",
        "DEEPLAB_COMPILE_CACHE": str(output / "xla"),
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return 124, _clean(error.output or b"", work)
    return done.returncode, _clean(done.stdout, work)


def _write_shim(path: Path, line: str) -> None:
    text = f"#!/bin/sh\n{line}"
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(text)
        part.chmod(0o755)
        part.replace(path)


def _clean(printed: bytes, work: Path) -> str:
    """Returns an output without this machine's paths, and with its middle left out if long."""
    text = printed.decode("utf-8", "replace").replace("\r", "\n").replace(f"{work}/", "")
    text = text.replace(str(ROOT), "CHECKOUT").replace(str(Path.home()), "~")
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    if len(lines) > _HEAD + _TAIL + 1:
        left_out = len(lines) - _HEAD - _TAIL
        lines[_HEAD:-_TAIL] = [f"... ({left_out} more lines)"]
    return "\n".join(lines)


def _without_notes(printed: str, outputs: Sequence[str]) -> str:
    """Returns an output without the notes that an earlier one of the page, or a line above, has."""
    seen = {line for text in outputs for line in text.splitlines()}
    lines: list[str] = []
    for line in printed.splitlines():
        if not line.startswith("note: ") or line not in seen:
            lines.append(line)
        seen.add(line)
    return "\n".join(lines)


def _assemble(text: str, outputs: Sequence[str], made: str) -> str:
    following = iter(outputs)

    def block(match: re.Match[str]) -> str:
        printed = next(following)
        shown = f"```bash\n{match[1]}```"
        if not printed:
            return shown
        return f"{shown}\n\n`````{{code-block}} text\n:class: output\n\n{printed}\n`````"

    def shows(match: re.Match[str]) -> str:
        target, what = f"{made}/{_flat(match[1])}", match[2]
        if target.endswith(".html"):
            return f'<p><a href="{target}">{html.escape(what)}</a></p>'
        return f"![{what}]({target})"

    return _SHOWS.sub(shows, _BLOCK.sub(block, text))
