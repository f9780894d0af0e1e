"""An actor's part of ``softcache dump --on ray``: it opens what the dump opens, and computes the blocks it is given."""

from __future__ import annotations

import dataclasses
import logging
import queue
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from softcache.atomic import writer_name
from softcache.cache.agreement.recorded import Recorded
from softcache.cache.locks import who_writes
from softcache.cache.reader import Cache
from softcache.cache.writer import Block
from softcache.config.dump import DumpConfig
from softcache.device import pick_device
from softcache.dumping.codec_error import Measured
from softcache.dumping.estimate import refuse_too_large
from softcache.dumping.waiting import Waited
from softcache.errors import CacheError
from softcache.remembered import set_process
from softcache.stages._dumping import (
    Begun,
    Opened,
    begin,
    check,
    compute,
    estimated,
    open_dump,
    prepare,
    remove_leftovers,
)
from softcache.stream.inputs import pick_workers

SEEN_S = 90.0  # a network's file system may show what another machine has written as late as this


def seen(what: Callable[[], bool]) -> bool:
    """Waits until ``what`` is true of a shared folder; False where it doesn't become so."""
    end = time.monotonic() + SEEN_S
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


@dataclasses.dataclass(frozen=True)
class Report:
    """What has happened in an actor since the last one: ``keys`` of unit ``unit`` that were computed so far, messages
    as (level, text), and errors of codecs as (column, now, before), as ``keep_error`` takes them. ``note``: what is to
    be seen beside the keys; ``waited``: how long it waited for the disk in the units that it has finished."""

    unit: int
    keys: int
    note: str
    waited: Waited
    messages: list[tuple[int, str]]
    errors: list[tuple[str, Measured, Measured]]


@dataclasses.dataclass(frozen=True)
class Ready:
    """What an actor has found when it opened the dump. ``whole``: nothing is left to do; else ``views`` are asked for,
    and their blocks are computed from one decode of each row if ``one_decode``."""

    whole: bool
    views: int = 0
    one_decode: bool = False


class Work:
    """The state of an actor. It takes no lock but while it prepares the cache, so that its death holds nobody up."""

    def __init__(
        self,
        options: dict[str, Any],
        given: dict[str, Any],
        arguments: list[str],
        max_image_pixels: int | None,
        threads: int,
        cores: int,
    ):
        """To be made once in a process, which it sets up as the command has set up its own.

        ``options``: those of the dump, with the cache's folder. ``given``: as ``everything_given`` has it.
        ``arguments``: the command line. ``threads``: CPU threads that torch may use; ``cores``: of the node, the
        actor's share.
        """
        torch.set_num_threads(threads)
        sys.argv = arguments  # of which the cache keeps a note
        Image.MAX_IMAGE_PIXELS = max_image_pixels
        set_process(writes=False, **given)
        self._asked = DumpConfig.of(**options)
        self._cores = cores
        self._told: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._errors: queue.SimpleQueue[tuple[str, Measured, Measured]] = queue.SimpleQueue()
        self._unit = self._keys = 0
        self._note, self._waited = "", Waited()
        logger = logging.getLogger("softcache")
        logger.addHandler(_Kept(self._told))
        logger.setLevel(logging.INFO)
        logger.propagate = False
        self.writer = writer_name()

    def open(self, writes: str, first: bool) -> Ready:
        """Opens data, teacher and cache. ``writes``: what the cache's lock says; ``first``: whether the cache is to be
        made or extended, which no other process does at that time.

        Errors: ``CacheError`` where another folder of that name is seen here; those of the dump.
        """
        assert self._asked.out is not None
        folder = Path(self._asked.out)
        if not seen(lambda: who_writes(folder) == writes):
            raise CacheError(
                f"{folder} isn't the folder that the dump writes to: --on ray needs a cache's folder, and data and "
                "teachers, that all nodes share under one name"
            )
        device = pick_device(self._asked.device)
        begun = self._with_workers(begin(self._asked, device.type))
        opened = None if begun.whole else open_dump(begun, device, divided=False)
        if opened is None:
            return Ready(whole=True)
        if first:
            refuse_too_large(estimated(opened), folder)
            cache, _ = prepare(opened)
        else:
            remove_leftovers(folder)
            cache = Cache(folder, codec=begun.config.named_codec)
        recorded = Recorded(cache)
        check(opened, cache, recorded)
        self._opened: tuple[Opened, Cache, Recorded] = opened, cache, recorded
        return Ready(False, opened.views, one_decode=not begun.viewed.samples.in_memory)

    def compute(self, blocks: Sequence[Block], unit: int) -> None:
        """Computes and commits blocks. Errors: those of the dump."""
        opened, cache, recorded = self._opened
        self._unit, self._keys = unit, 0
        self._waited += compute(opened, cache, blocks, recorded, measured=self._measured, progress=self)

    def report(self) -> Report:
        """May be called while something else is."""
        messages, errors = _drained(self._told), _drained(self._errors)
        return Report(self._unit, self._keys, self._note, self._waited, messages, errors)

    def advance(self, count: int, note: str = "") -> None:
        self._keys += count
        self._note = note

    def _measured(self, column: str, now: Measured, before: Measured) -> None:
        """The manifest is changed by the process that gives out the work."""
        self._errors.put((column, now, before))

    def _with_workers(self, begun: Begun) -> Begun:
        """Where nobody says how many processes make inputs, as many as fit into this actor's share of the node."""
        workers = pick_workers(begun.viewed, begun.config.workers)
        if begun.config.workers < 0:
            workers = min(workers, max(1, self._cores - 1))
        return dataclasses.replace(begun, config=dataclasses.replace(begun.config, workers=workers))


class _Kept(logging.Handler):
    """Keeps messages until they are asked for."""

    def __init__(self, told: queue.SimpleQueue[tuple[int, str]]):
        super().__init__()
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told.put((record.levelno, record.getMessage()))


def _drained(held: queue.SimpleQueue[Any]) -> list[Any]:
    found = []
    while True:
        try:
            found.append(held.get_nowait())
        except queue.Empty:
            return found
