"""Small networks that benchmarks train beside those that softcache knows by name."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import VisionTransformer


class Flat(nn.Module):
    """(B, 3, H, W) → (B, H·W): the first channel of grey pictures that were repeated to three."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].flatten(1)


def perceptron(num_classes: int = 10) -> nn.Module:
    """For grey pictures of 32 pixels: one hidden layer of 128 units."""
    return nn.Sequential(Flat(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, num_classes))


def transformer(num_classes: int = 10) -> nn.Module:
    """A vision transformer for pictures of 32 pixels: 8 × 8 patches, 4 layers of 96 units with 3 heads."""
    return VisionTransformer(
        image_size=32, patch_size=4, num_layers=4, num_heads=3, hidden_dim=96, mlp_dim=192, num_classes=num_classes
    )
