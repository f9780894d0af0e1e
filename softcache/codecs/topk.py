"""The largest logits of each vector and which classes they are of, and how much all others weigh together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch

from softcache.codecs._bits import MOST, Bits
from softcache.errors import UsageError
from softcache.losses._target import Leaders

_LARGEST = 0xFEFF  # the bits of the largest number that ``_short`` has


@dataclass(frozen=True)
class TopK:
    """The ``k`` largest logits, the leaders, and of all others, the tail, one number for T = 1, 2 and 4 each: the logit
    that would give them, if they all had it, the probability that they have together in the softmax at this T. So
    how much the tail weighs is known, and how it is spread over its classes is not.

    The largest logit is exact; another leader z has an error of at most 2⁻⁹ · (largest - z) + 2⁻¹³⁵ and a rounding of
    float32, if it is not more than 3.38e38 below. The tail's probability is exact at T = 1 but for the rounding of its
    logit to float32; at T = 2 and 4 by the factor exp(±2⁻⁹ · fall / T), where a fall is the difference of two such
    logits. Of equal logits those of lower classes lead.

    ``decode`` gives logits for T = 1. ``target`` gives what a loss needs for logits at its own T.

    >>> codec = TopK(k=2).shaped((4,))
    >>> logits = torch.tensor([[8.0, 2.0, 4.0, 2.0]]).log()
    >>> codec.decode(codec.encode(logits)).softmax(1)
    tensor([[0.5000, 0.1250, 0.2500, 0.1250]])
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"classes"})  # of columns that it can keep

    k: int = 20

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"codec 'topk': k={self.k} logits are kept of each vector: it must be at least 1")

    def arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype on disk and shape of one sample, for logits of this shape a sample.

        Errors: ``UsageError`` where there would be no tail.
        """
        *axes, classes = shape
        if self.k >= classes:
            raise UsageError(
                f"codec 'topk:k={self.k}' would keep all logits of {classes} classes: take a smaller k, or int:bits=8, "
                "which keeps all of them in a byte each"
            )
        found = {
            "top": ("<f4", (*axes,)),
            "below": ("<u2", (*axes, self.k - 1)),
            "which": ("|u1", (*axes, _packing(self.k, classes).bytes)),
            "tail": ("<f4", (*axes,)),
            "falls": ("<u2", (*axes, 2)),
        }
        return {name: array for name, array in found.items() if name != "below" or self.k > 1}

    def shaped(self, shape: tuple[int, ...]) -> _Shaped:
        """The codec for logits of this shape a sample."""
        return _Shaped(self.k, shape)


@dataclass(frozen=True)
class _Shaped:
    k: int
    shape: tuple[int, ...]

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (B, …, C) on any device → arrays with one row for each sample. What isn't finite is refused before it
        is kept."""
        axes, classes = values.shape[:-1], self.shape[-1]
        logits = values.float().reshape(-1, classes)
        # Sorted, and not torch.topk: which of equal logits it takes depends on the device.
        ordered, order = logits.sort(dim=1, descending=True, stable=True)
        leading, top = ordered[:, : self.k], ordered[:, :1]
        below = _short(top - leading[:, 1:])
        found = {
            "top": top[:, 0],
            "below": below.to(torch.int16),
            "which": self._packing.pack(_split(order[:, : self.k], classes)),
            **self._tail(leading, torch.cat([top, top - _wide(below)], 1), ordered[:, self.k :]),
        }
        if self.k == 1:
            del found["below"]
        return {name: array.reshape(*axes, *array.shape[1:]) for name, array in found.items()}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """Arrays with one row for each sample → logits (B, …, C) float32 for T = 1."""
        return self.target(arrays).at(1.0)

    def target(self, arrays: dict[str, torch.Tensor]) -> Leaders:
        """Arrays with one row for each sample → what a loss needs, with which it is given logits for its T."""
        top, classes = arrays["top"], self.shape[-1]
        leading = top.reshape(-1, 1)
        if self.k > 1:
            below = leading - _wide(arrays["below"].view(torch.int16).reshape(-1, self.k - 1))
            leading = torch.cat([leading, below.clamp(min=torch.finfo(torch.float32).min)], 1)
        packed = arrays["which"]
        which = _whole(self._packing.unpack(packed.reshape(-1, packed.shape[-1])), classes)
        logits = leading.new_full((len(leading), classes), -torch.inf).scatter_(1, which, leading)
        falls = _wide(arrays["falls"].view(torch.int16))
        return Leaders(logits.reshape(*top.shape, classes), arrays["tail"], falls)

    def bound(self, values: torch.Tensor) -> torch.Tensor:
        """(B, …, C): what each of logits (B, …, C) may lose, whichever way leaders are rounded, with which the tail
        goes."""
        leading = values.float().topk(self.k, -1)[0]
        lost = (self.decode(self.encode(values)) - values.float()).abs()
        return lost + (leading[..., :1] - leading[..., -1:]) / 2**8

    def _tail(self, leading: torch.Tensor, kept: torch.Tensor, tail: torch.Tensor) -> dict[str, torch.Tensor]:
        """``leading``: (B, k) leaders; ``kept``: as they will be decoded; ``tail``: (B, C - k)."""
        if tail.device.type != "mps":  # which has no float64
            leading, kept, tail = leading.double(), kept.double(), tail.double()
        flat = []
        for T in (1, 2, 4):
            mean = _log_mean(tail, T)
            # Leaders that were rounded up or down take the tail with them, so that its probability stays the same.
            flat.append(mean + (_log_mean(kept, T) - _log_mean(leading, T)))
        largest = torch.finfo(torch.float32).max
        first = flat[0].clamp(-largest, largest).float()
        falls = [_short((first.to(flat[1].dtype) - flat[1]).clamp(0, largest).float())]
        second = first.to(flat[1].dtype) - _wide(falls[0]).to(flat[1].dtype)
        falls.append(_short((second - flat[2]).clamp(0, largest).float()))
        return {"tail": first, "falls": torch.stack(falls, 1).to(torch.int16)}

    @property
    def _packing(self) -> Bits:
        return _packing(self.k, self.shape[-1])


