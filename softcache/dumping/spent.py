"""How long a cache's dumps took, noted in its manifest, so that it can be said what its teacher cost."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softcache.cache.reader import Cache
from softcache.cache.schema import State
from softcache.cache.writer import update_state

NOTE = "spent"


@dataclass(frozen=True)
class Spent:
    """``keys`` that were computed in ``seconds``, those of processes beside each other added up."""

    keys: int
    seconds: float

    def seconds_of(self, keys: int) -> float:
        """That so many keys take at this speed.

        >>> Spent(100, 2.0).seconds_of(250)
        5.0
        """
        return keys * self.seconds / self.keys


def keep_spent(folder: Path, keys: int, seconds: float) -> None:
    """Adds what a dump computed to what its cache has noted. A dump that is killed leaves no note, neither of its keys
    nor of its seconds, so the speed that follows is that of whole ones."""

    def noted(state: State) -> State:
        before = _noted(state.made)
        whole = Spent(keys, seconds) if before is None else Spent(before.keys + keys, before.seconds + seconds)
        return dataclasses.replace(state, made={**state.made, NOTE: dataclasses.asdict(whole)})

    if keys:
        update_state(folder, noted)


def spent_on(cache: Cache) -> Spent | None:
    """None where the manifest doesn't say it, or not in this form."""
    return _noted(cache.manifest.state.made)


def _noted(made: dict[str, Any]) -> Spent | None:
    noted = made.get(NOTE)
    if not isinstance(noted, dict):
        return None
    keys, seconds = noted.get("keys"), noted.get("seconds")
    if type(keys) is not int or not isinstance(seconds, (int, float)) or keys < 1:
        return None
    return Spent(keys, float(seconds)) if 0 < seconds < math.inf else None
