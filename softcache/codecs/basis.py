"""Vectors in few bytes: coefficients of principal directions in few bits each, and the largest numbers themselves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from softcache.codecs._basis_coding import Coding
from softcache.codecs._basis_fit import constant_arrays, spectrum_of
from softcache.codecs._basis_layout import WIDEST, Layout, layout_of
from softcache.codecs._basis_size import divergence, error, smallest
from softcache.errors import UsageError

Arrays = dict[str, tuple[str, tuple[int, ...]]]
_OWNER = "codec 'basis'"
# Of logits, where nobody says. The bits of a second or third one take away more from all the others, at T = 2 and 4 on
# every network that was measured.
LEADERS = 1


@dataclass(frozen=True)
class Basis:
    """``bytes`` for each vector: its coefficients in at most ``rank`` principal directions, each in the bits that its
    variance is worth, and, of logits, its ``top`` largest numbers in half precision. What is fitted (mean, directions,
    bits, levels) is fitted on 4,096 keys drawn over all rows and views.

    A sample's vectors lie along its axis ``axis``, from 0 on: by default the last one, of maps of values (three axes)
    the first one, so that each position has the vector of its channels.

    Levels of a row of logits are chosen by what they make of its softmax, at T = 4 more than at T = 1. With ``top=0``,
    as for embeddings, they are chosen for the smallest squared error.

    ``bits``: in place of ``bytes``, how many a direction has on average, of ``rank`` directions. ``max_kl``: in place
    of both, the mean divergence that softmax answers may have at T = 1, ``max_error`` the mean relative error that
    samples of values may have: the smallest size is taken that holds it on keys that were not fitted on. What isn't
    given is chosen by the kind of the column and the length of the vectors.

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
    max_error: float | None = None
    axis: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("bytes", 1), ("rank", 1), ("bits", 0), ("top", 0), ("max_kl", 0), ("max_error", 0)):
            value = getattr(self, name)
            if value is not None and not (least <= value < float("inf") and (least or value or name == "top")):
                raise UsageError(f"{_OWNER}: {name}={value} must be {f'at least {least}' if least else 'more than 0'}")
        if self.axis is not None and self.axis < 0:
            raise UsageError(f"{_OWNER}: axis={self.axis}: the axes of a sample are counted from 0 on")
        if self.bits is not None and self.rank is None:
            raise UsageError(f"{_OWNER}: bits={self.bits:g} are those of a direction: say rank=… too")
        if self.bits is not None and self.bytes is not None:
            raise UsageError(f"{_OWNER}: bytes={self.bytes} and bits={self.bits:g} both say the size: leave one out")

    def settled(self, kind: str, shape: tuple[int, ...]) -> Basis:
        """With ``top``, ``axis`` and a size chosen, where they are open, for a column of this kind and shape.

        Errors: ``UsageError`` where options are for columns of another kind, and as ``arrays``.
        """
        options = {"classes": ("max_error",), "binary": ("top", "max_kl", "max_error"), "values": ("top", "max_kl")}
        for name in options[kind]:
            if getattr(self, name):
                kinds = "values" if name == "max_error" else "classes"
                what = f"{name}={getattr(self, name):g}"
                raise UsageError(f"{_OWNER}: {what} is for columns of {kinds}, this one is of {kind}: leave it out")
        codec = self
        if kind != "classes":
            codec = dataclasses.replace(codec, top=0)
        if kind == "values" and len(shape) == 3 and self.axis is None:
            codec = dataclasses.replace(codec, axis=0)
        return codec if codec.open_size else codec._with_size(codec._length(shape))

    def sized(self, values: torch.Tensor) -> Basis:
        """With the size that values (K, …) on the CPU decide, where it is open.

        Errors: ``UsageError`` where ``max_kl`` or ``max_error`` can't be held.
        """
        if not self.open_size:
            return self
        numbers = self._length(tuple(values.shape[1:]))
        leaders = LEADERS if self.top is None else self.top
        most, least = self._layout(numbers).bytes, _bytes_of(numbers, leaders) + 1
        name, bound, lost = (
            ("max_kl", self.max_kl, divergence) if self.max_kl is not None else ("max_error", self.max_error, error)
        )
        vectors = self._vectors(values)
        size = smallest(
            vectors.reshape(len(values), -1, numbers),
            lambda said, kept: lost(said, kept) <= (bound or 0),
            lambda size: self._layout(numbers, size),
            least,
            most,
        )
        if size is None:
            raise UsageError(f"{_OWNER}: not even {most} bytes lose at most {name}={bound:g}: use fp16")
        return dataclasses.replace(self, bytes=size)._with_size(numbers)

    def arrays(self, shape: tuple[int, ...]) -> Arrays:
        """Name → dtype on disk and shape of one sample, for values of this shape a sample; of one whose size is still
        open the largest. Errors: ``UsageError`` where the leaders don't fit."""
        length, axis = self._length(shape), self._axis(len(shape))
        return {"packed": ("|u1", (*shape[:axis], *shape[axis + 1 :], self._layout(length).bytes))}

    def constants(self, shape: tuple[int, ...]) -> Arrays:
        """Name → dtype and shape of what ``fit`` finds."""
        return constant_arrays(self._layout(self._length(shape)))

    def fit(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (K, …) on the CPU → the constants."""
        layout = self._layout(self._length(tuple(values.shape[1:])))
        return spectrum_of(self._vectors(values).reshape(-1, layout.numbers), layout.rank).constants(layout)

    def fitted(self, constants: dict[str, torch.Tensor]) -> _Fitted:
        """The codec with these constants."""
        return _Fitted(Coding(self._layout(len(constants["mean"])), constants), self.axis)

    @property
    def open_size(self) -> bool:
        """Whether values are to decide the size."""
        bounded = self.max_kl is not None or self.max_error is not None
        return bounded and self.bytes is None and self.bits is None

    def _axis(self, axes: int) -> int:
        """Of a sample with so many axes, the one along which its vectors lie."""
        if not axes:
            raise UsageError(f"{_OWNER}: single numbers have no directions: use fp16 or fp32")
        if self.axis is not None and self.axis >= axes:
            raise UsageError(f"{_OWNER}: axis={self.axis}: a sample has {axes}, counted from 0 on")
        return axes - 1 if self.axis is None else self.axis

    def _length(self, shape: tuple[int, ...]) -> int:
        """Of a vector."""
        return shape[self._axis(len(shape))]

    def _vectors(self, values: torch.Tensor) -> torch.Tensor:
        """Values (K, …) with the axis of vectors last."""
        return values.movedim(1 + self._axis(values.ndim - 1), -1)

    def _with_size(self, numbers: int) -> Basis:
        """What was given stays as it is, so that it is recognized when it is asked for again."""
        layout = self._layout(numbers)
        size = layout.bytes if self.bytes is None and self.bits is None else self.bytes
        return dataclasses.replace(self, bytes=size, top=layout.top if self.top is None else self.top)

    def _layout(self, numbers: int, size: int | None = None) -> Layout:
        """``size``: in bytes, in place of what the options say; fewer where that is more than can be used."""
        if self.bits is not None and self.rank is not None:
            coded = -(-round(self.bits * min(self.rank, numbers)) // 8)
            top = LEADERS if self.top is None else self.top
            size = max(1, _bytes_of(numbers, top) + coded)
        else:
            size = size or self.bytes or (_largest(numbers, self.top) if self.open_size else 25 + numbers // 5)
            top = LEADERS if self.top is None else self.top
        layout = layout_of(numbers, top, size, self.rank)
        if layout.bytes > size:
            raise UsageError(
                f"{_OWNER}: {layout.top} of {numbers:,} numbers take {layout.bytes} bytes, more than bytes={size}: ask "
                "for more bytes or a smaller top"
            )
        return layout


def _largest(numbers: int, leaders: int | None) -> int:
    """Bytes in which every coefficient has the most bits."""
    return _bytes_of(numbers, LEADERS if leaders is None else leaders) + numbers * WIDEST // 8 + 4


def _bytes_of(numbers: int, leaders: int) -> int:
    """Of so many leaders of a vector."""
    return -(-layout_of(numbers, leaders, 0).leader_bits // 8)


@dataclass(frozen=True)
class _Fitted:
    """``axis``: of a sample, along which its vectors lie, None for the last."""

    coding: Coding
    axis: int | None

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (B, …) on any device → bytes (B, …, n), without the axis of vectors. What isn't finite is refused
        before it is kept."""
        vectors = values.float() if self.axis is None else values.float().movedim(1 + self.axis, -1)
        packed = self.coding.encode(vectors.reshape(-1, self.coding.layout.numbers))
        return {"packed": packed.reshape(*vectors.shape[:-1], self.coding.layout.bytes)}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """Bytes (B, …, n) → values (B, …) float32."""
        packed = arrays["packed"]
        vectors = self.coding.decode(packed.reshape(-1, self.coding.layout.bytes))
        vectors = vectors.reshape(*packed.shape[:-1], self.coding.layout.numbers)
        return vectors if self.axis is None else vectors.movedim(-1, 1 + self.axis).contiguous()
