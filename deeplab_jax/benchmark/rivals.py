"""PyTorch's sides: the same network, weights, batches, threads and device as ours.

Settings are the best that a user would take: on CUDA cuDNN's benchmark mode, and for bfloat16 its
autocast; float32 means float32, so TF32 is off, as it is in our network. The memory format is the
faster one of a trial.
"""

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.benchmark import machine
from deeplab_jax.benchmark.timing import seconds_of
from deeplab_jax.config import Config, LossConfig, TrainConfig
from deeplab_jax.data import TrainBatch
from deeplab_jax.data.images import read_image
from deeplab_jax.data.transforms import fit_size, resize_image
from deeplab_jax.inference.protocol import EvalProtocol, read_protocol
from deeplab_jax.models.preprocess import MEAN, STD

_PLAIN_STEP = ("gradient_accumulation", "optimizer", "clip_norm", "decay_norms", "head_lr_factor",
               "freeze", "ema_half_life")  # fmt: skip
_DEFAULTS = {"stem": "deep", "multi_grid": (), "freeze_batch_norm": False, "remat": ()}
_FORMATS = ("contiguous_format", "channels_last")


def obstacle(platform: str, num_devices: int) -> str:
    """Returns why PyTorch cannot be compared with on these devices of JAX's; "" where it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    try:
        from deeplab_jax.benchmark import pytorch
    except Exception as error:  # a broken installation may raise anything
        return f"torch cannot be imported ({' '.join(str(error).split())[:200]})"
    if num_devices > 1:
        return f"it is compared on one device, and there are {num_devices}; hide the others"
    if platform == "tpu":
        return "it does not run on this device"
    if platform == "gpu" and not pytorch.torch.cuda.is_available():
        return "torch is installed without CUDA, or does not find the GPU"
    return ""


def difference_of_recipe(config: Config) -> str:
    """Returns the field of a recipe that PyTorch's network and step do not have; "" if none."""
    for name, value in _DEFAULTS.items():
        if getattr(config.model, name) != value:
            return f"config.model.{name}"
    usual = TrainConfig()
    for name in _PLAIN_STEP:
        if getattr(config.train, name) != getattr(usual, name):
            return f"config.train.{name}"
    return "" if config.loss == LossConfig() else "config.loss"


