"""Evaluation of weights on a data set: counts over all images and hosts."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np

from deeplab_jax.data import Dataset, eval_examples
from deeplab_jax.data.images import read_size
from deeplab_jax.distributed import hosts
from deeplab_jax.errors import DataError
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.boundary import DILATION_RATIO, boundary_areas, dilation_ratio
from deeplab_jax.evaluation.summary import Summary, summarize, summarize_further
from deeplab_jax.inference.buckets import Size
from deeplab_jax.inference.counting import BINS, ImageCounts
from deeplab_jax.inference.engine import Engine, Item, Variables
from deeplab_jax.inference.protocol import TABLE, EvalProtocol
from deeplab_jax.inference.resize import fitted_size
from deeplab_jax.models import DeepLabV3Plus
from deeplab_jax.utils import background
from deeplab_jax.utils.progress import counting

IMAGES_A_ROUND = 8  # images of a host between two polls of the others
_THREADS = 4  # looking for boundaries, milliseconds an image, while the devices go on
_WAITING = 2 * _THREADS  # images, so that few label maps are in memory

_Key = tuple[int, np.ndarray]  # position among the images, and the truth


class ImageTotals(NamedTuple):
    """Sums over the pixels of an image that are not ignored.

    Attributes:
      confusion: int (C, C); row = truth, column = prediction.
      boundary: int64 (3, C), areas near boundaries (see `boundary`).
      bins: int64 (BINS, 3), pixels by confidence (see `counting.ImageCounts`).
      cross_entropy: sum of -log of the true class's probability.
    """

    confusion: np.ndarray
    boundary: np.ndarray
    bins: np.ndarray
    cross_entropy: float


@dataclass(frozen=True)
class EvalResult:
    """Counts of pixels over a data set.

    Attributes:
      confusion: int64 (C, C); row = truth, column = prediction.
      class_names: C names.
      num_images: N.
      image_ids: N ids, in the order asked for.
      per_image: int64 (N, 3, C), each image's areas (see `metrics`), ignored pixels left out. Their
        sums over N are the confusion matrix's diagonal, rows and columns.
      protocol: the evaluation protocol in words.
      boundary: int64 (3, C), areas near boundaries.
      boundary_ratio: dilation ratio of boundaries.
      bins: int64 (BINS, 3), pixels by confidence.
      cross_entropy: float64 (N,), each image's sum over pixels.
    """

    confusion: np.ndarray
    class_names: tuple[str, ...]
    num_images: int
    image_ids: tuple[str, ...] = ()
    per_image: np.ndarray = field(default_factory=lambda: np.zeros((0, 3, 0), np.int64))
    protocol: str = str(TABLE)
    boundary: np.ndarray = field(default_factory=lambda: np.zeros((3, 0), np.int64))
    boundary_ratio: float = DILATION_RATIO
    bins: np.ndarray = field(default_factory=lambda: np.zeros((BINS, 3), np.int64))
    cross_entropy: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def mean_iou(self) -> float:
        """Mean IoU over classes that occur, a fraction."""
        return metrics.mean_iou(self.confusion)

    @property
    def loss(self) -> float:
        """Mean over images of the mean cross entropy over their pixels; NaN without a pixel."""
        pixels = self.per_image[:, 1].sum(-1)
        counted = pixels > 0
        return float(metrics.mean(self.cross_entropy[counted] / pixels[counted]))

    def summary(self) -> Summary:
        """Returns the scores for `evaluation.json`."""
        scores = summarize(self.confusion, self.per_image, self.image_ids, self.class_names)
        further = summarize_further(self.loss, self.boundary, self.boundary_ratio, self.bins)
        return {"num_images": self.num_images, "protocol": self.protocol, **scores, **further}


class Evaluator:
    """Evaluates weights on one data set.

    Each shape compiles once in the lifetime of an evaluator.

    Attributes:
      engine: the compiled network.
    """

    def __init__(
        self,
        model: DeepLabV3Plus,
        dataset: Dataset,
        resize_base: tuple[int, ...],
        protocol: EvalProtocol = TABLE,
    ):
        """Opens no file; `resize_base` is as in `config.eval`."""
        self.engine = Engine(model, protocol)
        self._sizes: dict[int, Size] = {}  # image -> (height, width) of the network's input
        self._dataset = dataset
        self._resize_base = tuple(resize_base)
        self._ratio = dilation_ratio(dataset.name)

    def __call__(
        self,
        variables: Variables,
        indices: Iterable[int] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_image: Callable[[], None] = lambda: None,
    ) -> EvalResult | None:
        """Evaluates `variables` on the devices of all hosts, which share the images.

        Args:
          variables: {"params", "batch_stats"}; each host holds the arrays whole, in any layout.
          indices: images to evaluate; all by default.
          should_stop: asked before each image and each run of the network, and while one compiles;
            True on one host stops all hosts.
          on_image: called after each image that this host has counted.

        Returns:
          The counts, the same on all hosts, or None if `should_stop` returned True.

        Raises:
          DataError: an image or label cannot be used; on all hosts.
          ReaderError: reading one does not end; on all hosts.
        """
        indices = list(range(len(self._dataset)) if indices is None else indices)
        with hosts.sync_errors():
            self._plan(indices)
        # Images of one shape follow each other, to fill batches.
        shapes = {k: self.engine.shapes(size) for k, size in self._sizes.items()}
        positions = sorted(range(len(indices)), key=lambda k: shapes.get(indices[k], []))
        positions = hosts.all_gather(positions)[0]  # file headers of hosts might differ
        own = hosts.own_share(positions)
        rounds = _Rounds(len(positions))

        def items() -> Iterator[Item[_Key]]:
            order = [indices[k] for k in own]
            examples = eval_examples(self._dataset, order, self._resize_base)
            for turn, (position, example) in enumerate(zip(own, examples, strict=True)):
                if rounds.is_over(turn, should_stop):
                    return
                label = example.label
                key = position, label
                yield Item(key, example.image, (label.shape[0], label.shape[1]), label)

        totals: dict[int, ImageTotals] = {}
        failure, is_abandoned = None, False
        self.engine.should_stop = should_stop
        try:
            counted = self.engine.load(variables).count(items())
            for position, image in _in_threads(self._sum_up, counted):
                totals[position] = image
                on_image()
        except background.Abandoned:
            is_abandoned = True
        except Exception as error:
            if not hosts.are_multiple():
                raise
            failure = error
        rounds.finish(is_abandoned or failure is not None)
        if (common := hosts.synced_error(failure)) is not None:
            raise common from failure
        if rounds.answer or any(hosts.all_gather(is_abandoned)):
            return None
        ids = tuple(self._dataset.ids[index] for index in indices)
        names, protocol = self._dataset.class_names, str(self.engine.protocol)
        confusion, images = gather([totals[k] for k in own], positions, len(names))
        return EvalResult(
            confusion, names, len(ids), ids, images.areas, protocol, images.boundary.sum(0),
            self._ratio, images.bins.sum(0), images.cross_entropy,
        )  # fmt: skip

    def _sum_up(self, item: tuple[_Key, ImageCounts]) -> tuple[int, ImageTotals]:
        (position, truth), counts = item
        classes = len(self._dataset.class_names)
        near = boundary_areas(counts.prediction, truth, classes, self._ratio)
        return position, ImageTotals(counts.confusion, near, counts.bins, counts.cross_entropy)

    def _plan(self, indices: list[int]) -> None:
        """Reads the headers of new images and plans shapes for all."""
        new = [index for index in indices if index not in self._sizes]
        for index in new:
            try:
                size = read_size(self._dataset.source.names(index)[0])
            except DataError:
                continue  # not a file, as from TFDS; or a bad one, which reading will report
            self._sizes[index] = fitted_size(size, self._resize_base)
        if new:
            self.engine.plan(self._sizes.values())


def counting_images(dataset: Dataset) -> AbstractContextManager[Callable[[], None]]:
    """Shows how far the evaluation of a data set is on this host; yields its `on_image`."""
    share = len(hosts.own_share(range(len(dataset))))
    where = " on this host" if hosts.are_multiple() else ""
    return counting(share, f"images evaluated{where}")


class _Rounds:
    """Polls of all hosts whether to stop evaluating, equally many on each host.

    Attributes:
      answer: nonzero after a host asked to stop.
    """

    def __init__(self, num_images: int):
        self._every = IMAGES_A_ROUND if hosts.are_multiple() else 1
        largest_share = -(-num_images // jax.process_count())
        self._left = -(-largest_share // self._every)
        self._poll = hosts.Poll()
        self.answer = 0

    def is_over(self, turn: int, should_stop: Callable[[], bool]) -> bool:
        """Tells whether to stop before image number `turn` of the host's share."""
        wants_to_stop = should_stop()
        if turn % self._every == 0:
            self._ask(wants_to_stop)
        return bool(self.answer)

    def finish(self, has_failed: bool) -> None:
        """Takes part in the remaining polls, until all hosts are through."""
        while hosts.are_multiple() and self._left and not self.answer:
            self._ask(has_failed)

    def _ask(self, wants_to_stop: bool) -> None:
        self._left -= 1
        self.answer = self._poll.ask(int(wants_to_stop))


