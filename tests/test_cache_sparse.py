"""Files that are large only by what they say: sparse ones of terabytes, under a manifest whose checksums agree."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import harness_process
import numpy as np
import pytest
from harness_damage import small_cache

from softcache.cache.reader import Cache
from softcache.cache.schema import canonical_json
from softcache.cache.shard import PAGE, Arrays, Attributes
from softcache.errors import IntegrityError
from softcache.stages.verify import verify


@pytest.fixture(scope="module")
def imports() -> int:
    """Bytes of memory that a process takes for what it imports."""
    code = (
        "import softcache.stages.verify, softcache.cli.verify\n"
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    return 1024 * int(harness_process.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def sparse(path: Path, attributes: Attributes, arrays: Arrays) -> None:
    """A file as softcache writes it, but for its arrays' bytes, which are holes, and their checksums."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_alignment(1, PAGE)
    create = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    create.set_obj_track_times(False)
    holes = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    holes.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    holes.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    holes.set_obj_track_times(False)
    path.unlink(missing_ok=True)
    with h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, fcpl=create, fapl=access)) as file:
        for key, value in attributes.items():
            file.attrs.create(key, np.bytes_(value.encode()) if isinstance(value, str) else np.int64(value))
        for name, (dtype, shape) in arrays.items():
            kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
            made = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), holes)
            h5py.Dataset(made).attrs.create("crc32", np.uint32(0))


