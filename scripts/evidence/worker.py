"""One process of a stage: measures what the stage's record lacks."""

import importlib
import sys
import time
from pathlib import Path

from deeplab_jax.utils import environment
from evidence.record import Box, Record, measure

_DONE, _MORE = 0, 3  # exit codes; any other is a crash


def main(argv: list[str]) -> int:
    """Takes stage, output folder, "rehearsal" or "card", deadline and CamVid's root."""
    stage, output, kind, deadline, camvid = argv
    box = Box(Path(output), kind == "rehearsal", float(deadline), camvid or None)
    record = Record.read(box.output, stage, box.is_rehearsal)
    began, before = time.monotonic(), record.seconds
    record.facts = {
        "packages": environment.packages(),
        "commit": environment.commit(),
        "command": f"scripts/gpu_evidence.sh --stage {stage}",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    items = importlib.import_module(f"evidence.{stage}").items(box)
    is_done = measure(box, record, items)
    record.seconds = round(before + time.monotonic() - began, 1)
    record.write(box.output)
    return _DONE if is_done else _MORE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
