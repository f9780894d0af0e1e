"""How far what a codec has kept is from what the teacher said, as a student's loss would see it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from softcache.cache.column import Column
from softcache.cache.reader import Cache
from softcache.cache.schema import share_of
from softcache.datasets._hash import splitmix64
from softcache.losses._target import Target, at_temperature, changed
from softcache.ragged import Int64, offsets_of, on_device, runs_of

MEASURED_KEYS = 4096
MEASURED_NUMBERS = 2**26  # of all measured keys together: of large activations fewer keys tell as much
FEWEST_KEYS = 16  # of the largest activations
TEMPERATURES = (1, 2, 4, 8)
TELL_S = 10.0


@dataclass(frozen=True)
class Measured:
    """``error``: by name, as ``CodecError.result`` has it; ``keys``: on how many."""

    error: dict[str, float]
    keys: int

    def changed(self, now: Measured, before: Measured) -> Measured:
        """All of it together where one part of it was ``before`` and is ``now``. Each part weighs by its keys: means
        are exact, and a percentile is the mean of those of the parts."""
        keys = self.keys + now.keys - before.keys
        if keys <= now.keys or self.error.keys() != now.error.keys():
            return now
        return Measured({name: self._of(name, now, before) / keys for name in now.error}, keys)

    def _of(self, name: str, now: Measured, before: Measured) -> float:
        gone = before.keys * before.error.get(name, 0.0)
        return self.keys * self.error[name] - gone + now.keys * now.error[name]


NOTHING = Measured({}, 0)
Told = Callable[[str, Measured, Measured], None]  # column, its codec's error so far, what was told of it before


class Draw:
    """Some ``MEASURED_KEYS`` of a cache's keys, or all if there are no more, drawn over all rows and views by a hash:
    the first rows of a folder are all of one class. Each process knows which of its own keys are drawn."""

    def __init__(self, column: Column, cache_id: str, keys: int, places: int = 1):
        """``keys``: of the whole cache; in a column of a share of the rows, those of these. ``places``: of a ragged
        column, those that a key has at most."""
        wanted = min(MEASURED_KEYS, MEASURED_NUMBERS // (math.prod(column.shape) * max(1, places)))
        self._below = min(2**32, math.ceil(2**32 * max(FEWEST_KEYS, wanted) / keys))
        self._seed, self._keys = int(cache_id[:16], 16), keys

    @classmethod
    def of(cls, cache: Cache, name: str) -> Draw:
        """That of a cache's column."""
        column, cache_id, rows, longest = cache.layout(name), cache.manifest.cache_id, cache.rows, 1
        if column.ragged:
            places = cache.places(name)
            longest, rows = int(places.max()), rows if column.share is None else int(places.sum())
        return cls(column, cache_id, rows * cache.views, longest)

    @property
    def expected(self) -> float:
        """How many keys of the whole cache are drawn, in the mean over all hashes."""
        return self._keys * self._below / 2**32

    def among(self, view: int, rows: Int64) -> Int64:
        """Which of these rows are drawn in a view, by their places in ``rows``."""
        state = splitmix64(splitmix64(self._seed ^ view) ^ rows.astype(np.uint64))
        return np.flatnonzero(state >> np.uint64(32) < self._below)


def picked(values: torch.Tensor, at: Int64, places: Int64 | None = None) -> torch.Tensor:
    """Rows ``at`` of values (B, …) or, with the ``places`` (B,) of each, of (P, …), their places; nothing waits for the
    device."""
    index = at
    if places is not None:
        index = runs_of(offsets_of(places)[at], offsets_of(places[at]))
    return values if len(index) == len(values) else values.index_select(0, on_device(index, values.device))