def forge(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Changes a manifest's identity and state, and makes their checksums right again."""
    document = json.loads((folder / "cache.json").read_bytes())
    change(document["identity"], document["state"])
    document["cache_id"] = hashlib.sha256(canonical_json(document["identity"])).hexdigest()
    document["state_sha256"] = hashlib.sha256(canonical_json(document["state"])).hexdigest()
    (folder / "cache.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Views of 8 pixels of 20 rows."""
    return small_cache(tmp_path / "cache").folder


@pytest.mark.parametrize("count", [2**19, 2**40, 21], ids=str)
def test_kept_samples_are_compared_with_the_identity_before_they_are_read(folder: Path, count: int) -> None:
    if count < 2**30:
        cache = Cache(folder)
        arrays = {"index": ("<i8", (count,)), "pixels": ("|u1", (count, 8, 8, 1))}
        sparse(folder / "samples.h5", cache.file_attributes("samples"), arrays)
    forge(folder, lambda identity, state: state.update(samples=count))
    with pytest.raises(IntegrityError, match=r"cache\.json has values that no cache can have: samples"):
        Cache(folder)
    found = verify(folder)
    assert [damage.file for damage in found.damaged] == ["cache.json"]


def test_as_many_samples_as_the_identity_allows_are_read(folder: Path) -> None:
    cache = Cache(folder)
    sparse(
        folder / "samples.h5",
        cache.file_attributes("samples"),
        {"index": ("<i8", (20,)), "pixels": ("|u1", (20, 8, 8, 4))},
    )

    def four_channels(identity: dict[str, Any], state: dict[str, Any]) -> None:
        identity["dataset"]["inputs"]["pixels"]["shape"] = [8, 8, 4]
        state["samples"] = 20

    forge(folder, four_channels)
    assert Cache(folder).samples_arrays() == {"index": ("<i8", (20,)), "pixels": ("|u1", (20, 8, 8, 4))}


def test_large_views_are_kept_of_fewer_rows(folder: Path) -> None:
    """At most 4 GiB, so that of views of 8,192 pixels and four channels, 256 MiB each, 16 rows are kept."""

    def change(identity: dict[str, Any], state: dict[str, Any], rows: int) -> None:
        identity["recipe"]["size"] = 8192
        identity["dataset"]["inputs"]["pixels"]["shape"] = [8192, 8192, 4]
        state["samples"] = rows

    forge(folder, lambda identity, state: change(identity, state, 17))
    with pytest.raises(IntegrityError, match="samples 17 of"):
        Cache(folder)
    forge(folder, lambda identity, state: change(identity, state, 16))
    assert Cache(folder).samples_arrays()["pixels"] == ("|u1", (16, 8192, 8192, 4))


def test_rows_of_lengths_of_their_own_are_bounded_together(folder: Path) -> None:
    def change(identity: dict[str, Any], state: dict[str, Any], together: int) -> None:
        identity["recipe"] = {"spec": "none", "revisions": {"none": 1}, "seed": 0}
        identity["dataset"]["inputs"] = {"ids": {"dtype": "int64", "shape": [None], "pad": 0}}
        state.update(samples=20, samples_lengths={"ids": together})

    for together in (2**29 + 1, -1):
        forge(folder, lambda identity, state, together=together: change(identity, state, together))
        with pytest.raises(IntegrityError, match=r"cache\.json has values that no cache can have: samples"):
            Cache(folder)
    forge(folder, lambda identity, state: change(identity, state, 2**29))
    assert Cache(folder).samples_arrays()["ids"] == ("<i8", (2**29,))


def test_a_row_of_a_hint_has_a_bound(folder: Path) -> None:
    def change(identity: dict[str, Any], state: dict[str, Any]) -> None:
        state["columns"]["hint.layer3"]["shape"] = [2**14, 2**14]

    forge(folder, change)
    with pytest.raises(IntegrityError, match=r"columns\.shape"):
        Cache(folder)


def test_rows_are_allocated_once_the_shard_has_been_compared(folder: Path) -> None:
    """A gather of 20 rows of 128 MiB: refused by the file's shape, without 2.5 GiB for what can't be in it."""

    def change(identity: dict[str, Any], state: dict[str, Any]) -> None:
        state["columns"]["hint.layer3"]["shape"] = [2**13, 2**13]

    forge(folder, change)
    code = (
        "import numpy, resource, sys; from softcache.cache.reader import Cache\n"
        "reader = Cache(sys.argv[1]).column('hint.layer3')\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "reader.gather(0, numpy.arange(20))"
    )
    if sys.platform != "linux":
        pytest.skip("memory is limited through /proc")
    ended = harness_process.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert "IntegrityError" in ended.stderr.splitlines()[-1]


def a_million_shards(identity: dict[str, Any], state: dict[str, Any]) -> None:
    identity["dataset"]["rows"], state["views"] = 2**17 * 16, 8
    del state["columns"]["hint.layer3"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")
def test_a_million_shards_that_are_missing_take_little_memory(folder: Path, imports: int) -> None:
    forge(folder, a_million_shards)
    process = start(folder, stdout=subprocess.PIPE)
    wait_until(lambda: select.select([process.stdout], [], [], 0)[0] != [])
    most = memory(process)
    assert "1048572 missing" in process.communicate(timeout=60)[0]
    assert most < imports + 2**20 * 400, "their names are the result"


def a_tebibyte_of_labels(identity: dict[str, Any], state: dict[str, Any]) -> None:
    identity["dataset"]["rows"], identity["grid"]["block_rows"] = 2**38, 2**28
    state["columns"] = {"logits": {**state["columns"]["logits"], "shape": [1], "shard_rows": 2**28}}
    state["views"] = 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")
@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_verify_of_a_sparse_tebibyte_ends_when_it_is_told_to(
    folder: Path, imports: int, number: int, status: int, word: str
) -> None:
    forge(folder, a_tebibyte_of_labels)
    cache = Cache(folder)
    for name, column, arrays in (
        ("rows.h5", "rows", cache.rows_arrays()),
        ("samples.h5", "samples", cache.samples_arrays()),
    ):
        sparse(folder / name, cache.file_attributes(column), arrays)
    assert (folder / "rows.h5").stat().st_size > 2**40
    process = start(folder, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: bytes_read(process.pid) > 2**29)
        taken, began = memory(process), time.monotonic()
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert time.monotonic() - began < 5, "signals are answered at once; all of it would take minutes"
    assert process.returncode == status
    assert f"softcache: {word}" in said
    assert taken < imports + 2**26


def start(folder: Path, *options: str, **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "softcache", "verify", str(folder), *options]
    return harness_process.Popen(command, text=True, **streams)


def memory(process: subprocess.Popen[str]) -> int:
    """The most bytes of memory that a process has had at once."""
    return 1024 * int(Path(f"/proc/{process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])


def bytes_read(pid: int) -> int:
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
