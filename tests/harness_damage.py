"""Damages a cache, one change at a time, and sees what reading and verifying it make of it.

Runs in a child process (``run``), which limits its own memory and time: a crash, a hang or a large allocation ends
the child and is reported with the case that caused it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness_process
import numpy as np
from harness_cache import make_cache, make_ragged

from softcache.cache.description import describe
from softcache.cache.hdf5 import read_structure
from softcache.cache.hdf5_bytes import lookup3
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST, ColumnRecord, canonical_json
from softcache.console import show_messages
from softcache.errors import SoftcacheError
from softcache.stages.verify import verify

SECONDS, BYTES = 5, 1 << 30


def small_cache(folder: Path, codec: str = "fp16") -> Cache:
    """Two views of 20 rows in shards of 16, logits, and a hint whose codec has constants: 8 shards of some 20 KiB."""
    hints = {"layer3": ColumnRecord("values", [2, 3], "int8", 16)}
    return make_cache(folder, rows=20, classes=40, shard_rows=16, views=2, codec=codec, hints=hints)[0]


def small_compressed(folder: Path) -> Cache:
    """As ``small_cache``, compressed: arrays of one chunk and of several, of one byte a number and of more."""
    hints = {
        "layer3": ColumnRecord("values", [32, 64], "fp16", 16, compress="zstd:rows=4"),
        "fc": ColumnRecord("values", [2, 3], "int8", 16),
    }
    return make_cache(folder, rows=20, classes=40, shard_rows=16, hints=hints, compress="zstd")[0]


def small_ragged(folder: Path) -> Cache:
    """Two views of 20 rows that have lengths of their own, in shards of 8: one shard has no place."""
    return make_ragged(folder, [3, 0, 7, 1, 1, 12, 0, 2, *[0] * 8, 5, 0, 9, 4], shard_rows=8)


def files_of(folder: Path) -> list[Path]:
    """The manifest and everything that softcache reads."""
    return [folder / MANIFEST, *sorted(p for p in folder.rglob("*.h5") if p.name != "cache.h5")]


def read_all(folder: Path, *, verify_reads: bool) -> dict[str, Any]:
    """All that a reader can get from a cache."""
    cache = Cache(folder, verify_reads=verify_reads)
    said = describe(cache)
    found: dict[str, Any] = {"rows": cache.rows, "views": cache.views, "classes": said["classes"]}
    found["labels"] = cache.labels.copy()
    index, kept = cache.samples
    found["index"] = index.copy()
    for name, values in kept.items():
        found[name] = np.concatenate(values) if isinstance(values, list) else np.array(values)
    every = np.arange(min(cache.rows, 1000))
    for view in range(min(cache.views, 3)):
        for column in cache.manifest.columns:
            for name, array in cache.column(column).gather(view, every).items():
                found[f"{view}/{column}/{name}"] = array
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        np.asarray(v).dtype == np.asarray(other[k]).dtype and np.array_equal(v, other[k], equal_nan=False)
        for k, v in one.items()
    )


def flip_cases(folder: Path, seed: int) -> Iterator[tuple[Path, int, int]]:
    """File, byte and bit without end: half of them anywhere, half where something other than padding lies."""
    rng = random.Random(seed)
    files = files_of(folder)
    sizes = [path.stat().st_size for path in files]
    dense = [(path, [k for k, byte in enumerate(path.read_bytes()) if byte]) for path in files]
    while True:
        if rng.random() < 0.5:
            path = rng.choices(files, sizes)[0]
            yield path, rng.randrange(path.stat().st_size), rng.randrange(8)
        else:
            path, places = rng.choice(dense)
            yield path, rng.choice(places), rng.randrange(8)


def flips(folder: Path, seed: int, first: int, count: int) -> Iterator[str]:
    """Each case: found by verify? and under verify_reads: refused, same numbers, or (never) others."""
    truth = read_all(folder, verify_reads=True)
    for number, (path, at, bit) in enumerate(flip_cases(folder, seed)):
        if number >= first + count:
            return
        if number < first:
            continue
        whole = path.read_bytes()
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(bytes([whole[at] ^ 1 << bit]))
        try:
            verdict = "found" if not verify(folder, threads=1).ok else "unseen"
            try:
                verdict += " same" if same(truth, read_all(folder, verify_reads=True)) else " others"
            except SoftcacheError:
                verdict += " refused"
        finally:
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(whole[at : at + 1])
        yield f"{verdict} {path.relative_to(folder)} byte {at} bit {bit}"


def fuzz(folder: Path, seed: int, first: int, count: int) -> Iterator[str]:
    """Each case: ``refused`` with a SoftcacheError, or ``read``."""
    files = files_of(folder)
    original = {path: path.read_bytes() for path in files}
    regions = {path: _regions(path) for path in files if path.suffix == ".h5"}
    for number in range(first, first + count):
        rng = random.Random(f"{seed}/{number}")
        path = rng.choice(files) if rng.random() < 0.65 else folder / MANIFEST
        if path.suffix == ".h5":
            mutate = rng.choice([_flip, _truncate, _swap, _splice, _splice, _splice, _noise])
            changed = {path: mutate(rng, original[path], regions[path])}
        elif rng.random() < 0.25:
            mutate = rng.choice([_flip, _truncate, _swap, _noise])
            changed = {path: mutate(rng, original[path], [(0, len(original[path]))])}
        else:
            mutate, changed = _forge, _forge(rng, original, regions, path)
        for target, data in changed.items():
            target.write_bytes(data)
        try:
            read_all(folder, verify_reads=rng.random() < 0.3)
            verdict = "read"
        except SoftcacheError:
            verdict = "refused"
        finally:
            for target in changed:
                target.write_bytes(original[target])
        yield f"{verdict} case {number} {mutate.__name__} {path.relative_to(folder)}"


def _regions(path: Path) -> list[tuple[int, int]]:
    with open(path, "rb") as file:
        return read_structure(file.fileno(), path.stat().st_size).described


def _flip(rng: random.Random, data: bytes, regions: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 8, 64])):
        offset, length = rng.choice(regions)
        changed[offset + rng.randrange(length)] ^= 1 << rng.randrange(8)
    return _signed(changed, regions) if len(regions) > 1 and rng.random() < 0.7 else bytes(changed)


def _truncate(rng: random.Random, data: bytes, regions: list[tuple[int, int]]) -> bytes:
    if rng.random() < 0.2:
        return data + rng.randbytes(rng.choice([1, 100, 5000]))
    cut = bytearray(data[: rng.randrange(len(data))])
    if len(cut) >= 48 and data[:4] == b"\x89HDF" and rng.random() < 0.5:
        struct.pack_into("<Q", cut, 28, len(cut))  # as if it had always been that short
        return _signed(cut, regions[:1])
    return bytes(cut)


def _swap(rng: random.Random, data: bytes, regions: list[tuple[int, int]]) -> bytes:
    changed, count = bytearray(data), rng.choice([1, 8, 64, 512, 4096])
    one, other = (rng.randrange(max(1, len(data) - count)) for _ in range(2))
    changed[one : one + count], changed[other : other + count] = data[other : other + count], data[one : one + count]
    return bytes(changed)


def _noise(rng: random.Random, data: bytes, regions: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    at = rng.randrange(len(data))
    count = rng.choice([1, 16, 300, 10_000])
    noise = rng.choice([b"\0", b"\xff", b"[", b"{", b'"', rng.randbytes(count)])
    changed[at : at + count] = (noise * count)[:count]
    return bytes(changed)


def _splice(rng: random.Random, data: bytes, regions: list[tuple[int, int]]) -> bytes:
    """Integers where the structure has some, with checksums made good again: what a forger would do."""
    changed = bytearray(data)
    starts = [offset for offset, _ in regions]
    for _ in range(rng.choice([1, 1, 2, 5])):
        offset, length = rng.choice(regions)
        width = rng.choice([1, 2, 4, 8])
        at = offset + rng.randrange(max(1, length - 4 - width))
        values = [0, 1, 2, 0x7F, 0xFF, 0xFFFF, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(data), len(data) - 1]
        value = rng.choice([*values, *starts, rng.choice(starts) + 4, rng.getrandbits(64), rng.randrange(8)])
        changed[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
    return _signed(changed, regions) if rng.random() < 0.9 else bytes(changed)


def _signed(data: bytearray, regions: list[tuple[int, int]]) -> bytes:
    for offset, length in regions:
        struct.pack_into("<I", data, offset + length - 4, lookup3(bytes(data[offset : offset + length - 4])))
    return bytes(data)


_VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 16, 2**20, 2**31, 2**40, 2**63, 10**40, 0.0, -1.5, 1e308, "", "x", "..", "/",
    "../../../etc/passwd", "python:os:getcwd", "fp16", "fp32", "fp16:x=1", "nothing", "topk:k=3",
    "zstd", "zstd:level=1,rows=4,shuffle=byte", "zstd:level=1,rows=1073741824,shuffle=none", "zstd:rows=0",
    "é", "\0", "\ud800",
    "layer3", "float16", "float64", "O", "x" * 5000, [], {}, [[]], [1], [1, 2, 3], [2**40, 2**40], {"a": 1}, [None],
]  # fmt: skip


def _forge(
    rng: random.Random, original: dict[Path, bytes], regions: dict[Path, list[tuple[int, int]]], path: Path
) -> dict[Path, bytes]:
    """A manifest with other values and the right checksums; where its identity changes, so do the shards' ids."""
    document = json.loads(original[path])
    before = document["cache_id"]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        forged_values(rng, document[rng.choice(["identity", "state", "state"])])
    if rng.random() < 0.1:
        forged_values(rng, document)
    changed: dict[Path, bytes] = {}
    try:
        document["cache_id"] = hashlib.sha256(canonical_json(document.get("identity"))).hexdigest()
        document["state_sha256"] = hashlib.sha256(canonical_json(document.get("state"))).hexdigest()
        after = document["cache_id"]
        if after != before and rng.random() < 0.7:
            for other, places in regions.items():
                changed[other] = _signed(bytearray(original[other].replace(before.encode(), after.encode())), places)
    except UnicodeEncodeError:  # a lone surrogate has no checksum: the parser must refuse it
        pass
    text = json.dumps(document, indent=1, ensure_ascii=True)
    if rng.random() < 0.05:
        depth = rng.choice([10, 1000, 100_000, 1_000_000])
        text = text.replace('"made": {}', '"made": ' + '{"a":' * depth + "1" + "}" * depth)
    return {**changed, path: text.encode()}