def _log_mean(logits: torch.Tensor, T: float) -> torch.Tensor:
    """(B, N) → (B,): the one logit with which N classes have as much weight at this temperature."""
    largest = logits.amax(1, keepdim=True)
    return largest[:, 0] + T * ((logits - largest) / T).exp().mean(1).log()


@functools.cache
def _packing(k: int, classes: int) -> Bits:
    """Of ``k`` numbers of classes: what is too wide for one number of ``Bits`` is two, the lower bits first."""
    bits = _bits(classes)
    return Bits([bits] * k if bits <= MOST else [MOST, bits - MOST] * k)


def _bits(classes: int) -> int:
    return (classes - 1).bit_length()


def _split(which: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, k) numbers of classes → as ``_packing`` has them."""
    if _bits(classes) <= MOST:
        return which
    return torch.stack([which & (2**MOST - 1), which >> MOST], 2).flatten(1)


def _whole(parts: torch.Tensor, classes: int) -> torch.Tensor:
    """The other way, (B, k) int64; what no class has, in a damaged shard, becomes the last class."""
    found = parts.to(torch.int64)
    if _bits(classes) > MOST:
        found = found[:, ::2] | found[:, 1::2] << MOST
    return found.clamp(max=classes - 1)


def _short(numbers: torch.Tensor) -> torch.Tensor:
    """float32 of at least 0 → int32 in 0 … 0xFEFF: the upper bits without the sign, rounded: 8 of exponent, 8 of what
    follows the leading digit. What isn't finite is refused before it is kept."""
    bits = numbers.nan_to_num(0).contiguous().view(torch.int32)
    return ((bits + 0x4000) >> 15).clamp(0, _LARGEST)


def _wide(numbers: torch.Tensor) -> torch.Tensor:
    """The other way: whole numbers of 16 bits → float32."""
    return ((numbers.to(torch.int32) & 0xFFFF) << 15).view(torch.float32)
