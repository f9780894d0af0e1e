"""``softcache dump --on ray``: one process holds the cache and gives out its blocks, actors compute them.

What exists is done here too: the blocks of an actor that dies are given to others, and the shards that it had finished
are there.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softcache.atomic import remove_temporaries_of, why_full
from softcache.cache.locks import remove_locks_of, who_writes
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST
from softcache.cache.writer import Block, plan
from softcache.config.dump import DumpConfig
from softcache.console import Bar, bar, duration
from softcache.dumping.bound import Bound
from softcache.dumping.kept_error import keep_error
from softcache.dumping.ray_cluster import Actor, Lost, Raised, RayCluster
from softcache.dumping.units import Units
from softcache.dumping.waiting import Waited
from softcache.errors import CacheError, SoftcacheError
from softcache.stages._dumping import tell_waited
from softcache.stages._ray_actor import Ready, Report, seen
from softcache.stages._ray_sent import actor_class, setting_of, task_of

log = logging.getLogger(__name__)

TICK_S = 0.5
REPORT_S = 5.0  # that an actor has to send its last messages after an error
NOBODY_S, NOBODY_AGAIN_S = 60.0, 600.0  # without any actor, until that is said, and until it is said again
FAILURES = 3  # of actors in the same work, other than with their nodes, that end the dump
OPENING = "opening data and teacher"


@dataclass(frozen=True)
class Shared:
    """What a cluster has done: keys that were computed, how many actors did, and how many were lost meanwhile."""

    keys: int
    actors: int
    lost: int


def dump_on_ray(cluster: RayCluster, asked: DumpConfig, folder: Path, bounds: Mapping[str, Bound]) -> Shared:
    """Computes what is missing of the cache in ``folder``, which is there and held by ``writing``.

    It waits for actors as long as it takes, and has as many as there are blocks and the cluster has room for.
    ``bounds``: what columns may lose.

    Errors: ``NumericsError`` where one can't hold its bound any more; the first one of softcache that an actor raises;
    where actors end or fail in the same work three times though their nodes live, what they raised, or
    ``SoftcacheError``.
    """
    with ExitStack() as stack:
        giver = _Giver(cluster, asked, folder, bounds, stack)
        try:
            return giver.run()
        finally:
            giver.end()


@dataclass(eq=False)
class _Member:
    """An actor and what it does. ``state``: the method that it is in or returned from last, none before the first.

    ``idle``: it is in none. ``writer``: as its temporary files name it. ``blocks``: that it computes, its
    ``unit``-th unit, of which the bar has shown ``told`` keys. ``waited``: for the disk, in units that it finished.
    """

    actor: Actor
    state: str = ""
    idle: bool = True
    writer: str = ""
    blocks: list[Block] = field(default_factory=list)
    unit: int = 0
    waited: Waited = field(default_factory=Waited)
    told: int = 0


class _Giver:
    """Gives the work out and takes it back."""

    def __init__(
        self, cluster: RayCluster, asked: DumpConfig, folder: Path, bounds: Mapping[str, Bound], stack: ExitStack
    ):
        self._cluster, self._folder, self._stack = cluster, folder, stack
        self._codec, self._bounds = asked.named_codec, bounds
        self._writes = who_writes(folder)
        assert self._writes, "the folder is held by this process"
        self._class, self._setting, self._task = actor_class(), setting_of(cluster), task_of(cluster, asked, folder)
        self._members: dict[Actor, _Member] = {}
        self._first: _Member | None = None  # that makes or extends the cache; the others wait for it
        self._cache: Cache | None = None
        self._views = 0
        self._blocks: list[Block] = []
        self._waited = Waited()  # of all actors together
        self._units: Units | None = None  # known once the cache is there
        self._bar: Bar | None = None
        self._shown: set[str] = set()
        self._worked: set[Actor] = set()
        self._keys = self._lost = 0
        self._failures: Counter[str] = Counter()
        self._alone_since, self._patience = time.monotonic(), NOBODY_S

    def run(self) -> Shared:
        while self._units is None or self._units or any(member.blocks for member in self._members.values()):
            self._hire()
            for member in self._members.values():
                if member.idle:
                    self._direct(member)
            for actor, answer in self._cluster.answers(TICK_S):
                self._hear(self._members[actor], answer)
            for member in list(self._members.values()):
                if member is self._first or member.blocks:
                    self._note(member, self._cluster.report(member.actor))
            self._say_if_nobody()
        cache = self._cache
        if cache is not None and not seen(lambda: not cache.missing(cache.manifest.columns, self._views)):
            raise CacheError(
                f"actors have written shards that {self._folder} doesn't have as it is seen here: all nodes must share "
                "it; if they do, run the same command again"
            )
        if cache is not None:
            tell_waited(cache, self._blocks, self._waited)
        return Shared(self._keys, len(self._worked), self._lost)

    def end(self) -> None:
        """Ends all actors; what they were writing goes."""
        self._cluster.dismiss_all()
        for member in self._members.values():
            self._clean(member)

    def _hire(self) -> None:
        """Asks for one actor more than the cluster has room for, so that one which grows when it is asked to does."""
        wanted = self._cluster.room + 1
        if self._units is not None:
            wanted = min(wanted, len(self._units) + sum(bool(member.blocks) for member in self._members.values()))
        while len(self._members) < wanted:
            member = _Member(self._cluster.hire(self._class))
            self._members[member.actor] = member

    def _direct(self, member: _Member) -> None:
        """Says what is next for an actor that has nothing to do."""
        if not member.state:
            self._ask(member, "arrive")
        elif member.state == "arrive":
            self._ask(member, "start", self._setting, self._task)
        elif member.state == "start" and self._units is None and self._first is None:
            self._first = member
            self._ask(member, "open", self._writes, True)
        elif member.state == "start" and self._units is not None:
            self._ask(member, "open", self._writes, False)
        elif member.state in ("open", "compute") and self._units:
            at_work = sum(other.state in ("open", "compute") for other in self._members.values())
            member.blocks, member.unit, member.told = self._units.take(at_work), member.unit + 1, 0
            self._ask(member, "compute", member.blocks, member.unit)

    def _ask(self, member: _Member, method: str, *arguments: Any) -> None:
        member.state, member.idle = method, False
        self._cluster.ask(member.actor, method, *arguments)

    def _hear(self, member: _Member, answer: Any) -> None:
        member.idle = True
        if isinstance(answer, Lost):
            self._lose(member, answer.why, None, crashed=answer.crashed)
        elif isinstance(answer, Raised):
            self._raised(member, answer.error)
        elif member.state == "arrive":
            member.actor.host, member.actor.node, member.actor.pid = answer
        elif member.state == "start":
            if answer["trouble"]:
                raise SoftcacheError(f"node {member.actor.host} {answer['trouble']}")
            member.writer = answer["writer"]
        elif member.state == "open":
            self._note(member, answer[1])
            self._opened(member, answer[0])
        else:
            self._note(member, answer)
            self._worked.add(member.actor)
            self._advance(_rows(member.blocks) - member.told)
            member.blocks = []

    def _opened(self, member: _Member, ready: Ready) -> None:
        self._failures[OPENING] = 0
        if member is not self._first:
            return
        self._first = None
        if ready.whole:
            self._units = Units([], one_decode=False)
            return
        if not seen(lambda: (self._folder / MANIFEST).exists()):
            raise CacheError(
                f"node {member.actor.host} has made the cache, and {self._folder} doesn't have it as it is seen here: "
                "all nodes must share that folder"
            )
        self._cache, self._views = Cache(self._folder, codec=self._codec), ready.views
        self._blocks = plan(self._cache, ready.views, self._cache.manifest.columns)
        self._units, self._keys = Units(self._blocks, one_decode=ready.one_decode), _rows(self._blocks)
        self._bar = self._stack.enter_context(bar("dump", self._keys, "keys"))
        log.info(f"on Ray: {self._cluster.describe()}")

    def _raised(self, member: _Member, error: Exception) -> None:
        """An error of softcache would come again elsewhere, and so would a full disk. Another one may be the fault of
        this actor's machine."""
        self._note(member, self._cluster.report(member.actor, REPORT_S))
        if isinstance(error, SoftcacheError):
            where = f" (on node {member.actor.host})" if member.state == "open" else ""
            raise type(error)(f"{error}{where}") from error
        if why_full(error):
            raise error
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        self._lose(member, why, error, crashed=True)

    def _lose(self, member: _Member, why: str, error: Exception | None, *, crashed: bool) -> None:
        """Takes back what an actor had to do and what it held. Errors: as ``dump_on_ray``."""
        del self._members[member.actor]
        self._cluster.dismiss(member.actor)
        self._clean(member)
        if not member.actor.host:  # it never was: Ray had counted on a node that had died
            return
        self._lost += 1
        back, what = "", OPENING
        if member is self._first:
            # If it is only out of reach, it writes what the next one does, and each file is replaced as a whole.
            remove_locks_of(self._folder, member.actor.pid, member.actor.host)
            self._first = None
        elif member.blocks:
            assert self._units is not None
            left = self._missing(member.blocks)
            self._units.give_back(left)
            done = _rows(member.blocks) - _rows(left)
            self._advance(done - member.told)
            if done:
                self._worked.add(member.actor)
            if left:
                back = f": its {_rows(left):,} keys are given to others"
                what = f"rows {left[0].first:,} to {left[0].first + left[0].rows - 1:,} of view {left[0].view}"
        log.warning(f"an actor on {member.actor.host} is lost, {why}{back}")
        self._failures[what] += crashed
        if self._failures[what] >= FAILURES and error is not None:
            raise error
        if self._failures[what] >= FAILURES:
            raise SoftcacheError(
                f"{FAILURES} actors have ended in {what}, the last one on {member.actor.host}, though their nodes "
                "live: too little memory is a common cause, and Ray's logs may say more; the same command goes on"
            )

    def _clean(self, member: _Member) -> None:
        if member.writer:
            remove_temporaries_of(self._folder, member.writer)

    def _missing(self, blocks: Iterable[Block]) -> list[Block]:
        """What is left to do of these blocks."""
        assert self._cache is not None
        wanted = {(block.view, block.first) for block in blocks}
        now = plan(self._cache, self._views, self._cache.manifest.columns)
        return [block for block in now if (block.view, block.first) in wanted]

    def _note(self, member: _Member, report: Report | None) -> None:
        """Shows each message once, whoever says it, writes codecs' errors down, and how far the work has got."""
        if report is None:
            return
        for level, text in report.messages:
            if text not in self._shown:
                self._shown.add(text)
                log.log(level, text)
        for column, now, before in report.errors:
            keep_error(self._folder, self._bounds, column, now, before)
        self._waited += report.waited - member.waited
        member.waited = report.waited
        if member.blocks and report.unit == member.unit:
            self._advance(report.keys - member.told, report.note)
            member.told = report.keys

    def _advance(self, keys: int, note: str = "") -> None:
        assert self._bar is not None
        self._bar.advance(keys, note)

    def _say_if_nobody(self) -> None:
        if any(actor.host for actor in self._members):
            self._alone_since, self._patience = time.monotonic(), NOBODY_S
            return
        alone = time.monotonic() - self._alone_since
        if alone > self._patience:
            log.warning(
                f"no actor for {duration(alone)}: {self._cluster.free()}; the dump waits until there is one "
                "(Ctrl-C ends it, and the same command goes on)"
            )
            self._patience += NOBODY_AGAIN_S


def _rows(blocks: Iterable[Block]) -> int:
    return sum(block.rows for block in blocks)
