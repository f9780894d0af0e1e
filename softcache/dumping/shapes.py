"""The shapes of what a teacher says of one key, and which of them follow the lengths of its inputs' rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from softcache.cache.schema import share_of
from softcache.dumping.forward import Forward
from softcache.dumping.signals import Signal
from softcache.errors import UsageError
from softcache.inputs import MAX_LENGTH
from softcache.ragged import Int64, places_of
from softcache.views._open import Viewed

MAX_PROBES = 64  # rows that the teacher is run on, of each signal


@dataclass(frozen=True)
class SignalShape:
    """``shape``: of one key, None for a first axis that has ceil(n / ``stride``) places where the key's row of the
    input ``lengths`` is n long."""

    shape: list[int | None]
    lengths: str | None = None
    stride: int = 1

    @property
    def tail(self) -> tuple[int, ...]:
        """The axes whose sizes are the same for all keys."""
        return tuple(size for size in self.shape if size is not None)


class Shapes:
    """Shapes of signals, found by running the teacher on single rows: on the shortest and the longest of each input
    whose rows have lengths of their own, and on as many others as it takes to tell two rules apart."""

    def __init__(self, forward: Forward, viewed: Viewed, signals: Sequence[Signal]):
        columns = [signal.column for signal in signals]
        self._forward = Forward(forward.network, columns, forward.device, amp=forward.amp)
        self._viewed = viewed
        self._lengths: Mapping[str, Int64] = viewed.lengths()
        self._said: dict[int, dict[str, tuple[int, ...]]] = {}
        ends = [row for lengths in self._lengths.values() for row in (lengths.argmin(), lengths.argmax())]
        self._rows = [0] if not ends else list(dict.fromkeys(map(int, ends)))

    def find(self, signal: Signal) -> SignalShape:
        """Errors: ``UsageError`` where one axis follows no input's lengths by a rule that softcache has, where another
        one varies, and where the first one isn't that of the samples."""
        shapes = {row: self._shape(signal, row) for row in self._rows}
        if len(set(shapes.values())) == 1:  # a longer row has no more places, nor has any row between
            return SignalShape(list(shapes[self._rows[0]]))
        if any(not shape for shape in shapes.values()) or len({shape[1:] for shape in shapes.values()}) > 1:
            told = " and ".join(f"{shape} for {self._told(row)}" for row, shape in sorted(shapes.items())[:2])
            raise UsageError(
                f"{signal.option} is {told}: only the first axis of a sample may follow the lengths of its inputs"
            )
        if share_of(signal.column) is not None:
            raise UsageError(
                f"{signal.option}: rows= keeps whole activations of one shape, and rows of this layer have lengths of "
                "their own: leave rows= out"
            )
        while len(shapes) < MAX_PROBES:
            rules = self._rules({row: shape[0] for row, shape in shapes.items()})
            row = self._differing(rules)
            if row is None and rules:
                name, stride = rules[0]
                return SignalShape([None, *next(iter(shapes.values()))[1:]], name, stride)
            if row is None:
                break
            shapes[row] = self._shape(signal, row)
        told = ", ".join(f"{shape[0]} for {self._told(row)}" for row, shape in sorted(shapes.items())[:3])
        raise UsageError(
            f"{signal.option} has places that follow no input's length by ceil(n / stride): {told}; give it as many "
            "places as an input has, or one shape for all rows"
        )

    def _shape(self, signal: Signal, row: int) -> tuple[int, ...]:
        """Of one row alone, without the axis of the samples."""
        if row not in self._said:
            said = self._forward(self._viewed.batch(np.array([row]), 0).to(self._forward.device))
            self._said[row] = {name: tuple(values.shape) for name, values in said.items()}
        shape = self._said[row][signal.column]
        if shape[:1] != (1,):
            raise UsageError(f"{signal.option} is {shape} for one sample: its first axis must be that of the samples")
        return shape[1:]

    def _rules(self, places: Mapping[int, int]) -> list[tuple[str, int]]:
        """Of each input whose lengths may explain how many places these rows have, the smallest and the largest
        stride."""
        found = []
        for name in self._lengths:
            low, high = 1, MAX_LENGTH
            for row, count in places.items():
                length = int(self._filled(name)[row])
                if not count and not self._lengths[name][row]:
                    continue  # a function of arrays has nothing to fill up
                # ceil(length / stride) = count where count - 1 < length / stride <= count
                low = max(low, -(-length // count) if count else high + 1)
                high = min(high, -(-length // (count - 1)) - 1 if count > 1 else high)
            if low <= high:
                found += [(name, low), (name, high)]
        return found

    def _differing(self, rules: Sequence[tuple[str, int]]) -> int | None:
        """A row that has other places by the first of these rules than by another one; None where there is none."""
        for name, stride in rules[1:]:
            off = np.abs(places_of(self._filled(name), stride) - places_of(self._filled(rules[0][0]), rules[0][1]))
            if off.any():
                return int(off.argmax())
        return None

    def _filled(self, name: str) -> Int64:
        """(N,) lengths as a network sees them of single rows: an empty one has one place, filled up."""
        return np.maximum(1, self._lengths[name])

    def _told(self, row: int) -> str:
        """``row 7 (19 ids)``."""
        return f"row {row} ({', '.join(f'{lengths[row]} {name}' for name, lengths in self._lengths.items())})"
