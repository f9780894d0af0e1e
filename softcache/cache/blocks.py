"""Reading a view of which little is in memory: whole blocks of rows, read by a thread ahead of their use.

A memory map is the fastest way to rows that the system holds already, and a slow one to those that it doesn't: each
row is a page fault that waits for the disk. Where keys come in an order that stays within a window of blocks for a
while (``training.windows.Windows``), blocks are read whole into a pool of fixed size, each before its first row is
asked for, and its place is given to another after its last. The thread also decompresses what is compressed.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque

import numpy as np

from softcache.cache.column import DIGEST, OFFSET
from softcache.cache.extents import Compressed, Extent
from softcache.cache.groups import Groups, grouped
from softcache.cache.reader import Cache
from softcache.cache.remote import Remote
from softcache.cache.schema import shard_name
from softcache.cache.shard import Opened, opened, read_rows
from softcache.errors import IntegrityError
from softcache.ragged import Int64, offsets_of, runs_of

ADVISED = 16  # blocks that the system is told of before they are read, so that a disk always has something to do


class BlockReader:
    """Rows of one column of one view, for keys that come in the order that is given.

    ``order``: (K,) int64, the rows that ``gather`` is going to be asked for, in that order. ``block_rows``: rows of a
    block, a power of two; ``window``: blocks that an order stays within. Two windows' blocks are held, no more.
    """

    def __init__(self, cache: Cache, column: str, view: int, order: np.ndarray, block_rows: int, window: int):
        shard_rows = cache.manifest.shard_rows(column)
        self._block_rows = min(block_rows, shard_rows)
        split = block_rows // self._block_rows  # shards of hints may be smaller than a block
        slots = min(2 * window * split, -(-cache.rows // self._block_rows))
        self._order, self._at = order, 0
        self._visit, block, self._first, self._last = _visits(order // self._block_rows, window * block_rows)
        assert _most_at_once(self._first, self._last) <= slots, "this order doesn't stay within its windows"
        self._ends = np.argsort(self._last, kind="stable")  # visits in the order in which they end
        self._ended = 0
        self._loader = _Loader(cache, column, view, block, self._block_rows, slots)
        # The thread knows the loader alone, and ends with whoever reads from it.
        weakref.finalize(self, self._loader.stop).atexit = False
        self._thread = threading.Thread(target=self._loader.run, name="softcache-blocks", daemon=True)

    @property
    def nbytes(self) -> int:
        """Memory that the blocks take, however many rows the cache has."""
        return sum(pool.nbytes for pool in self._loader.pools.values())

    def gather(self, rows: np.ndarray, out: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """The next keys' rows of each array, (B, ...): as ``ColumnReader.gather``, which also says what
        comes of a ragged column.

        Errors: ``IntegrityError`` where a shard is missing or damaged.
        """
        if self._thread.ident is None:  # not before: workers may be forked first
            self._thread.start()
        assert np.array_equal(rows, self._order[self._at : self._at + len(rows)]), "rows come in the order given"
        ragged = self._loader.ragged
        ends = np.arange(len(rows) + 1) if ragged is None else offsets_of(ragged.places(rows))
        pools = self._loader.pools
        if out is None:
            sizes = {name: len(rows) if name == DIGEST else int(ends[-1]) for name in pools}
            out = {name: np.empty((sizes[name], *pool.shape[1:]), pool.dtype) for name, pool in pools.items()}
        done = 0
        while done < len(rows):  # once, but for batches that are larger than the pool
            last = done + min(len(rows) - done, self._reach() - self._at)
            own = {name: slice(done, last) if name == DIGEST else slice(ends[done], ends[last]) for name in pools}
            self._take(rows[done:last], {name: out[name][own[name]] for name in pools})
            done = last
        return out if ragged is None else {**out, OFFSET: ends}

    def _reach(self) -> int:
        """The place of the first key whose block finds no slot before some other block is done with."""
        visit = self._ended + self._loader.slots
        return int(self._first[visit]) if visit < len(self._first) else len(self._order)

    def _take(self, rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
        slots = self._loader.slots_of(self._visit[self._at : self._at + len(rows)])
        place = slots * self._block_rows + rows % self._block_rows
        within = place if self._loader.ragged is None else self._loader.places(rows, slots)
        for name, pool in self._loader.pools.items():
            np.take(pool, place if name == DIGEST else within, axis=0, out=out[name], mode="clip")
        self._at += len(rows)
        ended = int(np.searchsorted(self._last, self._at, sorter=self._ends))
        self._loader.free(self._ends[self._ended : ended])
        self._ended = ended


class _Loader:
    """Reads blocks into slots, in the order of their visits, as long as there are slots free."""

    def __init__(self, cache: Cache, column: str, view: int, blocks: np.ndarray, block_rows: int, slots: int):
        self._cache, self._column, self._view = cache, column, view
        self._shard_rows, self._block_rows = cache.manifest.shard_rows(column), block_rows
        self.ragged = cache.column(column).ragged
        self._most = 0  # places that a block has at most
        if self.ragged is not None:
            begins = self.ragged.offset[np.append(np.arange(0, cache.rows, block_rows), cache.rows)]
            self._most = int(np.diff(begins).max())
        shapes = cache.layout(column).arrays(slots * block_rows, slots * self._most)
        self.pools = {name: np.empty(shape, dtype) for name, (dtype, shape) in shapes.items() if name != OFFSET}
        self.slots = slots
        self._blocks = blocks  # (visits,)
        self._groups = self._grouped(cache.remote) if cache.remote is not None else None
        self._slot = np.full(len(blocks), -1, np.int64)
        self._free = deque(range(slots))
        self._checked: dict[int, tuple[os.stat_result, Opened]] = {}  # by the number of the shard
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._stopped = False

    def slots_of(self, visits: np.ndarray) -> np.ndarray:
        """Where the blocks of these visits lie, once they have been read."""
        slots = self._slot[visits]
        if (slots < 0).any():
            with self._changed:
                while ((slots := self._slot[visits]) < 0).any():
                    if self._failure is not None:
                        raise self._failure
                    self._changed.wait()
        return slots

    def places(self, rows: np.ndarray, slots: np.ndarray) -> Int64:
        """(P,) where in the pools the places of rows lie, whose blocks are in these slots."""
        assert self.ragged is not None
        offset = self.ragged.offset
        first = slots * self._most + offset[rows] - offset[rows - rows % self._block_rows]
        return runs_of(first, offsets_of(self.ragged.places(rows)))

    def free(self, visits: np.ndarray) -> None:
        """These visits are over."""
        if len(visits):
            with self._changed:
                self._free.extend(self._slot[visits].tolist())
                self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def run(self) -> None:
        try:
            for visit, block in enumerate(self._blocks.tolist()):
                if self._groups is not None:
                    self._groups.visit(visit)
                ahead = range(0, ADVISED) if visit == 0 else range(visit + ADVISED - 1, visit + ADVISED)
                for other in ahead if self._groups is None else ():  # what was just fetched is in memory
                    if other < len(self._blocks):
                        self._read(int(self._blocks[other]), None)
                with self._changed:
                    while not self._free and not self._stopped:
                        self._changed.wait()
                    if self._stopped:
                        return
                    slot = self._free.popleft()
                self._read(block, slot)
                with self._changed:
                    self._slot[visit] = slot
                    self._changed.notify_all()
        except BaseException as error:  # handed to the thread that waits for the block, which raises it
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            if self._groups is not None:
                self._groups.end()

    def _grouped(self, remote: Remote) -> Groups:
        groups = grouped(self._blocks * self._block_rows // self._shard_rows)
        files = [[shard_name(self._view, self._column, number) for number in shards] for _, shards in groups]
        return Groups(remote, [first for first, _ in groups], files)

    def _read(self, block: int, slot: int | None) -> None:
        """Reads a block into a slot; without one, tells the system that it will be read."""
        number, first = divmod(block * self._block_rows, self._shard_rows)
        rows = min(self._block_rows, self._cache.shard_range(self._column, number)[1] - first)
        path = self._cache.shard_path(self._view, self._column, number)
        with opened(path) as (fd, _):
            status = os.fstat(fd)
            if number not in self._checked or not _same(status, self._checked[number][0]):
                # the first time, and where another file has taken the name since: what is checked is what is read
                with self._cache.shard(self._view, self._column, number) as file:
                    self._checked[number] = os.fstat(file.fd), file
                    self._read_open(file, block, first, rows, slot)
                return
            self._read_open(self._checked[number][1]._replace(fd=fd), block, first, rows, slot)

    def _read_open(self, file: Opened, block: int, first: int, rows: int, slot: int | None) -> None:
        """``first``: the block's first row in its shard, ``rows``: how many it has."""
        for name in file.names:
            array = file.compressed.get(name) or file.extents[name]
            if name == OFFSET or (isinstance(array, Extent) and not array.nbytes):  # offsets are what lengths add up to
                continue
            begin, count, capacity = first, rows, self._block_rows
            if self.ragged is not None and name != DIGEST:
                row = block * self._block_rows
                ends = self.ragged.offset[[row - first, row, row + rows]]
                begin, count, capacity = int(ends[1] - ends[0]), int(ends[2] - ends[1]), self._most
            if not count:
                continue  # all of its rows are empty
            if slot is None:
                if hasattr(os, "posix_fadvise"):  # not on macOS
                    os.posix_fadvise(file.fd, *_place(array, begin, count), os.POSIX_FADV_WILLNEED)
                continue
            target = self.pools[name][slot * capacity : slot * capacity + count]
            if isinstance(array, Extent):
                _fill(file, target.view(np.uint8).data.cast("B"), _place(array, begin, count)[0])
            else:
                read_rows(file, array, begin, target)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether an open file is the one that was checked, and has not been written to since."""
    return os.path.samestat(one, other) and (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _place(array: Extent | Compressed, begin: int, count: int) -> tuple[int, int]:
    """Where in a file rows lie, or the chunks that have them, from the first one's offset on: (offset, bytes)."""
    if isinstance(array, Extent):
        row_bytes = array.nbytes // array.shape[0]
        return array.offset + begin * row_bytes, count * row_bytes
    chunks = array.chunks
    first, last = begin // chunks.rows, (begin + count - 1) // chunks.rows
    offset = int(chunks.offset[first])
    return offset, max(0, int(chunks.offset[last] + chunks.stored[last]) - offset)


