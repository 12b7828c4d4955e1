"""The queue, before a network that only waits and counts."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from deeplab_jax.data.images import TooLargeError
from deeplab_jax.errors import DataError, ResourceError
from deeplab_jax.inference.prediction import Prediction
from deeplab_jax.serve.limits import Budget, Refusal
from deeplab_jax.serve.worker import KEPT, Job, Worker


class Stub:
    """A network of three images a batch; image: b"<side>", b"bug", b"lost", b"bad", b"large"."""

    def __init__(self):
        self.batches, self.twins, self.may_go = [], 0, threading.Event()
        self.may_go.set()
        self.has_begun = threading.Event()
        self.engine = SimpleNamespace(batch_size=lambda shape: 3)

    def twin(self):
        self.twins += 1
        self.engine = SimpleNamespace(batch_size=lambda shape: 3)
        return self

    def input_size(self, size):
        return size

    def __call__(self, images):
        assert [image.shape for image in images] == [(2, 2, 3)]

    def segment(self, images):
        self.has_begun.set()
        assert self.may_go.wait(20)
        self.batches.append(images)
        if b"lost" in images:
            raise ResourceError("/home/me/mine/model.onnx", "fails", "mend it")
        if b"bug" in images:
            raise RuntimeError("a bug")
        for data in images:
            if data in (b"bad", b"large"):
                kind = DataError if data == b"bad" else TooLargeError
                yield kind("images[0]", "is at fault", "mend it")
                continue
            labels = np.zeros((2, int(data)), np.uint8)
            palette = np.zeros((1, 3), np.uint8)
            confidence = np.ones(labels.shape, np.float32)
            image = np.zeros((*labels.shape, 3), np.uint8)
            yield Prediction(labels, confidence, image, palette, ("all",), file="not this")


@pytest.fixture
def model():
    return Stub()


@pytest.fixture
def worker(model):
    worker, ready = Worker(model, 4), threading.Event()
    with pytest.raises(Refusal, match="starting"):
        worker.check_ready()
    worker.start([(2, 2)], ready.set)
    assert ready.wait(20)
    worker.check_ready()
    yield worker
    model.may_go.set()
    worker.stop()


def submit(worker, data, bucket=(2, 2), name=None):
    job = Job(data, bucket, "json", name)
    worker.submit(job)
    return job.future


@pytest.fixture
def held(worker, model):
    """A job in work, so that others wait."""
    model.may_go.clear()
    model.has_begun.clear()
    first = submit(worker, b"1")
    assert model.has_begun.wait(20)
    return first


def test_batches_are_of_one_bucket_the_oldest_first(worker, model, held):
    others = [submit(worker, data, bucket) for data, bucket in (
        (b"2", (2, 2)), (b"3", (9, 9)), (b"4", (2, 2)), (b"5", (9, 9)))]  # fmt: skip
    model.may_go.set()
    texts = [future.result(20) for future in (held, *others)]
    assert model.batches == [[b"1"], [b"2", b"4"], [b"3", b"5"]]
    assert [f"2,\n  {side}\n" in text.decode() for side, text in zip("12345", texts, strict=True)]
    assert all(b'"file": null' in text for text in texts)


def test_full_queue_refuses_and_a_cancelled_job_leaves_it(worker, model, held):
    waiting = [submit(worker, b"2") for _ in range(4)]
    with pytest.raises(Refusal, match="has 4 images waiting") as refused:
        submit(worker, b"2")
    assert refused.value.status == 503
    assert int(refused.value.headers["Retry-After"]) >= 1
    assert not held.cancel()  # it has begun
    assert waiting[1].cancel()
    assert worker.num_waiting == 3
    last = submit(worker, b"7")
    model.may_go.set()
    last.result(20)
    assert sum(map(len, model.batches)) == 1 + 3 + 1


def test_a_fault_ends_neither_others_nor_the_thread(worker, model, held):
    bad = [submit(worker, data, (size, size)) for size, data in
           ((3, b"bad"), (3, b"large"), (3, b"6"), (4, b"bug"))]  # fmt: skip
    model.may_go.set()
    codes = [getattr(future.exception(20), "status", None) for future in bad[:2]]
    assert codes == [400, 413]
    assert bad[2].result(20)
    assert str(bad[3].exception(20)) == "a bug"
    lost = submit(worker, b"lost", (5, 5)).exception(20)
    assert (lost.status, lost.content["error"]["what"]) == (503, "lacks model.onnx: fails")
    unknown = Job(b"8", (2, 2), "npz")  # this network gives no probabilities
    worker.submit(unknown)
    assert unknown.future.exception(20).status == 400
    assert submit(worker, b"8", name="mine").result(20).startswith(b'{\n "file": "mine"')


def test_what_waits_is_finished_at_the_end(worker, model, held):
    waiting = [submit(worker, b"2", (size, size)) for size in (3, 4, 5)]
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    time.sleep(0.05)
    model.may_go.set()
    stopping.join(20)
    assert all(future.done() and future.result() for future in (held, *waiting))


def test_what_comes_after_the_signal_is_finished_too(worker, model, held):
    worker.is_stopping = True  # the body of an accepted request is still on its way
    model.may_go.set()
    assert held.result(20)
    time.sleep(0.05)  # the thread has nothing to do
    assert submit(worker, b"2").result(20)


def test_programs_of_few_buckets_are_kept(worker, model):
    sizes = [(size, size) for size in range(10, 10 + KEPT)]
    for bucket in (*sizes, sizes[-1], sizes[1], (2, 2)):  # the last was dropped
        submit(worker, b"1", bucket).result(20)
    assert model.twins == 1 + KEPT + 1
    assert len(worker._twins) == KEPT


def test_bytes_of_all_requests_are_bounded():
    budget = Budget(100)
    with budget.held() as first, budget.held() as second:
        first.add(60)
        second.add(40)
        with pytest.raises(Refusal, match="holds as much"):
            second.add(1)
    assert budget.used == 0
