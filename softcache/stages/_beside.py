"""The teacher of a run on the inputs that the run is evaluated on: found by the run's record, or as it is named."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softcache.addresses import is_address
from softcache.cache.manifest import find_caches
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.config.given import recorded_caches, recorded_live_teacher, recorded_teacher
from softcache.config.opening import Opening
from softcache.config.record import Record
from softcache.config.teachers import check_own, find_teacher, refuse_other_teacher
from softcache.config.train import TrainConfig
from softcache.device import DTYPES
from softcache.errors import CacheError, ModelError, SoftcacheError
from softcache.evaluating.predictions import Predictions, cached_predictions
from softcache.models._arithmetic import Arithmetic
from softcache.models._network import Network
from softcache.models._weights import fingerprint
from softcache.stages._subject import Cost, Opener, Split, Subject

log = logging.getLogger(__name__)
NAME_ANOTHER = "name a teacher of that run with --teacher, or with --cache what it said of the split"


@dataclass(frozen=True, eq=False)
class Teacher:
    """``name``: of the network; ``source``: where its outputs are from, for people. ``kind``: of its logits. ``cost``:
    None of one that was not run."""

    name: str
    source: str
    kind: str
    said: Predictions
    cost: Cost | None = None


class Teachers:
    """Those of several runs, each opened once."""

    def __init__(self, opener: Opener):
        self._opener = opener
        self._found: dict[tuple[object, ...], Teacher] = {}
        self._missing: dict[tuple[object, ...], SoftcacheError] = {}
        self._cache: Cache | None = None  # of --cache
        self._named: dict[int, Subject] = {}  # of --teacher, by its split

    def refuse_others(self, models: Sequence[str]) -> None:
        """Looks at the parameters of what ``--cache`` or ``--teacher`` names, before anything is computed.

        Errors: ``ModelError`` where they aren't those of a teacher that a run among ``models`` has learnt from; what
        speaks against opening them.
        """
        asked = self._opener.asked
        for model in models if asked.cache is not None or asked.teacher is not None else ():
            folder, record, split = self._opener.data(model)
            if folder is None or record is None or not (record.losses or record.hints):
                continue
            if not record.teachers:
                log.warning(
                    f"the record of {folder} doesn't say which parameters its teacher had: whether they are those of "
                    f"{asked.cache or asked.teacher} isn't checked"
                )
                continue
            if asked.cache is not None:
                refuse_cache(folder, record, self._cache_named(asked.cache))
                continue
            network = self._teacher_named(str(asked.teacher), split).network
            refuse_other_teacher(
                folder, record, f"--teacher {asked.teacher} has", fingerprint(network.model.state_dict()), NAME_ANOTHER
            )

    def of(self, subject: Subject) -> Teacher | None:
        """None for a subject that has no teacher, and where nobody named one.

        Errors: ``SoftcacheError`` that says why it can't be had.
        """
        asked, split = self._opener.asked, subject.split
        if not asked.compare:
            return None
        key: tuple[object, ...]
        if asked.cache is not None or asked.teacher is not None:
            key = (id(split),)
        else:
            options = subject.options
            if options is None or not (options.online or options.cache):
                return None
            assert subject.record is not None
            ids = tuple(entry["cache_id"] for entry in subject.record.caches)
            key = (id(split), ids, options.online, options.teacher, options.teacher_weights)
        # What can't be had from one folder may be had from another: each names the places of its caches by itself.
        within = (*key, subject.folder)
        if key not in self._found and within not in self._missing:
            try:
                self._found[key] = self._open(subject)
            except SoftcacheError as error:
                self._missing[within] = error
        if key not in self._found:
            raise self._missing[within]
        return self._found[key]

    def _open(self, subject: Subject) -> Teacher:
        asked, split = self._opener.asked, subject.split
        if asked.cache is not None:
            return _cached(self._cache_named(asked.cache), split)
        if asked.teacher is not None:
            opened = self._teacher_named(asked.teacher, split)
            del self._named[id(split)]  # what it says is kept, and no more
            return self._live(opened)
        folder, record, options = subject.folder, subject.record, subject.options
        assert folder is not None
        assert record is not None
        assert options is not None
        if options.online:
            return self._online(folder, record, options, split)
        names = recorded_caches(folder, options)
        if len(names) > 1:
            raise ModelError(
                f"{folder} was trained from {len(names)} caches, and it is compared with one teacher: name it with "
                "--teacher, or its cache with --cache"
            )
        return self.of_cache(self._where.open(names[0]), split)

    @property
    def _where(self) -> Opening:
        asked = self._opener.asked
        return Opening(asked.expect, asked.local_cache, asked.local_size)

    def _cache_named(self, name: str) -> Cache:
        if self._cache is None:
            self._cache = self._where.open(name, option="--cache")
        return self._cache

    def _teacher_named(self, name: str, split: Split) -> Subject:
        if id(split) not in self._named:
            weights = self._opener.asked.teacher_weights
            self._named[id(split)] = self._opener.on(split, name, weights, option="--teacher-weights")
        return self._named[id(split)]

    def of_cache(self, recorded: Cache, split: Split) -> Teacher:
        """The teacher that ``recorded`` was made with: what a cache of the split beside it says, else run now.

        Errors: ``SoftcacheError`` that says why it can't be had.
        """
        return _of_split(recorded, split) or self._recorded(recorded, split)

    def _live(self, subject: Subject) -> Teacher:
        """A teacher that is run now."""
        (said,) = self._opener.say([subject])
        kind = subject.split.viewed.samples.label_kind
        return Teacher(subject.model, "run now", kind, said, self._opener.cost(subject))

    def _online(self, folder: Path, record: Record[TrainConfig], options: TrainConfig, split: Split) -> Teacher:
        """That of ``--online``, in the arithmetic of the training."""
        spec, weights = recorded_live_teacher(folder, options)
        network = find_teacher(spec, split.viewed.samples, weights=weights, size=options.teacher_size)
        cure = "name that teacher with --teacher, or with --cache what it said of the split"
        refuse_other_teacher(folder, record, f"{spec} has by now", fingerprint(network.model.state_dict()), cure)
        arithmetic = Arithmetic(**record.live) if record.live is not None else Arithmetic("off", False)
        return self._live(self._moved(spec, network, arithmetic, options.dtype, split))

    def _recorded(self, cache: Cache, split: Split) -> Teacher:
        """The teacher that ``cache`` was made with, in the arithmetic of its dump."""
        identity = cache.manifest.identity.teacher
        try:
            spec = recorded_teacher(cache)
            size = identity.preprocess.get("size")
            network = find_teacher(spec, split.viewed.samples, size=size)
            check_own(network, [cache], spec)
        except SoftcacheError as error:
            samples = split.viewed.samples
            command = (
                f"softcache dump --teacher {shlex.quote(identity.spec)} --dataset {shlex.quote(samples.spec)} "
                f"--split {samples.split} --augment none"
            )
            raise ModelError(
                f"{error}; or name the teacher with --teacher, or with --cache what `{command}` makes"
            ) from None
        numerics = identity.numerics
        arithmetic = Arithmetic(numerics.amp, numerics.memory_format == "channels_last")
        return self._live(self._moved(spec, network, arithmetic, numerics.dtype, split))

    def _moved(self, spec: str, network: Network, arithmetic: Arithmetic, dtype: str, split: Split) -> Subject:
        moved = network.to(self._opener.device, DTYPES.get(dtype, DTYPES["float32"]))
        return Subject(spec, arithmetic.apply(moved), arithmetic, split)


def refuse_cache(folder: Path, record: Record[Any], cache: Cache) -> None:
    """Errors: ``ModelError`` where ``--cache`` names one that none of the run's teachers made."""
    teacher = cache.manifest.identity.teacher
    refuse_other_teacher(
        folder, record, f"--cache {cache.where} is of {teacher.spec} with", teacher.weights, NAME_ANOTHER
    )


