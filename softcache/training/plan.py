"""Which keys an epoch trains on, in which order: a pure function of the seed, the epoch and the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from softcache.errors import UsageError

_ORDER_STREAM = 0x6F72646572  # "order": keeps this draw apart from every other that uses the same seed


@dataclass(frozen=True)
class Plan:
    """``rows``: the rows that are drawn from. ``views``: how many recorded views are visited in turn, or ``None``
    for a fresh one every epoch. ``length``: keys an epoch, by default each row once; more or fewer repeats the rows
    in new orders until there are enough (a training on few labelled rows has as many steps as one on all)."""

    rows: np.ndarray
    batch_size: int
    seed: int
    views: int | None
    length: int | None = None

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise UsageError("there are no rows to train on")

    @property
    def keys(self) -> int:
        return self.length or len(self.rows)

    @property
    def steps(self) -> int:
        return len(self._bounds())

    def view(self, epoch: int) -> int:
        return epoch if self.views is None else epoch % self.views

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        """Rows (B,) int64 of each batch."""
        order = self.order(epoch)
        for first, last in self._bounds():
            yield order[first:last]

    def order(self, epoch: int) -> np.ndarray:
        """(keys,) int64: every row once, shuffled anew in each epoch (and again where rows repeat)."""
        drawn: list[np.ndarray] = []
        turn = 0
        while turn * len(self.rows) < self.keys:
            rng = np.random.default_rng([_ORDER_STREAM, self.seed, epoch, turn])
            drawn.append(rng.permutation(self.rows))
            turn += 1
        return np.concatenate(drawn)[: self.keys].astype(np.int64)

    def _bounds(self) -> list[tuple[int, int]]:
        edges = [(k, min(k + self.batch_size, self.keys)) for k in range(0, self.keys, self.batch_size)]
        # Batch normalization can't take a batch of one sample, so a last one joins its neighbour.
        if len(edges) > 1 and edges[-1][1] - edges[-1][0] == 1:
            edges[-2:] = [(edges[-2][0], edges[-1][1])]
        return edges