class CodecError:
    """The error of a column's codec on keys that come batch by batch."""

    def __init__(self, column: Column):
        self._column = column
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._keys = 0

    @torch.inference_mode()
    def __call__(self, values: torch.Tensor, keys: int | None = None) -> None:
        """Measures (B, …) values, of a ragged column (P, …) of so many ``keys``."""
        self._keys += len(values) if keys is None else keys
        if not len(values):  # rows without places
            return
        target = self._column.target(self._column.encode(values))
        if values.device.type == "mps":  # which has no float64
            values, target = values.cpu(), changed(target, torch.Tensor.cpu)
        for name, measured in _BY_KIND[self._column.kind](values.double(), target).items():
            self._parts.setdefault(name, []).append(measured)

    def spread(self, names: Sequence[str]) -> dict[str, tuple[float, float]]:
        """Some of the means of ``result``, each with its standard error."""
        found = {}
        for name in names:
            every = torch.cat(self._parts[name.replace("_mean", "")]).flatten()
            deviation = every.std(unbiased=False)
            found[name] = float(every.mean()), float(deviation) / math.sqrt(len(every))
        return found

    def result(self) -> Measured:
        """The error by name, on all keys so far. Of a ragged column each place counts once.

        Of ``classes`` and ``binary``: mean and 99th percentile of KL(teacher‖decoded) in nats at each temperature (of
        ``binary`` for each label), and the share of keys (of labels) whose largest class (whose side of 0) stays the
        same. Of ``values``: mean and 99th percentile of the relative error, and the mean cosine.
        """
        report = {}
        for name, parts in self._parts.items():
            found = torch.cat(parts).flatten().cpu()
            if name in _SHARES:
                report[name] = float(found.mean())
            else:
                what, _, at = name.partition("_T")
                mean, p99 = (f"{what}_{part}{at and f'_T{at}'}" for part in ("mean", "p99"))
                report[mean], report[p99] = float(found.mean()), _percentile(found, 0.99)
        return Measured(report, self._keys)


class CodecErrors:
    """What the codecs of a dump lose, on those of its keys that are drawn. ``told``: called from time to time, because
    a dump may be stopped at any time."""

    def __init__(self, cache: Cache, columns: Sequence[str], told: Told):
        self._draws = {name: Draw.of(cache, name) for name in columns}
        self._errors = {name: CodecError(cache.layout(name)) for name in columns}
        self._before = dict.fromkeys(columns, NOTHING)
        self._told, self._at = told, time.monotonic()

    def measure(self, name: str, view: int, rows: Int64, values: torch.Tensor, places: Int64 | None) -> None:
        """``values``: what the teacher says of these rows; ``places``: of each, where these are of a ragged column."""
        if share_of(name) is not None and places is not None:  # of the rows that are in it, as of any column
            rows, places = rows[places > 0], None
        at = self._draws[name].among(view, rows)
        if len(at):
            self._errors[name](picked(values, at, places), len(at))

    def tell_in_time(self) -> None:
        if time.monotonic() - self._at > TELL_S:
            self.tell()

    def tell(self) -> None:
        """Nothing where values weren't finite: the writer, which may be some batches behind, says which those are. Nor
        where rows had no places."""
        for name, measure in self._errors.items():
            now, before = measure.result(), self._before[name]
            if now.keys > before.keys and now.error and all(map(math.isfinite, now.error.values())):
                self._told(name, now, before)
                self._before[name] = now
        self._at = time.monotonic()


def _classes(values: torch.Tensor, target: Target) -> dict[str, torch.Tensor]:
    found = {}
    for T in TEMPERATURES:
        p, q = F.log_softmax(values / T, -1), F.log_softmax(at_temperature(target, T).double() / T, -1)
        found[f"kl_T{T}"] = (p.exp() * (p - q)).sum(-1).clamp_min(0)
    return {**found, "top1_agreement": (values.argmax(-1) == at_temperature(target, 1).argmax(-1)).double()}


def _binary(values: torch.Tensor, target: Target) -> dict[str, torch.Tensor]:
    found, decoded = {}, at_temperature(target, 1).double()
    for T in TEMPERATURES:
        p = torch.sigmoid(values / T)
        on = F.logsigmoid(values / T) - F.logsigmoid(decoded / T)
        off = F.logsigmoid(-values / T) - F.logsigmoid(-decoded / T)
        found[f"kl_T{T}"] = (p * on + (1 - p) * off).clamp_min(0)
    return {**found, "sign_agreement": ((values > 0) == (decoded > 0)).double()}


def _values(values: torch.Tensor, target: Target) -> dict[str, torch.Tensor]:
    values, decoded = values.reshape(len(values), -1), at_temperature(target, 1).double().reshape(len(values), -1)
    size = values.norm(dim=1)
    # of a key that is all zeros nothing is lost where nothing comes back
    relative = torch.where(size > 0, (decoded - values).norm(dim=1) / size, (decoded - values).norm(dim=1))
    cosine = torch.where(size > 0, F.cosine_similarity(values, decoded, dim=1), 1.0)
    return {"relative_error": relative, "cosine": cosine}


def _percentile(values: torch.Tensor, share: float) -> float:
    """``torch.quantile`` takes at most 2²⁴ numbers: of more, every so manieth."""
    return float(torch.quantile(values[:: 1 + len(values) // 2**24], share))


_SHARES = ("top1_agreement", "sign_agreement", "cosine")
_BY_KIND: dict[str, Callable[[torch.Tensor, Target], dict[str, torch.Tensor]]] = {
    "classes": _classes,
    "binary": _binary,
    "values": _values,
}
