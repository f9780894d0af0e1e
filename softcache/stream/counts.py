"""How much of what a loss averages over each batch of an epoch has, on each rank: known on the host before any of it is
computed, because labels, lengths and the order of keys decide it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from softcache.datasets._labels import Labels, known_labels
from softcache.losses._counted import Counted
from softcache.ragged import Int64
from softcache.stream.parts import Parts, key_rows

# (rows, view) → of rows that are mixed with a partner, the partners' rows and the weights of their own inputs.
Mixing = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray] | None]


class Counts:
    """Of one epoch. ``shares``: the keys of each rank in each batch; ``labels``: those that may be used, of all rows of
    the dataset; ``places``: of columns in which rows have different numbers of them, (N,) how many each row has."""

    # Whoever looks through a batch for tensors on a GPU (stream.transfer) finds no __dict__ and so nothing of the data.
    __slots__ = ("_found", "_labels", "_mixing", "_places", "_shares")

    def __init__(
        self, shares: Sequence[Sequence[Parts]], labels: Labels, places: Mapping[str, Int64], mixing: Mixing
    ) -> None:
        self._shares, self._labels, self._places, self._mixing = shares, labels, places, mixing
        self._found: dict[Counted, Int64] = {}

    def of(self, counted: Counted) -> Int64:
        """(batches, ranks) int64."""
        if counted not in self._found:
            every = [parts for of_ranks in self._shares for parts in of_ranks]
            edges = np.cumsum([0, *(sum(map(len, parts)) for parts in every)])
            sums = np.concatenate([[0], np.cumsum(self._of_keys(counted, every))])
            spare = np.array([parts[0].spare for parts in every])
            found = np.where(spare, 0, sums[edges[1:]] - sums[edges[:-1]])
            self._found[counted] = found.astype(np.int64).reshape(len(self._shares), -1)
        return self._found[counted]

    def _of_keys(self, counted: Counted, every: Sequence[Parts]) -> np.ndarray:
        """Of each key, one after the other."""
        rows = np.concatenate([key_rows(parts) for parts in every])
        places = np.ones(len(rows), np.int64) if counted.column is None else self._places[counted.column][rows]
        if counted.what == "places":
            return places
        filled = (places > 0).astype(np.int64)
        if counted.what not in ("labels", "task"):
            return filled
        known = known_labels(self._labels).reshape(len(self._labels), -1)  # (N, K)
        of_parts = [self._labels_of(part.rows, view, known, counted.what) for part, view in _views(every)]
        return np.concatenate(of_parts) * filled

    def _labels_of(self, rows: np.ndarray, view: int, known: np.ndarray, what: str) -> np.ndarray:
        mixed, own = self._mixing(rows, view), known[rows]
        if mixed is not None:
            partners, weights = mixed
            if what == "labels":  # that with the larger share
                own = np.where(weights[:, None] >= 0.5, own, known[partners])
            else:  # both have to be there
                own = own & known[partners]
        return own.any(1) if what == "labels" else own.sum(1)


def _views(every: Sequence[Parts]) -> list:
    return [(part, view) for part in itertools.chain.from_iterable(every) for view in part.views]
