"""Activations are vectors (D,), tokens (L, D) or maps (C, H, W); these functions turn them into one another.

Shapes are without the batch, tensors have it first.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from softcache.errors import UsageError

Shape = tuple[int, ...]
FORMS = {1: "a vector", 2: "tokens", 3: "a map"}


def check_shape(shape: Shape, owner: str, *, spatial: bool = False) -> None:
    """Errors: ``UsageError`` for an activation that is neither a vector nor tokens nor a map and, with ``spatial``, for
    one that has only one position."""
    if len(shape) not in FORMS:
        raise UsageError(
            f"{owner} takes a vector (D), tokens (L, D) or a map (C, H, W), found {_text(shape)}: name another layer"
        )
    height, width = map_shape(shape)[1:]
    if spatial and height * width == 1:
        raise UsageError(
            f"{owner} compares positions of a map, found {FORMS[len(shape)]} {_text(shape)}: name a layer with a map"
        )


def map_shape(shape: Shape) -> tuple[int, int, int]:
    """(C, H, W) of what ``as_map`` returns.

    >>> map_shape((5, 8))  # 5 tokens of width 8
    (8, 5, 1)
    """
    if len(shape) == 1:
        return shape[0], 1, 1
    if len(shape) == 2:
        return shape[1], shape[0], 1
    channels, height, width = shape
    return channels, height, width


def width(shape: Shape) -> int:
    """D of what ``as_vector`` returns."""
    return map_shape(shape)[0]


def as_map(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) as it is; vectors as (B, D, 1, 1); tokens (B, L, D) as (B, D, L, 1)."""
    if x.dim() == 2:
        return x[:, :, None, None]
    if x.dim() == 3:
        return x.transpose(1, 2).unsqueeze(3)
    return x


def as_vector(x: torch.Tensor) -> torch.Tensor:
    """(B, D) as it is; maps (B, C, H, W) and tokens (B, L, D) as the mean over their positions."""
    if x.dim() == 4:
        return x.mean((2, 3))
    return x.mean(1) if x.dim() == 3 else x


def pool(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Average-pools (B, C, H, W) to a size that is not larger."""
    h, w = x.shape[2:]
    if (h, w) == (height, width):
        return x
    if h % height == 0 and w % width == 0:  # the backward pass of avg_pool2d is deterministic on every device
        return F.avg_pool2d(x, (h // height, w // width))
    return F.adaptive_avg_pool2d(x, (height, width))


def same_size(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two (B, C, H, W), the larger average-pooled to the size of the smaller, in each direction."""
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return pool(a, height, width), pool(b, height, width)


def resize_matrix(size: int, wanted: int) -> torch.Tensor:
    """(wanted, size): the matrix that resizes ``size`` numbers, to more by interpolation, to fewer by averages.

    The product with a matrix is deterministic on every device, unlike the backward pass of interpolation.

    >>> resize_matrix(4, 2)
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]])
    """
    rows = torch.eye(size, dtype=torch.float64).unsqueeze(0)
    if wanted <= size:
        resized = F.adaptive_avg_pool1d(rows, wanted)
    else:
        resized = F.interpolate(rows, wanted, mode="linear", align_corners=False)
    return resized[0].T.float().contiguous()


def grid(tokens: int) -> tuple[int, int, int]:
    """(class tokens, H, W) of a number of tokens: a square, a square after a class token, or else a column.

    >>> grid(16), grid(17), grid(7)
    ((0, 4, 4), (1, 4, 4), (0, 7, 1))
    """
    for skipped in (0, 1):
        side = math.isqrt(tokens - skipped)
        if side > 1 and side * side == tokens - skipped:
            return skipped, side, side
    return 0, tokens, 1


def _text(shape: Shape) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
