"""A student that answers through its teacher's classifier, as ``simkd`` trains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from softcache.errors import ModelError
from softcache.models._hooks import Taps


def projector(student: int, middle: int, teacher: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """From maps of ``student`` channels to maps of ``teacher`` channels after a ReLU. Source: arXiv 2203.14001."""
    return nn.Sequential(
        nn.Conv2d(student, middle, 1, bias=False),
        norm(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        norm(middle),
        nn.ReLU(),
        nn.Conv2d(middle, teacher, 1, bias=False),
        norm(teacher),
        nn.ReLU(),
    )


class Through(nn.Module):
    """``classifier(mean over places of projector(backbone's layer))`` → logits (B, classes).

    ``backbone`` is run as a whole and its own logits are dropped; ``classifier`` is the teacher's and isn't trained.
    ``size``: (H, W) to which larger maps are average-pooled before the projector, as where it learned.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layer: str,
        projector: nn.Sequential,
        classifier: nn.Linear,
        *,
        size: tuple[int, int],
    ):
        super().__init__()
        self.size = size
        self.backbone, self.layer, self.projector, self.classifier = backbone, layer, projector, classifier
        classifier.requires_grad_(False)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        with Taps(self.backbone, [self.layer]) as taps:
            self.backbone(*inputs, **named)
        feature = taps[self.layer]
        if feature.ndim == 3:  # tokens (B, L, D), as a map of one column
            feature = feature.transpose(1, 2)
        while feature.ndim < 4:
            feature = feature.unsqueeze(-1)
        if feature.shape[2:] != self.size:
            feature = adaptive_avg_pool2d(feature, self.size)
        result: Tensor = self.classifier(self.projector(feature).mean((2, 3)))
        return result

    def describe(self) -> dict[str, Any]:
        """What ``build_through`` needs, as JSON values."""
        narrow, wide = self.projector[0], self.projector[6]
        assert isinstance(narrow, nn.Conv2d)
        assert isinstance(wide, nn.Conv2d)
        return {
            "layer": self.layer,
            "size": list(self.size),
            "student": narrow.in_channels,
            "middle": narrow.out_channels,
            "teacher": wide.out_channels,
            "bias": self.classifier.bias is not None,
        }


def build_through(backbone: nn.Module, description: dict[str, Any], classes: int) -> Through:
    """The module that was described, with random parameters around ``backbone``.

    Errors: ``ModelError`` for a description that isn't one.
    """
    try:
        student, middle, teacher = (int(description[key]) for key in ("student", "middle", "teacher"))
        classifier = nn.Linear(teacher, classes, bias=bool(description["bias"]))
        head = projector(student, middle, teacher, nn.BatchNorm2d)
        height, width = (int(side) for side in description["size"])
        return Through(backbone, str(description["layer"]), head, classifier, size=(height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"a student through its teacher's classifier is not described whole ({error!r})") from None
