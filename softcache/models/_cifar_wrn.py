"""Wide residual networks for CIFAR: "Wide Residual Networks" (1605.07146)."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn


class WideResNet(nn.Module):
    """WRN-depth-width: ``depth = 6n + 4``; three stages of n blocks with 16, 32, 64 times ``width`` channels.

    (B, 3, H, W) floats → (B, classes) logits; the stages' outputs have H, H/2, H/4 rows. Batch norm and ReLU
    come before each convolution, so the last ones (``bn1``, ``relu``) follow the stages.
    """

    def __init__(self, depth: int, width: int, classes: int):
        super().__init__()
        assert depth % 6 == 4, f"no wide residual network has depth {depth}"
        blocks = depth // 6
        channels = [16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _Stage(16, channels[0], blocks, stride=1)
        self.block2 = _Stage(channels[0], channels[1], blocks, stride=2)
        self.block3 = _Stage(channels[1], channels[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(channels[2])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.avgpool(self.relu(self.bn1(x))).flatten(1))


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int):
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.layer = nn.Sequential(
            *(_Block(a, b, stride if i == 0 else 1) for i, (a, b) in enumerate(pairwise(widths)))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut: nn.Module | None = None  # its name in the checkpoints that people have
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        residual = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        # where the width changes, the shortcut too starts from the normalized input
        return residual + (x if self.convShortcut is None else self.convShortcut(active))
