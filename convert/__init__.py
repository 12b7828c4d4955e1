"""Exchanges weights with PyTorch, without PyTorch.

`convert.from_pytorch` turns a .pth or .safetensors file of sssegmentation, mmsegmentation or an
ImageNet classifier into a checkpoint directory; `convert.to_pytorch` writes one back.
"""

MAX_ITERATION = 2**31 - 1  # steps are int32
