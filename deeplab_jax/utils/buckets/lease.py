"""A lock of a folder in a bucket, which no system releases when its holder dies.

The lock is the file `.lock.N` with the highest N. The next process creates N + 1, which only one
can. The holder rewrites its file every `BEAT` seconds, and says in it when it has ended. A file
that is not rewritten for `SILENCE` seconds is a dead process's; on that process's machine nobody
waits. A holder that was suspended for longer finds a higher number, and ends before its next save.
What a bucket cannot prevent is that a save of it was under way.
"""

import json
import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from deeplab_jax.errors import ConfigError, DeepLabError, ResourceError
from deeplab_jax.utils.buckets import Address

BEAT = 10.0
SILENCE = 45.0
LOOK = 1.0  # seconds between looks at a file that may be rewritten
_PREFIX = ".lock."


class Lease:
    """Holds the lock of a folder while the block runs.

    Raises:
      ConfigError: another process holds it.
      ResourceError: the bucket does not answer, or may not be written.
    """

    def __init__(self, folder: Address):
        self._folder, self._number = folder, 0
        self._content = {**_identity(os.getpid()), "token": uuid.uuid4().hex, "beat": 0}
        self._left = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._take()
        self._beating.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._beating.join(timeout=BEAT)  # it may wait for a bucket that gives no answer
        with suppress(DeepLabError):  # the next process then waits
            self.check()
            self._file(self._number).write_bytes(self._encoded(has_ended=True))

    def check(self) -> None:
        """Raises ResourceError if another process has taken the lock meanwhile."""
        numbers = self._numbers()
        if self._number == max(numbers, default=0):
            return
        what = "its lock was removed"
        if numbers:
            other = _who(self._read(max(numbers)))
            what = f"{other} trains here since this process gave no sign for {SILENCE:.0f} s"
        raise ResourceError(str(self._folder), what, "leave it to that process, or stop that one")

    def _take(self) -> None:
        while True:
            latest = max(self._numbers(), default=0)
            if latest and not self._is_dead(latest):
                what = f"another process trains here ({_who(self._read(latest))})"
                fix = "wait for it, or choose another --workdir"
                raise ConfigError(str(self._folder), what, fix)
            self._number = latest + 1
            if not self._file(self._number).create(self._encoded()):
                continue
            numbers = self._numbers()
            if max(numbers, default=0) == self._number:
                for number in numbers[:-1]:
                    self._file(number).unlink(missing_ok=True)
                return
            self._file(self._number).unlink(missing_ok=True)  # others were faster, by two or more

    def _is_dead(self, number: int) -> bool:
        """Tells whether the holder of a number has ended; waits for a sign of life."""
        first = self._read(number)
        if first.get("has_ended"):
            return True
        own = _identity(os.getpid())
        if first.get("machine") == own["machine"] != "":
            return first.get("born") != _identity(int(first.get("pid", 0)))["born"]
        print(
            f"{self._folder}: locked by {_who(first)}; waiting up to {SILENCE:.0f} s for a sign"
            " of life",
            flush=True,
        )
        end = time.monotonic() + SILENCE
        while time.monotonic() < end:
            time.sleep(LOOK)
            if (now := self._read(number)) != first:
                return bool(now.get("has_ended"))
        return True

    def _beat(self) -> None:
        while not self._left.wait(BEAT):
            with suppress(DeepLabError):  # a save tells what is wrong
                self.check()
                self._content["beat"] += 1
                self._file(self._number).write_bytes(self._encoded())

    def _numbers(self) -> list[int]:
        names = []
        with suppress(FileNotFoundError):
            names = [place.name for place in self._folder.iterdir()]
        ends = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
        return sorted(int(end) for end in ends if end.isdecimal())

    def _file(self, number: int) -> Address:
        return self._folder / f"{_PREFIX}{number}"

    def _read(self, number: int) -> dict[str, Any]:
        """Returns a lock's content; {} if it is gone or not ours."""
        with suppress(FileNotFoundError, ValueError):
            content = json.loads(self._file(number).read_bytes())
            return content if isinstance(content, dict) else {}
        return {}

    def _encoded(self, has_ended: bool = False) -> bytes:
        return json.dumps({**self._content, "has_ended": has_ended}).encode()


def _identity(pid: int) -> dict[str, Any]:
    """Returns what tells a process from all others, "machine" "" where that cannot be known."""
    machine = born = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    with suppress(OSError, IndexError):
        born = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return {"host": platform.node(), "pid": pid, "machine": machine, "born": born}


def _who(content: dict[str, Any]) -> str:
    return f"pid {content.get('pid', '?')} on {content.get('host', '?')}"
