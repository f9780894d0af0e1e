"""``cifar:resnet56``: the networks on which distillation papers report, for images of about 32 pixels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from softcache.errors import UsageError, nearest
from softcache.models._cifar_resnet import CifarResNet
from softcache.models._cifar_vgg import CifarVgg
from softcache.models._cifar_wrn import WideResNet
from softcache.models._source import Weights, only_files

_VGG = {
    "vgg8": ((64,), (128,), (256,), (512,), (512,)),
    "vgg13": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
}
NAMES = (
    *(
        "resnet8",
        "resnet14",
        "resnet20",
        "resnet32",
        "resnet44",
        "resnet56",
        "resnet110",
        "resnet8x4",
        "resnet32x4",
    ),
    *("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
    *_VGG,
)


@dataclass(frozen=True)
class Cifar:
    """A network by the name that the papers use; all take colour images of at least 8 pixels.

    Names of parameters are those of the code that came with "Contrastive Representation Distillation"
    (1910.10699), so that its checkpoints load. Paths for hints, with the activation that a stage ends with:
    ``layer1 layer2 layer3`` in ResNets and ``block0`` … ``block4`` in VGG are after the ReLU; ``block1 block2
    block3`` of wide ResNets, which normalize first, are before the next block's batch norm and ReLU (``relu``
    is after the last ones).
    """

    name: str = field(metadata={"rest": True})

    any_channels: ClassVar[bool] = True
    pure: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UsageError(f"no CIFAR network is called {self.name!r}{nearest(self.name, NAMES)}")

    def build(self, classes: int, size: int | None = None) -> nn.Module:
        """See ``NetworkSource.build``; the size changes nothing."""
        if self.name in _VGG:
            return CifarVgg(_VGG[self.name], classes)
        kind, *numbers = re.findall(r"[a-z]+|\d+", self.name)
        if kind == "wrn":
            return WideResNet(int(numbers[0]), int(numbers[1]), classes)
        if self.name.endswith("x4"):
            return CifarResNet(int(numbers[0]), (32, 64, 128, 256), classes)
        return CifarResNet(int(numbers[0]), (16, 16, 32, 64), classes)

    def input_size(self, size: int | None = None) -> tuple[int | None, int]:
        """See ``NetworkSource.input_size``."""
        return size, 8

    def weights(self, weights: str) -> Weights:
        """See ``NetworkSource.weights``; only files."""
        return only_files(weights, f"cifar:{self.name}")
