"""The engine of evaluate, predict and the API: images and a network to labels and counts.

The network runs on few shapes (`plan_buckets`), to which smaller images are padded. Its logits, at
a quarter of the resolution, are resized, compared and counted in pieces of one fixed shape. So
neither the number of programs nor memory grows with the number of sizes or with classes times
pixels.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.stages import Compiled

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.data.pictures.windows import WindowedImage
from deeplab_jax.errors import DataError, DeepLabError
from deeplab_jax.inference import counting
from deeplab_jax.inference.buckets import Buckets, Shape, Size
from deeplab_jax.inference.counting import ImageCounts, PixelCounts
from deeplab_jax.inference.memory import TooLargeError, check_memory, free_memory
from deeplab_jax.inference.prediction import Window
from deeplab_jax.inference.protocol import EvalProtocol, Picture, View
from deeplab_jax.inference.resize import Axis
from deeplab_jax.models import DeepLabV3Plus, Output, fold_batch_norm
from deeplab_jax.models.preprocess import normalize
from deeplab_jax.utils import background, compile_cache

_PIECE = {"cpu": (64, 256)}  # rows and columns; measured
_LARGE_PIECE = (512, 512)  # on accelerators, where a call costs more than its work
_BATCH_PIXELS = 2**22  # of one batch, on accelerators
_MAX_BATCH = 16
_MAX_PIECES = 128  # of an image's results, on the device

Variables = Mapping[str, Any]  # {"params", "batch_stats"}
Key = TypeVar("Key")
Result = TypeVar("Result")


class Item(NamedTuple, Generic[Key]):
    """One image to work on.

    Attributes:
      key: identifies the result.
      image: (h, w, 3), uint8 RGB, or floating point and normalised; by windows and at one scale
        also one whose rows are read when they are needed.
      size: (height, width) of the result.
      label: uint8 (*size), 255 = ignored; for `Engine.count` alone.
    """

    key: Key
    image: Picture
    size: Size
    label: np.ndarray | None = None


class ProgramKey(NamedTuple):
    """Identifies a compiled network."""

    device: jax.Device
    batch: int
    shape: Shape
    dtype: np.dtype


class _Term(NamedTuple):
    """A view's contribution to the scores of a piece, and the sum of those before.

    Attributes:
      total: scores (R, K, C) of the views before; None for the first.
      logits: (B, h, w, C) of a batch.
      which: the view's place in the batch.
      rows: table of R rows.
      columns: table of K columns.
    """

    total: jax.Array | None
    logits: jax.Array
    which: int
    rows: Axis
    columns: Axis


_Take = Callable[[Window, _Term], jax.Array]  # returns an array to wait for


class _Job(NamedTuple, Generic[Result]):
    """Work on one image: `take` gets its pieces, then `finish` returns the result."""

    take: _Take
    finish: Callable[[], Result]


def network_logits(
    model: DeepLabV3Plus,
    variables: Variables,
    images: jax.Array,
    valid_size: jax.Array | None = None,
) -> jax.Array:
    """Returns logits (B, ceil(H/4), ceil(W/4), C) of normalised images (B, H, W, 3)."""
    return cast(Output, model.apply(variables, images, valid_size=valid_size)).logits


def _network(
    model: DeepLabV3Plus,
    is_softmax: bool,
    variables: Variables,
    images: jax.Array,
    valid_size: jax.Array | None,
) -> jax.Array:
    images = normalize(images) if images.dtype == jnp.uint8 else images
    logits = network_logits(model, variables, images, valid_size)
    return jax.nn.softmax(logits, -1) if is_softmax else logits


def _add(is_soft: bool, term: _Term) -> jax.Array:
    """Returns scores (R, K, C) of a piece: the total plus the view's.

    Rows first: they are fewer then, and the pass over columns fuses with the operations after it.
    """
    x = lax.dynamic_index_in_dim(term.logits, term.which, keepdims=False)
    for axis, table in enumerate((term.rows, term.columns)):
        weight = table.weight if is_soft else table.weight * table.scale[None]
        weight = jnp.expand_dims(weight, (2, 3) if axis == 0 else (1, 3))
        low, high = (jnp.take(x, index, axis, mode="clip") for index in table.index)
        x = low * weight[0] + high * weight[1]
    if is_soft:
        rows, columns = term.rows.scale, term.columns.scale
        x = jax.nn.softmax(x, -1) * rows[:, None, None] * columns[None, :, None]
    return x if term.total is None else term.total + x


def _count(
    is_soft: bool, is_probability: bool, counts: PixelCounts, label: np.ndarray, term: _Term
) -> tuple[PixelCounts, jax.Array]:
    return counting.add(counts, _add(is_soft, term), label, is_probability)


def _decide(is_soft: bool, is_probability: bool, term: _Term) -> tuple[jax.Array, jax.Array]:
    scores = _add(is_soft, term)
    confidence = scores.max(-1)
    if not is_probability:
        confidence = jnp.exp(confidence - jax.nn.logsumexp(scores, -1))
    return jnp.argmax(scores, -1).astype(jnp.uint8), confidence.astype(jnp.float32)


class Engine:
    """Runs one network by one protocol.

    Each shape compiles once for each device in the lifetime of an engine.

    Attributes:
      protocol: the evaluation protocol.
      buckets: chooses the network's shape for an image.
      programs: compiled networks.
      free_memory: returns a device's free bytes, None where unknown.
      should_stop: asked before the network runs and while it compiles; True raises
        `background.Abandoned`.
    """

    def __init__(self, model: DeepLabV3Plus, protocol: EvalProtocol):
        """Compiles nothing; call `load` before anything else."""
        self.protocol, self.free_memory, self._model = protocol, free_memory, model
        self.should_stop: Callable[[], bool] = lambda: False
        self._dtype, self._num_classes = model.policy.wide_dtype, model.num_classes
        devices = jax.local_devices()
        # Several of a processor's devices would share its cores.
        self._devices = devices[:1] if devices[0].platform == "cpu" else devices
        self._piece = _PIECE.get(devices[0].platform, _LARGE_PIECE)
        self._start()

    def _start(self) -> None:
        """Sets all that grows with the sizes of images."""
        self.buckets = Buckets()
        self.programs: dict[ProgramKey, Compiled] = {}
        self._refused: dict[ProgramKey, Compiled] = {}  # programs that need too much memory
        is_slide, is_soft = self.protocol.mode == "slide", self.protocol.softmax_first
        policy = self._model.policy._replace(is_folded=True)
        folded = self._model.clone(policy=policy)
        self._network = jax.jit(partial(_network, folded, is_soft and not is_slide))
        late = is_soft and is_slide  # windows are resized to themselves before the softmax
        quiet = compile_cache.without_alarms()
        self._add = quiet(jax.jit(partial(_add, late)))
        self._count = quiet(jax.jit(partial(_count, late, is_soft)))
        self._decide = quiet(jax.jit(partial(_decide, late, is_soft)))

    def load(self, variables: Variables) -> "Engine":
        """Sets the weights, of which this host holds the arrays whole, and returns itself."""
        return self.load_folded(fold_batch_norm(variables))

    def load_folded(self, folded: Variables) -> "Engine":
        """Sets the weights by what `fold_batch_norm` returned, and returns itself."""
        self._variables = [jax.device_put(folded, device) for device in self._devices]
        return self

    def twin(self) -> "Engine":
        """Returns an engine with the same weights, in memory once, that has compiled nothing."""
        twin = copy.copy(self)
        twin._start()
        return twin

    def plan(self, sizes: Iterable[Size]) -> None:
        """Chooses shapes for images of these sizes (height, width), one size for each image."""
        self.buckets.plan([s for size in sizes for s in self.protocol.input_sizes(size)])

    def shapes(self, size: Size) -> list[Shape]:
        """Returns the shapes of the network for an image of a size."""
        return sorted(map(self.buckets.shape, self.protocol.input_sizes(size)))

    def count(self, items: Iterable[Item[Key]]) -> Iterator[tuple[Key, ImageCounts]]:
        """Yields (key, counts) of each image, in order."""
        zeros = counting.zeros(self._num_classes, self._piece[0], self._dtype)

        def begin(item: Item[Key], device: jax.Device) -> _Job[ImageCounts]:
            assert item.label is not None
            truth, counts = item.label, jax.device_put(zeros, device)

            def decide(window: Window, term: _Term) -> tuple[jax.Array]:
                nonlocal counts
                label = np.full(self._piece, IGNORE_INDEX, np.uint8)
                part = truth[window]
                label[: part.shape[0], : part.shape[1]] = part
                counts, prediction = self._count(counts, label, term)
                return (prediction,)

            job = _assemble(decide, item, device)
            return _Job(job.take, lambda: counting.read(counts, *job.finish()))

        return self._run(items, begin)

    def segment(
        self, items: Iterable[Item[Key]], refuse: Callable[[Key, DeepLabError], None] | None = None
    ) -> Iterator[tuple[Key, list[np.ndarray]]]:
        """Yields (key, [labels uint8 (*size), confidence float32 (*size)]), in order.

        Confidence is the probability of the chosen class. For an image too large for memory, or
        damaged where it is read late, `refuse` is called with its key and the error before the next
        image is yielded; without `refuse` the error is raised.
        """
        return self._run(items, partial(_assemble, lambda _, term: self._decide(term)), refuse)

    def scores(self, items: Iterable[Item[Key]]) -> Iterator[tuple[Key, list[np.ndarray]]]:
        """Yields (key, [scores (*size, C)]) in order, as large arrays on the host.

        Scores are logits, or probabilities if the protocol says softmax first.
        """
        return self._run(items, partial(_assemble, lambda _, term: (self._add(term),)))

    def logits(self, item: Item[Any]) -> np.ndarray:
        """Returns the logits (ceil(h/4), ceil(w/4), C) of an image, for one view, the whole."""
        (view,) = self.protocol.views(item.image, item.size, self._dtype)
        logits, row = _Logits(self, 0, [view]).get(0, None)
        height, width = (-(-side // 4) for side in view.size)
        return np.asarray(logits[row, :height, :width])

    def probabilities(self, item: Item[Any], give: Callable[[Window, np.ndarray], None]) -> None:
        """Calls give(window, probabilities float32 (h, w, C)) piece by piece.

        Pieces come from left to right, then from the top down. The host holds one at a time.
        """

        def take(window: Window, term: _Term) -> jax.Array:
            height, width = (len(range(n)[part]) for n, part in zip(item.size, window, strict=True))
            scores = self._add(term)
            values = scores if self.protocol.softmax_first else jax.nn.softmax(scores, -1)
            give(window, np.asarray(values, np.float32)[:height, :width])
            return scores

        views = self.protocol.views(item.image, item.size, self._dtype)
        self._pieces(item, views, 0, _Logits(self, 0, views), take)

    def _run(
        self,
        items: Iterable[Item[Key]],
        begin: Callable[[Item[Key], jax.Device], _Job[Result]],
        refuse: Callable[[Key, DeepLabError], None] | None = None,
    ) -> Iterator[tuple[Key, Result]]:
        """Yields (key, result); each device works on two groups at a time."""
        pending: deque[tuple[Key, Callable[[], Result]]] = deque()
        for number, group in enumerate(self._groups(items)):
            turn = number % len(self._devices)
            views = [self.protocol.views(item.image, item.size, self._dtype) for item in group]
            logits = _Logits(self, turn, [view for own in views for view in own])
            first = 0
            for item, own in zip(group, views, strict=True):
                take, finish = begin(item, self._devices[turn])
                try:
                    self._pieces(item, own, first, logits, take)
                    pending.append((item.key, finish))
                except (TooLargeError, DataError) as error:
                    if refuse is None:
                        raise
                    refuse(item.key, error)
                first += len(own)
            is_large = isinstance(group[0].image, WindowedImage)  # alone in its group
            while len(pending) > (0 if is_large else 2 * len(self._devices) * len(group)):
                key, finish = pending.popleft()
                yield key, finish()
        for key, finish in pending:
            yield key, finish()

    def _groups(self, items: Iterable[Item[Key]]) -> Iterator[list[Item[Key]]]:
        """Yields runs of images that fit into one batch."""
        group: list[Item[Key]] = []
        shape: tuple[Shape, np.dtype] | None = None
        is_simple = self.protocol.num_views == 1 and self.protocol.is_plain
        for item in items:
            own = (self.buckets.shape(_size(item.image)), item.image.dtype) if is_simple else None
            limit = self.batch_size(own[0]) if own else 1  # otherwise an image's views are batched
            if group and (own != shape or len(group) >= limit):
                yield group
                group = []
            group, shape = [*group, item], own
            if len(group) >= limit:
                yield group
                group = []
        if group:
            yield group

    def batch_size(self, shape: Shape) -> int:
        """Returns the number of images in a batch of a shape."""
        if self._devices[0].platform == "cpu":
            return 1
        return max(1, min(_MAX_BATCH, _BATCH_PIXELS // (shape.size[0] * shape.size[1])))

    def _pieces(
        self, item: Item[Any], views: list[View], first: int, logits: "_Logits", take: _Take
    ) -> None:
        """Starts all pieces of an image, top to bottom; `first` is its first view in `logits`."""
        logits.size = item.size
        rows, columns = self._piece
        last: jax.Array | None = None
        for top in range(0, item.size[0], rows):
            bands = [
                (number, axes[1], down)
                for number, view in enumerate(views)
                for axes in view.parts
                for down in self._cut(axes[0], top, rows)
            ]
            for left in range(0, item.size[1], columns):
                parts = [
                    (first + number, down, right)
                    for number, across, down in bands
                    for right in self._cut(across, left, columns)
                ]
                total = None
                for number, *tables in parts[:-1]:
                    total = self._add(_Term(total, *logits.get(number, last), *tables))
                number, *tables = parts[-1]
                window = slice(top, top + rows), slice(left, left + columns)
                last = take(window, _Term(total, *logits.get(number, last), *tables))
            for number in {number for number, *_ in bands}:
                if not any(axes[0].scale[top + rows :].any() for axes in views[number].parts):
                    logits.forget(first + number)

    def _cut(self, axis: Axis, start: int, length: int) -> list[Axis]:
        """Returns part of a table, padded to `length`; no table if its scale is 0 throughout."""
        index, weight, scale = (table[..., start : start + length] for table in axis)
        if not scale.any():
            return []
        spare = length - len(scale)
        pad = partial(np.pad, pad_width=((0, 0), (0, spare)))
        weight, scale = pad(weight).astype(self._dtype), np.pad(scale, (0, spare))
        return [Axis(pad(index), weight, scale.astype(self._dtype))]

    def run_network(self, turn: int, views: Sequence[View], shape: Shape, size: Size) -> jax.Array:
        """Returns the logits of a batch on device number `turn`; rows beyond `views` mean nothing.

        Raises:
          TooLargeError: the network needs more memory than there is; names the image's `size`.
          Abandoned: `should_stop` became true.
        """
        if self.should_stop():
            raise background.Abandoned
        batch, (height, width) = self.batch_size(shape), shape.size
        pictures = [view.image for view in views]
        images = np.zeros((batch, height, width, 3), pictures[0].dtype)
        valid_size = np.full((batch, 2), (height, width), np.int32) if shape.is_masked else None
        for row, picture in enumerate(pictures):
            h, w = picture.shape[:2]
            images[row, :h, :w] = picture
            if valid_size is not None:
                valid_size[row] = h, w
        device = self._devices[turn]
        arguments = self._variables[turn], *jax.device_put((images, valid_size), device)
        key = ProgramKey(device, batch, shape, images.dtype)
        if key not in self.programs:
            if key not in self._refused:
                with compile_cache.compiling(f"the network for {height}x{width} pixels"):
                    lowered = self._network.lower(*arguments)
                    self._refused[key] = background.unless(self.should_stop, lowered.compile)
            free, is_slide = self.free_memory(device), self.protocol.mode == "slide"
            check_memory(self._refused[key], free, size, is_slide)
            self.programs[key] = self._refused.pop(key)
        logits: jax.Array = self.programs[key](*arguments)
        return logits


def _assemble(
    decide: Callable[[Window, _Term], tuple[jax.Array, ...]], item: Item[Any], device: jax.Device
) -> _Job[list[np.ndarray]]:
    """Returns the job that joins the arrays of an image's pieces on the host."""
    pieces: deque[tuple[Window, tuple[jax.Array, ...]]] = deque()
    whole: list[np.ndarray] = []

    def take(window: Window, term: _Term) -> jax.Array:
        pieces.append((window, result := decide(window, term)))
        if len(pieces) > _MAX_PIECES:
            join()
        return result[0]

    def join() -> None:
        window, result = pieces.popleft()
        if not whole:
            whole.extend(np.empty((*item.size, *x.shape[2:]), x.dtype) for x in result)
        for array, part in zip(whole, jax.device_get(result), strict=True):
            target = array[window]
            target[...] = part[: target.shape[0], : target.shape[1]]

    def finish() -> list[np.ndarray]:
        while pieces:
            join()
        return whole

    return _Job(take, finish)


