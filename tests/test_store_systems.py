"""Any fsspec file system is a store: its contract on one in memory, on a stand-in for the hub's, and on a folder."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from harness_cache import make_cache
from harness_store import same_files

from softcache.cache.listing import LISTING
from softcache.errors import IntegrityError, MissingExtraError, StoreError
from softcache.extras import install_command
from softcache.stages.copy import copy
from softcache.store.local import Local
from softcache.store.opened import open_store
from softcache.store.remote import Fsspec
from softcache.store.retry import Patience, persistently
from softcache.store.store import Store

QUICK = Patience(attempts=3, first_s=0.001, most_s=0.01)


@pytest.fixture
def memory() -> Iterator[str]:
    """The protocol ``hf``, spoken by files in memory."""
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    class Hub(MemoryFileSystem):
        protocol = "hf"
        store: ClassVar[dict[str, object]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("hf://").strip("/")

    known = dict(fsspec.registry)
    fsspec.register_implementation("hf", Hub, clobber=True)
    try:
        yield "hf://datasets/someone/teacher"
    finally:
        from fsspec.registry import _registry

        _registry.clear()
        _registry.update(known)


@pytest.fixture(params=["local", "memory", "hf"])
def store(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> Store:
    if request.param == "local":
        return Local(tmp_path / "store")
    if request.param == "hf":
        return open_store(memory, "the test", QUICK)
    import fsspec

    fsspec.filesystem("memory").store.clear()
    return Fsspec(lambda: fsspec.filesystem("memory"), "/bucket/a", "memory://bucket/a", "memory", QUICK)


def test_a_store_gives_back_what_it_got(store: Store, tmp_path: Path) -> None:
    content = bytes(range(256)) * 50
    (tmp_path / "file").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    assert store.files() == {}
    assert store.size("view-0000/a-00000.h5") is None
    store.put("view-0000/a-00000.h5", tmp_path / "file", sha256)
    store.write("cache.json", b"{}")
    assert store.files() == {"view-0000/a-00000.h5": len(content), "cache.json": 2}
    assert store.sha256("view-0000/a-00000.h5", len(content)) == sha256
    assert store.sha256("view-0000/a-00000.h5", 17) is None
    assert store.get("view-0000/a-00000.h5", tmp_path / "back", len(content)) == sha256
    assert (tmp_path / "back").read_bytes() == content
    store.delete("view-0000/a-00000.h5")
    store.delete("view-0000/a-00000.h5")
    assert store.files() == {"cache.json": 2}


def test_other_bytes_than_were_sent_are_found(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some bytes")
    with pytest.raises(IntegrityError, match="other bytes arrived"):
        store.put("rows.h5", tmp_path / "file", "0" * 64)


def test_small_files_are_bounded(store: Store) -> None:
    store.write("cache.json", b"x" * 1000)
    assert store.read("cache.json", 1000) == b"x" * 1000
    assert store.read("files.json", 1000) is None
    with pytest.raises(IntegrityError, match="more than"):
        store.read("cache.json", 999)


def test_a_file_is_made_where_there_is_none(store: Store) -> None:
    assert store.create("lock", b"mine")
    assert not store.create("lock", b"yours")
    assert store.read("lock", 10) == b"mine"


def test_a_cache_on_the_hub_is_like_any(memory: str, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", rows=300, views=1)
    pin = copy(tmp_path / "cache", memory, card=False).pin
    copy(memory, tmp_path / "back", expect=[pin])
    assert same_files(tmp_path / "cache", tmp_path / "back", but=[LISTING])


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs"), ("az", "az")])
def test_a_missing_package_is_named_with_its_extra(scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"].__dict__["_registry"], scheme, raising=False)
    with pytest.raises(MissingExtraError, match=rf"{scheme}:// needs .*: {re.escape(install_command(extra))}"):
        open_store(f"{scheme}://bucket/cache", "--cache")


def test_waits_grow_differ_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("softcache.store.retry.time.sleep", slept.append)

    def failing() -> None:
        raise TimeoutError("no answer")

    with pytest.raises(StoreError, match=r"reading it failed 8 times in 0 s, at last with TimeoutError: no answer"):
        persistently(failing, "reading it", Patience())
    assert len(slept) == 7
    for k, seconds in enumerate(slept):
        assert 0.25 * 2**k <= seconds <= min(30.0, 0.5 * 2**k) or seconds >= 15
    assert sum(slept) <= 0.5 * (2**6 - 1) + 30


@pytest.mark.parametrize("error", [PermissionError("403"), FileNotFoundError("404")])
def test_what_is_final_is_not_tried_again(error: Exception) -> None:
    calls = []

    def failing() -> None:
        calls.append(1)
        raise error

    with pytest.raises((StoreError, FileNotFoundError)):
        persistently(failing, "reading it", QUICK)
    assert len(calls) == 1