def _fill(file: Opened, target: memoryview, offset: int) -> None:
    while target:
        got = os.preadv(file.fd, [target], offset)
        if not got:
            raise IntegrityError(f"{file.path} has been truncated")
        target, offset = target[got:], offset + got


def _visits(blocks: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The stretches of an order in which a block's rows are asked for, by their first keys: a block that isn't asked
    for during ``gap`` keys and then is again is visited twice.

    Result: each key's visit (K,), and of each visit the block and the places of its first and last key.
    """
    small = blocks.astype(np.uint16) if blocks.max(initial=0) < 2**16 else blocks  # numpy sorts these ten times faster
    by_block = np.argsort(small, kind="stable")  # (K,) places, block by block, in order within each
    begins = np.ones(len(blocks), dtype=bool)
    begins[1:] = (np.diff(blocks[by_block]) != 0) | (np.diff(by_block) > gap)
    starts = np.flatnonzero(begins)
    first = by_block[starts]
    last = by_block[np.append(starts[1:], len(blocks)) - 1]
    turn = np.argsort(first)
    number = np.empty(len(turn), np.int64)
    number[turn] = np.arange(len(turn))
    visit = np.empty(len(blocks), np.int64)
    visit[by_block] = number[np.cumsum(begins) - 1]
    return visit, blocks[first[turn]], first[turn], last[turn]


def _most_at_once(first: np.ndarray, last: np.ndarray) -> int:
    """How many visits are under way at the same time, at most."""
    ends = np.sort(last)
    return int((np.arange(1, len(first) + 1) - np.searchsorted(ends, first)).max(initial=0))
