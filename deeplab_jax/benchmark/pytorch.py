"""The reference's DeepLabV3+ and its loss in PyTorch, written plainly from spec sections 2 to 4.

Keys and order of registration are those of its checkpoints; widths are free. The only module of the
package that imports torch; it is imported where PyTorch is compared with.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # noqa: TID251
import torch.nn.functional as F  # noqa: TID251
from torch import nn  # noqa: TID251

from deeplab_jax.config import IGNORE_INDEX, ModelConfig

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def network(model: ModelConfig, dropout_rate: float = 0.0) -> "DeepLabV3Plus":
    """Returns the network that `config.model` describes, in training mode, weights as they come.

    `stem`, `multi_grid`, `freeze_batch_norm` and `remat` must have their defaults.
    """
    return DeepLabV3Plus(
        num_classes=model.num_classes,
        depth=model.depth,
        output_stride=model.output_stride,
        rates=model.atrous_rates,
        width=model.width,
        head=model.head_channels,
        low_level=model.low_level_channels,
        aux=model.aux_channels,
        dropout_rate=dropout_rate,
    )


def load(net: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Fills a network with a state dict of NumPy arrays; every key must fit."""
    copies = {key: torch.tensor(value) for key, value in tensors.items()}
    net.load_state_dict(copies, strict=True)


def losses(
    maps: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
    processes: int = 1,
    aux_weight: float = 0.4,
) -> tuple[Any, Any]:
    """Returns the losses (main, weighted auxiliary) of the network's two outputs.

    Each of the processes averages over its own valid pixels. Labels are int64 (B, H, W).
    """

    def loss(logits: torch.Tensor) -> Any:
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        parts = zip(logits.chunk(processes), labels.chunk(processes), strict=True)
        return sum(F.cross_entropy(*part, ignore_index=IGNORE_INDEX) for part in parts) / processes

    main, aux = maps
    return loss(main), aux_weight * loss(aux)


