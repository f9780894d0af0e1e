"""By how much two computations of the same values may differ: the one rule of this package.

A teacher that is run again on the same pixels gives other last bits on another machine, with another library, batch or
number of threads; a codec then rounds both results. Let ``y`` be the values of a key, logits or others, as they are
computed now and ``Q`` what the codec makes of them. The stored values of the key agree with ``y`` if none is further
from it than

    max |Q(y) - y|  +  4 · t · max |y|

where ``t`` is the relative error of the arithmetic, ``RELATIVE_ERROR``. The first term is the codec's error on these
very values. For a codec that rounds to the nearest of fixed values, a difference of δ in its input moves
``|Q(x) - y|`` by at most 2δ. Where levels depend on the row, as in ``int`` and ``topk``, they may come to lie
elsewhere: the first term is then what the codec may lose of ``y`` at most. A codec that codes the numbers of a key
together may round all of them in another way where one has another last bit, and what it then makes of them is about
as far from ``y`` as ``Q(y)`` is: of such a codec the first term counts ``JOINT`` times. Measure and bound are taken key
by key, so one wrong key is not hidden by many right ones.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from softcache.cache.reader import Cache
from softcache.codecs._open import rounds_each
from softcache.ragged import padded

# What another batch, device or library version may change, relative to the largest value of the key.
RELATIVE_ERROR = {"float64": 1e-9, "float32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}
JOINT = 2.0
_SMALLEST = 1e-6  # a key whose values are all zero still has rounding


def relative_error(cache: Cache) -> float:
    """``t`` of the arithmetic that the cache's teacher ran in: that of autocast, else of TF32, else of its dtype."""
    numerics = cache.manifest.identity.teacher.numerics
    if numerics.amp in RELATIVE_ERROR:
        return RELATIVE_ERROR[numerics.amp]
    return RELATIVE_ERROR["tf32" if numerics.tf32 else numerics.dtype]


def compare_values(
    cache: Cache, column: str, stored: torch.Tensor, now: torch.Tensor, offset: np.ndarray | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each key's values are from the stored ones, and how far they may be.

    ``stored``: (B, …) as the column's codec decodes them; ``now``: (B, …) as computed now, both on the CPU; of a ragged
    column both (P, …), the places of all keys, which begin at ``offset`` (B + 1,). Result: the largest absolute
    difference and the bound, both (B,) float64. A key agrees where the difference is at most the bound; a value that is
    not a number never agrees.
    """
    layout = cache.layout(column)
    coded, bound = _flat(layout.decode(layout.encode(now.float()))), _flat(layout.bound(now.float()))
    now = _flat(now)
    lost = torch.maximum((coded - now).abs(), bound)
    largest, differs, lost = (_largest(part, offset) for part in (now, _flat(stored) - now, lost))
    lost = lost if rounds_each(layout.codec) else JOINT * lost
    return differs, lost + 4 * relative_error(cache) * largest.clamp_min(_SMALLEST)


def _largest(values: torch.Tensor, offset: np.ndarray | None) -> torch.Tensor:
    """(B,): the largest absolute value of each key, or a NaN of it."""
    found = values.abs().amax(1)
    return found if offset is None else padded(found, offset).amax(1)


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.double().reshape(len(values), math.prod(values.shape[1:]))
