"""The site: navigation, links as it moves them, tutorials as they run, and a whole build."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def load(load_script, monkeypatch):
    """Returns load(name) -> a script of docs/, whose neighbours it can import."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return lambda name: load_script(name, "docs")


def entries(folder, text):
    """Returns the pages of a page's toctrees, as names in the site."""
    lines = "".join(TOCTREE.findall(text)).splitlines()
    names = [re.sub(r".*<(.*)>", r"\1", line) for line in lines if line and line[0] != ":"]
    return [(Path(folder) / f"{name}.md").as_posix() for name in names]


def test_the_navigation_holds_every_page_once(load):
    pages = load("build_site").pages()
    children = [
        entry
        for file, name in pages.items()
        for entry in entries(Path(name).parent, (ROOT / file).read_text())
    ]
    assert sorted(children) == sorted(set(pages.values()) - {"index.md"})


def test_links_lead_to_the_pages_of_the_site(load):
    site = load("build_site")
    files = set()

    def moved(text, file):
        return site.move_links(text, file, site.pages(), files)

    assert moved("[a](docs/training.md#speed)", "README.md") == "[a](../training.md#speed)"
    assert (
        moved("[a](../README.md#results)", "docs/training.md") == "[a](project/readme.md#results)"
    )
    assert moved("![a](../report.png)", "docs/start/report.md") == "![a](../report.png)"
    assert moved("![a](camvid.svg)", "docs/results/camvid.md") == "![a](camvid.svg)"
    for same in ("[a](#speed)", "[a](https://x.org/y.md)", "```\n[a](../README.md)\n```"):
        assert moved(same, "docs/training.md") == same
    assert moved("[a](../deeplab_jax/models)", "docs/hosts.md") == "a"
    recipe = "project/files/configs-quickstart.py.md"
    assert moved("[a](../configs/quickstart.py)", "docs/hosts.md") == f"[a]({recipe})"
    assert files == {"docs/report.png", "docs/results/camvid.svg", "configs/quickstart.py"}


def test_commands_are_marked_and_outputs_keep_their_lines(load):
    mark = load("build_site").mark_commands
    assert mark("```\ndeeplab train\n```\n") == "```bash\ndeeplab train\n```\n"
    assert mark("```\n# first\nA=1 scripts/docs.sh --serve\n```") == (
        "```bash\n# first\nA=1 scripts/docs.sh --serve\n```"
    )
    for same in (
        "```\nusage: deeplab train\n```\n\ndeeplab ",
        "```python\nx\n```\n",
        "`````\na\n`````",
    ):
        assert mark(same) == same


def test_a_tutorial_that_did_not_run_says_so(load, tmp_path):
    site = load("build_site")
    tutorials = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
    ran = {tutorials[0]: "# As it ran"}
    site.stage(tmp_path, ran)
    first, *others = [tmp_path / "tutorials" / file.name for file in tutorials]
    assert first.read_text() == "# As it ran"
    assert len(others) == 5
    told = "what it printed. This build ran none of them (`--no-tutorials`)."
    assert all(told in page.read_text() for page in others)


def test_a_built_site_is_looked_through(load, tmp_path):
    faulty = (
        "<a href='other.html#here'>a</a><a href='other.html#nowhere'>b</a><a href='gone.html'>c</a>"
        "<a href='https://x.org'>d</a><script src='//cdn.org/x.js'></script>"
    )
    (tmp_path / "index.html").write_text(faulty)
    (tmp_path / "other.html").write_text("<p id='here'>")
    (tmp_path / "site.css").write_text("@import 'https://fonts.org/a.css';")
    faults, external = load("check_site").check(tmp_path)
    assert faults == [
        "index.html: gone.html leads to no file",
        "index.html: loads //cdn.org/x.js",
        "index.html: other.html#nowhere has no such anchor",
        "site.css: loads https://fonts.org/a.css",
    ]
    assert external == ["//cdn.org/x.js", "https://x.org"]


@pytest.mark.process("starts shells")
def test_a_tutorial_runs_once_and_its_failure_is_told(load, tmp_path, monkeypatch):
    tutorials = load("run_tutorials")
    monkeypatch.setattr(tutorials, "ROOT", tmp_path)
    (tmp_path / "scripts").mkdir()
    page, counter = tmp_path / "page.md", tmp_path / "counter"
    text = f"# A\n\n```\necho run >> {counter}\necho $((6 * 7)) | tee a.png\n```\n"
    text += "```\nexit 3  # exit code 3\n```\n<!-- shows a.png: the answer -->\n"
    page.write_text(text)
    for _ in range(2):
        made = tutorials.run([page], tmp_path / "out")[page]
        assert "```bash\necho run" in made
        assert ":class: output\n\n42\n" in made
        assert "![the answer](made/page/a.png)" in made
    assert counter.read_text() == "run\n"
    page.write_text(text.replace("exit 3 ", "exit 4 "))
    with pytest.raises(SystemExit, match=r"page\.md: a block ended with 4, not 3:\nexit 4"):
        tutorials.run([page], tmp_path / "out")


def build(*flags):
    command = [sys.executable, ROOT / "docs" / "build_site.py", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.process("builds the site: Sphinx reads every page")
def test_the_site_builds_without_a_warning():
    done = build("--no-tutorials")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "external links are not fetched" in done.stdout


@pytest.mark.slow("runs the tutorials: two minutes of two cores, where nothing is kept")
def test_the_tutorials_run():
    done = build()
    assert done.returncode == 0, done.stdout + done.stderr
