"""What this rank's part of a batch weighs in the loss of the whole batch, and in the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

import torch

from softcache.cache.schema import hint_column, share_of
from softcache.losses._contract import Scope
from softcache.losses._counted import Counted
from softcache.stream.counts import Counts
from softcache.training.objective import Objective, Shares
from softcache.training.ranks import Ranks


@dataclass(frozen=True)
class Portion:
    """Batch ``number`` of an epoch, one of the batches ``first`` to ``last`` (excluded) of an optimizer step.

    A mean over samples is put together from those of the parts, each times its count over that of all. A loss that
    relates samples has one value for all ranks, and those of several batches are averaged by their counts.
    """

    counts: Counts
    number: int
    first: int
    last: int
    ranks: Ranks

    @property
    def whole(self) -> bool:
        """Whether this rank's part of the batch is all of the step."""
        return self.ranks.alone and self.last - self.first == 1

    @property
    def samples(self) -> int:
        """How many keys of the batch are this rank's."""
        return int(self.counts.of(Counted("rows"))[self.number, self.ranks.index])

    def gather(self, values: torch.Tensor, counted: Counted) -> torch.Tensor:
        """Those of all ranks, in the order of the batch."""
        return self.ranks.gathered(values, self.counts.of(counted)[self.number].tolist())

    def reported(self, objective: Objective, ragged: Container[str]) -> Shares:
        """What the terms' values are multiplied by, so that the sums over the ranks are those of the batch."""

        def share(counted: Counted, scope: Scope) -> float:
            if scope == "batch":
                return 1 / self.ranks.count
            of_ranks = self.counts.of(counted)[self.number]
            return float(of_ranks[self.ranks.index] / max(of_ranks.sum(), 1))

        return _shares(objective, ragged, share)

    def learnt(self, objective: Objective, ragged: Container[str]) -> Shares:
        """What the terms' values are multiplied by, so that the ranks' mean gradient, summed over the batches of the
        step, is that of the step's loss."""

        def share(counted: Counted, scope: Scope) -> float:
            counts = self.counts.of(counted)
            step, own = counts[self.first : self.last].sum(), counts[self.number]
            if scope == "batch":
                return float(own.sum() / max(step, 1))
            return float(self.ranks.count * own[self.ranks.index] / max(step, 1))

        return _shares(objective, ragged, share)


def _shares(objective: Objective, ragged: Container[str], share: Callable[[Counted, Scope], float]) -> Shares:
    """``ragged``: columns in which rows have different numbers of places."""
    softs = [share(term.counted(ragged=term.of in ragged), term.loss.scope) for term in objective.terms]
    columns = [hint_column(term.teacher[0]) for term in objective.hints]
    hints = [
        share(term.counted(column if column in ragged else None, of_rows=share_of(column) is not None), term.loss.scope)
        for term, column in zip(objective.hints, columns, strict=True)
    ]
    return Shares(tuple(softs), share(Counted("task"), "samples"), tuple(hints))