class _Logits:
    """The network's outputs for the views of a group, computed on demand.

    Attributes:
      size: size of the image in work, for messages.
    """

    def __init__(self, engine: Engine, turn: int, views: list[View]):
        self._engine, self._turn, self._views = engine, turn, views
        self._shapes = [engine.buckets.shape(view.size) for view in views]
        self._ready: dict[int, tuple[jax.Array, int]] = {}
        self.size: Size = (0, 0)

    def get(self, number: int, last: jax.Array | None) -> tuple[jax.Array, int]:
        """Returns (logits of a batch, the view's place in the batch).

        The network does not start before `last`, the previous piece, is done. Otherwise the windows
        of a large image would all be in memory at a time.
        """
        if number not in self._ready:
            jax.block_until_ready(last)
            shape = self._shapes[number]
            end = min(number + self._engine.batch_size(shape), len(self._views))
            numbers = [
                k for k in range(number, end) if k not in self._ready and self._shapes[k] == shape
            ]
            views = [self._views[k] for k in numbers]
            batch = self._engine.run_network(self._turn, views, shape, self.size)
            self._ready |= {k: (batch, row) for row, k in enumerate(numbers)}
        return self._ready[number]

    def forget(self, number: int) -> None:
        """Frees a view's logits."""
        self._ready.pop(number, None)


def _size(image: Picture) -> Size:
    return image.shape[0], image.shape[1]