def forged_values(rng: random.Random, node: Any) -> None:
    """One value somewhere below is replaced, removed, added or doubled."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.7:
            node = node[key]
            continue
        action = rng.random()
        value = copy.deepcopy(node[key])
        if action < 0.35 and type(value) is int:
            node[key] = rng.choice([value + 1, value - 1, 2 * value, value * 2**20, value // 2, 2 ** rng.randrange(70)])
        elif action < 0.75:
            node[key] = copy.deepcopy(rng.choice(_VALUES))  # a container that holds itself is no JSON
        elif action < 0.85:
            del node[key]
        elif isinstance(node, dict):
            node[rng.choice(["x", "", "layer3", "hint", "..", "a/b", "layer3:in", "é"])] = value
        else:
            node.append(value)
        return


def run(mode: str, folder: Path, *, seed: int, cases: int, batch: int = 500) -> list[str]:
    """All verdicts. A case that ends its child, or takes too long or too much, is ``died``."""
    verdicts: list[str] = []
    while len(verdicts) < cases:
        first = len(verdicts)
        count = min(batch, cases - first)
        command = [sys.executable, __file__, mode, str(folder), str(seed), str(first), str(count)]
        child = harness_process.run(command, capture_output=True, text=True)
        lines = child.stdout.splitlines()
        verdicts += lines
        if len(lines) < count:
            last = child.stderr.strip().splitlines()[-1:] or [""]
            verdicts.append(f"died with {child.returncode} in case {first + len(lines)}: {last[0]}")
            return verdicts
    return verdicts


def _main(mode: str, folder: str, seed: str, first: str, count: str) -> None:
    show_messages(quiet=True)
    modes: dict[str, Callable[[Path, int, int, int], Iterator[str]]] = {"flips": flips, "fuzz": fuzz}
    read_all(Path(folder), verify_reads=True)  # imports what there is to import before memory is limited
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    signal.alarm(SECONDS + 25)
    for verdict in modes[mode](Path(folder), int(seed), int(first), int(count)):
        print(verdict, flush=True)
        signal.alarm(SECONDS)  # not handled: a hang ends the process with a signal


if __name__ == "__main__":
    _main(*sys.argv[1:])