def _conv(
    inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Module:
    padding = dilation * (size // 2)
    return nn.Conv2d(inputs, outputs, size, stride, padding, dilation, groups, bias=False)


def _conv_bn_relu(inputs: int, outputs: int, size: int = 1) -> tuple[nn.Module, ...]:
    return (_conv(inputs, outputs, size), nn.BatchNorm2d(outputs), nn.ReLU())


class _Separable(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int = 1):
        super().__init__()
        self.depthwise_conv = _conv(inputs, inputs, 3, dilation=dilation, groups=inputs)
        self.depthwise_bn = nn.BatchNorm2d(inputs)
        self.pointwise_conv = _conv(inputs, outputs, 1)
        self.pointwise_bn = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise_bn(self.depthwise_conv(x)).relu()
        return self.pointwise_bn(self.pointwise_conv(x)).relu()


class _Block(nn.Module):
    """A basic block or a bottleneck; `downsample` is registered first."""

    def __init__(self, inputs: int, features: int, stride: int, dilation: int, is_bottleneck: bool):
        super().__init__()
        outputs = features * (4 if is_bottleneck else 1)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            conv = _conv(inputs, outputs, 1, stride)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        if is_bottleneck:
            self.conv1, self.bn1 = _conv(inputs, features, 1), nn.BatchNorm2d(features)
            self.conv2 = _conv(features, features, 3, stride, dilation)
            self.bn2 = nn.BatchNorm2d(features)
            self.conv3, self.bn3 = _conv(features, outputs, 1), nn.BatchNorm2d(outputs)
        else:
            self.conv1 = _conv(inputs, features, 3, stride, dilation)
            self.bn1 = nn.BatchNorm2d(features)
            self.conv2, self.bn2 = _conv(features, features, 3), nn.BatchNorm2d(features)
            self.conv3 = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.conv3 is not None:
            x = self.bn3(self.conv3(x.relu()))
        return (x + identity).relu()


class _Backbone(nn.Module):
    def __init__(self, depth: int, output_stride: int, width: int):
        super().__init__()
        stem = [
            *(_conv(3, width // 2, 3, stride=2), nn.BatchNorm2d(width // 2), nn.ReLU()),
            *_conv_bn_relu(width // 2, width // 2, 3),
            *_conv_bn_relu(width // 2, width, 3),
        ]
        self.stem = nn.Sequential(*stem)
        inputs, reached, dilation, self.outputs = width, 4, 1, []
        for layer, blocks in enumerate(_BLOCKS[depth]):
            stride, first = 1, dilation
            if layer > 0 and reached < output_stride:
                stride, reached = 2, 2 * reached
            elif layer > 0:
                dilation = 2 * dilation  # instead of a stride; the first block keeps the old one
            modules = []
            for index in range(blocks):
                own = (stride, first) if index == 0 else (1, dilation)
                modules.append(_Block(inputs, width * 2**layer, *own, depth >= 50))
                inputs = width * 2**layer * (4 if depth >= 50 else 1)
            setattr(self, f"layer{layer + 1}", nn.Sequential(*modules))
            self.outputs.append(inputs)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class _ASPP(nn.Module):
    def __init__(self, inputs: int, outputs: int, rates: tuple[int, ...]):
        super().__init__()
        self.parallel_branches = nn.ModuleList([nn.Sequential(*_conv_bn_relu(inputs, outputs))])
        self.parallel_branches.extend(_Separable(inputs, outputs, rate) for rate in rates)
        self.global_branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_bn_relu(inputs, outputs))
        self.bottleneck = nn.Sequential(*_conv_bn_relu(5 * outputs, outputs, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [branch(x) for branch in self.parallel_branches]
        maps.append(self.global_branch(x).expand_as(maps[0]))
        return self.bottleneck(torch.cat(maps, 1))


class DeepLabV3Plus(nn.Module):
    """Returns (logits, auxiliary logits), at the sizes of the first and third layer."""

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int,
        output_stride: int,
        rates: tuple[int, ...],
        width: int,
        head: int,
        low_level: int,
        aux: int,
        dropout_rate: float,
    ):
        super().__init__()
        self.backbone_net = _Backbone(depth, output_stride, width)
        low, _, middle, top = self.backbone_net.outputs
        self.aspp_net = _ASPP(top, head, rates)
        self.shortcut = nn.Sequential(*_conv_bn_relu(low, low_level))
        self.decoder = nn.Sequential(
            _Separable(head + low_level, head),
            _Separable(head, head),
            nn.Dropout2d(dropout_rate),
            nn.Conv2d(head, num_classes, 1),
        )
        self.auxiliary_decoder = nn.Sequential(
            *_conv_bn_relu(middle, aux, 3),
            nn.Dropout2d(dropout_rate),
            nn.Conv2d(aux, num_classes, 1),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes both of normalised images (B, 3, H, W)."""
        low, _, middle, top = self.backbone_net(x)
        return self._logits(low, top), self.auxiliary_decoder(middle)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits alone, without the auxiliary head."""
        low, _, _, top = self.backbone_net(x)
        return self._logits(low, top)

    def _logits(self, low: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        x = self.aspp_net(top)
        x = F.interpolate(x, low.shape[2:], mode="bilinear", align_corners=False)
        return self.decoder(torch.cat([x, self.shortcut(low)], 1))


class _LogitsAlone(nn.Module):
    def __init__(self, net: DeepLabV3Plus):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.logits(x)


def to_onnx(net: DeepLabV3Plus, opset: int) -> bytes:
    """Returns the ONNX that PyTorch's own exporter makes of a network, for any batch and size.

    Input "image" is normalised, float32 (B, 3, H, W); output "logits" (B, C, h, w).
    """
    file = io.BytesIO()
    axes = {0: "batch", 2: "height", 3: "width"}
    torch.onnx.export(
        _LogitsAlone(net.eval()).eval(), (torch.zeros(1, 3, 65, 97),), file, dynamo=False,
        opset_version=opset, input_names=["image"], output_names=["logits"],
        dynamic_axes={"image": axes},
    )  # fmt: skip
    return file.getvalue()
