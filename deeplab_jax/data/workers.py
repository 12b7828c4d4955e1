"""Threads and processes that read ahead, watched so that none dies or hangs unseen.

Each reader notes the sample that it reads. A watchdog looks at the notes twice a second. When a
process has died, or been silent for `SILENCE` seconds, or a sample has not ended for `PATIENCE`,
the consumer of the results gets an error that names the sample. Progress is counted by sample, so
that large batches from slow disks are no failure, and in looks, not by the clock, so that a run
suspended as a whole has not waited.
"""

import faulthandler
import functools
import gc
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import TypeVar

import cv2
import numpy as np

from deeplab_jax.errors import ReaderError

PATIENCE = 25.0  # seconds for one sample
SILENCE = 15.0  # seconds without a beat; a run with a stopped reader ends within 30
START_PATIENCE = 120.0  # seconds until a process is ready
_LOOK = 0.5  # seconds between looks
_BUFFER = 2  # results that each process keeps ready
_STACK = 5  # lines of a thread's stack that are shown
_FREE = "free memory or processors, or lower config.data.num_workers"

T = TypeVar("T")
R = TypeVar("R")
NameOf = Callable[[int], tuple[str, str]]  # names of image and mask by position in the data set
# A note: the reader's process or thread, how often it began or ended a sample (odd: it reads one),
# the sample's position in the data set, and a count that grows while a process runs.
_WHO, _COUNT, _INDEX, _BEAT = range(4)
_mine = threading.local()  # `note` of this thread, if it is a reader


@contextmanager
def reading(index: int) -> Iterator[None]:
    """Notes that this reader reads the sample at `index` while the block runs."""
    note = getattr(_mine, "note", None)
    if note is None:
        yield
        return
    note[_INDEX] = index
    note[_COUNT] += 1
    try:
        yield
    finally:
        note[_COUNT] += 1


def in_threads(
    read: Callable[[T], R], items: Iterable[T], num_threads: int, name_of: NameOf
) -> Iterator[R]:
    """Yields read(item) for each item, in order, read ahead by threads.

    `read` notes by `reading` the sample that it reads. One item is taken after each result.

    Raises:
      ReaderError: reading a sample does not end.
      Exception: an error of `read`.
    """
    cv2.setNumThreads(0)  # these threads are the parallelism
    notes = np.zeros((num_threads, 4), np.int64)
    with _Watch(notes, name_of, are_processes=False) as watch:
        yield from _ahead(read, items, notes, watch)


def in_processes(
    load: Callable[[int], R], items: range, num_processes: int, name_of: NameOf
) -> Iterator[R]:
    """Yields load(item) for each item, in order, read ahead by processes.

    `load` is picklable, returns a named tuple of arrays, and notes by `reading` what it reads.

    Raises:
      ReaderError: a process died, or reading a sample does not end.
      Exception: an error of `load`.
    """
    import grain  # takes 3 s, therefore only here
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain's processes read flags outside `absl.app.run`
    # Python's remover of the shared memory that a killed process leaves; a warning of it would
    # follow the command's last line.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    resource_tracker.ensure_running()
    sys.warnoptions.pop()
    with tempfile.NamedTemporaryFile(prefix="deeplab-readers-") as file:
        notes = np.memmap(file.name, np.int64, "w+", shape=(num_processes, 4))
        results = grain.MapDataset.range(items.start, items.stop).map(load)
        results = results.to_iter_dataset(grain.ReadOptions(0, 0))  # no threads in a process
        options = grain.MultiprocessingOptions(num_processes, _BUFFER)
        start = functools.partial(_start_process, file.name)
        iterator = iter(results.mp_prefetch(options, worker_init_fn=start))

        def take(_: int) -> R:
            result = next(iterator)
            # Copied: it lies in shared memory that ends with grain's own arrays.
            return type(result)(*map(np.array, result))

        try:
            with _Watch(notes, name_of, are_processes=True) as watch:
                # One thread waits for grain, so that the consumer waits under the watchdog.
                yield from _ahead(take, items, np.zeros((1, 4), np.int64), watch)
        finally:
            iterator.close()
            gc.collect()  # the last result hangs in a cycle of grain's, and warns at exit


