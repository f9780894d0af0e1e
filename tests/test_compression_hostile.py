"""Compressed shards of strangers: whatever an index or a frame says, a reader answers with one line, soon, and takes no
more memory than the chunk that it was promised."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from harness_cache import make_cache, write_shard
from harness_damage import same

from softcache.cache.checksum import check_file
from softcache.cache.chunk_frames import Chunking, decode, encoder
from softcache.cache.hdf5 import read_structure
from softcache.cache.hdf5_bytes import lookup3
from softcache.cache.reader import Cache
from softcache.cache.shard import PAGE, Arrays, Attributes, open_shard, read_array
from softcache.errors import IntegrityError, SoftcacheError
from softcache.stages.verify import verify

zstandard = pytest.importorskip("zstandard")

ROWS, CHUNK = 600, 64
ATTRIBUTES: Attributes = {"format": "softcache", "version": 1}
VALUES = np.arange(ROWS * 16, dtype="<f4").reshape(ROWS, 16)
ARRAYS: Arrays = {"digest": ("<u4", (ROWS,)), "values": ("<f4", (ROWS, 16))}
CHUNKING = {"values": Chunking(CHUNK, True, 1)}
CHUNK_BYTES = CHUNK * 64
Layout = Any


def frames() -> list[bytes]:
    """Those of a good shard."""
    filled = np.zeros((-(-ROWS // CHUNK) * CHUNK, 16), "<f4")
    filled[:ROWS] = VALUES
    encode = encoder(1)
    return [encode(part, True) for part in np.split(filled, len(filled) // CHUNK)]


def by_hand(
    path: Path,
    change: Callable[[list[bytes]], list[bytes]] = lambda good: good,
    layout: Callable[[Layout], object] = lambda layout: _filters(layout),
    mask: int = 0,
    space: h5py.h5s.SpaceID | None = None,
    bound: int = h5py.h5f.LIBVER_V110,
) -> Path:
    """The same shard through h5py's own calls, with something else in it."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(bound, h5py.h5f.LIBVER_V110)
    access.set_alignment(1, PAGE)
    create = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    create.set_obj_track_times(False)
    with h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, fcpl=create, fapl=access)) as file:
        for key, value in ATTRIBUTES.items():
            file.attrs.create(key, np.bytes_(value.encode()) if isinstance(value, str) else np.int64(value))
        file.create_dataset("digest", data=np.zeros(ROWS, "<u4"), track_times=False).attrs.create("crc32", np.uint32(0))
        own = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        own.set_chunk((CHUNK, 16))
        layout(own)
        own.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        own.set_obj_track_times(False)
        space = space or h5py.h5s.create_simple((ROWS, 16))
        made = h5py.h5d.create(file.id, b"values", h5py.h5t.IEEE_F32LE, space, own)
        for number, frame in enumerate(change(frames())):
            if frame and own.get_chunk() == (CHUNK, 16):
                made.write_direct_chunk((number * CHUNK, 0), frame, mask)
        for name in ("crc32", "stored_crc32"):
            h5py.Dataset(made).attrs.create(name, np.uint32(0))
    return path


def _filters(layout: Layout, *, shuffle: bool = True, values: tuple[int, ...] = (1,), zstd: int = 32015) -> None:
    if shuffle:
        layout.set_filter(2, h5py.h5z.FLAG_OPTIONAL)
    layout.set_filter(zstd, h5py.h5z.FLAG_OPTIONAL, values)


def _shuffled_after(layout: Layout) -> None:
    _filters(layout, shuffle=False)
    layout.set_filter(2, h5py.h5z.FLAG_OPTIONAL)


def _with_checksums(layout: Layout) -> None:
    _filters(layout)
    layout.set_fletcher32()


def _by_columns(layout: Layout) -> None:
    _filters(layout)
    layout.set_chunk((CHUNK, 8))


def _of_other_rows(layout: Layout) -> None:
    _filters(layout)
    layout.set_chunk((2 * CHUNK, 16))


