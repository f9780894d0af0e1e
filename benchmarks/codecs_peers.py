"""How others keep what a teacher said of classes, rebuilt from what they publish. None of it is softcache's.

Each scheme keeps probabilities at T = 1 and nothing else. A loss at another temperature gets what a user can make of
them: their power 1/T, scaled to sum 1, which is the softmax of their logarithms over T.

- ``FlatTail``: TinyViT (arXiv 2207.10666, its ``save_logits.py`` and ``main.py``) and FKD (arXiv 2112.01528, its
  ``marginal_smoothing_k5`` and ``_k10``).
- ``Polynomial``: DistillKit (arcee-ai), what its README of commit 43f6e1b calls distribution quantization, with the
  two settings that it recommends; the options are those of ``distillkit/compression/config.py`` of commit 897bd13.
- ``Sampled``: Random Sampling Knowledge Distillation (Sparse Logit Sampling, arXiv 2503.16870), drawn from the
  teacher's own probabilities.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import torch

from softcache.codecs._bits import Bits

Arrays = dict[str, torch.Tensor]
LEAST_MASS = 2.0**-24  # half precision's smallest number: of a tail of which rounding has left nothing
LEAST_PROBABILITY = 1e-8  # DistillKit's, of a class that isn't kept


class Peer(Protocol):
    """A scheme. All of its tensors have one row for each key."""

    def encode(self, logits: torch.Tensor) -> Arrays:
        """Logits (B, C) float32 → what is kept."""

    def decode(self, arrays: Arrays, classes: int) -> torch.Tensor:
        """What is kept → logarithms of probabilities (B, C) float32 at T = 1, -inf where a class has none."""

    def nbytes(self, arrays: Arrays, classes: int) -> float:
        """Bytes of a key, a mean where keys differ."""


@dataclass(frozen=True)
class FlatTail:
    """The ``k`` largest probabilities in half precision, with classes of 16 bits (as TinyViT has them), or ``wide``,
    with both in 32 bits (as FKD has them). The others get equal shares of what is left of 1."""

    k: int
    wide: bool = False

    def encode(self, logits: torch.Tensor) -> Arrays:
        values, which = logits.softmax(1).topk(self.k, 1)
        if self.wide:
            return {"values": values, "which": which.float()}
        return {"values": values.half(), "which": which.to(torch.int16)}

    def decode(self, arrays: Arrays, classes: int) -> torch.Tensor:
        values = arrays["values"].float()
        return _spread(values, arrays["which"].long(), classes)

    def nbytes(self, arrays: Arrays, classes: int) -> float:
        return _nbytes(arrays)


@dataclass(frozen=True)
class Polynomial:
    """The ``k`` largest log probabilities: the first ``exact`` of them in bfloat16, the others as a sum of ``powers``
    of their place 0, 1, 2 … (0.5: its square root), with float32 coefficients of the smallest squared error. Classes
    in as few bits as tell them apart. The classes that aren't kept get equal shares of what is left of 1.

    The smallest error is found in float64, so that it is no larger than with the float32 of the original.
    """

    k: int
    exact: int
    powers: tuple[float, ...]

    def encode(self, logits: torch.Tensor) -> Arrays:
        kept = min(self.k, logits.shape[1])
        values, which = logits.log_softmax(1).topk(kept, 1)
        terms = self._terms(kept - self.exact)
        return {
            "exact": values[:, : self.exact].to(torch.bfloat16),
            "coefficients": (values[:, self.exact :].double() @ torch.linalg.pinv(terms).T).float(),
            "which": self._packing(kept, logits.shape[1]).pack(which),
        }

    def decode(self, arrays: Arrays, classes: int) -> torch.Tensor:
        kept = min(self.k, classes)
        rest = arrays["coefficients"].double() @ self._terms(kept - self.exact).T
        values = torch.cat([arrays["exact"].double(), rest], 1)
        which = self._packing(kept, classes).unpack(arrays["which"]).long()
        if kept == classes:
            return torch.empty(len(values), classes).scatter_(1, which, values.float())
        left = (1 - values.exp().sum(1, keepdim=True)) / (classes - kept)
        found = left.clamp_min(LEAST_PROBABILITY).log().float().repeat(1, classes)
        return found.scatter_(1, which, values.float())

    def nbytes(self, arrays: Arrays, classes: int) -> float:
        return _nbytes(arrays)

    def _terms(self, places: int) -> torch.Tensor:
        """(places, powers)"""
        place = torch.arange(places, dtype=torch.float64).unsqueeze(1)
        return torch.cat([place**power for power in self.powers], 1)

    @staticmethod
    @functools.cache
    def _packing(kept: int, classes: int) -> Bits:
        return Bits([(classes - 1).bit_length()] * kept)


@dataclass(frozen=True)
class Sampled:
    """``samples`` classes drawn with the teacher's probabilities, with replacement. A class gets the share of the
    draws that it has, whose mean over draws is its probability; one that wasn't drawn gets 0.

    A key keeps each of its classes once with how often it was drawn, in as few bits as tell classes and counts apart,
    and a byte that says how many these are.
    """

    samples: int
    seed: int = 0

    def encode(self, logits: torch.Tensor) -> Arrays:
        generator = torch.Generator(logits.device).manual_seed(self.seed)
        drawn = torch.multinomial(logits.softmax(1), self.samples, replacement=True, generator=generator)
        return {"which": drawn.sort(1)[0].to(torch.int32)}

    def decode(self, arrays: Arrays, classes: int) -> torch.Tensor:
        return self._shares(arrays, classes).log()

    def nbytes(self, arrays: Arrays, classes: int) -> float:
        unlike = (self._shares(arrays, classes) > 0).sum(1)
        bits = (classes - 1).bit_length() + self.samples.bit_length()
        return float(((unlike * bits + 7) // 8 + 1).double().mean())

    def _shares(self, arrays: Arrays, classes: int) -> torch.Tensor:
        which = arrays["which"].long()
        return torch.zeros(len(which), classes).scatter_add_(1, which, torch.full(which.shape, 1 / self.samples))


RECOMMENDED = Polynomial(k=128, exact=16, powers=(0, 1, 2, 3, 4, 0.5))
BUDGET = Polynomial(k=50, exact=1, powers=(0, 1, 0.5))


def _spread(values: torch.Tensor, which: torch.Tensor, classes: int) -> torch.Tensor:
    """Logarithms of probabilities ``values`` (B, k) of classes ``which``, and of what is left of 1 for the others."""
    left = (1 - values.sum(1, keepdim=True)).clamp_min(LEAST_MASS) / (classes - values.shape[1])
    return left.repeat(1, classes).scatter_(1, which, values).log()


def _nbytes(arrays: Arrays) -> float:
    return sum(array.nbytes / len(array) for array in arrays.values())