def _ahead(
    read: Callable[[T], R], items: Iterable[T], notes: np.ndarray, watch: "_Watch"
) -> Iterator[R]:
    """Yields read(item) in order, read ahead by one thread for each note."""
    todo: queue.SimpleQueue[tuple[Future[R], T] | None] = queue.SimpleQueue()
    # Daemons: where one hangs, the process still ends. Else they are joined below.
    threads = [threading.Thread(target=_work, args=(read, todo, n), daemon=True) for n in notes]
    waiting: deque[Future[R]] = deque()
    for thread in threads:
        thread.start()
    try:
        for item in items:
            waiting.append(Future())
            todo.put((waiting[-1], item))
            if len(waiting) > len(threads):
                yield watch.wait(waiting.popleft())
        while waiting:
            yield watch.wait(waiting.popleft())
    finally:
        for future in waiting:
            future.cancel()
        for _ in threads:
            todo.put(None)
        watch.join(threads)


def _work(
    read: Callable[[T], R], todo: "queue.SimpleQueue[tuple[Future[R], T] | None]", note: np.ndarray
) -> None:
    # Inherited by processes that grain starts from this thread: from their first moment on, the
    # parent alone handles a signal to the whole group.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    _mine.note = note
    note[_WHO] = threading.get_ident()
    while (task := todo.get()) is not None:
        future, item = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(read(item))
            except BaseException as error:
                future.set_exception(error)
        del task, future  # or a result lives until the next


