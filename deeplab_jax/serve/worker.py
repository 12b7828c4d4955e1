"""The queue before the network, and the one thread that runs it.

A bucket is the size of the network's input, without padding. So a result depends on the image
alone: it is what `deeplab predict` writes for the image by itself, whatever else is asked
meanwhile. Each bucket has programs of its own; those of the least recently used are dropped.
"""

import io
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplab_jax.errors import ConfigError, DataError, ResourceError, as_resource_error
from deeplab_jax.inference.buckets import Shape, Size
from deeplab_jax.inference.prediction import FORMATS, Prediction
from deeplab_jax.inference.segmenter import Segmenter
from deeplab_jax.serve.limits import Refusal, busy, of_data, too_large
from deeplab_jax.utils.background import Abandoned

KEPT = 16  # buckets whose programs are kept
_FIRST_GUESS = 1.0  # seconds of a batch, before any was timed


class Format(NamedTuple):
    """A form of the answer.

    Attributes:
      name: of `prediction.FORMATS`; "" is the JSON.
      media_type: of the answer.
      text: what it is.
    """

    name: str
    media_type: str
    text: str


ANSWERS = {
    "png": Format("palette", "image/png", "class indices with a palette"),
    "overlay": Format("overlay", "image/jpeg", "the palette over the image"),
    "json": Format("", "application/json", "share and mean confidence of each class"),
    "npz": Format("probabilities", "application/zip", "float16 (H, W, C), probabilities"),
}


class Job:
    """An image to segment.

    Attributes:
      future: of the answer's bytes; raises Refusal. It runs once the network has begun, and can be
        cancelled until then.
    """

    def __init__(self, data: bytes, bucket: Size, answer: str, name: str | None = None):
        self.data, self.bucket, self.answer, self.name = data, bucket, answer, name
        self.future: Future[bytes] = Future()

    def encode(self, result: Prediction | DataError) -> bytes:
        """Returns the bytes that `deeplab predict` writes for this image (Refusal)."""
        if isinstance(result, DataError):
            raise of_data(result)
        prediction = replace(result, file=self.name)
        name = ANSWERS[self.answer].name
        if not name:
            return prediction.to_json()
        file = io.BytesIO()
        try:
            FORMATS[name].write(prediction, file)
        except DataError as error:  # a JPEG has a longest side
            raise too_large("image", error.what, "ask for format=png") from error
        except ConfigError as error:  # a file of labels has no probabilities
            raise Refusal(
                400, "format", error.what, f"ask for format=png, or {error.fix}"
            ) from error
        return file.getvalue()


class Worker:
    """The queue and its thread.

    Attributes:
      is_ready: whether the first sizes have been compiled.
      is_stopping: whether the server stops; what it has accepted is finished, and comes yet.
      error: why the thread ended; None if it did not, or was asked to.
      compiling: the bucket that is met for the first time, while it runs.
    """

    def __init__(self, model: Segmenter, limit: int):
        self.is_ready = self.is_stopping = self._is_ending = False
        self.error: Exception | None = None
        self.compiling: Size | None = None
        self._model, self._limit = model, limit
        self._twins: OrderedDict[Size, Segmenter] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._seconds = _FIRST_GUESS  # of a batch whose programs are there
        self._thread: threading.Thread | None = None

    def start(self, sizes: Sequence[Size], on_ready: Callable[[], None]) -> None:
        """Starts the thread; it compiles for images of these sizes, calls `on_ready`, and works."""
        arguments = tuple(sizes), on_ready
        self._thread = threading.Thread(target=self._run, args=arguments, name="network")
        self._thread.daemon = True  # a second signal waits for nothing
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Puts a job into the queue.

        Raises:
          Refusal: the queue is full.
        """
        with self._changed:
            self._drop_cancelled()
            if len(self._waiting) >= self._limit:
                raise self.busy()
            self._waiting.append(job)
            self._changed.notify()

    def check_ready(self) -> None:
        """Refuses while the first sizes are compiled (Refusal)."""
        if not self.is_ready:
            raise busy("is starting and compiles the network", 4)

    def busy(self) -> Refusal:
        """Returns the refusal of a job for which there is no time."""
        size = self.compiling
        what = f"has {self.num_waiting} images waiting"
        if size is not None:
            what += f", and compiles the network for {size[0]} x {size[1]} pixels"
        return busy(what, self._seconds * (1 + self.num_waiting))

    @property
    def num_waiting(self) -> int:
        """The number of jobs that have not begun."""
        return sum(not job.future.cancelled() for job in tuple(self._waiting))

    def stop(self) -> None:
        """Lets the thread finish what waits, and ends it; leaves the compiling before it is ready.

        For use after the last `submit`.
        """
        with self._changed:
            self.is_stopping = self._is_ending = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self, sizes: Sequence[Size], on_ready: Callable[[], None]) -> None:
        try:
            for size in sizes:
                blank = np.zeros((*size, 3), np.uint8)
                self._twin(self._model.input_size(size))([blank])
            self.is_ready = True
        except Abandoned:
            return
        except Exception as error:
            self.error = error
        on_ready()
        while self.error is None and (batch := self._next()):
            self._work(batch)

    def _twin(self, bucket: Size) -> Segmenter:
        """Returns the segmenter of a bucket."""
        if bucket not in self._twins:
            twin = self._twins[bucket] = self._model.twin()
            twin.engine.should_stop = lambda: self.is_stopping and not self.is_ready
            if len(self._twins) > KEPT:
                self._twins.popitem(last=False)
        self._twins.move_to_end(bucket)
        return self._twins[bucket]

    def _drop_cancelled(self) -> None:
        for job in tuple(self._waiting):
            if job.future.cancelled():
                self._waiting.remove(job)

    def _next(self) -> list[Job]:
        """Waits; returns the oldest job and those of its bucket that fit into one batch.

        An empty list: the thread is to end.
        """
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._waiting:
                    break
                if self._is_ending:
                    return []
                self._changed.wait()
            bucket = self._waiting[0].bucket
            limit = self._model.engine.batch_size(Shape(bucket, is_masked=False))
            batch = [job for job in self._waiting if job.bucket == bucket][:limit]
            for job in batch:
                self._waiting.remove(job)
            return batch

    def _work(self, batch: list[Job]) -> None:
        batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
        if not batch:
            return
        bucket = batch[0].bucket
        self.compiling = None if bucket in self._twins else bucket
        began = time.perf_counter()
        try:
            results = self._twin(bucket).segment([job.data for job in batch])
            for job, result in zip(batch, results, strict=True):
                self._finish(job, result)
        except Exception as error:  # one image must not end the others, nor the server
            for job in batch:
                if not job.future.done():
                    job.future.set_exception(_as_refusal(error))
        if self.compiling is None:
            self._seconds = 0.8 * self._seconds + 0.2 * (time.perf_counter() - began)
        self.compiling = None

    def _finish(self, job: Job, result: Prediction | DataError) -> None:
        try:
            job.future.set_result(job.encode(result))
        except Refusal as refusal:
            job.future.set_exception(refusal)


def _as_refusal(error: Exception) -> Exception:
    known = error if isinstance(error, ResourceError) else as_resource_error(error)
    # Of a file its name alone: strangers need not know where it lies.
    return error if known is None else busy(f"lacks {Path(known.where).name}: {known.what}", 5)
