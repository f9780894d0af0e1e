"""Vectors that lie in few directions, in one floating number for each of them: logits that a short vector makes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from softcache.codecs._basis_fit import MOST_VECTORS, spectrum_of
from softcache.errors import UsageError

_OWNER = "codec 'factored'"
_DTYPES = {16: torch.float16, 32: torch.float32}
_UNIT = {16: 2.0**-11, 32: 2.0**-20}  # relative error that half and single precision leave, with a step of arithmetic


@dataclass(frozen=True)
class Factored:
    """``rank`` numbers for each vector (the last axis of a sample): its coefficients in so many principal directions,
    each in ``bits``, 16 or 32. Mean and directions are fitted on 4,096 keys drawn over all rows and views.

    Logits that a linear layer makes of a shorter vector lie in as many directions as that has numbers. These are found
    in the logits themselves, so that they come back as they were up to the rounding of the coefficients, and the
    layer's weights needn't be known. In 16 bits, an error is at most 2⁻¹¹ of each coefficient times its direction, and
    what arithmetic in single precision leaves.

    ``rank``: where nobody says, the smallest with which vectors that weren't fitted to have a relative error of 2⁻¹¹
    (of 32 bits 2⁻²⁰), the rounding of coefficients included.

    >>> short = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.0, -3.0], [2.5, 1.0]])
    >>> logits = short @ torch.tensor([[1.0, 0.0, 2.0, -1.0, 3.0], [0.0, 1.0, -1.0, 1.0, 0.5]])
    >>> codec = Factored(bits=32).sized(logits)
    >>> coder = codec.fitted(codec.fit(logits))
    >>> codec.rank, bool((coder.decode(coder.encode(logits)) - logits).abs().max() < 1e-5)
    (2, True)
    """

    joint: ClassVar[bool] = True  # the numbers of a vector are coded together

    rank: int | None = None
    bits: int = 16

    def __post_init__(self) -> None:
        if self.bits not in _DTYPES:
            raise UsageError(f"{_OWNER}: bits={self.bits}: coefficients have 16 or 32")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"{_OWNER}: rank={self.rank} must be at least 1")

    @property
    def open_size(self) -> bool:
        """Whether values are to decide the rank."""
        return self.rank is None

    def sized(self, values: torch.Tensor) -> Factored:
        """With the rank that values (K, …) on the CPU have, where it is open.

        Errors: ``UsageError`` where so many coefficients would take as much as the vector itself.
        """
        if self.rank is not None:
            return self
        numbers = _length(tuple(values.shape[1:]))
        rank = _rank_of(values.reshape(-1, numbers), _UNIT[self.bits])
        if rank is None or rank >= numbers:
            raise UsageError(
                f"{_OWNER}: vectors of {numbers:,} numbers have no fewer directions (or fewer keys than those are "
                f"known): use basis, or {'fp16' if self.bits == 16 else 'fp32'}, which keeps them in as many bytes"
            )
        return dataclasses.replace(self, rank=rank)

    def arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype on disk and shape of one sample, for values of this shape a sample; of one whose rank is still
        open the largest."""
        return {"coefficients": (f"<f{self.bits // 8}", (*shape[:-1], self._rank(_length(shape))))}

    def constants(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype and shape of what ``fit`` finds."""
        numbers = _length(shape)
        return {"mean": ("<f4", (numbers,)), "directions": ("<f4", (self._rank(numbers), numbers))}

    def fit(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (K, …) on the CPU → the constants; each direction is as long as the standard deviation of its
        coefficient. Directions that fewer vectors than ``rank`` don't have are zeros."""
        numbers = _length(tuple(values.shape[1:]))
        found = spectrum_of(values.reshape(-1, numbers), self._rank(numbers))
        directions = torch.zeros(self._rank(numbers), numbers)
        directions[: len(found.axes)] = (found.axes * found.variances[:, None].sqrt()).float()
        return {"mean": found.mean.float(), "directions": directions}

    def fitted(self, constants: dict[str, torch.Tensor]) -> _Fitted:
        """The codec with these constants."""
        return _Fitted(self.bits, constants["mean"], constants["directions"])

    def _rank(self, numbers: int) -> int:
        return min(self.rank or numbers, numbers)


@dataclass
class _Fitted:
    """``mean``: (N,) and ``directions``: (R, N), float32, at right angles to each other."""

    bits: int
    mean: torch.Tensor
    directions: torch.Tensor
    _placed: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (B, …, N) on any device → coefficients (B, …, R). What isn't finite stays so."""
        mean, _, inverse = self._on(values.device)
        with torch.autocast(values.device.type, enabled=False):
            coefficients = (values.float() - mean) @ inverse
        return {"coefficients": coefficients.to(_DTYPES[self.bits])}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """Coefficients (B, …, R) → values (B, …, N) float32."""
        coefficients = arrays["coefficients"]
        mean, directions, _ = self._on(coefficients.device)
        with torch.autocast(coefficients.device.type, enabled=False):
            return mean + coefficients.float() @ directions

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean, directions and what gives coefficients (N, R): directions over the squares of their lengths."""
        if device not in self._placed:
            squares = self.directions.double().square().sum(1, keepdim=True)
            inverse = torch.where(squares > 0, self.directions.double() / squares.clamp_min(1e-300), 0.0)
            largest = torch.finfo(torch.float32).max  # where a direction is shorter than float32 can say
            parts = self.mean, self.directions, inverse.T.clamp(-largest, largest).float().contiguous()
            self._placed[device] = (parts[0].to(device), parts[1].to(device), parts[2].to(device))
        return self._placed[device]


def _rank_of(vectors: torch.Tensor, unit: float) -> int | None:
    """The smallest number of directions, fitted to three of four vectors (K, N), with which the others have a relative
    error of at most ``unit`` together; None where that can't be said."""
    vectors = vectors[:: -(-len(vectors) // MOST_VECTORS)]
    held_out = torch.arange(len(vectors)) % 4 == 3
    judged = vectors[held_out] if len(vectors) > 3 else vectors
    found = spectrum_of(vectors[~held_out] if len(vectors) > 3 else vectors, vectors.shape[1])
    centred = judged.double() - found.mean
    squares = (centred @ found.axes.T).square() * (found.variances > 0)
    # What is left out, and what rounding leaves of a coefficient: the unit is the most, its mean square a third of it.
    left = (centred.square().sum() - squares.sum(0).cumsum(0)).clamp_min(0) + squares.sum(0).cumsum(0) * unit**2 / 3
    enough = (left <= unit**2 * judged.double().square().sum()).nonzero().flatten()
    return int(enough[0]) + 1 if len(enough) else None


def _length(shape: tuple[int, ...]) -> int:
    """Of a vector: the last axis of a sample."""
    if not shape:
        raise UsageError(f"{_OWNER}: single numbers have no directions: use fp16 or fp32")
    return shape[-1]