class _Watch:
    """Looks at the notes of readers until closed."""

    def __init__(self, notes: np.ndarray, name_of: NameOf, are_processes: bool):
        self._notes, self._name_of, self._are_processes = notes, name_of, are_processes
        self._seen = notes.copy()
        self._still = np.zeros(len(notes))  # seconds since a note changed
        self._silent = np.zeros(len(notes))  # seconds since a beat
        self._waited = 0.0  # seconds of someone waiting and no note changing
        self._is_waiting = False
        self._failure: Exception | None = None
        self._lock, self._is_closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_closed.set()
        self._thread.join()

    def wait(self, future: Future[R]) -> R:
        """Returns the future's result, or raises its error or the readers'."""
        self._is_waiting = True
        while not wait([future], _LOOK).done and self._failure is None:
            pass
        self._is_waiting = False
        error = future.exception() if future.done() else None
        if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
            self._look()  # grain noticed first
            unseen = ReaderError("a reading process", "died before its first sample", _FREE)
            self._failure = self._failure or unseen
        if self._failure is not None:
            raise self._failure from error
        return future.result()

    def join(self, threads: list[threading.Thread]) -> None:
        """Waits for the threads to end, unless one hangs."""
        deadline = time.monotonic() + PATIENCE
        for thread in threads:
            while thread.is_alive() and time.monotonic() < deadline:
                if self._failure is not None and not self._are_processes:
                    return
                thread.join(_LOOK)

    def _run(self) -> None:
        try:
            while not self._is_closed.wait(_LOOK):
                self._look()
        except Exception as error:  # a bug here must not let the run wait for ever
            self._failure = error

    def _look(self) -> None:
        with self._lock:
            if self._failure is None and (failure := self._find_failure()):
                if self._are_processes:
                    self._send(signal.SIGKILL, self._notes[:, _WHO])  # or grain would wait for them
                self._failure = failure

    def _find_failure(self) -> ReaderError | None:
        notes = np.array(self._notes)
        is_changed = notes != self._seen
        has_moved = is_changed[:, :_BEAT].any(1)
        self._seen = notes
        self._still = np.where(has_moved, 0, self._still + _LOOK)
        self._silent = np.where(is_changed[:, _BEAT], 0, self._silent + _LOOK)
        self._waited = self._waited + _LOOK if self._is_waiting and not has_moved.any() else 0
        is_started, is_busy = notes[:, _WHO] > 0, notes[:, _COUNT] % 2 == 1
        if self._are_processes:
            is_dead = is_started & ~np.isin(notes[:, _WHO], _children())
            if is_dead.any():
                return self._died(notes[is_dead])
        if (self._still[~is_started] >= START_PATIENCE).any():
            what = f"{(~is_started).sum()} of {len(notes)} did not start in {START_PATIENCE:.0f} s"
            return ReaderError("reading processes", what, _FREE)
        is_stuck = is_busy & (self._still >= PATIENCE)
        if self._are_processes:
            is_stuck |= is_started & (self._silent >= SILENCE)  # stopped, maybe between samples
        if self._waited >= PATIENCE and is_started.all() and not is_stuck.any():
            is_stuck[:] = True
        return self._stuck(notes[is_stuck]) if is_stuck.any() else None

    def _died(self, notes: np.ndarray) -> ReaderError:
        who, count, index, _ = notes[0]
        image, mask = self._name_of(index)
        when = "while" if count % 2 else "after" if count else "before"
        what = f"the reading process {who} died {when} reading this and its mask {mask}"
        return ReaderError(image, what, _FREE)

    def _stuck(self, notes: np.ndarray) -> ReaderError:
        """Prints where the noted readers stand, and returns the error."""
        for who, count, index, _ in notes:
            kind = "process" if self._are_processes else "thread"
            state = "reading" if count % 2 else "idle after"
            _tell(f"{kind} {who}: {state} {' and '.join(self._name_of(index))}")
        self._tell_stacks(notes[:, _WHO])
        who, count, index, _ = notes[0]
        image, mask = self._name_of(index)
        verb = "reading this" if count % 2 else "going on after this"
        others = f"; {len(notes)} readers, see above" if len(notes) > 1 else ""
        still = max(self._still[self._notes[:, _WHO] == who], default=0.0)
        seconds = min(still, PATIENCE)
        what = f"{verb} and its mask {mask} has taken more than {seconds:.0f} s{others}"
        return ReaderError(image, what, "check the disk or network, then repeat the command")

    def _tell_stacks(self, readers: np.ndarray) -> None:
        if self._are_processes:
            self._send(signal.SIGUSR1, readers)  # see `_start_process`; a stopped one stays silent
            time.sleep(_LOOK)
            return
        frames = sys._current_frames()
        for who in readers.tolist():
            for line in traceback.extract_stack(frames[who])[-_STACK:] if who in frames else []:
                _tell(f"  {line.filename}:{line.lineno} in {line.name}")

    def _send(self, number: int, readers: np.ndarray) -> None:
        for pid in set(_children()) & set(readers.tolist()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _tell(text: str) -> None:
    with suppress(OSError):  # the reader of standard error may have gone
        print(text, file=sys.stderr, flush=True)


def _children() -> list[int]:
    """Returns the running processes that this one started."""
    return [child.pid or 0 for child in multiprocessing.active_children()]


def _start_process(notes_path: str, worker: int, num_workers: int) -> None:
    """Turns a process that grain started into a reader."""
    cv2.setNumThreads(0)  # the processes are the parallelism
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the parent handles it
    faulthandler.register(signal.SIGUSR1, 2, all_threads=False)  # prints the stack
    note = np.memmap(notes_path, np.int64, "r+", shape=(num_workers, 4))[worker]
    _mine.note, note[_WHO] = note, os.getpid()
    threading.Thread(target=_beat, args=(notes_path, note), daemon=True).start()


def _beat(notes_path: str, note: np.ndarray) -> None:
    """Counts while this process runs, and ends it when its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while os.getppid() == parent.pid:  # not `getppid` at the start: the parent may be gone by then
        note[_BEAT] += 1
        time.sleep(1)
    with suppress(OSError):
        os.unlink(notes_path)
    os._exit(1)
