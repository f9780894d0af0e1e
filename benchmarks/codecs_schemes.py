"""The codecs and schemes of ``benchmarks.codecs``, softcache's and those of others, by their names in tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.codecs_measure import Codec, Kept, PeerCodec
from benchmarks.codecs_peers import BUDGET, RECOMMENDED, FlatTail, Peer, Sampled

# Families, as charts and tables group them.
FLOATS, BITS, TOPK, BASIS = "a number each", "int", "topk", "basis"
FLAT, POLYNOMIAL, SAMPLED = "top-k, flat tail", "polynomial", "sampled"
OURS = (FLOATS, BITS, TOPK, BASIS)


@dataclass(frozen=True)
class Scheme:
    """``codec``: a spec of softcache, or a scheme of others."""

    name: str
    family: str
    codec: str | Peer

    @property
    def ours(self) -> bool:
        return self.family in OURS

    def kept(self, kind: str, fitted_on: torch.Tensor) -> Kept:
        """What encodes and decodes values of this kind; ``fitted_on``: (K, …) float32."""
        if isinstance(self.codec, str):
            return Codec.of(self.codec, kind, fitted_on)
        return PeerCodec(self.codec, fitted_on.shape[1])


def for_classes(classes: int) -> list[Scheme]:
    """Those for logits of so many classes. Of ``basis`` the sizes whose error is promised, 2/5 and 1/5 of a byte for
    each class of few and 1/4 and 1/12 of many, and some beside them."""
    found = [Scheme(name, FLOATS, name) for name in ("fp32", "fp16", "bf16", "int8")]
    found += [_codec(f"int:bits={bits}", BITS) for bits in (8, 6, 5, 4)]
    found += [_codec(f"topk:k={k}", TOPK) for k in _tops(classes) if k > 5]
    sizes = (60, 45, 30, 22, 15) if classes <= 100 else (400, 225, 120, 80, 50)
    found += [_codec(f"basis:bytes={size}", BASIS) for size in sizes]
    found += [Scheme(f"top-{k}, flat tail (TinyViT)", FLAT, FlatTail(k)) for k in _tops(classes) if k > 5]
    found += [Scheme(f"top-{k}, flat tail (FKD)", FLAT, FlatTail(k, wide=True)) for k in (5, 10) if k < classes]
    found += [Scheme("polynomial (DistillKit)", POLYNOMIAL, RECOMMENDED)]
    if classes > BUDGET.k:
        found += [Scheme("polynomial, budget (DistillKit)", POLYNOMIAL, BUDGET)]
    found += [Scheme(f"{count} samples (RS-KD)", SAMPLED, Sampled(count)) for count in (12, 50)]
    return found


def for_values(numbers: int) -> list[Scheme]:
    """Those for embeddings of so many numbers."""
    found = [Scheme(name, FLOATS, name) for name in ("fp32", "fp16", "bf16", "int8")]
    found += [_codec(f"int:bits={bits}", BITS) for bits in (8, 6, 5, 4)]
    sizes = sorted({max(1, round(numbers * share)) for share in (1 / 2, 1 / 4, 1 / 8)}, reverse=True)
    return [*found, *(_codec(f"basis:bytes={size}", BASIS) for size in sizes)]


def _codec(spec: str, family: str) -> Scheme:
    return Scheme(spec, family, spec)


def _tops(classes: int) -> list[int]:
    return [k for k in (5, 10, 20, 50, 100) if k < classes]
