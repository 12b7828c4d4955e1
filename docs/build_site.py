"""Builds the site of docs/ into build/site/html: pages, tutorials as they ran, links checked.

    python docs/build_site.py
    python docs/build_site.py --no-tutorials
    python docs/build_site.py --serve

Needs the extra "docs" and no network. scripts/docs.sh does the same in an environment of its own.
"""

import argparse
import functools
import http.server
import os
import posixpath
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import check_site
import run_tutorials

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
BUILD = ROOT / "build" / "site"
# Pages outside docs/, as files of the repository, and their names in the site.
OUTSIDE = {
    "README.md": "project/readme.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "tests/golden/README.md": "project/golden.md",
}
_FENCE_OR_LINK = re.compile(
    r"^```.*?^```$|\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)", re.M | re.S
)
_FENCE = re.compile(r"^```([^\s`]*)\n(.*?)^```$", re.M | re.S)
_COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:deeplab|python3?|pip|git|bash|cd|cp|scripts/\w+\.sh|sbatch|gcloud)\s"
)
_SHOWN = "below it stands what it printed."  # in each tutorial
_NOT_RUN = " This build ran none of them (`--no-tutorials`)."
_PICTURES = (".png", ".jpg", ".svg")  # endings of files that are shown, not listed
_LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".json": "json", ".yml": "yaml"}


def pages() -> dict[str, str]:
    """Returns the site's pages: file of the repository -> name in the site, both with `/`."""
    inside = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    return {**{f"docs/{name}": name for name in inside}, **OUTSIDE}


def stage(source: Path, texts_made: Mapping[Path, str]) -> None:
    """Makes Sphinx's source: pages with their links as the site has them, pictures, linked files.

    Args:
      source: folder; what is there and no part of the site is removed.
      texts_made: Markdown of pages that is not the file's.
    """
    known, files, texts = pages(), set[str](), {}
    for file, name in known.items():
        text = texts_made.get(ROOT / file)
        if text is None:  # a tutorial then did not run
            text = (ROOT / file).read_text("utf-8").replace(_SHOWN, _SHOWN + _NOT_RUN)
        texts[name] = mark_commands(move_links(text, file, known, files))
    for file in sorted(files):
        if not file.lower().endswith(_PICTURES):
            texts[_listing(file)] = _as_page(file)
    keep = set(texts)
    for name, text in texts.items():
        _write(source / name, text.encode())
    for path in (ROOT / file for file in files if file.lower().endswith(_PICTURES)):
        name = path.relative_to(DOCS).as_posix()
        _write(source / name, path.read_bytes())
        keep.add(name)
    for path in source.rglob("*"):
        name = path.relative_to(source).as_posix()
        if path.is_file() and name not in keep and not name.startswith("tutorials/made/"):
            path.unlink()


def move_links(text: str, file: str, known: Mapping[str, str], files: set[str]) -> str:
    """Returns a page's text with its links leading to the pages of the site.

    Args:
      text: Markdown; blocks of code stay as they are.
      file: where it lies in the repository.
      known: pages of the site, see `pages`.
      files: gets the linked files of the repository that are no pages.
    """
    here = posixpath.dirname(known[file])

    def moved(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or re.match(r"[a-z]+:|#|made/", target):
            return match[0]
        path, mark, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        if path in known:
            name = known[path]
        elif (ROOT / path).is_dir():
            return match["text"]
        elif path.endswith(_PICTURES):
            files.add(path)
            name = posixpath.relpath(path, "docs")
        else:
            files.add(path)
            name = _listing(path)
        return f"[{match['text']}]({posixpath.relpath(name, here)}{mark}{anchor})"

    return _FENCE_OR_LINK.sub(moved, text)


def mark_commands(text: str) -> str:
    """Returns a page's text with its blocks of commands as bash, whose long lines the site wraps.

    Other blocks without a language keep their lines: they are outputs, with columns.
    """

    def marked(match: re.Match[str]) -> str:
        language, code = match.groups()
        is_command = not language and _COMMAND.match(re.sub(r"^#.*\n", "", code, flags=re.M))
        return f"```bash\n{code}```" if is_command else match[0]

    return _FENCE.sub(marked, text)


def _listing(file: str) -> str:
    """Returns the page that shows a file of the repository."""
    return f"project/files/{file.replace('/', '-')}.md"


def _as_page(file: str) -> str:
    text = (ROOT / file).read_text("utf-8").rstrip()
    language = _LANGUAGES.get(Path(file).suffix, "text")
    return f"---\norphan: true\n---\n\n# `{file}`\n\n`````{language}\n{text}\n`````\n"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def build(output: Path, with_tutorials: bool = True) -> None:
    """Writes the site into `output`/html.

    Raises:
      SystemExit: a tutorial failed, Sphinx warned, or a link leads nowhere.
    """
    source, html = output / "source", output / "html"
    made: dict[Path, str] = {}
    if with_tutorials:
        _say("Running tutorials")
        # Backwards, so that the first two share no program: later ones find theirs in the cache.
        tutorials = sorted((DOCS / "tutorials").glob("*.md"), reverse=True)
        made = run_tutorials.run(tutorials, output)
        shutil.rmtree(source / "tutorials" / "made", ignore_errors=True)
        if (output / "made").is_dir():
            shutil.copytree(output / "made", source / "tutorials" / "made")
    stage(source, made)
    _say("Writing pages")
    shutil.rmtree(html, ignore_errors=True)  # pages that are gone, and links to them in others
    # One warning fails the build, after all of them are shown.
    options = ["-q", "-E", "-W", "--keep-going", "-c", str(DOCS), "-d", str(output / "doctrees")]
    command = [sys.executable, "-m", "sphinx.cmd.build", *options, str(source), str(html)]
    subprocess.run(command, check=True)
    for page in (source / "tutorials" / "made").rglob("*.html"):  # Sphinx takes pictures alone
        _write(html / page.relative_to(source), page.read_bytes())
    _say("Checking links")
    check_site.main(html, output / "external-links.txt")


def serve(html: Path, port: int) -> None:
    """Serves the site on loopback until Ctrl-C."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=html)
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


_BEGAN = time.perf_counter()


def _say(title: str) -> None:
    print(f"\n== {title} ({time.perf_counter() - _BEGAN:.0f} s)", flush=True)


def main() -> None:
    """Parses arguments, builds, and serves where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    text = "show the tutorials' commands without running them"
    parser.add_argument("--no-tutorials", action="store_true", help=text)
    text = "serve the site on this machine afterwards, at PORT (default 8000)"
    parser.add_argument("--serve", metavar="PORT", nargs="?", const=8000, type=int, help=text)
    args = parser.parse_args()
    try:
        build(BUILD, not args.no_tutorials)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"error: the site: Sphinx ended with {error.returncode} - mend what it names above"
        )
    print(f"{os.path.relpath(BUILD / 'html' / 'index.html')}")
    if args.serve is not None:
        serve(BUILD / "html", args.serve)


if __name__ == "__main__":
    main()
