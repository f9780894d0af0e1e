"""Which shards have to be there at the same time while blocks of rows are read in some order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softcache.cache.remote import Remote


def grouped(shards: np.ndarray) -> list[tuple[int, list[int]]]:
    """``shards``: (V,), that of each visit. Two shards share a group where one is visited again after the other was
    first; so all of a group may go after its last visit.

    Result: for each group, in order, its first visit and its shards in the order of their first visits.
    """
    if not len(shards):
        return []
    numbers, first = np.unique(shards, return_index=True)
    last = len(shards) - 1 - np.unique(shards[::-1], return_index=True)[1]
    order = np.argsort(first)
    numbers, first, last = numbers[order], first[order], last[order]
    ends = np.maximum.accumulate(last)
    begins = np.concatenate([[True], first[1:] > ends[:-1]])
    starts = np.flatnonzero(begins)
    return [(int(first[s]), part.tolist()) for s, part in zip(starts, np.split(numbers, starts[1:]), strict=True)]


@dataclass(eq=False)
class Groups:
    """Holds the shards of one group after the other, and has those of the next fetched meanwhile.

    ``visits``: the first visit of each group; ``files``: the names of its shards.
    """

    remote: Remote
    visits: Sequence[int]
    files: Sequence[list[str]]
    _now: int = -1
    _held: bool = False

    def visit(self, number: int) -> None:
        """Waits for the shards of a visit; visits come in order."""
        if self._now + 1 < len(self.visits) and number >= self.visits[self._now + 1]:
            if self._held:
                self.remote.done(self.files[self._now])
                self._held = False
            self._now += 1
            self.remote.need(self.files[self._now])
            self._held = True
            self.remote.soon(self, self.files[self._now + 1] if self._now + 1 < len(self.files) else [])

    def end(self) -> None:
        """Nothing of the present group is needed any more, and nothing more is fetched."""
        self.remote.soon(self, [])
        if self._held:
            self.remote.done(self.files[self._now])
            self._held = False
