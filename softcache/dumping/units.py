"""What is still to be computed, handed out bit by bit to whoever can compute it, and taken back from whoever dies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from softcache.cache.writer import Block

PORTIONS = 4  # of its share of what waits a taker gets one, so that fast takers come back for more than slow ones


class Units:
    """Blocks that wait for somebody to compute them.

    ``one_decode``: the views of a block of rows are computed from one decode of each row where they are taken
    together, which they are as long as there is enough for every taker.
    """

    def __init__(self, blocks: Sequence[Block], *, one_decode: bool):
        self._waiting = list(blocks)
        self._one_decode = one_decode

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, takers: int) -> list[Block]:
        """The next unit, one of at least ``takers`` that are at work: large at first, single blocks at the end.

        Nothing is lost by a large unit whose taker dies: what was finished of it stays.

        >>> units = Units([Block(view, first, 8, ()) for first in (0, 8) for view in (0, 1)], one_decode=True)
        >>> [[(block.first, block.view) for block in units.take(2)] for _ in range(3)]
        [[(0, 0), (0, 1)], [(8, 0)], [(8, 1)]]
        """
        pieces = self._pieces(takers)
        taken = pieces[: max(1, len(pieces) // (PORTIONS * takers))]
        unit = [block for piece in taken for block in piece]
        del self._waiting[: len(unit)]
        return unit

    def give_back(self, blocks: Iterable[Block]) -> None:
        """What a taker didn't finish is the next to be taken."""
        self._waiting[:0] = blocks

    def _pieces(self, takers: int) -> list[list[Block]]:
        if self._one_decode:
            rows: list[list[Block]] = []
            for block in self._waiting:
                if not rows or rows[-1][0].first != block.first:
                    rows.append([])
                rows[-1].append(block)
            if len(rows) >= takers:
                return rows
        return [[block] for block in self._waiting]
