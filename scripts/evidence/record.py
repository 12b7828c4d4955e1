"""The record of a stage: a JSON file that grows by one item at a time and survives a kill."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DONE, UNFINISHED, FAILED, SKIPPED = "done", "unfinished", "failed", "skipped"
_TRIES = 2  # of an item that a kill or the time limit ended

Result = dict[str, Any]  # of an item, as JSON; {"error": text} where there is none


class OutOfTime(Exception):
    """The stage's time ends before an item does."""


class Item(NamedTuple):
    """One measurement of a stage, recorded when it is done.

    Attributes:
      name: unique in its stage.
      run: measures; a `ValueError` or an error of JAX's or PyTorch's becomes the result's "error".
      seconds: least time that must be left of the stage to begin.
    """

    name: str
    run: Callable[[], Result]
    seconds: float = 30


@dataclass(frozen=True)
class Box:
    """What a stage works with.

    Attributes:
      output: the folder of all results.
      is_rehearsal: tiny sizes, on a processor.
      deadline: end of the stage's time, in seconds of `time.time`.
      camvid: root of CamVid; None where it is not at hand.
    """

    output: Path
    is_rehearsal: bool
    deadline: float
    camvid: str | None = None

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def pick(self, full: Any, tiny: Any) -> Any:
        """Returns a value for the card, or the one for a rehearsal."""
        return tiny if self.is_rehearsal else full


@dataclass
class Record:
    """What is known of a stage.

    Attributes:
      status: "unfinished", "done", "failed" (a limit was not kept) or "skipped".
      reason: why it failed or was skipped.
      items: {name: result}, in the order of the measurements.
      running: the item that is measured now, or was when the process ended.
      tries: {name: how often it was begun}.
      seconds: of all processes together.
      facts: device, versions and commit of the last process.
    """

    stage: str
    is_rehearsal: bool
    status: str = UNFINISHED
    reason: str = ""
    items: dict[str, Result] = field(default_factory=dict)
    running: str = ""
    tries: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    facts: Result = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, stage: str, is_rehearsal: bool) -> "Record":
        """Returns the record in a folder, or a new one.

        Raises:
          ValueError: the file is no record.
        """
        path = folder / f"{stage}.json"
        if not path.exists():
            return cls(stage, is_rehearsal)
        try:
            return cls(**json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, folder: Path) -> None:
        """Replaces the file in one step."""
        path = folder / f"{self.stage}.json"
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(vars(self), indent=1) + "\n")
        os.replace(partial, path)

    def give_up(self, reason: str, tries: int = _TRIES) -> None:
        """Ends the item that a process left behind, if it was tried often enough."""
        if self.running and self.tries.get(self.running, 0) >= tries:
            self.items[self.running] = {"error": reason}
        self.running = ""

    @property
    def errors(self) -> dict[str, str]:
        """{item: why it has no result}."""
        return {name: item["error"] for name, item in self.items.items() if "error" in item}


def measure(box: Box, record: Record, items: list[Item]) -> bool:
    """Measures what the record lacks; returns whether nothing is left.

    An item begins only if its time is left. Each result is written at once.
    """
    for item in items:
        if item.name in record.items:
            continue
        if box.left < box.pick(item.seconds, 0):
            return False
        record.running = item.name
        record.tries[item.name] = record.tries.get(item.name, 0) + 1
        record.write(box.output)
        began = time.monotonic()
        try:
            result = item.run()
        except OutOfTime:
            return False
        except (ValueError, RuntimeError, OSError, TypeError, AttributeError) as error:
            result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            print(f"{item.name}: {error}", file=sys.stderr, flush=True)
        took = round(time.monotonic() - began, 1)
        record.items[item.name], record.running = {**result, "took_seconds": took}, ""
        record.write(box.output)
        print(f"{item.name}: {_short(result)} ({took:.0f} s)", flush=True)
    return True


def _short(result: Mapping[str, Any]) -> str:
    return str(result.get("error") or result.get("line") or "measured")
