"""Coefficients of directions, rounded to levels: from vectors to numbers of levels and back, on one device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from softcache.codecs._basis_levels import begins


@dataclass(frozen=True)
class Quantizer:
    """``mean``: (N,). ``directions``: (R, N), those that have bits. ``widths``: bits of each. ``levels``: the table."""

    mean: torch.Tensor
    directions: torch.Tensor
    widths: tuple[int, ...]
    levels: torch.Tensor
    _first: torch.Tensor  # (R,) where the levels of each direction begin in the table
    _between: dict[int, torch.Tensor]  # by width, the numbers from which on the next level is nearer
    _inverse: torch.Tensor  # (N, R): from vectors without their mean to coefficients, by least squares

    @classmethod
    def of(cls, constants: dict[str, torch.Tensor], device: torch.device) -> Quantizer:
        """``constants``: as ``Spectrum.constants`` gives them."""
        kept = constants["widths"] > 0
        widths = tuple(constants["widths"][kept].tolist())
        directions, levels = constants["directions"][kept], constants["levels"]
        between = {}
        for width in set(widths):
            own = levels[begins(width) : begins(width + 1)]
            between[width] = ((own[1:] + own[:-1]) / 2).to(device)
        wide = directions.double()
        inverse = torch.linalg.lstsq(wide @ wide.T, wide).solution.T if len(wide) else wide.T
        first = torch.tensor([begins(width) for width in widths], dtype=torch.int64)
        return cls(
            constants["mean"].to(device), directions.to(device), widths, levels.to(device), first.to(device), between,
            inverse.float().contiguous().to(device),
        )  # fmt: skip

    def blocks(self, most: int) -> list[tuple[int, int]]:
        """First and end of blocks of at most ``most`` directions, which have the same number of bits in each."""
        found, begin = [], 0
        for k in range(1, len(self.widths) + 1):
            if k == len(self.widths) or self.widths[k] != self.widths[begin] or k - begin == most:
                found.append((begin, k))
                begin = k
        return found

    def coefficients(self, vectors: torch.Tensor) -> torch.Tensor:
        """(B, N) → (B, R), not rounded."""
        return (vectors - self.mean) @ self._inverse

    def nearest(self, coefficients: torch.Tensor) -> torch.Tensor:
        """(B, R) → numbers of the nearest levels, (B, R) int64."""
        numbers = torch.empty_like(coefficients, dtype=torch.int64)
        for begin, end in self.blocks(len(self.widths)):
            numbers[:, begin:end] = self.nearest_of(coefficients[:, begin:end], self.widths[begin])
        return numbers

    def nearest_of(self, coefficients: torch.Tensor, width: int) -> torch.Tensor:
        """The same of directions that have ``width`` bits."""
        return torch.bucketize(coefficients.contiguous(), self._between[width])

    def level_of(self, numbers: torch.Tensor, width: int) -> torch.Tensor:
        """Numbers of levels, of directions that have ``width`` bits → coefficients."""
        return self.levels[begins(width) + numbers]

    def rounded(self, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers of levels (B, R) → coefficients (B, R)."""
        return self.levels[self._first + numbers]

    def vectors(self, rounded: torch.Tensor) -> torch.Tensor:
        """Coefficients (B, R) → (B, N)."""
        return torch.addmm(self.mean, rounded, self.directions)
