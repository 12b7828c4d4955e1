"""A survey and its findings in words, 80 columns wide, and as JSON."""

import json
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.doctor.findings import SEVERITIES, Finding
from deeplab_jax.doctor.survey import Survey
from deeplab_jax.utils.machine import num_cores

_WIDTH = 80
_MAX_ITEMS = 5  # shown of one finding
_MAX_CLASSES = 25  # shown of the table


class ReadingSpeed(NamedTuple):
    """How fast the files were read."""

    images_per_second: float  # of wall time, over all threads
    per_core: float  # images per second of processor time
    decoding: float  # share of the processor time spent reading and decoding files


def speed(survey: Survey, seconds: float) -> ReadingSpeed:
    """Returns the speed of a survey that took `seconds` of wall time."""
    used = max(sum(f.seconds for f in survey.facts), 1e-9)
    decoding = sum(f.decode_seconds for f in survey.facts)
    number = len(survey.facts)
    return ReadingSpeed(number / max(seconds, 1e-9), number / used, decoding / used)


def summarize(survey: Survey) -> dict[str, Any]:
    """Returns counts, sizes and classes of a data set, as JSON has them.

    "sizes" is {"smallest", "median" or "largest" by area: [height, width]}, empty without images;
    shares are of all pixels; "masks" of a class is {split: number of masks that hold it}.
    """
    sizes = sorted(f.image_size for f in survey.facts if f.image_size is not None)
    by_area = sorted(sizes, key=lambda s: s[0] * s[1])
    places = {"smallest": 0, "median": len(sizes) // 2, "largest": -1} if sizes else {}
    total: Counter[int] = Counter()
    masks = {split: Counter[int]() for split in survey.splits}
    for f in survey.facts:
        counts = survey.class_counts(f)
        total.update(counts)
        masks[f.pair.split].update(counts.keys())
    pixels = max(sum(f.mask_size[0] * f.mask_size[1] for f in survey.facts if f.mask_size), 1)
    return {
        "root": str(survey.root),
        "splits": {split: len(survey.of_split(split)) for split in survey.splits},
        "sizes": {name: list(by_area[place]) for name, place in places.items()},
        "classes": [
            {
                "class": number,
                "name": name,
                "values": sorted(v for v, c in survey.meaning.items() if c == number),
                "pixel_share": total[number] / pixels,
                "masks": {split: masks[split][number] for split in survey.splits},
            }
            for number, name in enumerate(survey.class_names)
        ],
        "ignored_share": total[IGNORE_INDEX] / pixels,
    }


def write_json(path: str, survey: Survey, findings: Sequence[Finding], speed: ReadingSpeed) -> None:
    """Writes summary, speed and all places of all findings."""
    content = {**summarize(survey), "speed": speed._asdict()}
    content["findings"] = [finding._asdict() for finding in findings]
    Path(path).write_text(json.dumps(content, indent=2) + "\n")


def to_text(survey: Survey, findings: Sequence[Finding], speed: ReadingSpeed) -> str:
    """Returns the report for people."""
    lines = [*_summary(survey), ""]
    for finding in findings:
        lines += [*_finding(finding), ""]
    number = Counter(finding.severity for finding in findings)
    counts = (f"{number[s]} {s}{'' if number[s] == 1 else 's'}" for s in SEVERITIES)
    pace = f"{len(survey.facts)} images, {speed.images_per_second:.0f} images/s on {num_cores()} "
    pace += f"core(s); {speed.per_core:.0f} per second of one core, "
    pace += f"{100 * speed.decoding:.0f} % of it decoding"
    return "\n".join([*lines, ", ".join(counts), pace])


def _summary(survey: Survey) -> list[str]:
    facts = summarize(survey)
    counts = ", ".join(f"{split} {number}" for split, number in facts["splits"].items())
    lines = [f"images   {counts}"]
    if facts["sizes"]:
        sizes = ", ".join(f"{h}x{w} {name}" for name, (h, w) in facts["sizes"].items())
        lines.append(f"sizes    {sizes} (height x width)")
    lines.append(f"ignored  {100 * facts['ignored_share']:.1f} % of all pixels")
    if not facts["classes"]:
        return lines
    splits = list(facts["splits"])
    source = f" (names of {survey.names_file})" if survey.names_file else ""
    lines.append(f"classes  {len(facts['classes'])}{source}")
    header = "".join(f"{'in ' + split:>13.13}" for split in splits[:3])
    lines.append(f"  {'value':>6}  {'name':20} {'pixels':>8}{header}")
    for row in facts["classes"][:_MAX_CLASSES]:
        masks = "".join(f"{row['masks'][split]:13}" for split in splits[:3])
        value = ",".join(map(str, row["values"]))
        share = f"{100 * row['pixel_share']:.2f} %"
        lines.append(f"  {value:>6.6}  {row['name']:20.20} {share:>8}{masks}")
    rest = len(facts["classes"]) - _MAX_CLASSES
    return lines + ([f"  ... {rest} more, see --json"] if rest > 0 else [])


def _finding(finding: Finding) -> list[str]:
    lines = _wrap(f"{finding.severity.upper():8} ", finding.title)
    for item in finding.items[:_MAX_ITEMS]:
        lines += _wrap(" " * 11, item)
    if len(finding.items) > _MAX_ITEMS:
        lines.append(f"{'':11}... and {len(finding.items) - _MAX_ITEMS} more, see --json")
    # A command stands on a line of its own, to be copied whole.
    fix, *command = re.split(r"(?<=:) (?=python3 -c |printf )", finding.fix, maxsplit=1)
    return lines + _wrap(f"{'':9}fix: ", fix) + [f"{'':9}{text}" for text in command]


def _wrap(start: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start),
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip
