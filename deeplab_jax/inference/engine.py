"""From images and a network to labels and counts: the one engine of evaluate, predict and the API.

The network runs on few shapes (`plan_buckets`), smaller images padded and masked; its logits, at a
quarter of the resolution, are resized, compared and counted in pieces of one fixed shape. So
neither the number of programs nor memory grows with the number of sizes or with classes times
pixels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.errors import ResourceError
from deeplab_jax.inference.buckets import Buckets, Shape
from deeplab_jax.inference.protocol import Axis, EvalProtocol, Size, View
from deeplab_jax.models import DeepLabV3Plus, fold_batch_norm
from deeplab_jax.models.preprocess import normalize

_PIECE = {"cpu": (64, 256)}  # rows and columns; measured
_LARGE_PIECE = (512, 512)  # where each call costs more than its work
_BATCH_PIXELS = 2**22  # of one batch, on accelerators
_MAX_BATCH = 16

Window = tuple[slice, slice]  # of the result


class Item(NamedTuple):
    """One image to work on.

    Attributes:
      key: what results are called.
      image: (h, w, 3), uint8 RGB, or floating point and normalised.
      size: (height, width) of the result.
      label: uint8 (*size), 255 = ignored; for `Engine.count` alone.
    """

    key: Any
    image: np.ndarray
    size: Size
    label: np.ndarray | None = None


def network_logits(
    model: DeepLabV3Plus, variables: Any, images: jax.Array, valid_size: jax.Array | None = None
) -> jax.Array:
    """Returns logits (B, ceil(H/4), ceil(W/4), C) of normalised images (B, H, W, 3)."""
    output: Any = model.apply(variables, images, valid_size=valid_size)
    return output.logits


def _network(
    model: DeepLabV3Plus,
    is_softmax: bool,
    variables: Any,
    images: jax.Array,
    valid_size: jax.Array | None,
) -> jax.Array:
    images = normalize(images) if images.dtype == jnp.uint8 else images
    logits = network_logits(model, variables, images, valid_size)
    return jax.nn.softmax(logits, -1) if is_softmax else logits


def _sample(
    is_soft: bool,
    total: jax.Array | None,
    logits: jax.Array,
    which: jax.Array,
    rows: Axis,
    columns: Axis,
) -> jax.Array:
    """Returns scores (R, K, C) of a piece: `total` and what one picture's logits add.

    Rows first: they are fewer then, and the pass over columns goes straight into what follows.
    """
    x = lax.dynamic_index_in_dim(logits, which, keepdims=False)
    for axis, table in enumerate((rows, columns)):
        weight = table.weight if is_soft else table.weight * table.scale[None]
        weight = jnp.expand_dims(weight, (2, 3) if axis == 0 else (1, 3))
        low, high = (jnp.take(x, index, axis, mode="clip") for index in table.index)
        x = low * weight[0] + high * weight[1]
    if is_soft:
        x = jax.nn.softmax(x, -1) * rows.scale[:, None, None] * columns.scale[None, :, None]
    return x if total is None else total + x


def _count(is_soft: bool, counts: jax.Array, label: jax.Array, *sample: Any) -> jax.Array:
    prediction = jnp.argmax(_sample(is_soft, *sample), -1)
    return counts + confusion_matrix(prediction, label, counts.shape[0])


def _decide(is_soft: bool, is_probability: bool, *sample: Any) -> tuple[jax.Array, jax.Array]:
    scores = _sample(is_soft, *sample)
    confidence = scores.max(-1)
    if not is_probability:
        confidence = jnp.exp(confidence - jax.nn.logsumexp(scores, -1))
    return jnp.argmax(scores, -1).astype(jnp.uint8), confidence.astype(jnp.float32)


class Engine:
    """Runs one network by one protocol; keep it, and each shape compiles once for each device.

    Attributes:
      protocol: how images become scores.
      buckets: which shape the network runs an image on.
      programs: compiled networks by (device, batch, shape, dtype, is masked).
    """

    def __init__(self, model: DeepLabV3Plus, protocol: EvalProtocol):
        """Compiles nothing yet; `load` comes first."""
        self.protocol, self.buckets = protocol, Buckets()
        self.programs: dict[tuple, Any] = {}
        self._refused: dict[tuple, Any] = {}  # programs that memory was too little for
        policy = model.policy
        self._dtype, self._num_classes = policy.wide_dtype, model.num_classes
        devices = jax.local_devices()
        # Several of a processor's devices would share its cores.
        self._devices = devices[:1] if devices[0].platform == "cpu" else devices
        self._piece = _PIECE.get(devices[0].platform, _LARGE_PIECE)
        is_slide, is_soft = protocol.mode == "slide", protocol.softmax_first
        folded = model.clone(policy=policy._replace(is_folded=True))
        self._network = jax.jit(partial(_network, folded, is_soft and not is_slide))
        late = is_soft and is_slide  # windows are resized to themselves before the softmax
        self._add = jax.jit(partial(_sample, late))
        self._count = jax.jit(partial(_count, late))
        self._decide = jax.jit(partial(_decide, late, is_soft))

    def load(self, variables: Any) -> "Engine":
        """Takes the weights: {"params", "batch_stats"}, of any layout this host holds whole."""
        folded = fold_batch_norm(variables)
        self._variables = [jax.device_put(folded, device) for device in self._devices]
        return self

    def plan(self, sizes: Iterable[Size]) -> None:
        """Chooses shapes for images of these sizes (height, width), as many as there are."""
        self.buckets.plan([s for size in sizes for s in self.protocol.input_sizes(size)])

    def shapes(self, size: Size) -> list[Shape]:
        """Returns the shapes that the network runs an image of a size on."""
        return sorted(map(self.buckets.shape, self.protocol.input_sizes(size)))

    def count(self, items: Iterable[Item]) -> Iterator[tuple[Any, np.ndarray]]:
        """Yields (key, confusion matrix int32 (C, C)) of each image, in order."""
        zeros = np.zeros((self._num_classes, self._num_classes), np.int32)

        def begin(item: Item, device: jax.Device) -> tuple[Callable, Callable]:
            assert item.label is not None
            truth, counts = item.label, jax.device_put(zeros, device)

            def piece(window: Window, *sample: Any) -> jax.Array:
                nonlocal counts
                label = np.full(self._piece, IGNORE_INDEX, np.uint8)
                part = truth[window]
                label[: part.shape[0], : part.shape[1]] = part
                counts = self._count(counts, label, *sample)
                return counts

            return piece, lambda: np.asarray(counts)

        return self._run(items, begin)

    def segment(
        self, items: Iterable[Item], refuse: Callable[[Any, ResourceError], None] | None = None
    ) -> Iterator[tuple[Any, list[np.ndarray]]]:
        """Yields (key, [labels uint8 (*size), confidence float32 (*size)]), in order.

        Confidence is the probability of the chosen class.

        Args:
          items: what to segment.
          refuse: takes the key of an image too large for memory, and the error, before what follows
            it is yielded; without it, the error is raised.
        """
        return self._run(items, partial(_assemble, self._decide), refuse)

    def scores(self, items: Iterable[Item]) -> Iterator[tuple[Any, list[np.ndarray]]]:
        """Yields (key, [scores (*size, C)]), in order: large, and on the host.

        They are logits, or probabilities if the protocol says softmax first.
        """
        return self._run(items, partial(_assemble, lambda *sample: [self._add(*sample)]))

    def probabilities(self, item: Item, take: Callable[[Window, np.ndarray], None]) -> None:
        """Calls take(window, float32 (h, w, C)) for each piece, left to right, then down.

        They are those of `segment`; no more than a piece is on the host at a time.
        """

        def piece(window: Window, *sample: Any) -> jax.Array:
            height, width = (len(range(n)[part]) for n, part in zip(item.size, window, strict=True))
            scores = self._add(*sample)
            values = scores if self.protocol.softmax_first else jax.nn.softmax(scores, -1)
            take(window, np.asarray(values, np.float32)[:height, :width])
            return scores

        views = self.protocol.views(item.image, item.size, self._dtype)
        self._pieces(item, views, 0, _Logits(self, 0, views), piece)

    def _run(
        self,
        items: Iterable[Item],
        begin: Callable,
        refuse: Callable[[Any, ResourceError], None] | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Yields (key, result), with two groups in work on each device."""
        pending: deque[tuple[Any, Callable]] = deque()
        for number, group in enumerate(self._groups(items)):
            turn = number % len(self._devices)
            views = [self.protocol.views(item.image, item.size, self._dtype) for item in group]
            logits = _Logits(self, turn, [view for own in views for view in own])
            first = 0
            for item, own in zip(group, views, strict=True):
                piece, finish = begin(item, self._devices[turn])
                try:
                    self._pieces(item, own, first, logits, piece)
                    pending.append((item.key, finish))
                except _TooLargeError as error:
                    if refuse is None:
                        raise
                    refuse(item.key, error)
                first += len(own)
            while len(pending) > 2 * len(self._devices) * len(group):
                key, finish = pending.popleft()
                yield key, finish()
        for key, finish in pending:
            yield key, finish()

    def _groups(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """Yields images that follow each other and fit into one batch."""
        group: list[Item] = []
        shape: tuple[Shape, np.dtype] | None = None
        is_simple = self.protocol.num_views == 1 and self.protocol.is_plain
        for item in items:
            own = (self.buckets.shape(_size(item.image)), item.image.dtype) if is_simple else None
            limit = self.batch_size(own[0]) if own else 1  # else its views are a batch
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
        """Returns how many pictures of a shape the network takes at once."""
        if self._devices[0].platform == "cpu":
            return 1
        return max(1, min(_MAX_BATCH, _BATCH_PIXELS // (shape.size[0] * shape.size[1])))

    def _pieces(
        self, item: Item, views: list[View], first: int, logits: "_Logits", piece: Callable
    ) -> None:
        """Starts all pieces of one image, top to bottom.

        Args:
          item: the image.
          views: of it; the first has number `first` in `logits`.
          first: see there.
          logits: of the group.
          piece: takes a window of the result and the arguments of `_sample`.

        Raises:
          _TooLargeError: the network needs more memory than there is.
        """
        logits.size = item.size
        rows, columns = self._piece
        last: jax.Array | None = None
        for top in range(0, item.size[0], rows):
            for left in range(0, item.size[1], columns):
                parts = [
                    (first + number, down, right)
                    for number, view in enumerate(views)
                    for axes in view.parts
                    for down in self._cut(axes[0], top, rows)
                    for right in self._cut(axes[1], left, columns)
                ]
                total = None
                for number, *tables in parts[:-1]:
                    total = self._add(total, *logits.get(number, last), *tables)
                number, *tables = parts[-1]
                window = slice(top, top + rows), slice(left, left + columns)
                last = piece(window, total, *logits.get(number, last), *tables)
            for number, view in enumerate(views):
                if not any(axes[0].scale[top + rows :].any() for axes in view.parts):
                    logits.forget(first + number)

    def _cut(self, axis: Axis, start: int, length: int) -> list[Axis]:
        """Returns a piece of a table at its fixed length; none if nothing of it counts."""
        index, weight, scale = (table[..., start : start + length] for table in axis)
        if not scale.any():
            return []
        spare = length - len(scale)
        pad = partial(np.pad, pad_width=((0, 0), (0, spare)))
        weight, scale = pad(weight).astype(self._dtype), np.pad(scale, (0, spare))
        return [Axis(pad(index), weight, scale.astype(self._dtype))]

    def _run_network(self, turn: int, views: Sequence[View], shape: Shape, size: Size) -> jax.Array:
        """Returns the logits of views that share a shape; those of missing ones mean nothing.

        Args:
          turn: number of the device.
          views: at most a batch.
          shape: theirs.
          size: of the image in work, for messages.

        Raises:
          _TooLargeError: the network needs more memory than there is.
        """
        batch, (height, width) = self.batch_size(shape), shape.size
        images = np.zeros((batch, height, width, 3), views[0].image.dtype)
        valid_size = np.full((batch, 2), (height, width), np.int32) if shape.is_masked else None
        for row, view in enumerate(views):
            h, w = view.image.shape[:2]
            images[row, :h, :w] = view.image
            if valid_size is not None:
                valid_size[row] = h, w
        device = self._devices[turn]
        variables = self._variables[turn]
        arguments = variables, *jax.device_put((images, valid_size), device)
        key = (device, batch, shape, images.dtype)
        if key not in self.programs:
            if key not in self._refused:
                self._refused[key] = self._network.lower(*arguments).compile()
            _check_memory(self._refused[key], device, size, self.protocol.mode == "slide")
            self.programs[key] = self._refused.pop(key)
        return self.programs[key](*arguments)


def _assemble(decide: Callable, item: Item, device: jax.Device) -> tuple[Callable, Callable]:
    """Returns what takes a piece, and what puts the pieces of an image together."""
    pieces: list[tuple[Window, Sequence[jax.Array]]] = []

    def piece(window: Window, *sample: Any) -> jax.Array:
        pieces.append((window, decide(*sample)))
        return pieces[-1][1][0]

    def finish() -> list[np.ndarray]:
        whole = [np.empty((*item.size, *x.shape[2:]), x.dtype) for x in pieces[0][1]]
        for window, result in pieces:
            for array, part in zip(whole, jax.device_get(result), strict=True):
                target = array[window]
                target[...] = part[: target.shape[0], : target.shape[1]]
        return whole

    return piece, finish


class _TooLargeError(ResourceError):
    """An image that needs more memory than there is."""


class _Logits:
    """The network's output for the views of a group, computed when asked for.

    Attributes:
      size: of the image in work, for messages.
    """

    def __init__(self, engine: Engine, turn: int, views: list[View]):
        self._engine, self._turn, self._views = engine, turn, views
        self._shapes = [engine.buckets.shape(_size(view.image)) for view in views]
        self._ready: dict[int, tuple[jax.Array, int]] = {}
        self.size: Size = (0, 0)

    def get(self, number: int, last: jax.Array | None) -> tuple[jax.Array, int]:
        """Returns (logits of a batch, which of them is the view's).

        `last` is the result before: what comes after it is not begun until it is there, or the
        windows of a large image would all be in memory at a time.
        """
        if number not in self._ready:
            jax.block_until_ready(last)
            shape = self._shapes[number]
            end = min(number + self._engine.batch_size(shape), len(self._views))
            numbers = [
                k for k in range(number, end) if k not in self._ready and self._shapes[k] == shape
            ]
            views = [self._views[k] for k in numbers]
            batch = self._engine._run_network(self._turn, views, shape, self.size)
            self._ready |= {k: (batch, row) for row, k in enumerate(numbers)}
        return self._ready[number]

    def forget(self, number: int) -> None:
        """Gives the memory of a view back."""
        self._ready.pop(number, None)


def _size(image: np.ndarray) -> Size:
    return image.shape[0], image.shape[1]


def _check_memory(program: Any, device: jax.Device, size: Size, is_slide: bool) -> None:
    """Refuses an image before the system ends the process for it.

    Raises:
      _TooLargeError: the program needs more memory than there is.
    """
    analysis, free = program.memory_analysis(), _free_memory(device)
    needed = analysis.temp_size_in_bytes + analysis.output_size_in_bytes if analysis else 0
    if free is not None and needed > free:
        how, fix = "as a whole", "use windows"
        if is_slide:
            how, fix = "in these windows", "use smaller windows"
        raise _TooLargeError(
            f"image of {size[0]} x {size[1]} pixels",
            f"needs {needed / 2**30:.1f} GiB {how}, and {free / 2**30:.1f} GiB are free",
            f"{fix}: --config.eval.mode=slide --config.eval.crop_size=512,512"
            " --config.eval.stride=341,341",
        )


def _free_memory(device: jax.Device) -> int | None:
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else limit - stats.get("bytes_in_use", 0)
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None  # not Linux


def confusion_matrix(
    prediction: jax.Array, label: jax.Array, num_classes: int, ignore_index: int = 255
) -> jax.Array:
    """Counts pixels by true and predicted class; runs under `jit`.

    Args:
      prediction: int, any shape, values in [0, num_classes).
      label: int, same shape. Values outside [0, num_classes) but for `ignore_index` must not
        occur: reading a label has refused them.
      num_classes: C.
      ignore_index: label of pixels that do not count.

    Returns:
      int32 (num_classes, num_classes); row = truth, column = prediction. Add matrices over images
      in int64 before taking any ratio.
    """
    overflow = num_classes * num_classes
    cell = label.astype(jnp.int32) * num_classes + prediction.astype(jnp.int32)
    cell = jnp.where(label == ignore_index, overflow, cell)
    counts = jnp.bincount(cell.ravel(), length=overflow + 1)[:overflow]
    return counts.reshape(num_classes, num_classes).astype(jnp.int32)
