"""What a cache needs of a store that its shards lie in."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class Backing(Protocol):
    """Shards that are in the cache's folder only while they are needed. ``where``: how messages call the cache."""

    where: str

    def in_view(self, view: int) -> list[str]:
        """The files of a view that there are, ``view-0000/logits-00000.h5``."""
        ...

    def need(self, names: Collection[str], *, wait: bool = True) -> bool:
        """Makes sure that files are in the folder until ``done``; each call counts. Without ``wait`` nothing is done
        where there is no room; the result is whether there was."""
        ...

    def done(self, names: Collection[str]) -> None:
        """Ends one ``need`` of each of these."""
        ...

    def soon(self, whom: object, names: Collection[str]) -> None:
        """Files that ``whom`` is going to need next, which may be fetched."""
        ...
