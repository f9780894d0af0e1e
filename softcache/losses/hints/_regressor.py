"""Regressors: a trained projection and batch norm from the shape of a guided layer to that of a hint."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from softcache.losses.hints._shapes import Shape, as_vector, grid, resize_matrix

# A larger strided convolution has too many parameters: it is replaced by a 1×1 convolution and resizing.
LARGEST_KERNEL = 4


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over axis 1 of any shape. A batch with one value for each channel uses the running statistics."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        return None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and input.numel() == input.shape[1]:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


def regressor(student_shape: Shape, teacher_shape: Shape) -> nn.Module:
    """A module from (B, *student_shape) to (B, *teacher_shape). Initial values are drawn from torch's generator.

    - Tokens to tokens: a linear layer for each token, then interpolation over L where the lengths differ.
    - Anything to a vector: the mean over positions, then a linear layer.
    - A vector to a map or tokens: a linear layer, whose output is repeated at every position.
    - Maps (and tokens that form a square) to maps or tokens: a 1×1 convolution where the sizes agree, a strided one
      where the student's map is 2 to 4 times larger, a transposed one where it is 2 to 4 times smaller, and a 1×1
      convolution and resizing otherwise. A class token is left out of maps, and is the mean of the positions of tokens
      that are made from maps.

    >>> regressor((8, 6, 6), (16, 3, 3))(torch.zeros(2, 8, 6, 6)).shape
    torch.Size([2, 16, 3, 3])
    """
    if len(student_shape) == 2 and len(teacher_shape) == 2:
        return _Tokens(student_shape, teacher_shape)
    if len(teacher_shape) == 1 or len(student_shape) == 1:
        return _Repeated(student_shape, teacher_shape)
    return _Grid(student_shape, teacher_shape)


class _Tokens(nn.Module):
    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        self.linear = nn.Linear(student[1], teacher[1], bias=False)
        self.norm = BatchNorm(teacher[1])
        self.resize: torch.Tensor | None
        matrix = None if student[0] == teacher[0] else resize_matrix(student[0], teacher[0])
        self.register_buffer("resize", matrix, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)  # (B, L, D)
        if self.resize is not None:
            x = self.resize @ x
        out: torch.Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return out


class _Repeated(nn.Module):
    """A linear layer of the pooled activation, repeated at every position of the teacher's shape."""

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        self.teacher = teacher
        channels = teacher[-1] if len(teacher) < 3 else teacher[0]
        self.linear = nn.Linear(student[-1] if len(student) < 3 else student[0], channels, bias=False)
        self.norm = BatchNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.linear(as_vector(x)))
        if len(self.teacher) == 3:
            x = x[:, :, None, None]
        elif len(self.teacher) == 2:
            x = x[:, None, :]
        return x.expand(-1, *self.teacher)


class _Grid(nn.Module):
    """From one grid of positions to another, of maps or of tokens."""

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        self.skipped, (channels, *size) = _grid_of(student)
        self.added, (wanted_channels, *wanted) = _grid_of(teacher)
        self.as_tokens = len(teacher) == 2
        self.resize_h: torch.Tensor | None
        self.resize_w: torch.Tensor | None
        down, up = _factor(size, wanted), _factor(wanted, size)
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if down > 1:
            self.conv = nn.Conv2d(channels, wanted_channels, down, stride=down, bias=False)
        elif up > 1:
            self.conv = nn.ConvTranspose2d(channels, wanted_channels, up, stride=up, bias=False)
        else:
            self.conv = nn.Conv2d(channels, wanted_channels, 1, bias=False)
        fits = size == wanted or down > 1 or up > 1
        for name, have, want in zip(("resize_h", "resize_w"), size, wanted, strict=True):
            self.register_buffer(name, None if fits else resize_matrix(have, want), persistent=False)
        self.norm = BatchNorm(wanted_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 3:
            x = x[:, self.skipped :].transpose(1, 2).reshape(len(x), x.shape[2], *grid(x.shape[1])[1:])
        x = self.conv(x)
        if self.resize_h is not None and self.resize_w is not None:
            x = self.resize_h @ x @ self.resize_w.T
        out: torch.Tensor = self.norm(x)
        if not self.as_tokens:
            return out
        tokens = out.flatten(2).transpose(1, 2)  # (B, L, D)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) if self.added else tokens


def _grid_of(shape: Shape) -> tuple[int, list[int]]:
    """The number of class tokens, and [C, H, W] of the grid."""
    if len(shape) == 3:
        return 0, list(shape)
    skipped, height, width = grid(shape[0])
    return skipped, [shape[1], height, width]


def _factor(larger: list[int], smaller: list[int]) -> int:
    """The whole number from 2 to LARGEST_KERNEL by which both sides differ, or 1 where there is none."""
    factor = larger[0] // smaller[0]
    fits = larger == [factor * s for s in smaller]
    return factor if fits and 1 < factor <= LARGEST_KERNEL else 1
