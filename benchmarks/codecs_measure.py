"""What is lost between what a teacher said and what comes back, and how fast it goes in and out."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.codecs_peers import Peer
from softcache.cache.column import Column
from softcache.codecs._open import open_codec, settled_codec, sized_codec
from softcache.losses._target import Target, at_temperature

TEMPERATURES = (1, 2, 4, 8)
BATCH = 128  # rows that are encoded and decoded together where that is timed
LEAST_S = 0.02  # that a timed repetition lasts
PIECE = 512  # rows that are compared together


@dataclass(frozen=True)
class Codec:
    """A codec of softcache, as a column of a cache has it."""

    column: Column
    constant_bytes: int  # once for each cache

    @classmethod
    def of(cls, spec: str, kind: str, fitted_on: torch.Tensor) -> Codec:
        """``fitted_on``: (K, …) float32, what it is fitted to if it has constants."""
        shape = tuple(fitted_on.shape[1:])
        codec = open_codec(sized_codec(settled_codec(spec, kind, shape), fitted_on))
        column = Column("column", kind, shape, codec, 1)
        if not column.has_constants:
            return cls(column, 0)
        fitted = column.fit(fitted_on)
        constants = {name: torch.from_numpy(array) for name, array in fitted.items()}
        size = sum(array.nbytes for array in fitted.values())
        return cls(Column("column", kind, shape, codec, 1, constants=lambda: constants), size)

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.column.encode(values)

    def target(self, arrays: Mapping[str, torch.Tensor]) -> Target:
        """What a loss is given."""
        return self.column.target(arrays)

    def nbytes(self, arrays: Mapping[str, torch.Tensor]) -> float:
        """Bytes of a key, without the digest that every column has."""
        return sum(array.nbytes / len(array) for array in arrays.values())


@dataclass(frozen=True)
class PeerCodec:
    """A scheme of others, for logits of so many ``classes``."""

    peer: Peer
    classes: int
    constant_bytes: int = 0

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.peer.encode(values)

    def target(self, arrays: Mapping[str, torch.Tensor]) -> Target:
        """Logarithms of probabilities at T = 1, which a loss divides by its T."""
        return self.peer.decode(dict(arrays), self.classes)

    def nbytes(self, arrays: Mapping[str, torch.Tensor]) -> float:
        return self.peer.nbytes(dict(arrays), self.classes)


Kept = Codec | PeerCodec


Coded = Sequence[tuple[torch.Tensor, dict[str, torch.Tensor]]]


def coded(kept: Kept, values: torch.Tensor) -> Coded:
    """Values (N, …) float32 in pieces, each with what is kept of it."""
    return [(some, kept.encode(some)) for some in values.split(PIECE)]


def nbytes(kept: Kept, pieces: Coded) -> float:
    """Of a key, a mean where keys differ."""
    return sum(kept.nbytes(arrays) * len(some) for some, arrays in pieces) / sum(len(some) for some, _ in pieces)


def error_of_classes(kept: Kept, pieces: Coded) -> dict[str, float]:
    """Of logits (N, C). Mean and 99th percentile of KL(teacher‖decoded) in nats at each temperature, in
    float64; the mean of KL(decoded‖teacher) (``reverse``); the share of keys whose largest class stays the same."""
    parts: dict[str, list[torch.Tensor]] = {}
    for some, arrays in pieces:
        target, teacher = kept.target(arrays), some.double()
        for T in TEMPERATURES:
            p = F.log_softmax(teacher / T, 1)
            q = F.log_softmax(at_temperature(target, T).double() / T, 1)
            parts.setdefault(f"kl_T{T}", []).append(divergence(p, q))
            parts.setdefault(f"reverse_T{T}", []).append(divergence(q, p))
        same = at_temperature(target, 1).argmax(1) == teacher.argmax(1)
        parts.setdefault("agreement", []).append(same.double())
    found = {}
    for name, values in parts.items():
        measured = torch.cat(values)
        found[name] = float(measured.mean())
        if name.startswith("kl"):
            found[f"{name}_p99"] = float(measured.quantile(0.99))
    return found


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p‖q) of each row, of logarithms of probabilities (B, C); infinite where q has none and p has some."""
    return torch.where(p == -math.inf, 0.0, p.exp() * (p - q)).sum(1).clamp_min(0)


def error_of_values(kept: Kept, pieces: Coded) -> dict[str, float]:
    """Of vectors (N, D). The mean cosine of what comes back with what was kept, and mean and 99th percentile
    of the relative error, in float64."""
    decoded = torch.cat([at_temperature(kept.target(arrays), 1) for _, arrays in pieces]).double()
    values = torch.cat([some for some, _ in pieces]).double()
    relative = (decoded - values).norm(dim=1) / values.norm(dim=1)
    return {
        "cosine": float(F.cosine_similarity(values, decoded, dim=1).mean()),
        "relative": float(relative.mean()),
        "relative_p99": float(relative.quantile(0.99)),
    }


def rates(kept: Kept, values: torch.Tensor, repetitions: int) -> dict[str, list[float]]:
    """Rows into and out of what is kept in a second of the processor, as median, lowest and highest of the repetitions.
    Each takes another batch; a first one isn't counted. What comes out is what a loss at T = 1 is given.

    On one thread this is the time of the clock where nothing else runs, and it is the same where others do."""
    batches = [batch for batch in values.split(BATCH) if len(batch) == BATCH] or [values]
    held = [kept.encode(batch) for batch in batches]
    rows = len(batches[0])

    def out(arrays: dict[str, torch.Tensor]) -> object:
        return at_temperature(kept.target(arrays), 1.0)

    return {
        "encode": _rate(kept.encode, batches, rows, repetitions),
        "decode": _rate(out, held, rows, repetitions),
    }


def _rate(run: Callable[[Any], object], batches: Sequence[Any], rows: int, repetitions: int) -> list[float]:
    found = []
    for repetition in range(repetitions + 1):
        calls, began = 0, time.process_time()
        while calls == 0 or time.process_time() - began < LEAST_S:
            run(batches[(repetition + calls) % len(batches)])
            calls += 1
        found.append(rows * calls / (time.process_time() - began))
    del found[0]
    return [statistics.median(found), min(found), max(found)]


def described(logits: torch.Tensor) -> dict[str, float]:
    """What a set of logits (N, C) is like: mean entropy in nats at T = 1, and how many principal directions have all
    but a millionth of the variance."""
    logits = logits.double()
    p = logits.log_softmax(1)
    variances = torch.linalg.eigvalsh(torch.cov(logits.T)).flip(0).clamp_min(0)
    left = 1 - variances.cumsum(0) / variances.sum()
    return {
        "entropy": float(-(p.exp() * p).sum(1).mean()),
        "directions": int((left > 1e-6).sum()) + 1,
    }