class Rival:
    """A network of PyTorch's with given weights."""

    def __init__(self, config: Config, tensors: Mapping[str, np.ndarray], platform: str):
        """Tensors: the state dict; platform: "cpu" or "gpu"."""
        from deeplab_jax.benchmark import pytorch

        self.config, self.pytorch, self.torch = config, pytorch, pytorch.torch
        torch = self.torch
        self.device = torch.device("cuda" if platform == "gpu" else "cpu")
        torch.set_num_threads(machine.threads())
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        net = pytorch.network(config.model, config.model.dropout_rate)
        pytorch.load(net, tensors)
        dtype = torch.float64 if config.model.dtype == "float64" else torch.float32
        self.dtype = dtype
        self.net = net.to(self.device, dtype)
        self.format = _FORMATS[0]
        self._shift, self._scale = (
            torch.tensor(x, dtype=dtype, device=self.device).reshape(1, 3, 1, 1)
            for x in (MEAN, 1 / STD)
        )

    @property
    def settings(self) -> str:
        """What is set, in words."""
        torch = self.torch
        words = [f"torch {torch.__version__}", self.config.model.dtype, self.format]
        if self.device.type == "cpu":
            return ", ".join([*words, f"{torch.get_num_threads()} threads"])
        autocast = ["autocast"] if self.config.model.dtype == "bfloat16" else ["TF32 off"]
        return ", ".join([*words, *autocast, "cudnn.benchmark"])

    def choose_format(self, run: Any) -> None:
        """Takes the memory format with the faster second call of run(1)."""
        times = {}
        for name in _FORMATS:
            self._set_format(name)
            run(1)
            times[name] = seconds_of(run, 1)
        self._set_format(min(times, key=lambda name: times[name]))

    def _set_format(self, name: str) -> None:
        self.format = name
        self.net.to(memory_format=getattr(self.torch, name))

    def pinned(self, array: np.ndarray) -> Any:
        """Returns a host array as a tensor that is copied to the device without waiting."""
        tensor = self.torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def preprocess(self, images: Any) -> Any:
        """Returns normalised images (B, 3, H, W) of bytes (B, H, W, 3), on the device."""
        images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        images = images.contiguous(memory_format=getattr(self.torch, self.format))
        return (images.to(self.dtype) - self._shift) * self._scale

    def autocast(self) -> Any:
        """Returns the context in which activations are bfloat16 where the recipe says so."""
        is_on = self.config.model.dtype == "bfloat16"
        return self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=is_on)

    def wait(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def memory(self, run: Any, held: int) -> dict[str, Any]:
        """Returns the fields of a side about memory; `held` bytes stay between calls."""
        if self.device.type == "cpu":
            grown = machine.growth(lambda: run(1))
            return (
                {} if grown is None else {"memory_bytes": held + grown, "memory_how": machine.HOW}
            )
        self.torch.cuda.reset_peak_memory_stats()
        run(1)
        peak = int(self.torch.cuda.max_memory_allocated())
        return {"memory_bytes": peak, "memory_how": "most that PyTorch allocated in a step"}

    def bytes_held(self) -> int:
        """Returns the bytes of parameters and buffers."""
        return sum(tensor.nbytes for tensor in self.net.state_dict().values())


class TorchTraining(Rival):
    """The training step: loss, gradients, SGD."""

    def __init__(
        self,
        config: Config,
        tensors: Mapping[str, np.ndarray],
        platform: str,
        batches: Sequence[TrainBatch],
    ):
        super().__init__(config, tensors, platform)
        train = config.train
        self.optimizer = self.torch.optim.SGD(
            self.net.parameters(), lr=train.lr, momentum=train.momentum,
            weight_decay=train.weight_decay, fused=True,
        )  # fmt: skip
        self._batches = [(self.pinned(batch.image), self.pinned(batch.label)) for batch in batches]
        self._feed = itertools.cycle(self._batches)
        self._compiled = self.torch.compile(self._loss, dynamic=False)

    def outputs(self) -> tuple[np.ndarray, float]:
        """Returns logits and loss as `ours.Training.outputs`; call it before any step."""
        for module in self.net.modules():
            if isinstance(module, self.torch.nn.Dropout2d):
                module.eval()
        images, labels = self._put(self._batches[0])
        with self.torch.no_grad(), self.autocast():
            maps = self.net(images)
            loss = sum(self._losses(maps, labels))
        self.net.train()
        return maps[0].float().permute(0, 2, 3, 1).cpu().numpy(), float(loss)

    def eager(self, count: int) -> None:
        """Runs steps and waits."""
        self._steps(self._loss, count)

    def compiled(self, count: int) -> None:
        """Runs steps whose loss is `torch.compile`'s, and waits; the first call compiles."""
        self._steps(self._compiled, count)

    def _set_format(self, name: str) -> None:
        super()._set_format(name)
        self.optimizer.state.clear()  # momentum of the other format would slow the update

    def memory_of(self, run: Any) -> dict[str, Any]:
        """Returns the fields of a side, `eager` or `compiled`, about memory."""
        self.optimizer.zero_grad()
        state = self.optimizer.state.values()
        momentum = sum(entry["momentum_buffer"].nbytes for entry in state)
        return self.memory(run, self.bytes_held() + momentum)

    def _steps(self, loss_of: Any, count: int) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            loss_of(*self._put(next(self._feed))).backward()
            self.optimizer.step()
        self.wait()

    def _put(self, batch: Any) -> tuple[Any, Any]:
        images, labels = batch
        return self.preprocess(images), labels.to(self.device, non_blocking=True).long()

    def _loss(self, images: Any, labels: Any) -> Any:
        with self.autocast():
            return sum(self._losses(self.net(images), labels))

    def _losses(self, maps: Any, labels: Any) -> Any:
        train = self.config.train
        return self.pytorch.losses(maps, labels, train.loss_groups, train.aux_weight)


class TorchInference(Rival):
    """The network in evaluation mode, without its auxiliary head; and the usual loop over files."""

    def __init__(
        self,
        config: Config,
        tensors: Mapping[str, np.ndarray],
        platform: str,
        images: np.ndarray | None = None,
    ):
        super().__init__(config, tensors, platform)
        self.net.eval()
        self._images = None if images is None else self.pinned(images)
        self._compiled = self.torch.compile(self.net.logits, dynamic=False)

    def eager(self, count: int) -> Any:
        """Computes the logits of the images, so many times; returns the last (B, C, h, w)."""
        return self._logits(self.net.logits, count)

    def compiled(self, count: int) -> Any:
        """As `eager`, by `torch.compile`; the first call compiles."""
        return self._logits(self._compiled, count)

    def outputs(self) -> np.ndarray:
        """Returns the logits (B, h, w, C) of the images."""
        return self.eager(1).float().permute(0, 2, 3, 1).cpu().numpy()

    def _logits(self, network: Any, count: int) -> Any:
        with self.torch.inference_mode(), self.autocast():
            for _ in range(count):
                logits = network(self.preprocess(self._images))
        self.wait()
        return logits

    def segment(self, files: Sequence[Path]) -> list[np.ndarray]:
        """Returns the labels of images, one at a time: decoded and resized as ours are."""
        base, labels = self.config.eval.resize_base, []
        interpolate = self.torch.nn.functional.interpolate
        for file in files:
            image = read_image(file)
            size = image.shape[0], image.shape[1]
            resized = resize_image(image, fit_size(*size, base)) if base else image
            with self.torch.inference_mode(), self.autocast():
                logits = self.net.logits(self.preprocess(self.pinned(resized[None])))
                scores = interpolate(logits, size, mode="bilinear", align_corners=False)
                labels.append(scores.argmax(1)[0].to(self.torch.uint8).cpu().numpy())
        return labels


def is_plain(config: Config) -> bool:
    """Tells whether a recipe's evaluation is the usual loop's: whole images, once."""
    return read_protocol(config.eval) == EvalProtocol()


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error of PyTorch's or XLA's says that memory ran out."""
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate")
    )


def free() -> None:
    """Gives PyTorch's cached memory back to the device."""
    if importlib.util.find_spec("torch") is not None:
        with suppress(Exception):  # not importable
            from deeplab_jax.benchmark import pytorch

            pytorch.torch.cuda.empty_cache()