def test_the_plain_one_opens_whoever_wrote_it(tmp_path: Path) -> None:
    write_shard(tmp_path / "ours.h5", ATTRIBUTES, {"digest": np.zeros(ROWS, "<u4"), "values": VALUES}, CHUNKING)
    by_hand(tmp_path / "theirs.h5")
    for name in ("ours", "theirs"):
        with open_shard(tmp_path / f"{name}.h5", ATTRIBUTES, ARRAYS, CHUNKING) as file:
            out = np.empty((CHUNK, 16), "<f4")
            array = file.compressed["values"]
            for number, frame in enumerate(frames()):
                offset, stored = int(array.chunks.offset[number]), int(array.chunks.stored[number])
                assert os.pread(file.fd, stored, offset) == frame
                decode(frame, out, True)
                part = VALUES[number * CHUNK : (number + 1) * CHUNK]
                assert out[: len(part)].tobytes() == part.tobytes()


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "gzip": ({"layout": lambda own: own.set_deflate(4)}, "filters that shards don't have"),
    "no filter": ({"layout": lambda own: None}, "chunked"),
    "shuffle alone": ({"layout": lambda own: own.set_filter(2, 1)}, "filters that shards don't have"),
    "another registered filter": ({"layout": lambda own: _filters(own, zstd=32001)}, "filters that shards don't have"),
    "shuffled after": ({"layout": _shuffled_after}, "filters that shards don't have"),
    "a third filter": ({"layout": _with_checksums}, "filters that shards don't have"),
    "other parameters": ({"layout": lambda own: _filters(own, values=(1, 2))}, "filters that shards don't have"),
    "not shuffled": ({"layout": lambda own: _filters(own, shuffle=False)}, "shuffled otherwise"),
    "chunks by columns": ({"layout": _by_columns}, "not by whole rows"),
    "chunks of other rows": (
        {"layout": _of_other_rows, "change": lambda good: []},
        "lies nowhere|lies at|chunks of 128 rows",
    ),
    "a skipped filter": ({"mask": 1}, "skips a filter"),
    "a chunk that is missing": ({"change": lambda good: [*good[:3], b"", *good[4:]]}, "lies nowhere"),
    "no chunk": ({"change": lambda good: []}, "lies nowhere|lies at"),
    "a chunk that is too long": ({"change": lambda good: [bytes(CHUNK_BYTES + 100), *good[1:]]}, "more than"),
    "resizable": ({"space": h5py.h5s.create_simple((ROWS, 16), (h5py.h5s.UNLIMITED, 16))}, "grow|index that shards"),
    "resizable both ways": ({"space": h5py.h5s.create_simple((ROWS, 16), (h5py.h5s.UNLIMITED,) * 2)}, "grow|index"),
    "an old index": ({"bound": h5py.h5f.LIBVER_EARLIEST}, "superblock|chunked in a way"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_or_filter_that_shards_do_not_have_is_refused_by_name(name: str, tmp_path: Path) -> None:
    arguments, message = HOSTILE[name]
    path = by_hand(tmp_path / "shard.h5", **arguments)
    with pytest.raises(IntegrityError, match=message) as caught, open_shard(path, ATTRIBUTES, ARRAYS, CHUNKING):
        pass
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_what_is_compressed_and_should_not_be_is_refused_and_the_other_way(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "shard.h5")
    with pytest.raises(IntegrityError, match="not contiguous"), open_shard(path, ATTRIBUTES, ARRAYS):
        pass
    write_shard(tmp_path / "plain.h5", ATTRIBUTES, {"digest": np.zeros(ROWS, "<u4"), "values": VALUES})
    with (
        pytest.raises(IntegrityError, match="not compressed"),
        open_shard(tmp_path / "plain.h5", ATTRIBUTES, ARRAYS, CHUNKING),
    ):
        pass


def _frame(data: bytes, **options: Any) -> bytes:
    made: bytes = zstandard.ZstdCompressor(**{"write_checksum": True, **options}).compress(data)
    return made


def _streamed(data: bytes, size: int = -1) -> bytes:
    """A frame that doesn't say how much it holds."""
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj(size)
    made: bytes = compressor.compress(data) + compressor.flush()
    return made


def _lying() -> bytes:
    """A mebibyte of zeros that is said to be one chunk."""
    bomb = bytearray(_frame(bytes(2**20)))
    assert bomb[4] >> 5 == 0b101  # one segment, so the size of the content follows, in four bytes
    bomb[5:9] = struct.pack("<I", CHUNK_BYTES)
    return bytes(bomb)


def _wide_window() -> bytes:
    """The right numbers, to read which 128 MiB of memory are asked for: not one segment, but a window and blocks."""
    good = _frame(bytes(CHUNK_BYTES))
    said = zstandard.get_frame_parameters(good)
    assert said.content_size == CHUNK_BYTES
    header = b"\x28\xb5\x2f\xfd" + bytes([0b01_0_0_0_1_00, 17 << 3]) + struct.pack("<H", CHUNK_BYTES - 256)
    return header + good[4 + 1 + 2 :]


GOOD = frames()[2]
FRAMES = {
    "a bomb": _frame(bytes(2**26)),
    "a bomb that says it is none": _lying(),
    "fewer bytes": _frame(bytes(CHUNK_BYTES - 1)),
    "no bytes": _frame(b""),
    "no checksum": _frame(bytes(CHUNK_BYTES), write_checksum=False),
    "an unknown size": _streamed(bytes(CHUNK_BYTES)),
    "a wide window": _wide_window(),
    "two frames": _frame(bytes(CHUNK_BYTES // 2)) * 2,
    "a frame behind it": GOOD + _frame(b"more"),
    "bytes behind it": GOOD + b"\0",
    "a skippable frame": b"\x50\x2a\x4d\x18" + struct.pack("<I", CHUNK_BYTES) + bytes(100),
    "an end that is missing": GOOD[:-1],
    "a half": GOOD[: len(GOOD) // 2],
    "one byte": GOOD[:1],
    "another checksum": GOOD[:-1] + bytes([GOOD[-1] ^ 1]),
    "no frame": bytes(len(GOOD)),
    "noise": np.random.default_rng(0).bytes(100),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_that_is_not_the_chunk_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = by_hand(tmp_path / "shard.h5", lambda good: [*good[:2], FRAMES[name], *good[3:]])
    with open_shard(path, ATTRIBUTES, ARRAYS, CHUNKING) as file, pytest.raises(IntegrityError) as caught:
        read_array(file, "values")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    flaws = check_file(path, ATTRIBUTES, ARRAYS, chunking=CHUNKING)
    assert [flaw.array for flaw in flaws][:1] != []
    assert "values" in [flaw.array for flaw in flaws]


def _index(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(offset, length, bytes) of the table of chunks."""
    data = path.read_bytes()
    with open(path, "rb") as file:
        for offset, length in read_structure(file.fileno(), len(data)).described:
            if data[offset : offset + 4] == b"FADB":
                yield offset, length, data[offset : offset + length]


def _entries(change: Callable[[np.ndarray, int], None], path: Path) -> None:
    """Changes the table of a good shard, whose checksum is then made good again."""
    ((offset, length, table),) = _index(path)
    count, data = -(-ROWS // CHUNK), bytearray(path.read_bytes())
    entry = (length - 18) // count
    places = np.zeros((count, 3), np.uint64)
    rows = np.frombuffer(table[14:-4], np.uint8).reshape(count, entry)
    wide = np.zeros((count, 24), np.uint8)
    wide[:, :8], wide[:, 8 : entry - 4], wide[:, 16:20] = rows[:, :8], rows[:, 8:-4], rows[:, -4:]
    places[:] = wide.view("<u8")
    change(places, len(data))
    wide = places.view(np.uint8).reshape(count, 24)
    made = np.concatenate([wide[:, :8], wide[:, 8 : entry - 4], wide[:, 16:20]], 1).tobytes()
    body = table[:14] + made
    data[offset : offset + length] = body + lookup3(body).to_bytes(4, "little")
    path.write_bytes(data)


def _same_place(places: np.ndarray, size: int) -> None:
    places[1] = places[0]


def _overlap(places: np.ndarray, size: int) -> None:
    places[4, 0] = places[3, 0] + 1


def _over_the_digests(places: np.ndarray, size: int) -> None:
    places[0, 0] = 2 * PAGE


def _beyond(places: np.ndarray, size: int) -> None:
    places[9, 0] = size - 1


def _far(places: np.ndarray, size: int) -> None:
    places[9, 0] = 2**64 - 2


def _no_bytes(places: np.ndarray, size: int) -> None:
    places[5, 1] = 0


def _longer(places: np.ndarray, size: int) -> None:
    places[5, 1] += 1


def _huge(places: np.ndarray, size: int) -> None:
    places[9, 1] = 2**16 - 1


def _masked(places: np.ndarray, size: int) -> None:
    places[7, 2] = 2


@pytest.mark.parametrize("change", [_same_place, _overlap, _over_the_digests, _beyond, _far, _no_bytes, _huge, _masked])
def test_chunks_elsewhere_are_refused_though_the_checksums_agree(
    change: Callable[[np.ndarray, int], None], tmp_path: Path
) -> None:
    path = by_hand(tmp_path / "shard.h5")
    _entries(change, path)
    with pytest.raises(IntegrityError), open_shard(path, ATTRIBUTES, ARRAYS, CHUNKING):
        pass


def test_a_chunk_that_is_said_to_be_longer_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "shard.h5")
    _entries(_longer, path)
    with open_shard(path, ATTRIBUTES, ARRAYS, CHUNKING) as file, pytest.raises(IntegrityError, match="damaged chunk"):
        read_array(file, "values")


def test_an_index_of_other_counts_is_refused(tmp_path: Path) -> None:
    for count in (0, 1, 9, 11, 2**20, 2**63):
        path = by_hand(tmp_path / "shard.h5")
        data = bytearray(path.read_bytes())
        at = data.index(b"FAHD")
        data[at + 8 : at + 16] = struct.pack("<Q", count)
        data[at + 24 : at + 28] = lookup3(bytes(data[at : at + 24])).to_bytes(4, "little")
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="index of"), open_shard(path, ATTRIBUTES, ARRAYS, CHUNKING):
            pass


def test_more_chunks_than_shards_have_are_refused_before_their_index_is_read(tmp_path: Path) -> None:
    rows = 2**15 + 1
    write_shard(
        tmp_path / "shard.h5", ATTRIBUTES, {"values": np.zeros((rows, 1), "<f4")}, {"values": Chunking(1, True, 1)}
    )
    held: Arrays = {"values": ("<f4", (rows, 1))}
    with (
        pytest.raises(IntegrityError, match="32769 chunks"),
        open_shard(tmp_path / "shard.h5", ATTRIBUTES, held, {"values": Chunking(1, True, 1)}),
    ):
        pass


def test_a_damaged_chunk_stops_a_reader_and_is_named_by_verify(tmp_path: Path) -> None:
    """Without ``verify_reads`` too: a frame has a checksum of its own."""
    cache, _ = make_cache(tmp_path / "cache", rows=1000, classes=64, shard_rows=512, compress="zstd:rows=128")
    path = cache.shard_path(1, "logits", 1)
    with cache.shard(1, "logits", 1) as file:
        chunks = file.compressed["values"].chunks
    good = path.read_bytes()
    wanted = cache.column("logits").gather(1, np.arange(1000))
    for at in (0, 5, 20, int(chunks.stored[1]) - 1):
        data = bytearray(good)
        data[int(chunks.offset[1]) + at] ^= 0x40
        path.write_bytes(data)
        found = verify(tmp_path / "cache")
        assert not found.ok
        assert "logits-00001.h5" in str(found.damaged)
        column = Cache(tmp_path / "cache").column("logits")
        assert column.gather(1, np.arange(512 + 128))["values"].tobytes() == wanted["values"][: 512 + 128].tobytes()
        with pytest.raises(SoftcacheError, match=r"logits-00001\.h5"):
            column.gather(1, np.array([700]))
    path.write_bytes(good)
    assert same(Cache(tmp_path / "cache").column("logits").gather(1, np.arange(1000)), wanted)
