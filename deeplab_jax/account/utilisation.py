"""Model FLOP utilisation: the network's arithmetic over what the devices could have done."""

from deeplab_jax.account.goodput import Account
from deeplab_jax.config import Config
from deeplab_jax.dry_run import flops
from deeplab_jax.dry_run.hardware import peak_of_device


def peak_of(account: Account, config: Config) -> float | None:
    """Returns the peak FLOP/s of one device of a run; None where unknown, or of several kinds."""
    kinds = {str(process.devices.get("kind")) for process in account.processes}
    return peak_of_device(kinds.pop(), config.model.dtype) if len(kinds) == 1 else None


def utilisation(account: Account, config: Config, peak: float) -> float:
    """Returns the FLOP of the kept steps over the devices' peak while those steps ran.

    A step is 3 passes over the network's convolutions and products (forward, and gradients of
    inputs and of kernels), 2 FLOP a multiply-add; what `model.remat` computes again does not
    count. The time is that of steps and input wait. Takes a second or two, and devices nothing.

    Args:
      account: of the run.
      config: of the run.
      peak: FLOP/s of one device.
    """
    image = 2 * flops.TRAINING * sum(flops.count_macs(config).values())
    pairs = zip(account.processes, account.kept, strict=True)
    device_seconds = sum(process.devices["count"] * seconds for process, seconds in pairs)
    return image * account.images / max(device_seconds * peak, 1e-9)
