"""Shuffled reads of fp16 logits against one array in memory, and against what others store targets in.

1000 classes, batches of 256 rows, everything in the page cache. The schemes of others, each rebuilt from its
documentation: *file a sample* is torchdistill's former cache (one ``.pt`` a sample, ``torch.save``); *record file* is
TinyViT's (one binary file of fixed-size records, read by seeking to each); *LMDB* has one value a key; *webdataset*
is a tar of ``.npy`` members that can only be read in its order, with the shuffle buffer that it offers; *h5py* is fancy
indexing of one contiguous dataset, rows sorted as h5py demands.

Rows that have lengths of their own have 0 to twice the mean number of places, of 128 numbers each; they are compared
with rows of one length and as many bytes.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks.made import STATES, make_cache, make_ragged
from benchmarks.measure import Result, Row, arguments, paired, ratio, timed
from softcache.cache.column_reader import ColumnReader
from softcache.cache.schema import LOGITS

BATCH, CLASSES = 256, 1000
NUMBERS = 128  # of a place: 256 bytes
MEANS = {"0.25 kB": 1, "1 kB": 4, "4 kB": 16, "16 kB": 64}  # places of a row


def main() -> Result:
    options = arguments(__doc__)
    rows = 4096 if options.tiny else 200_000
    few = 512 if options.tiny else 8192  # the slowest schemes hold, and read, so many rows; rates are per row
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="softcache-reads-"))
    try:
        return _measured(folder, rows, few, options.repetitions)
    finally:
        shutil.rmtree(folder)


def _measured(folder: Path, rows: int, few: int, repetitions: int) -> Result:
    whole = 1 << (rows - 1).bit_length()
    one = make_cache(folder / "one", rows=rows, classes=CLASSES, shard_rows=whole).column(LOGITS)
    many = make_cache(folder / "many", rows=rows, classes=CLASSES, shard_rows=whole // 16).column(LOGITS)
    array = np.concatenate([np.array(part) for part in one.map(0)["values"].parts])
    rng = np.random.default_rng(0)
    batches = np.array_split(rng.permutation(rows), max(1, rows // BATCH))
    small = np.array_split(rng.permutation(few), few // BATCH)
    out = [np.empty((BATCH + 8, CLASSES), np.float16) for _ in range(2)]

    def memory() -> None:
        for k, batch in enumerate(batches):
            np.take(array, batch, axis=0, out=out[k % 2][: len(batch)], mode="clip")

    def gathered(reader: ColumnReader) -> Callable[[], None]:
        def run() -> None:
            for batch in batches:
                reader.gather(0, batch)

        return run

    def logits(reader: ColumnReader) -> Callable[[], None]:
        mapped = reader.map(0)["values"]

        def run() -> None:
            for k, batch in enumerate(batches):
                mapped.take(batch, out[k % 2][: len(batch)])

        return run

    sides = {
        "memory": timed(memory),
        "one shard": timed(logits(one)),
        "16 shards": timed(logits(many)),
        "one shard, as trained": timed(gathered(one)),
        "16 shards, as trained": timed(gathered(many)),
    }
    per_row = dict.fromkeys(sides, rows)
    for name, (make, slow) in PEERS.items():
        count = few if slow else rows
        read = make(folder, array, count, small if slow else batches)
        if read is not None:
            sides[name], per_row[name] = timed(read), count
    taken = paired(sides, repetitions)
    rate = {name: [per_row[name] / seconds for seconds in times] for name, times in taken.items()}
    whole_batch = "as training reads them, with digests, into memory of their own"
    lines = [
        ratio("one shard / numpy.take(out=) from memory", rate["one shard"], rate["memory"], "≥ 0.9"),
        ratio("16 shards / numpy.take(out=) from memory", rate["16 shards"], rate["memory"], "≥ 0.85"),
        ratio(f"one shard, {whole_batch} / the same", rate["one shard, as trained"], rate["memory"]),
        ratio(f"16 shards, {whole_batch} / the same", rate["16 shards, as trained"], rate["memory"]),
    ]
    targets = {"LMDB": "≥ 6", "h5py": "≥ 12", "file a sample": "≥ 100", "webdataset tar": "≥ 100", "record file": ""}
    for name in PEERS:
        if name in rate:
            lines.append(
                ratio(
                    f"16 shards, as training reads / {name}", rate["16 shards, as trained"], rate[name], targets[name]
                )
            )
    for name, places in MEANS.items():
        lines += _ragged(folder, name, places, 2**20 if rows < 2**14 else 2**29, repetitions)
    million = np.median(rate["16 shards, as trained"]) / 1e6
    slow_ones = ", ".join(name for name, (_, slow) in PEERS.items() if slow)
    notes = [
        f"{rows:,} rows of {CLASSES} classes, batches of {BATCH}, one thread; 16 shards, as training reads: "
        f"{million:.2f} million rows a second. Of {slow_ones} {few:,} rows are read."
    ]
    return Result("reads", "Shuffled reads, warm", lines, notes=notes)


def _ragged(folder: Path, name: str, mean: int, size: int, repetitions: int) -> list[Row]:
    """Rows that have lengths of their own, in 8 shards, against ``numpy.take`` of as many bytes from one array: the
    values alone, and as ``gather`` gives them."""
    rng, rows = np.random.default_rng(1), size // (mean * NUMBERS * 2)
    places = rng.integers(0, 2 * mean, rows, endpoint=True)
    shard_rows = 1 << (rows - 1).bit_length() - 3
    reader = make_ragged(folder / "ragged", places=places, numbers=NUMBERS, shard_rows=shard_rows).column(STATES)
    array = np.concatenate([np.array(part) for part in reader.map(0)["values"].parts])
    array = array[: len(array) // mean * mean].reshape(-1, mean * NUMBERS)
    some, alike = (rng.permutation(n)[: 256 * BATCH] for n in (rows, len(array)))

    out, mapped, found = np.empty((2 * mean * BATCH * 2, NUMBERS), np.float16), reader.map(0)["values"], reader.ragged
    assert found is not None
    batches, others = (np.array_split(n, max(1, len(n) // BATCH)) for n in (some, alike))

    def values() -> None:
        for batch in batches:
            part = batch // shard_rows
            first, offset = found.find(batch)
            mapped.take_runs(part, first, offset, out[: offset[-1]])

    def gathered() -> None:
        for batch in batches:
            reader.gather(0, batch)

    def memory() -> None:
        as_rows = out.reshape(-1, mean * NUMBERS)
        for batch in others:
            np.take(array, batch, axis=0, out=as_rows[: len(batch)], mode="clip")

    taken = paired({"values": timed(values), "gathered": timed(gathered), "memory": timed(memory)}, repetitions)
    own = int(places[some].sum())
    read = {"values": own, "gathered": own, "memory": len(alike) * mean}
    rate = {side: [read[side] / seconds for seconds in times] for side, times in taken.items()}
    shutil.rmtree(folder / "ragged")
    what = f"rows of their own lengths, {name} on average, 8 shards"
    return [
        ratio(f"{what} / numpy.take(out=) of as many bytes", rate["values"], rate["memory"], "≥ 0.7" * (mean > 1)),
        ratio(f"{what}, with digests, into memory of their own / the same", rate["gathered"], rate["memory"]),
    ]


def _file_a_sample(folder: Path, array: np.ndarray, few: int, batches: list[np.ndarray]) -> Callable[[], None]:
    place = folder / "pt"
    place.mkdir()
    for row in range(few):
        torch.save({"logits": torch.from_numpy(array[row].copy())}, place / f"{row}.pt")

    def run() -> None:
        for batch in batches:
            torch.stack([torch.load(place / f"{row}.pt")["logits"] for row in batch])

    return run


def _record_file(folder: Path, array: np.ndarray, few: int, batches: list[np.ndarray]) -> Callable[[], None]:
    path, size = folder / "records.bin", array[0].nbytes
    path.write_bytes(array[:few].tobytes())

    def run() -> None:
        with open(path, "rb") as file:
            for batch in batches:
                found = []
                for row in batch.tolist():
                    file.seek(row * size)
                    found.append(np.frombuffer(file.read(size), np.float16))
                np.stack(found)

    return run


def _lmdb(folder: Path, array: np.ndarray, few: int, batches: list[np.ndarray]) -> Callable[[], None] | None:
    try:
        import lmdb
    except ImportError:
        return None
    store = lmdb.open(str(folder / "lmdb"), map_size=8 * few * array[0].nbytes + 2**24)
    with store.begin(write=True) as transaction:
        for row in range(few):
            transaction.put(f"{row:08d}".encode(), array[row].tobytes())

    def run() -> None:
        with store.begin(buffers=True) as transaction:
            for batch in batches:
                np.stack([np.frombuffer(transaction.get(f"{row:08d}".encode()), np.float16) for row in batch.tolist()])

    return run


def _webdataset(folder: Path, array: np.ndarray, few: int, batches: list[np.ndarray]) -> Callable[[], None] | None:
    try:
        import webdataset
    except ImportError:
        return None
    path = folder / "targets.tar"
    with tarfile.open(path, "w") as tar:
        for row in range(few):
            buffer = io.BytesIO()
            np.save(buffer, array[row])
            member = tarfile.TarInfo(f"{row:08d}.npy")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).shuffle(1000).decode()
            read = 0
            for batch in data.to_tuple("npy").batched(BATCH):
                read += len(batch[0])
        assert read == few, read

    return run


def _h5py(folder: Path, array: np.ndarray, few: int, batches: list[np.ndarray]) -> Callable[[], None]:
    path = folder / "peer.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("logits", data=array[:few])

    def run() -> None:
        with h5py.File(path, "r") as file:
            logits = file["logits"]
            for batch in batches:
                order = np.argsort(batch)
                found = np.empty((len(batch), CLASSES), np.float16)
                found[order] = logits[batch[order]]

    return run


# name → how its reader is made, and whether it is so slow that fewer rows have to do
PEERS: dict[str, tuple[Callable[..., Callable[[], None] | None], bool]] = {
    "LMDB": (_lmdb, False),
    "h5py": (_h5py, False),
    "record file": (_record_file, False),
    "file a sample": (_file_a_sample, True),
    "webdataset tar": (_webdataset, True),
}

if __name__ == "__main__":
    main().show()
