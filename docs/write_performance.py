"""Writes the tables of docs/performance.md from docs/performance.json.

    python docs/write_performance.py                    # the page again
    python docs/write_performance.py bench/bench.json   # first takes in what deeplab bench wrote

docs/performance.json holds "bench": results of `deeplab bench` by name; "tables": other tables,
each with "command", "machine", "date", "columns" and "rows"; and "lost": what was tried and is
slower, each with "form", "figure" and "command". Results of `deeplab bench` replace those of the
same command and device. In the page only the text between the two markers of a table is rewritten;
every table has a place there, and every place a table.
"""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.benchmark import text
from deeplab_jax.utils.atomic import atomic_write

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "performance.json", ROOT / "docs" / "performance.md"
LOST = "lost"  # name of the place of what was tried and lost
Results = dict[str, Any]


def main() -> None:
    """Takes in a file of results, if one is named, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, help="bench.json of deeplab bench --output")
    file = parser.parse_args().file
    results = json.loads(RESULTS.read_text())
    if file is not None:
        add(results, json.loads(file.read_text()))
    page = rewrite(PAGE.read_text(), results)
    for path, text_of in ((RESULTS, format_results(results)), (PAGE, page)):
        with atomic_write(path) as output:
            output.write(text_of.encode())


def format_results(results: Results) -> str:
    """Returns the text of docs/performance.json."""
    return json.dumps(results, indent=1) + "\n"


def add(results: Results, bench: dict[str, Any]) -> None:
    """Adds results of `deeplab bench`, or replaces those of the same command and device."""
    flags = re.sub(r" --output[= ]\S+", "", bench["command"]).split()[2:]
    words = [bench["machine"]["platform"], bench["machine"]["device"], *flags]
    name = re.sub(r"[^a-z0-9]+", "-", " ".join(dict.fromkeys(words)).lower()).strip("-")
    results["bench"][name] = bench


def rewrite(page: str, results: Results) -> str:
    """Returns the page with the tables of the results.

    Raises:
      ValueError: a table has no place in the page, or a place has no table.
    """
    tables = {f"bench {name}": _bench(bench) for name, bench in results["bench"].items()}
    tables |= {name: _table(table) for name, table in results["tables"].items()}
    if results[LOST]:
        tables[LOST] = _lost(results[LOST])
    places = re.findall(r"<!-- table: (.+?) -->", page)
    wrong = {*places} ^ tables.keys()
    if wrong:
        place = "<!-- table: NAME --> ... <!-- end -->"
        raise ValueError(f"without a place {place}, or a table: {', '.join(sorted(wrong))}")

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}{tables[match[2]]}{match[3]}"

    pattern = r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, replace, page, flags=re.DOTALL)


def _bench(results: dict[str, Any]) -> str:
    origin = " ".join(text.origin(results))
    command = f"```\n{results['command']}\n```\n"
    lines = [*text.table(results), *text.notes(results)]
    return "\n".join([command, origin, "", *lines, ""])


def _table(table: dict[str, Any]) -> str:
    lines = _lines(table["columns"], table["rows"])
    origin = f"`{table['command']}`; {table['machine']}; {table['date']}."
    return "\n".join([*lines, "", origin, ""])


def _lost(forms: Sequence[dict[str, str]]) -> str:
    rows = ((each["form"], each["figure"], f"`{each['command']}`") for each in forms)
    return "\n".join([*_lines(("tried", "figure", "command"), rows), ""])


def _lines(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(str, row))} |" for row in cells]


if __name__ == "__main__":
    main()
