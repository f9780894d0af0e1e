"""Where ``softcache sweep --auto`` looks: settings that are worth a try anywhere, and the neighbours of the best."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from softcache.config.parsed import parse
from softcache.config.train import TrainConfig
from softcache.losses._schedule import Schedule
from softcache.losses._terms import Term, parse_term
from softcache.sweeping.space import rounded

SEARCHED = ("loss", "T", "alpha", "beta", "lr")
# Steps by which T, the teacher's weight and the rate are changed around the best, and then around the best of these.
FACTORS = (2.0, 2.0**0.5)


@dataclass(frozen=True)
class Point:
    """Options of ``train`` that are searched. ``T``: None where no loss has a temperature, or each one of its own;
    ``alpha``, ``beta``, ``T``: numbers, or schedules as text, which stay as they are; ``beta`` None: 1 - alpha."""

    loss: tuple[str, ...]
    T: float | str | None
    alpha: float | str
    beta: float | str | None
    lr: float

    def values(self) -> dict[str, Any]:
        """As options."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def point_of(options: TrainConfig) -> Point:
    """That of a training whose options are all settled."""
    parsed = parse(options)
    terms = [term for term in parsed.losses if term.loss.default_T is not None and term.T is None]
    T = str(terms[0].T_schedule(parsed.T)) if terms else None
    assert options.lr is not None
    beta = None if parsed.beta is None else _number(str(parsed.beta))
    return Point(tuple(map(_spelled, parsed.losses)), T and _number(T), _number(str(parsed.alpha)), beta, options.lr)


def portfolio(default: Point, fixed: Collection[str]) -> list[Point]:
    """What is tried first, the likeliest first: ``default``, what is trained where nothing is searched, and settings
    that were the best of those that docs/defaults.md and docs/tutorials/tables.md compare on some set. ``fixed``:
    options that were given, which stay."""
    others: list[Point] = []
    if default.loss in (("dist",), ("kl",)) and "loss" not in fixed:
        others = [_of("kl", default.lr), _of("kl", default.lr, T=1.0, alpha=4.0, beta=1.0)]
        others += [dataclasses.replace(default, lr=rounded(default.lr / 2)), _of("kl:standardize=true", default.lr)]
        others += [_of("kl", default.lr, T=1.0), dataclasses.replace(default, lr=rounded(default.lr * 2))]
        others += [_of("kl", default.lr, T=2.0), dataclasses.replace(default, T=1.0)]
        others += [_of("kl", default.lr, alpha=0.5, beta=0.5)]
    else:
        others = neighbours(default, FACTORS[0], fixed)
    return _distinct([default, *(_kept(point, default, fixed) for point in others)])


def neighbours(best: Point, factor: float, fixed: Collection[str]) -> list[Point]:
    """Around ``best``: half and twice the rate, the temperature and the weight of the teacher, for a ``factor`` of 2.

    Where alpha and beta sum to 1 they still do, and their ratio is what changes, by the square of ``factor``.
    """
    found: list[Point] = []
    if "lr" not in fixed:
        found += [dataclasses.replace(best, lr=rounded(best.lr * by)) for by in (1 / factor, factor)]
    if "T" not in fixed and isinstance(best.T, float):
        found += [dataclasses.replace(best, T=rounded(best.T * by)) for by in (1 / factor, factor)]
    if not {"alpha", "beta"} & set(fixed):
        found += [_weighted(best, by) for by in (factor, 1 / factor)]
    return [point for point in _distinct(found) if point != best]


def _weighted(point: Point, factor: float) -> Point:
    """With more weight for the teacher."""
    alpha, beta = point.alpha, point.beta
    if not isinstance(alpha, float) or not (beta is None or isinstance(beta, float)) or alpha == 0:
        return point
    hard = 1 - alpha if beta is None else beta
    if hard <= 0:
        return point  # nothing to weigh it against
    if abs(alpha + hard - 1) > 1e-9:
        return dataclasses.replace(point, alpha=rounded(alpha * factor))
    odds = alpha / hard * factor**2
    share = rounded(odds / (1 + odds))
    return dataclasses.replace(point, alpha=share, beta=rounded(1 - share))


def _of(loss: str, lr: float, T: float | None = None, alpha: float | None = None, beta: float | None = None) -> Point:
    """A loss with what its paper says where nothing else is given."""
    term = parse_term(loss)
    T = T if T is not None else float(str(term.T_schedule(None)))
    own = term.default_alpha if alpha is None else alpha
    return Point((_spelled(term),), T, own, term.default_beta if beta is None else beta, lr)


def _kept(point: Point, default: Point, fixed: Collection[str]) -> Point:
    """With what was given, as ``default`` has it. alpha and beta belong together, and T to a loss that has one."""
    kept: dict[str, Any] = {}
    if {"alpha", "beta"} & set(fixed):
        kept |= {"alpha": default.alpha, "beta": default.beta}
    if "T" in fixed and default.T is not None and point.T is not None:
        kept |= {"T": default.T}
    if "lr" in fixed:
        kept |= {"lr": default.lr}
    return dataclasses.replace(point, **kept)


def _spelled(term: Term) -> str:
    """As short as it can be."""
    return term.name if str(term) == str(parse_term(term.name)) else str(term)


def _distinct(points: Sequence[Point]) -> list[Point]:
    return list(dict.fromkeys(points))


def _number(text: str) -> float | str:
    schedule = Schedule.parse(text)
    return schedule.start if schedule.bounds() == (schedule.start, schedule.start) else text
