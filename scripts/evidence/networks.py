"""The network and its step, ours and PyTorch's, on the same weights and batch."""

import importlib
import sys
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert import keymap
from convert.source import abstract_variables
from deeplab_jax.config import Config, get_config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.models import build_model
from deeplab_jax.training.losses import row_weights
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.state import init_state
from deeplab_jax.training.step import make_loss, make_train_step
from evidence.record import ROOT, Box
from evidence.timing import Way

NARROW = ("--config.model.depth=18", "--config.model.width=8", "--config.model.head_channels=16",
          "--config.model.low_level_channels=4", "--config.model.aux_channels=8",
          "--config.model.num_classes=5", "--config.model.atrous_rates=1,2,3",
          "--config.train.loss_groups=1")  # fmt: skip
_STEPS = 1000  # of the schedule; its length does not change the step


def golden(name: str) -> ModuleType:
    """Returns a module of tests/golden: "torch_reference", or "recipe", which draws weights."""
    folder = str(ROOT / "tests" / "golden")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def pytorch() -> Any:
    """Returns the module torch, which the tests' reference imports."""
    return golden("torch_reference").torch


def step_overrides(box: Box, dtype: str, batch: int = 16, size: int = 512) -> list[str]:
    """Returns the overrides of a recipe that set sizes, or those of a rehearsal."""
    batch, size = box.pick((batch, size), (2, 64))
    sizes = [f"--config.train.batch_size={batch}", f"--config.data.crop_size={size},{size}"]
    return [*sizes, f"--config.model.dtype={dtype}", *box.pick((), NARROW)]


def ade20k(box: Box, dtype: str, depth: int = 50, stride: int = 16, **sizes: int) -> Config:
    """Returns the configuration of the ADE20k recipe at the sizes of `step_overrides`."""
    return apply_overrides(get_config("ade20k", depth, stride), step_overrides(box, dtype, **sizes))


def draw(config: Config) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Returns (state dict of PyTorch's, images float32 (B, H, W, 3), labels int32 (B, H, W)).

    The weights are those of the golden values: each block's last norm is small, so that rounding is
    not amplified from block to block.
    """
    recipe, model = golden("recipe"), config.model
    batch, (height, width) = config.train.batch_size, config.data.crop_size
    shapes = keymap.to_shapes(abstract_variables(model), model.depth)
    weights = {key: recipe.draw_weight(key, shape, "evidence") for key, shape in shapes.items()}
    image = recipe.draw_image("evidence", (batch, 3, height, width)).transpose(0, 2, 3, 1)
    labels = recipe.draw_labels("evidence", (batch, height, width), model.num_classes)
    return weights, np.ascontiguousarray(image, np.float32), labels.astype(np.int32)


class Ours:
    """Our network: logits, loss and gradient of a batch."""

    def __init__(self, config: Config, weights: dict[str, np.ndarray]):
        self.depth = config.model.depth
        self.model = build_model(config.model)
        variables, _ = keymap.to_variables(weights, self.depth)
        self.variables = jax.tree.map(jnp.asarray, variables)
        loss = make_loss(self.model, config, use_dropout=False)
        self._logits = jax.jit(lambda variables, x: self.model.apply(variables, x).logits)
        self._step = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns float64 (B, h, w, C) with running statistics."""
        return np.asarray(self._logits(self.variables, images), np.float64)

    def step(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        """Returns the training loss and {PyTorch's key: gradient}."""
        batch = images, labels, row_weights(jnp.asarray(labels), 1)
        stats = self.variables["batch_stats"]
        (loss, _), grads = self._step(self.variables["params"], stats, batch, jax.random.key(0))
        tree = jax.device_get({"params": grads, "batch_stats": stats})
        return float(loss), keymap.to_tensors(tree, {}, self.depth)


class Theirs:
    """The same network in PyTorch, channels last on the card."""

    def __init__(self, config: Config, weights: dict[str, np.ndarray], dtype: str):
        reference = golden("torch_reference")
        self.torch, self._losses = reference.torch, reference.losses
        self.device = "cuda" if self.torch.cuda.is_available() else "cpu"
        exact_torch(self.torch)
        self.net = reference.network(config.model, getattr(self.torch, dtype))
        reference.load(self.net, weights)
        self.net.to(self.device, memory_format=self.torch.channels_last)
        self.dtype = getattr(self.torch, dtype)

    def _images(self, images: np.ndarray) -> Any:
        x = self.torch.tensor(images, dtype=self.dtype, device=self.device)
        return x.permute(0, 3, 1, 2)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """As `Ours.logits`."""
        with self.torch.no_grad():
            logits, _ = self.net.eval()(self._images(images))
        return logits.permute(0, 2, 3, 1).double().cpu().numpy()

    def step(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        """As `Ours.step`."""
        truth = self.torch.tensor(labels, dtype=self.torch.int64, device=self.device)
        self.net.train().zero_grad(set_to_none=True)
        main, aux = self._losses(self.net, self._images(images), truth)
        (main + aux).backward()
        grads = {
            key: parameter.grad.double().cpu().numpy()
            for key, parameter in self.net.named_parameters()
        }
        return (main + aux).item(), grads


def exact_torch(torch: ModuleType) -> None:
    """Switches TF32 off in PyTorch, and cuDNN's search for the fastest kernels on."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def train_step(config: Config, options: dict[str, Any] | None = None) -> tuple[Way, Any]:
    """Returns the compiled training step, which goes on from its own state, and its program.

    Args:
      config: of the run.
      options: XLA's, by name; those of the recipe where empty.
    """
    mesh = mesh_lib.mesh_of(config, jax.devices()[:1])
    step = make_train_step(config, _STEPS, mesh)
    model = build_model(config.model, mesh_lib.platform(mesh))
    optimizer, _ = build_optimizer(config.train, _STEPS)
    state = jax.jit(partial(init_state, model, optimizer, 0))()
    batch, (height, width) = config.train.batch_size, config.data.crop_size
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
    label = rng.integers(0, config.model.num_classes, (batch, height, width)).astype(np.uint8)
    box = np.tile(np.int32([0, 0, height, width]), (batch, 1))
    arrays = mesh_lib.put_batch((image, label, box), mesh, batch)
    state = jax.device_put(state, mesh_lib.replicated(mesh))
    compiled = step.lower(state, *arrays).compile(compiler_options=options)  # type: ignore[attr-defined]
    held = [state]

    def call() -> Any:
        held[0], metrics = compiled(held[0], *arrays)
        return held[0], metrics

    return Way(call, jax.block_until_ready), compiled
