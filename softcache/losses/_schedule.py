"""Numbers that may change over the epochs: ``4``, ``8:2:linear``, ``0:1:alternate``, ``0:1:warmup=20`` and the like."""

from __future__ import annotations

import math
from dataclasses import dataclass

from softcache.errors import UsageError

FORMS = (
    "a number, START:END:linear, START:END:cosine, START:END:alternate or START:END:warmup=EPOCHS (20, or 1/12 of all)"
)


@dataclass(frozen=True)
class Schedule:
    """A number over the epochs of a training.

    ``constant``: always ``start``. ``linear`` and ``cosine``: ``start`` in the first epoch, ``end`` in the last.
    ``alternate``: ``start`` in the first epoch, ``end`` in the second, and so on in turns.
    ``warmup``: ``start + (end - start) * n / warmup`` in the n-th epoch (from 1), and ``end`` from epoch ``warmup`` on,
    so that a term that warms up from 0 takes part in the first epoch. With ``parts``, ``warmup / parts`` is the share
    of the training's epochs that the warm-up takes: however short the training is, it reaches ``end``.

    >>> schedule = Schedule.parse("0:1:warmup=4")
    >>> [schedule.at(epoch, epochs=6) for epoch in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    >>> schedule = Schedule.parse("0:1:warmup=1/3")
    >>> [schedule.at(epoch, epochs=6) for epoch in range(6)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    """

    start: float
    end: float
    shape: str = "constant"
    warmup: int = 0
    parts: int | None = None

    @classmethod
    def constant(cls, value: float) -> Schedule:
        return cls(float(value), float(value))

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """The schedule that a text in one of the forms gives.

        Errors: ``UsageError`` that lists the forms.
        """
        fields = [field.strip() for field in str(text).split(":")]
        try:
            if len(fields) == 1:
                return cls.constant(_finite(fields[0]))
            if len(fields) == 3:
                shape, equals, count = fields[2].partition("=")
                start, end = _finite(fields[0]), _finite(fields[1])
                if shape in ("linear", "cosine", "alternate") and not equals:
                    return cls(start, end, shape)
                warmup, slash, parts = count.partition("/")
                if shape == "warmup" and not slash and int(warmup) > 0:
                    return cls(start, end, shape, int(warmup))
                if shape == "warmup" and slash and 0 < int(warmup) <= int(parts):
                    return cls(start, end, shape, int(warmup), int(parts))
        except ValueError:
            pass  # the message below lists the forms
        raise UsageError(f"{text!r} is not {FORMS}")

    def at(self, epoch: float, epochs: int) -> float:
        """The value in ``epoch`` (the first is 0) of a training of ``epochs``."""
        if self.shape == "constant":
            return self.start
        if self.shape == "alternate":
            return self.end if int(epoch) % 2 else self.start
        if self.shape == "warmup":
            lasts = self.warmup if self.parts is None else self.warmup * epochs / self.parts
            done = min((epoch + 1) / lasts, 1.0)
        else:
            done = min(max(epoch / (epochs - 1), 0.0), 1.0) if epochs > 1 else 0.0
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return min(self.start, self.end), max(self.start, self.end)

    def __str__(self) -> str:
        if self.shape == "constant":
            return _text(self.start)
        shape = self.shape
        if shape == "warmup":
            shape += f"={self.warmup}" if self.parts is None else f"={self.warmup}/{self.parts}"
        return f"{_text(self.start)}:{_text(self.end)}:{shape}"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _text(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
