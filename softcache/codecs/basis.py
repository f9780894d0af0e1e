"""Vectors in few bytes: coefficients of principal directions in few bits each, and the largest numbers themselves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from softcache.codecs._basis_coding import Coding
from softcache.codecs._basis_fit import constant_arrays, spectrum_of
from softcache.codecs._basis_layout import WIDEST, Layout, layout_of
from softcache.codecs._basis_size import smallest
from softcache.errors import UsageError

Arrays = dict[str, tuple[str, tuple[int, ...]]]
_OWNER = "codec 'basis'"


@dataclass(frozen=True)
class Basis:
    """``bytes`` for each vector (the last axis of a sample): its coefficients in at most ``rank`` principal directions,
    each in the bits that its variance is worth, and, of logits, its ``top`` largest numbers in half precision. What is
    fitted (mean, directions, bits, levels) is fitted on 4,096 keys drawn over all rows and views.

    Levels of a row of logits are chosen by what they make of its softmax at T = 1, 2 and 4. With ``top=0``, as for
    embeddings, they are chosen for the smallest squared error.

    ``bits``: in place of ``bytes``, how many a direction has on average, of ``rank`` directions. ``max_kl``: in place
    of both, the mean divergence that softmax answers may have at T = 1: the smallest size is taken that holds it on
    keys that were not fitted on. What isn't given is chosen by the kind of the column and the length of the vectors.

    >>> codec = Basis(bytes=4, top=1)
    >>> values = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.1, 7.0], [5.0, 0.0, 0.2], [3.0, 0.1, 0.0]])
    >>> fitted = codec.fitted(codec.fit(values))
    >>> fitted.decode(fitted.encode(values)).argmax(1).tolist()
    [2, 2, 0, 0]
    """

    joint: ClassVar[bool] = True  # the numbers of a vector are coded together

    bytes: int | None = None
    rank: int | None = None
    bits: float | None = None
    top: int | None = None
    max_kl: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("bytes", 1), ("rank", 1), ("bits", 0), ("top", 0), ("max_kl", 0)):
            value = getattr(self, name)
            if value is not None and not (least <= value < float("inf") and (least or value or name == "top")):
                raise UsageError(f"{_OWNER}: {name}={value} must be {f'at least {least}' if least else 'more than 0'}")
        if self.bits is not None and self.rank is None:
            raise UsageError(f"{_OWNER}: bits={self.bits:g} are those of a direction: say rank=… too")
        if self.bits is not None and self.bytes is not None:
            raise UsageError(f"{_OWNER}: bytes={self.bytes} and bits={self.bits:g} both say the size: leave one out")

    def settled(self, kind: str, shape: tuple[int, ...]) -> Basis:
        """With ``top`` and a size chosen, where they are open, for a column of this kind and shape.

        Errors: ``UsageError`` where options are for classes and the column isn't of classes, and as ``arrays``.
        """
        if kind != "classes":
            if self.top or self.max_kl is not None:
                what = f"top={self.top}" if self.top else f"max_kl={self.max_kl:g}"
                raise UsageError(f"{_OWNER}: {what} is for columns of classes, this one is of {kind}: leave it out")
            return dataclasses.replace(self, top=0)._with_size(_length(shape))
        return self if self._open else self._with_size(_length(shape))

    def sized(self, values: torch.Tensor) -> Basis:
        """With the size that values (K, …) on the CPU decide, where it is open.

        Errors: ``UsageError`` where ``max_kl`` can't be held.
        """
        if not self._open:
            return self
        numbers = _length(tuple(values.shape[1:]))
        most, least = self._layout(numbers).bytes, _bytes_of(numbers, 1 if self.top is None else self.top) + 1
        size = smallest(
            values.reshape(-1, numbers), self.max_kl or 0, lambda size: self._layout(numbers, size), least, most
        )
        if size is None:
            raise UsageError(
                f"{_OWNER}: not even {most} bytes have a divergence of at most max_kl={self.max_kl:g}: use fp16"
            )
        return dataclasses.replace(self, bytes=size)._with_size(numbers)

    def arrays(self, shape: tuple[int, ...]) -> Arrays:
        """Name → dtype on disk and shape of one sample, for values of this shape a sample; of one whose size is still
        open the largest. Errors: ``UsageError`` where the leaders don't fit."""
        return {"packed": ("|u1", (*shape[:-1], self._layout(_length(shape)).bytes))}

    def constants(self, shape: tuple[int, ...]) -> Arrays:
        """Name → dtype and shape of what ``fit`` finds."""
        return constant_arrays(self._layout(_length(shape)))

    def fit(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (K, …) on the CPU → the constants."""
        layout = self._layout(_length(tuple(values.shape[1:])))
        return spectrum_of(values.reshape(-1, layout.numbers), layout.rank).constants(layout)

    def fitted(self, constants: dict[str, torch.Tensor]) -> _Fitted:
        """The codec with these constants."""
        return _Fitted(Coding(self._layout(len(constants["mean"])), constants))

    @property
    def _open(self) -> bool:
        return self.max_kl is not None and self.bytes is None and self.bits is None

    def _with_size(self, numbers: int) -> Basis:
        """What was given stays as it is, so that it is recognized when it is asked for again."""
        layout = self._layout(numbers)
        size = layout.bytes if self.bytes is None and self.bits is None else self.bytes
        return dataclasses.replace(self, bytes=size, top=layout.top if self.top is None else self.top)

    def _layout(self, numbers: int, size: int | None = None) -> Layout:
        """``size``: in bytes, in place of what the options say; fewer where that is more than can be used."""
        if self.bits is not None and self.rank is not None:
            coded = -(-round(self.bits * min(self.rank, numbers)) // 8)
            top = _leaders(numbers, coded) if self.top is None else self.top
            size = max(1, _bytes_of(numbers, top) + coded)
        else:
            size = size or self.bytes or (_largest(numbers, self.top) if self._open else 25 + numbers // 5)
            top = _leaders(numbers, size) if self.top is None else self.top
        layout = layout_of(numbers, top, size, self.rank)
        if layout.bytes > size:
            raise UsageError(
                f"{_OWNER}: {layout.top} of {numbers:,} numbers take {layout.bytes} bytes, more than bytes={size}: ask "
                "for more bytes or a smaller top"
            )
        return layout


def _leaders(numbers: int, size: int) -> int:
    """How many leaders a vector in so many bytes has where nobody says: 3, or so few that they take a quarter of it."""
    return max(1, min(3, 2 * size // (16 + (numbers - 1).bit_length())))


def _largest(numbers: int, leaders: int | None) -> int:
    """Bytes in which every coefficient has the most bits."""
    return _bytes_of(numbers, leaders or 1) + numbers * WIDEST // 8 + 4


def _bytes_of(numbers: int, leaders: int) -> int:
    """Of so many leaders of a vector."""
    return -(-layout_of(numbers, leaders, 0).leader_bits // 8)


def _length(shape: tuple[int, ...]) -> int:
    """Of a vector: the last axis of a sample."""
    if not shape:
        raise UsageError(f"{_OWNER}: single numbers have no directions: use fp16 or fp32")
    return shape[-1]


@dataclass(frozen=True)
class _Fitted:
    coding: Coding

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (B, …) on any device → bytes (B, …, n). What isn't finite is refused before it is kept."""
        packed = self.coding.encode(values.float().reshape(-1, self.coding.layout.numbers))
        return {"packed": packed.reshape(*values.shape[:-1], self.coding.layout.bytes)}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """Bytes (B, …, n) → values (B, …) float32."""
        packed = arrays["packed"]
        vectors = self.coding.decode(packed.reshape(-1, self.coding.layout.bytes))
        return vectors.reshape(*packed.shape[:-1], self.coding.layout.numbers)
