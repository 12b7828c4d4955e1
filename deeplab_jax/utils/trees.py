"""The word for JAX's nested containers, which its own types leave out."""

from typing import Any, TypeAlias

PyTree: TypeAlias = Any  # nested mappings and tuples of arrays, or of their shapes and types
