"""Forward passes of custom gradients."""

from collections.abc import Callable
from typing import Any

import jax

Arrays = tuple[jax.Array, jax.Array]


def keeping_inputs(function: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, Arrays]]:
    """Returns the forward pass of `function(x, kernel, *rest)` that keeps `x` and `kernel`."""

    def forward(x: jax.Array, kernel: jax.Array, *rest: Any) -> tuple[jax.Array, Arrays]:
        return function(x, kernel, *rest), (x, kernel)

    return forward
