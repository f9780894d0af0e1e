"""Whether what a codec loses stays within what ``--codec auto`` was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softcache.cache.schema import ColumnRecord
from softcache.codecs._auto import asked_auto
from softcache.dumping.codec_error import TEMPERATURES
from softcache.dumping.signals import Signal


@dataclass(frozen=True)
class Bound:
    """``option``: by which it was asked for; ``most``: what no mean error in ``names`` may exceed, which are as
    ``CodecError.result`` has them."""

    option: str
    most: float
    names: tuple[str, ...]

    @classmethod
    def asked(cls, spec: str | None, kind: str) -> Bound | None:
        """The bound of a column of a kind, whose codec is asked for by ``spec``; None where that is no ``auto``."""
        auto = asked_auto(spec)
        if auto is None:
            return None
        names = ("relative_error_mean",) if kind == "values" else tuple(f"kl_mean_T{T}" for T in TEMPERATURES)
        return cls(*auto.bound(kind), names)

    def worst(self, error: Mapping[str, float]) -> tuple[str, float]:
        """The largest mean error and its name.

        >>> Bound("max_kl", 0.001, ("kl_mean_T1", "kl_mean_T2")).worst({"kl_mean_T1": 0.2, "kl_mean_T2": 0.3})
        ('kl_mean_T2', 0.3)
        """
        name = max(self.names, key=lambda name: error[name])
        return name, error[name]

    def holds(self, record: ColumnRecord) -> bool:
        """Whether a column loses no more on the keys that have been measured, if any have."""
        return not record.error.get("keys") or self.worst(record.error)[1] <= self.most

    def broken(self, record: ColumnRecord, keys: float) -> bool:
        """Whether the mean over ``keys`` measured keys will be above the bound, whatever those that are left lose:
        errors are never negative. The mean so far says less, because the first rows may all be hard ones."""
        have = record.error.get("keys", 0.0)
        return bool(have) and self.worst(record.error)[1] * have > self.most * max(keys, have)

    def told(self, record: ColumnRecord) -> str:
        """What a column loses, for people."""
        name, lost = self.worst(record.error)
        return f"{lost:.2g} ({in_words(name)}, {int(record.error['keys']):,} keys)"

    def __str__(self) -> str:
        return f"{self.option}={self.most:g}"


def in_words(name: str) -> str:
    """A measured error, by its name in a manifest.

    >>> in_words("kl_mean_T4"), in_words("relative_error_mean")
    ('mean KL at T=4', 'mean relative error')
    """
    return f"mean KL at T={name.removeprefix('kl_mean_T')}" if name.startswith("kl") else "mean relative error"


def bounds_of(signals: Sequence[Signal], codec: str | None) -> dict[str, Bound]:
    """By column, the bounds that a dump asks for. ``signals``: of known kinds; ``codec``: of those that name none."""
    found = {signal.column: Bound.asked(signal.codec or codec, signal.kind or "values") for signal in signals}
    return {name: bound for name, bound in found.items() if bound is not None}
