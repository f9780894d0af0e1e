"""torchvision's networks for pictures of 32×32 pixels: any command takes them as `examples/small_pictures.py:resnet50`.

Their first layers are made for 224 pixels, which they reduce to 56 before the first block. For small pictures the
usual stem is a 3×3 convolution of stride 1 without max-pooling.
"""

from __future__ import annotations

from torch import nn
from torchvision import models


def resnet18(num_classes: int = 10) -> nn.Module:
    return _small_stem(models.resnet18(num_classes=num_classes))


def resnet50(num_classes: int = 10) -> nn.Module:
    return _small_stem(models.resnet50(num_classes=num_classes))


def mobilenet_v2(num_classes: int = 10) -> nn.Module:
    """The strides of the first convolution and of the second stage are 1 instead of 2: 32 pixels end as 4."""
    stages = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    network = models.mobilenet_v2(num_classes=num_classes, inverted_residual_setting=stages)
    network.features[0][0].stride = (1, 1)
    return network


def _small_stem(network: models.ResNet) -> nn.Module:
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as in torchvision
    network.maxpool = nn.Identity()
    return network
