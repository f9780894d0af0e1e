"""Many students in one process: those that want the same keys in the same order are trained from one stream."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softcache.cache.schema import hint_column
from softcache.config.caches import complete_views
from softcache.config.folders import make_folder
from softcache.config.given import FOLLOWED
from softcache.config.parsed import Parsed, parse
from softcache.config.record import CONFIG, Record, absolute_paths
from softcache.config.resume import MOVABLE, refuse_other_targets, resumed
from softcache.config.train import TrainConfig
from softcache.console import counted
from softcache.device import reproducible
from softcache.distributed import refuse_several
from softcache.errors import SoftcacheError, UsageError
from softcache.localfiles import local_path
from softcache.stages._material import Material
from softcache.stages._running import Order, Trained, finish, order_of, run_all
from softcache.stages._tracked import tracked
from softcache.stages._training import Prepared, prepare
from softcache.stream.memory import memory_budget
from softcache.training.checkpoint import CHECKPOINT
from softcache.training.folder import training_into
from softcache.training.learner import Leaves, as_failure

log = logging.getLogger(__name__)


@dataclass
class _Member:
    """A student on its way to a run. ``record``: that of its folder, where it was begun before; ``outcome``: what it
    came to, or why it didn't."""

    asked: TrainConfig
    folder: Path
    options: TrainConfig
    record: Record[TrainConfig] | None
    parsed: Parsed | None = None
    prepared: Prepared | None = None
    order: Order | None = None
    outcome: Trained | SoftcacheError | None = None


def train_cohort(
    configs: Sequence[TrainConfig], leaves: Leaves | None = None, group: str | None = None
) -> list[Trained | SoftcacheError]:
    """Trains a student of each config into its folder, ``out``, which each must name; gives what each came to, in their
    order, or the error that kept it from it.

    Students that want the same keys in the same order share a stream: inputs are made once, and targets are read once.
    Each run has the bits that it has alone. A folder that holds a run that was begun with the same options goes on with
    it. A student that fails leaves, and the others keep their bits. ``leaves``: given the lines of ``metrics.jsonl`` of
    a student so far, says why it ends early, with ``PrunedError``, or None. ``group``: what trackers call all of them
    together.

    Errors: ``UsageError`` for a config without ``out``, for two of one folder, and for ``profile`` of several.
    """
    refuse_several("train")
    _refuse(configs)
    members = [_member(config) for config in configs]
    for together in _grouped(members, _opened_together):
        with reproducible(tf32=together[0].options.tf32):
            _prepare(together)
            ready = [member for member in together if member.prepared is not None]
            for cohort in _same_order(ready):
                for part in _fitting_memory(cohort):
                    _train(part, leaves, group)
    outcomes = [member.outcome for member in members]
    assert None not in outcomes
    return outcomes  # type: ignore[return-value]


@dataclass(frozen=True)
class Resolved:
    """What a training would be: ``steps``: batches; ``options``: with every choice that was left open."""

    steps: int
    options: TrainConfig


def resolve(configs: Sequence[TrainConfig]) -> list[Resolved | SoftcacheError]:
    """What training the student of each config would be, or the error that would keep it from being trained; nothing
    is written."""
    refuse_several("train")
    members = [_member(config) for config in configs]
    for group in _grouped(members, _opened_together):
        _prepare(group)
    found: list[Resolved | SoftcacheError] = []
    for member in members:
        if member.prepared is None or member.order is None:
            assert isinstance(member.outcome, SoftcacheError)
            found.append(member.outcome)
        else:
            options = member.prepared.parsed.options
            epochs = member.prepared.fitting.epochs + options.hint_epochs
            found.append(Resolved(member.order.plan.steps * epochs, options))
    return found


def _opened_together(member: _Member) -> object:
    """Equal for members whose data are opened once. Labels alone are trained on in views of their own."""
    alone = member.parsed is not None and member.parsed.labels_alone
    return member.asked.shared(), _views_begun(member), alone


def _fitting_memory(cohort: Sequence[_Member]) -> Iterator[list[_Member]]:
    """Parts of a cohort whose students find room at once: parameters, gradients and two numbers of an optimizer for
    each parameter."""
    assert cohort[0].prepared is not None
    room = memory_budget(cohort[0].prepared.material.device)
    part: list[_Member] = []
    taken = 0
    for member in cohort:
        assert member.prepared is not None
        own = 4 * sum(one.numel() * one.element_size() for one in member.prepared.network.parameters())
        if part and taken + own > room:
            yield part
            part, taken = [], 0
        part.append(member)
        taken += own
    yield part


def _refuse(configs: Sequence[TrainConfig]) -> None:
    folders = [config.out for config in configs]
    for config in configs:
        if config.out is None or config.resume is not None:
            raise UsageError(f"student {config.student} of a cohort needs out, the folder of its run, and no resume")
        if config.profile and len(configs) > 1:
            raise UsageError("--profile watches one student: train it alone")
    twice = [folder for folder in folders if folders.count(folder) > 1]
    if twice:
        raise UsageError(f"two students of a cohort have the folder {twice[0]}")


def _member(config: TrainConfig) -> _Member:
    assert config.out is not None
    folder = local_path(config.out, "--out")
    member = _Member(config, folder, config, None)
    try:
        member.parsed = parse(config)
        if (folder / CONFIG).exists():
            anew = {name: getattr(config, name) for name in config.given if name in MOVABLE}
            member.options, member.record = resumed(TrainConfig.of(resume=str(folder), **anew))
            began = parse(member.options)
            _refuse_other(folder, config, member.parsed, began)
            member.parsed = began
    except SoftcacheError as error:
        member.outcome = error
    return member


