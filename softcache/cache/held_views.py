"""Views of a column that comes from a store: held on this machine as long as they are mapped."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence

from softcache.cache.backing import Backing


class HeldViews:
    """``names``: view → its files. What is held is given back when nothing refers to this object any more."""

    def __init__(self, backing: Backing, names: Callable[[int], list[str]]):
        self._backing, self._names = backing, names
        self._views: dict[int, list[str]] = {}
        self._me = object()
        weakref.finalize(self, _give_back, backing, self._views, self._me).atexit = False

    def hold(self, view: int, drop: Callable[[int], None]) -> None:
        """Fetches a view. ``drop``: gives up another one, where there is no room for all; the one first that was
        fetched first."""
        if view in self._views:
            return
        names = self._names(view)
        while not self._backing.need(names, wait=not self._views):
            other = next(iter(self._views))
            drop(other)
            self.release(other)
        self._views[view] = names

    def release(self, view: int) -> None:
        names = self._views.pop(view, None)
        if names is not None:
            self._backing.done(names)

    def soon(self, views: Sequence[int]) -> None:
        new = [view for view in views if view not in self._views]
        self._backing.soon(self._me, list(itertools.chain(*map(self._names, new))))


def _give_back(backing: Backing, views: dict[int, list[str]], whom: object) -> None:
    backing.soon(whom, [])
    for names in views.values():
        backing.done(names)