def _of_split(recorded: Cache, split: Split) -> Teacher | None:
    """What the teacher of ``recorded`` said of the split, where a cache of that lies beside it or in ``caches/``."""
    for cache in _beside(recorded):
        ours, theirs = recorded.manifest.identity, cache.manifest.identity
        same = ours.teacher.weights == theirs.teacher.weights and ours.teacher.preprocess == theirs.teacher.preprocess
        if not same or theirs.dataset.split != split.viewed.samples.split or LOGITS not in cache.manifest.columns:
            continue
        try:
            return _cached(cache, split)
        except SoftcacheError as error:
            log.debug(f"{cache.where} is not compared with: {error}")
    return None


def _beside(recorded: Cache) -> Sequence[Cache]:
    """The cache itself, and those in ``caches/`` and in its own folder."""
    found = {recorded.place: recorded}
    places = ["caches"] if is_address(recorded.where) else ["caches", str(Path(recorded.place).parent)]
    for folder in [folder for place in places for folder in find_caches(place)]:
        try:
            cache = Cache(folder)
        except CacheError as error:  # a damaged one is no reason not to look at the others
            log.debug(f"{folder} is passed over: {error}")
            continue
        found.setdefault(cache.place, cache)
    return list(found.values())


def _cached(cache: Cache, split: Split) -> Teacher:
    said = cached_predictions(cache, split.viewed)
    identity, layout = cache.manifest.identity, cache.layout(LOGITS)
    return Teacher(identity.teacher.spec, f"cache {cache.where}", layout.kind, said)
