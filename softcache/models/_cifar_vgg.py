"""VGG for CIFAR: "Very Deep Convolutional Networks" (1409.1556) with batch norm and a single linear layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import max_pool2d


class CifarVgg(nn.Module):
    """Five blocks of 3x3 convolutions, each with batch norm and ReLU, mean pooling, a linear classifier.

    widths: channels of the convolutions of each block. The blocks' outputs have H, H/2, H/4, H/8, H/8 rows;
        images of
    64 pixels and more are halved once more before the last block.

    (B, 3, H, W) floats → (B, classes) logits.
    """

    def __init__(self, widths: Sequence[Sequence[int]], classes: int):
        super().__init__()
        inputs = [3] + [block[-1] for block in widths]
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(before, block) for before, block in zip(inputs, widths, strict=False)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        large = min(x.shape[2:]) >= 64
        x = max_pool2d(self.block0(x), 2)
        x = max_pool2d(self.block1(x), 2)
        x = max_pool2d(self.block2(x), 2)
        x = self.block3(x)
        x = self.block4(max_pool2d(x, 2) if large else x)
        return self.classifier(self.avgpool(x).flatten(1))


def _block(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, width in zip([inputs, *widths], widths, strict=False):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
