"""How much of its time the teacher waits until what it said before has been written."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

NOTABLE = 0.1  # of the time, from which on it is said
LEAST_S = 2.0  # in all, from which on it is said at the end
LAST_S = 30.0  # that the share while the dump runs is of
SOON_S = 2.0  # before which there is nothing to say of the last while


@dataclass(frozen=True)
class Waited:
    """``waited`` seconds, of ``spent`` seconds in all, in which ``written`` bytes were written."""

    waited: float = 0.0
    spent: float = 0.0
    written: int = 0

    def __add__(self, other: Waited) -> Waited:
        return Waited(self.waited + other.waited, self.spent + other.spent, self.written + other.written)

    def __sub__(self, other: Waited) -> Waited:
        return Waited(self.waited - other.waited, self.spent - other.spent, self.written - other.written)

    @property
    def share(self) -> float:
        """Of the time, 0 to 1."""
        return self.waited / self.spent if self.spent > 0 else 0.0

    @property
    def notable(self) -> bool:
        """Whether it is worth a message at the end."""
        return self.waited >= LEAST_S and self.share > NOTABLE


class Recently:
    """What has been waited in the last ``LAST_S`` seconds, told as the dump goes on.

    ``began``: when, in seconds of the clock that ``note`` is told the time of.
    """

    def __init__(self, began: float):
        self._seen = deque([(began, 0.0)])

    def note(self, now: float, waited: float) -> str:
        """For a line of progress; empty where there is little to say. ``waited``: seconds in all until ``now``."""
        self._seen.append((now, waited))
        while self._seen[1][0] <= now - LAST_S:
            self._seen.popleft()
        began, before = self._seen[0]
        if now - began < SOON_S:
            return ""
        share = (waited - before) / (now - began)
        return f"({share:.0%} of the time waiting for the disk)" if share > NOTABLE else ""
