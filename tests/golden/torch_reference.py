"""The reference's DeepLabV3+ and its training in PyTorch, written from spec sections 2 to 5.

Keys and order of registration are those of its checkpoints; widths are free, so that tests are
fast. Dropout is off. Only the fixture `torch_reference` imports this file.
"""

import torch  # noqa: TID251
import torch.nn.functional as F  # noqa: TID251
from torch import nn  # noqa: TID251

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
IGNORE = 255


def network(model, dtype=torch.float32):
    """Returns the network that `config.model` describes, in training mode, weights as they come."""
    torch.set_num_threads(1)
    return DeepLabV3Plus(
        num_classes=model.num_classes,
        depth=model.depth,
        output_stride=model.output_stride,
        rates=model.atrous_rates,
        width=model.width,
        head=model.head_channels,
        low_level=model.low_level_channels,
        aux=model.aux_channels,
    ).to(dtype)


def load(net, tensors):
    """Fills a network with a state dict of NumPy arrays; every key must fit."""
    copies = {key: torch.tensor(value) for key, value in tensors.items()}
    net.load_state_dict(copies, strict=True)


def sgd(net, lr=0.01):
    """Returns the reference's optimiser: one group of parameters in order of registration."""
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def losses(net, images, labels, processes=1):
    """Returns (main, auxiliary times 0.4) of images (B, 3, H, W) and labels (B, H, W).

    Each of the processes averages over its own valid pixels.
    """

    def loss(logits):
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        parts = zip(logits.chunk(processes), labels.chunk(processes), strict=True)
        return sum(F.cross_entropy(*part, ignore_index=IGNORE) for part in parts) / processes

    main, aux = net(images)
    return loss(main), 0.4 * loss(aux)


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


def _conv(inputs, outputs, size, stride=1, dilation=1, groups=1):
    padding = dilation * (size // 2)
    return nn.Conv2d(inputs, outputs, size, stride, padding, dilation, groups, bias=False)


def _conv_bn_relu(inputs, outputs, size=1):
    return (_conv(inputs, outputs, size), nn.BatchNorm2d(outputs), nn.ReLU())


class _Separable(nn.Module):
    def __init__(self, inputs, outputs, dilation=1):
        super().__init__()
        self.depthwise_conv = _conv(inputs, inputs, 3, dilation=dilation, groups=inputs)
        self.depthwise_bn = nn.BatchNorm2d(inputs)
        self.pointwise_conv = _conv(inputs, outputs, 1)
        self.pointwise_bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = self.depthwise_bn(self.depthwise_conv(x)).relu()
        return self.pointwise_bn(self.pointwise_conv(x)).relu()


class _Block(nn.Module):
    """A basic block or a bottleneck; `downsample` is registered first."""

    def __init__(self, inputs, features, stride, dilation, is_bottleneck):
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

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.conv3 is not None:
            x = self.bn3(self.conv3(x.relu()))
        return (x + identity).relu()


class _Backbone(nn.Module):
    def __init__(self, depth, output_stride, width):
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

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class _ASPP(nn.Module):
    def __init__(self, inputs, outputs, rates):
        super().__init__()
        self.parallel_branches = nn.ModuleList([nn.Sequential(*_conv_bn_relu(inputs, outputs))])
        self.parallel_branches.extend(_Separable(inputs, outputs, rate) for rate in rates)
        self.global_branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_bn_relu(inputs, outputs))
        self.bottleneck = nn.Sequential(*_conv_bn_relu(5 * outputs, outputs, 3))

    def forward(self, x):
        maps = [branch(x) for branch in self.parallel_branches]
        maps.append(self.global_branch(x).expand_as(maps[0]))
        return self.bottleneck(torch.cat(maps, 1))


class DeepLabV3Plus(nn.Module):
    """Returns (logits, auxiliary logits), at the sizes of the first and third layer."""

    def __init__(self, num_classes, depth, output_stride, rates, width, head, low_level, aux):
        super().__init__()
        self.backbone_net = _Backbone(depth, output_stride, width)
        low, _, middle, top = self.backbone_net.outputs
        self.aspp_net = _ASPP(top, head, rates)
        self.shortcut = nn.Sequential(*_conv_bn_relu(low, low_level))
        self.decoder = nn.Sequential(
            _Separable(head + low_level, head),
            _Separable(head, head),
            nn.Identity(),  # dropout
            nn.Conv2d(head, num_classes, 1),
        )
        self.auxiliary_decoder = nn.Sequential(
            *_conv_bn_relu(middle, aux, 3),
            nn.Identity(),  # dropout
            nn.Conv2d(aux, num_classes, 1),
        )

    def forward(self, x):
        low, _, middle, top = self.backbone_net(x)
        x = self.aspp_net(top)
        x = F.interpolate(x, low.shape[2:], mode="bilinear", align_corners=False)
        logits = self.decoder(torch.cat([x, self.shortcut(low)], 1))
        return logits, self.auxiliary_decoder(middle)
