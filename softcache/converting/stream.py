"""Conversion block by block: rows of the source are read, coded anew where their codec is another, and written."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch

from softcache.cache.agreement.recorded import Recorded
from softcache.cache.column import DIGEST, OFFSET, Column
from softcache.cache.reader import Cache
from softcache.cache.writer import Block, BlockWriter
from softcache.codecs._open import option_of, rounds_each
from softcache.console import Bar
from softcache.converting.source import Source
from softcache.dumping.finite import finite_keys
from softcache.dumping.write_behind import WriteBehind
from softcache.errors import NumericsError

PIECE_BYTES = 8 << 20  # of values as float32, of as many rows as are read, coded and written at once
QUEUE_LIMIT = 4  # pieces that wait for the disk

Piece = tuple[BlockWriter, int, dict[str, dict[str, np.ndarray]]]


def convert_blocks(
    source: Source, cache: Cache, blocks: Sequence[Block], recoded: Mapping[str, bool], device: torch.device, shown: Bar
) -> None:
    """Makes the missing shards of these blocks, each whole or not at all. ``recoded``: by column, whether its codec is
    another than in the source. ``shown``: is told of bytes of the source.

    Errors: ``IntegrityError`` that names a shard of the source which is missing or damaged, ``NumericsError`` with the
    key where values don't fit a codec.
    """
    recorded, writers = Recorded(cache), []
    behind = WriteBehind[Piece](_write, QUEUE_LIMIT)
    try:
        for block in blocks:
            writer = BlockWriter(cache, block, recorded)
            writers.append(writer)
            for name in own(block, recoded):
                for first, rows in pieces(source.cache, cache, block, name, joint=recoded[name]):
                    stored = source.rows(block.view, name, first, rows)
                    arrays = _coded(source, cache, name, block.view, first, stored, device) if recoded[name] else stored
                    behind.put((writer, first, {name: arrays}))
                    shown.advance(sum(array.nbytes for array in stored.values()))
        behind.close()
    except BaseException:
        behind.abort()
        for writer in writers:
            writer.abort()
        raise


def own(block: Block, columns: Collection[str]) -> list[str]:
    """Of the columns that a block lacks, those among ``columns``: a cache may be asked for others too."""
    return [name for name in block.columns if name in columns]


def source_bytes(source: Cache, cache: Cache, blocks: Sequence[Block], recoded: Mapping[str, bool]) -> int:
    """How many bytes of the source these blocks are made of."""
    total = 0
    for block in blocks:
        for name in own(block, recoded):
            layout = source.layout(name)
            for first, rows in pieces(source, cache, block, name, joint=recoded[name]):
                places = int(source.places(name, first, rows).sum()) if layout.ragged else 0
                total += layout.nbytes(rows, places)
    return total


def pieces(source: Cache, cache: Cache, block: Block, name: str, *, joint: bool) -> Iterator[tuple[int, int]]:
    """First row and number of rows of what is converted at once, in order: all of the column's missing shards, and
    maybe rows beside them. They depend on the block alone and not on what is missing, so that a conversion that goes
    on makes the same bytes.

    ``joint``: where numbers of a sample are coded together, take the rows that a dump codes at once: last bits of a
    sum may depend on how many rows are summed together.
    """
    layout, step = cache.layout(name), cache.manifest.identity.grid.batch
    if not joint or rounds_each(layout.codec):
        step = max(1, PIECE_BYTES // _row_bytes(source, layout, block))
    missing = [cache.shard_range(name, number) for column, number in block.missing if column == name]
    spans = iter(sorted(missing))
    first, rows = next(spans)
    for at in range(block.first, block.first + block.rows, step):
        end = min(at + step, block.first + block.rows)
        while first + rows <= at:
            following = next(spans, None)
            if following is None:
                return
            first, rows = following
        if first < end:
            yield at, end - at


def _row_bytes(source: Cache, layout: Column, block: Block) -> int:
    """Of the values of a row as float32, of a ragged column of the longest in this block."""
    size = 4 * int(np.prod(layout.shape))
    return size * max(1, int(source.places(layout.name, block.first, block.rows).max())) if layout.ragged else size


def _coded(
    source: Source, cache: Cache, name: str, view: int, first: int, stored: dict[str, np.ndarray], device: torch.device
) -> dict[str, np.ndarray]:
    """What is stored, in the codec that the column has in ``cache``."""
    there, here, offset = source.cache.layout(name), cache.layout(name), stored.get(OFFSET)
    coded = {n: _on(array, device) for n, array in stored.items() if n not in (DIGEST, OFFSET)}
    with torch.inference_mode():
        values = there.decode(coded)
        made = here.encode(values)
        finite = finite_keys(here, values, made).cpu()
    if not bool(finite.all()):
        at = int((~finite).nonzero()[0, 0])
        row = first + (at if offset is None else int(np.searchsorted(offset, at, side="right")) - 1)
        codec = option_of(cache.manifest.state.columns[name].codec)
        raise NumericsError(
            f"row {row} in view {view}: {name} of {source.cache.folder} is not finite as {codec}: convert it to a "
            "codec that takes larger numbers, such as bf16 or int:bits=8"
        )
    kept = {DIGEST: stored[DIGEST]} | ({} if offset is None else {OFFSET: offset})
    return {n: array.cpu().numpy() for n, array in made.items()} | kept


def _on(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def _write(piece: Piece) -> None:
    writer, first, columns = piece
    writer.write(first, columns)
