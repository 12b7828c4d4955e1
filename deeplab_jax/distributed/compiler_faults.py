"""Known faults of compilers: how one shows, and whether a compiled program contains its pattern.

jax-ml/jax#39103: XLA of jaxlib 0.10.2 hands some operations on processors to a library, as a "ynn
fusion". Where one such fusion holds a matrix product of three terms and a sum over its result, rows
beyond the 32768th (float32) are other rows' sums. Fusions of one alone are right, and so is jaxlib
0.12.0.1. Jaxlib 0.11.0 was not tried.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxlib.version import __version__ as jaxlib_version

from deeplab_jax.errors import ConfigError


class Fault(NamedTuple):
    """A fault that some versions of a compiler have, or may have.

    Attributes:
      name: in words.
      source: the public report.
      jaxlib: versions that have it, or were not tried and may.
      platform: of the devices that it concerns.
      fix: what removes it.
      shows: computes the smallest case; returns the value that is right and the value found.
      is_in: whether the text of a compiled program contains the pattern.
    """

    name: str
    source: str
    jaxlib: tuple[str, ...]
    platform: str
    fix: str
    shows: Callable[[], tuple[float, float]]
    is_in: Callable[[str], bool]


def _last_square() -> tuple[float, float]:
    """Returns the square of 32768 and what the device makes of it."""
    count = 2**15 + 1
    rows = np.zeros((count, 3), np.float32)
    rows[:, 0] = np.arange(count)

    @jax.jit
    def squares(matrix: jax.Array, rows: jax.Array) -> jax.Array:
        return jax.vmap(lambda row: jnp.sum(jnp.square(matrix @ row)))(rows)

    return float(rows[-1, 0]) ** 2, float(squares(np.eye(3, dtype=np.float32), rows)[-1])


_FUSION = re.compile(r' calls=%?([\w.-]+),.*"__ynn_fusion"')
_COMPUTATION = re.compile(r"^%?([\w.-]+) \(.*\{\n((?: .*\n)+)\}", re.MULTILINE)
_PRODUCT, _SUM = re.compile(r" dot\("), re.compile(r" reduce\(")


def _has_product_in_sum(text: str) -> bool:
    called = set(_FUSION.findall(text))
    return any(
        name in called and _PRODUCT.search(body) is not None and _SUM.search(body) is not None
        for name, body in _COMPUTATION.findall(text)
    )


FAULTS = (
    Fault(
        name="a small matrix product and a sum over its result",
        source="jax-ml/jax#39103",
        jaxlib=("0.10.2", "0.11.0"),
        platform="cpu",
        fix="set XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= (empty), or install jax 0.12"
        " (Python 3.12)",
        shows=_last_square,
        is_in=_has_product_in_sum,
    ),
)


def of_platform(platform: str) -> list[Fault]:
    """Returns the faults that devices of a platform may have."""
    return [fault for fault in FAULTS if fault.platform == platform]


@contextmanager
def refusing(mesh: Mesh, program: str) -> Iterator[None]:
    """Refuses a program that the block compiles if it contains a fault that shows here.

    Does nothing but compare versions where the compiler is not known to have faults; else reads the
    block's programs, in a tenth of a second. `program`, such as "the training step", is told.

    Raises:
      ConfigError: it names the fault and the fix.
    """
    device = mesh.devices.flat[0]
    faults = [x for x in of_platform(device.platform) if jaxlib_version in x.jaxlib]
    others = device.client.live_executables() if faults else []  # such as a self-test's canary
    yield
    if not faults:
        return
    known = set(map(id, others))
    programs = [x for x in device.client.live_executables() if id(x) not in known]
    texts = [module.to_string() for x in programs for module in x.hlo_modules()]
    for fault in faults:
        if not any(map(fault.is_in, texts)):
            continue
        expected, got = fault.shows()
        if is_wrong(expected, got):
            found = f"{program} contains {fault.name}, which goes wrong here ({fault.source}):"
            found += f" expected {expected:.10g}, got {got:.10g}"
            raise ConfigError(f"jaxlib {jaxlib_version}", found, fault.fix)


def is_wrong(expected: float, got: float) -> bool:
    """Tells whether a value is more than a rounding away from the right one."""
    return not abs(got - expected) <= 1e-6 * abs(expected)
