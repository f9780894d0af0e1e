"""Mirroring left to right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from softcache.errors import UsageError
from softcache.views._keys import Keys, chances
from softcache.views._move import Motion, still


@dataclass(frozen=True)
class Flip:
    """Mirrors an image left to right with probability ``p``.

    >>> import numpy as np
    >>> keys = Keys(seed=0, indices=np.arange(3), view=0, position=0)
    >>> Flip(p=1.0).motion(keys, size=8).mirror.tolist()
    [True, True, True]
    """

    p: float = 0.5

    kind: ClassVar[str] = "move"
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UsageError(f"view recipe 'flip': p={self.p:g} is not a probability: give one in 0..1")

    def motion(self, keys: Keys, size: int) -> Motion:
        """Mirrors the keys that are drawn."""
        rest = still(len(keys.indices))
        return Motion(rest.top, rest.left, chances(keys.words(1)[:, 0], self.p))
