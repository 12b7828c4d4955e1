"""Exchanges weights with PyTorch, without PyTorch.

`convert.from_pytorch` turns a .pth or .safetensors file of sssegmentation, mmsegmentation or an
ImageNet classifier into a checkpoint directory; `convert.to_pytorch` writes one back.
"""

MAX_ITERATION = 2**31 - 1  # steps are int32


def shown(value: object) -> str:
    """Returns text from a file fit for one line: ASCII, at most 80 characters."""
    text = value.encode("unicode_escape").decode() if isinstance(value, str) else ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
