"""Small networks that benchmarks train beside those that softcache knows by name."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import VisionTransformer


class Flat(nn.Module):
    """(B, 3, H, W) → (B, H·W): the first channel of grey pictures that were repeated to three."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].flatten(1)


def wide(num_classes: int = 10) -> nn.Module:
    """A perceptron for pictures of 28 pixels: two hidden layers of 1,200 units, with dropout."""
    return nn.Sequential(
        Flat(),
        *(nn.Linear(784, 1200), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(1200, 1200), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(1200, num_classes),
    )


def narrow(num_classes: int = 10) -> nn.Module:
    """One hidden layer of 128 units."""
    return nn.Sequential(Flat(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, num_classes))


def transformer(num_classes: int = 10) -> nn.Module:
    """A vision transformer for pictures of 32 pixels: 8 × 8 patches, 4 layers of 96 units with 3 heads."""
    return VisionTransformer(
        image_size=32, patch_size=4, num_layers=4, num_heads=3, hidden_dim=96, mlp_dim=192, num_classes=num_classes
    )
