"""The reference's training in PyTorch, of the network in `deeplab_jax.benchmark.pytorch`.

Dropout is off. Only the fixture `torch_reference` imports this file.
"""

import torch  # noqa: TID251
import torch.nn.functional as F  # noqa: F401, TID251
from torch import nn  # noqa: F401, TID251

from deeplab_jax.benchmark import pytorch
from deeplab_jax.benchmark.pytorch import load  # noqa: F401


def network(model, dtype=torch.float32):
    """Returns the network that `config.model` describes, in training mode, weights as they come."""
    torch.set_num_threads(1)
    return pytorch.network(model).to(dtype)


def sgd(net, lr=0.01):
    """Returns the reference's optimiser: one group of parameters in order of registration."""
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def losses(net, images, labels, processes=1):
    """Returns (main, auxiliary times 0.4) of images (B, 3, H, W) and labels (B, H, W)."""
    return pytorch.losses(net(images), labels, processes)


def train(net, optimizer, images, labels, steps, total, start=0, processes=1):
    """Trains in place and returns what `convert.replay` prints, one dict a step.

    Args:
      net: in training mode.
      optimizer: what `sgd` returned.
      images: NumPy, (S, B, H, W, 3); batch s mod S is step s's.
      labels: int (S, B, H, W).
      steps: how many.
      total: T of the schedule.
      start: number of the first step.
      processes: of the loss.
    """
    dtype = next(net.parameters()).dtype
    records = []
    for step in range(start, start + steps):
        lr = (0.01 - 1e-4) * (1 - step / total) ** 0.9 + 1e-4
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        batch = torch.tensor(images[step % len(images)], dtype=dtype).permute(0, 3, 1, 2)
        truth = torch.tensor(labels[step % len(labels)], dtype=torch.int64)
        main, aux = losses(net, batch, truth, processes)
        (main + aux).backward()
        norm = torch.stack([p.grad.square().sum() for p in net.parameters()]).sum().sqrt()
        optimizer.step()
        records.append(
            {
                "step": step,
                "lr": lr,
                "loss_main": main.item(),
                "loss_aux": aux.item(),
                "loss": (main + aux).item(),
                "grad_norm": norm.item(),
            }
        )
    return records


def tensors(net):
    """Returns the state dict as NumPy arrays."""
    return {key: value.detach().numpy().copy() for key, value in net.state_dict().items()}


def momentum(net, optimizer):
    """Returns the momentum of every parameter, by its key, as NumPy arrays."""
    return {
        key: optimizer.state[parameter]["momentum_buffer"].numpy().copy()
        for key, parameter in net.named_parameters()
    }
