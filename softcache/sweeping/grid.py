"""From options with several values to the combinations of them, each trained once."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softcache.config.folders import slug
from softcache.config.parsed import DEFAULT_LOSS, Parsed, parse
from softcache.config.resume import MOVABLE
from softcache.config.several import GRID
from softcache.config.train import TrainConfig
from softcache.errors import UsageError
from softcache.losses._schedule import Schedule
from softcache.losses._terms import parse_terms
from softcache.sweeping.space import refuse_ranges


@dataclass(frozen=True)
class Combination:
    """``varied``: the options that differ between the combinations, with this one's values, without those that have no
    effect here; ``options``: all options of ``train`` but for the seed and the folder."""

    varied: dict[str, Any]
    options: dict[str, Any]

    def text(self) -> str:
        """``student=resnet18 T=4``, for messages."""
        return " ".join(f"{name}={shown(value)}" for name, value in self.varied.items()) or "the options as given"


@dataclass(frozen=True)
class Run:
    """A student of a combination: ``name``: that of its folder; ``options``: those of ``train``, with the seed."""

    name: str
    seed: int
    combination: Combination
    options: dict[str, Any]


def combinations(options: Mapping[str, Any]) -> list[Combination]:
    """All combinations of the values of options that are in ``GRID``, without those that mean the same as an earlier
    one.

    Errors: ``UsageError`` for values and combinations that can't be.
    """
    refuse_ranges(options)
    several = [name for name in GRID if name in options]
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*(options[name] for name in several)):
        meaning, chosen = one_combination(options, dict(zip(several, values, strict=True)))
        found.setdefault(meaning, chosen)
    for name in several:
        if all(name not in one for one in found.values()):
            given = ",".join(map(shown, options[name]))
            option = name.replace("_", "-")
            raise UsageError(f"--{option} {given} has no effect on any of these students: leave it out")
    varying = [name for name in several if len({_text(one.get(name)) for one in found.values()}) > 1]
    return [Combination({n: one[n] for n in varying if one.get(n) is not None}, one) for one in found.values()]


def one_combination(options: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a combination means, as a text that is equal where two train the same, and its options: ``options`` with
    these ``values`` in place of those that are in ``GRID``, without those that have no effect.

    Errors: ``UsageError`` for values and combinations that can't be.
    """
    fixed = {name: value for name, value in options.items() if name not in GRID}
    chosen = {**fixed, **values}
    if isinstance(chosen.get("loss"), str):
        chosen["loss"] = (chosen["loss"],)
    chosen = _with_effect(chosen)
    return _meaning(chosen, parse(TrainConfig.of(**chosen))), chosen


def chosen_combination(options: Mapping[str, Any], values: Mapping[str, Any]) -> Combination:
    """That of ``values`` of some options, with the first value of the others that are in ``GRID``.

    Errors: ``UsageError`` for values and combinations that can't be.
    """
    first = {name: options[name][0] for name in GRID if name in options and name not in values}
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    _, whole = one_combination(options, {**first, **chosen})
    return Combination({name: whole[name] for name in chosen if name in whole}, whole)


def runs(found: Sequence[Combination], seeds: Sequence[int]) -> list[Run]:
    """A run of each combination and seed: seed by seed, so that a table that isn't finished has few seeds and not few
    rows."""
    return [_run(combination, seed, len(seeds) > 1) for seed in seeds for combination in found]


def cohorts(every: Sequence[Run], at_once: int) -> list[list[Run]]:
    """Runs that can share a stream, together, at most ``at_once``."""
    groups: dict[str, list[Run]] = {}
    for run in every:
        config = TrainConfig.of(**run.options)
        own = config.batch_size, parse(config).labels_alone
        groups.setdefault(_text([config.shared(), own]), []).append(run)
    found = []
    for group in groups.values():
        parts = -(-len(group) // at_once)
        found += [group[len(group) * k // parts : len(group) * (k + 1) // parts] for k in range(parts)]
    return found


def shown(value: Any) -> str:
    """A value of an option as a table has it."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _run(combination: Combination, seed: int, several_seeds: bool) -> Run:
    options = {**combination.options, "seed": seed}
    parts = [_part(name, value) for name, value in combination.varied.items()]
    readable = "-".join([*(parts or ["run"]), *([f"seed{seed}"] if several_seeds else [])])[:80]
    trained = {name: value for name, value in options.items() if name not in MOVABLE}
    return Run(f"{readable}-{hashlib.sha256(_text(trained).encode()).hexdigest()[:8]}", seed, combination, options)


def _part(name: str, value: Any) -> str:
    """An option's value as a part of a folder's name."""
    if name == "student":
        return slug(str(value))
    text = re.sub(r"[^\w.=-]+", "-", shown(value)).strip("-")
    return text if name in ("row", "loss", "preset", "optimizer", "schedule", "targets") else f"{name}{text}"


def _with_effect(options: dict[str, Any]) -> dict[str, Any]:
    """Without the options that change nothing beside the others, which can't be refused where they are only one value
    of several."""
    alpha = options.get("alpha")
    losses = parse_terms(options.get("loss") or [DEFAULT_LOSS])
    dropped: set[str] = set()
    if alpha is not None and Schedule.parse(str(alpha)).bounds() == (0.0, 0.0):
        dropped |= {"loss", "T"}
    elif all(term.loss.default_T is None or term.T is not None for term in losses):
        dropped |= {"T"}
    if options.get("targets", TrainConfig.targets) != "both":
        dropped |= {"fresh_share"}
    if options.get("optimizer") in ("adam", "adamw"):
        dropped |= {"momentum", "nesterov"}
    if options.get("schedule") in ("cosine", "constant"):
        dropped |= {"gamma", "milestones"}
    return {name: value for name, value in options.items() if name not in dropped}


def _meaning(options: Mapping[str, Any], parsed: Parsed) -> str:
    """Equal where two combinations train the same: temperatures and weights count, however they are spelled."""
    rest = {name: value for name, value in options.items() if name not in ("loss", "T", "alpha", "beta")}
    terms = []
    for term in parsed.losses:
        bare = dataclasses.replace(term, T=None, weight=None)
        terms.append([str(bare), str(term.weight_schedule()), str(term.T_schedule(parsed.T))])
    alpha, beta = parsed.alpha, str(parsed.beta)
    if parsed.beta is None and alpha.bounds() == (alpha.start, alpha.start):
        beta = f"{1 - alpha.start:.12g}"
    return _text([rest, terms, str(alpha), beta])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