class Images(NamedTuple):
    """`ImageTotals` of N images, with areas (N, 3, C) in place of confusion matrices."""

    areas: np.ndarray
    boundary: np.ndarray
    bins: np.ndarray
    cross_entropy: np.ndarray


def _in_threads(
    work: Callable[[tuple[_Key, ImageCounts]], tuple[int, ImageTotals]],
    items: Iterable[tuple[_Key, ImageCounts]],
) -> Iterator[tuple[int, ImageTotals]]:
    """Yields `work` of each item, in order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[tuple[int, ImageTotals]]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            while len(waiting) > _WAITING:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def gather(
    totals: Sequence[ImageTotals], positions: Sequence[int], size: int
) -> tuple[np.ndarray, Images]:
    """Returns the confusion matrix (size, size) over all hosts, and of each image what is kept."""
    shapes = (3, size), (3, size), (BINS, 3), ()
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    rows = np.array([_as_row(image) for image in totals], np.int64).reshape(-1, ends[-1])
    own = sum((image.confusion for image in totals), np.zeros((size, size), np.int64))
    confusion, images = np.zeros_like(own), np.zeros((len(positions), ends[-1]), np.int64)
    data = np.concatenate([own.ravel(), rows.ravel()]).tobytes()
    for host, part in enumerate(hosts.all_gather_bytes(data)):
        values = np.frombuffer(part, np.int64)
        confusion += values[: size * size].reshape(size, size)
        images[hosts.own_share(positions, host)] = values[size * size :].reshape(-1, ends[-1])
    parts = zip(np.split(images, ends[:-1], 1), shapes, strict=True)
    areas, near, bins, sums = (part.reshape(-1, *shape) for part, shape in parts)
    return confusion, Images(areas, near, bins, sums.view(np.float64))


def _as_row(image: ImageTotals) -> np.ndarray:
    """Returns what is kept of an image as int64; the floating point number by its bits."""
    parts = metrics.areas_of(image.confusion), image.boundary, image.bins
    bits = np.array([image.cross_entropy], np.float64).view(np.int64)
    return np.concatenate([*(part.ravel() for part in parts), bits])