def _refuse_other(folder: Path, asked: TrainConfig, now: Parsed, began: Parsed) -> None:
    """Errors: ``UsageError`` where a folder's run was begun with other options than are asked for now."""
    whole = absolute_paths(asked)  # as a record has them
    # Caches are compared by what they are, and not by where.
    for name in sorted(asked.given - {"out", "cache", "hint_cache", "strong_cache", *MOVABLE}):
        ours, theirs = _spelled(now, name), _spelled(began, name)
        if name in FOLLOWED and name not in ("loss", "hint"):
            ours = getattr(whole, name)
        if ours is not None and ours != theirs:
            raise UsageError(f"{folder} holds a run with --{name.replace('_', '-')} {theirs}, not {ours}")


def _spelled(parsed: Parsed, name: str) -> Any:
    if name in ("loss", "hint"):
        return tuple(map(str, parsed.losses if name == "loss" else parsed.hints))
    return str(getattr(parsed, name)) if name in ("alpha", "beta", "T") else getattr(parsed.options, name)


def _views_begun(member: _Member) -> tuple[int, ...] | None:
    """The recorded views that a run began with: one that is begun now may find more of them."""
    numbers = member.record.view_numbers if member.record is not None else None
    return None if numbers is None else tuple(numbers)


def _prepare(group: Sequence[_Member]) -> None:
    """Opens what the members have in common, and then each of them. One that can't be opened leaves the group."""
    open_ones = [member for member in group if member.outcome is None]
    if not open_ones:
        return
    numbers = _views_begun(open_ones[0])
    try:
        material = Material.of([member.parsed for member in open_ones if member.parsed is not None], numbers)
    except SoftcacheError as error:
        if len(open_ones) == 1:
            open_ones[0].outcome = error
            return
        for member in open_ones:  # so that those that can be opened are
            _prepare([member])
        return
    for member in open_ones:
        assert member.parsed is not None
        begun = member.record.start if member.record and (member.folder / CHECKPOINT).exists() else None
        try:
            own = material if _reads_same_views(member.parsed, material, numbers) else None
            member.prepared = prepare(member.parsed, begun, member.record, own)
            if member.record is not None:
                refuse_other_targets(member.folder, member.record, member.prepared.data)
            member.order = order_of(member.prepared)
        except SoftcacheError as error:
            member.outcome = error


def _reads_same_views(parsed: Parsed, material: Material, numbers: Sequence[int] | None) -> bool:
    """Whether a student that reads only some of the columns would alone visit the same views: others of its cohort may
    read a column of which fewer views are there."""
    data = material.data.narrowed(parsed.outputs, parsed.teacher_layers)
    hinted = {hint_column(layer) for layer in parsed.teacher_layers}
    read = [(cache, name) for cache, name in data.recorded if name in parsed.outputs or name in hinted]
    if not read or data.recorded_views is None:
        return True
    return list(complete_views(read, parsed.options.views, numbers)) == data.recorded_views


def _same_order(members: Iterable[_Member]) -> list[list[_Member]]:
    """Those that can share a stream, together."""
    cohorts: list[list[_Member]] = []
    for member in members:
        fitting = [cohort for cohort in cohorts if _alike(cohort[0], member)]
        if fitting:
            fitting[0].append(member)
        else:
            cohorts.append([member])
    return cohorts


def _alike(one: _Member, other: _Member) -> bool:
    """Whether they want the same keys in the same order, with the same labels to be seen."""
    a, b = one.prepared, other.prepared
    assert a is not None
    assert b is not None
    assert one.order is not None
    assert other.order is not None
    if a.material is not b.material or a.live != b.live:
        return False
    arrays = ("rows", "lengths", "fits")
    plans = [
        {own.name: getattr(order.plan, own.name) for own in dataclasses.fields(order.plan) if own.name not in arrays}
        for order in (one.order, other.order)
    ]
    floating = a.rows.visible.dtype.kind == "f"
    return (
        plans[0] == plans[1]
        and np.array_equal(a.rows.train, b.rows.train)
        and np.array_equal(a.rows.held, b.rows.held)
        and np.array_equal(a.rows.visible, b.rows.visible, equal_nan=floating)
    )


def _train(cohort: Sequence[_Member], leaves: Leaves | None, group: str | None) -> None:
    """Trains those whose folder isn't held by another process."""
    with contextlib.ExitStack() as held:
        ready = []
        for member in cohort:
            try:
                make_folder(member.folder)
                go_on = f"softcache train --resume {shlex.quote(str(member.folder))}"
                held.enter_context(training_into(member.folder, go_on))
                ready.append(member)
            except SoftcacheError as error:
                member.outcome = error
        if not ready:
            return
        if len(ready) > 1:
            log.info(f"{counted(len(ready), 'student')} from one stream")
        students = [member.prepared for member in ready if member.prepared is not None]
        order = ready[0].order
        assert order is not None
        folders = [member.folder for member in ready]
        with tracked(students, folders, group) as logs:
            try:
                fits = run_all(students, folders, order, resume=True, leaves=leaves, logs=logs)
            except (SoftcacheError, RuntimeError) as error:  # of the stream that they share, or of one that is alone
                for member, told in zip(ready, logs, strict=True):
                    member.outcome = as_failure(error)
                    told.end_by(error)
                return
            for member, prepared, fitted, told in zip(ready, students, fits, logs, strict=True):
                if fitted.failure is not None:
                    member.outcome = fitted.failure
                    told.end_by(fitted.failure)
                else:
                    member.outcome = trained = finish(prepared, member.folder, fitted)
                    told.end("finished", trained.numbers())
                member.prepared = None  # its network's memory is for the next ones


def _grouped(members: Sequence[_Member], key: Any) -> list[list[_Member]]:
    groups: dict[Any, list[_Member]] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return list(groups.values())
