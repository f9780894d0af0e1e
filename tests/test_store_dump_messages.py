"""What a dump into a store says and measures is about the store, not about the folder that shards are made in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness_convert import make_place
from harness_store import Proxy, Server

from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST
from softcache.cache.uploading import Uploading
from softcache.dumping import estimate
from softcache.errors import CacheError
from softcache.stages import _measured
from softcache.stages.convert import convert
from softcache.stages.copy import copy
from softcache.stages.dump import Dumped, dump
from softcache.store.opened import open_store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("numbers"))


@pytest.fixture
def address(server: Server, faults: Proxy) -> str:
    return f"s3://{server.bucket()}/numbers"


def dumped(place: Path, address: str, **more: Any) -> Dumped:
    options = {"views": 1, "batch_size": 24, "output": ("logits",), "staging": str(place / "staging"), **more}
    return dump(
        f"{place / 'teacher.py'}:make", dataset=f"arrays:{place}", out=address, device="cpu", workers=0, **options
    )


def test_what_is_refused_names_the_store_and_what_can_be_done_there(place: Path, address: str, tmp_path: Path) -> None:
    dumped(place, address)
    for options, what in (
        ({"codec": "int8"}, f"or softcache copy {address} to a folder and convert that"),
        ({"batch_size": 48}, f"{address} is a cache of something else"),
    ):
        with pytest.raises(CacheError) as found:
            dumped(place, address, **options)
        assert what in str(found.value)
        assert "staging" not in str(found.value)
        assert "softcache convert" not in str(found.value)
    copy(address, tmp_path / "copy")
    convert(tmp_path / "copy", tmp_path / "made", codec="int8", device="cpu")
    copy(tmp_path / "made", f"{address}-int8")
    with pytest.raises(CacheError, match=f"{address}-int8 keeps logits as it was converted from fp16") as found:
        dumped(place, f"{address}-int8", views=2)
    assert "and copy what that makes" in str(found.value)


def test_a_codec_is_chosen_for_a_cache_that_is_larger_than_the_disk(
    place: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only shards that wait to be stored lie here."""

    class Full:
        free = 1000

    with monkeypatch.context() as patched:
        patched.setattr(estimate.shutil, "disk_usage", lambda place: Full)
        with pytest.raises(CacheError, match="there are 1000 bytes free"):
            dumped(place, str(tmp_path / "cache"), staging=None, codec="auto:max_kl=0.01")
        assert dumped(place, address, codec="auto:max_kl=0.01").keys == 210
    copy(address, tmp_path / "copy")
    assert Cache(tmp_path / "copy").manifest.state.columns["logits"].codec != "fp32"


def test_the_size_is_that_of_what_is_stored(
    place: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where shards are still here that have been stored."""
    with monkeypatch.context() as patched:
        patched.setattr(Uploading, "done", lambda uploading, names: None)
        patched.setattr(Uploading, "clear", lambda uploading: None)
        done = dumped(place, address)
    assert list((place / "staging").rglob("view-*/*.h5"))
    assert done.info["bytes"] == copy(address, tmp_path / "copy").bytes
    assert dumped(place, address).info["bytes"] == done.info["bytes"]


def test_what_codecs_lose_is_stored_while_the_dump_goes_on(
    place: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a machine that goes on with it knows of the keys that are there, and adds its own to them."""

    def killed(*given: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(_measured, "STORE_S", 0.0)
        patched.setattr("softcache.stages.dump.finish", killed)
        with pytest.raises(RuntimeError, match="killed"):
            dumped(place, address, views=2)
    content = open_store(address, "the test").read(MANIFEST, 2**20)
    assert content is not None
    error = Manifest.of(content, MANIFEST).state.columns["logits"].error
    assert error["keys"] == 420
    dumped(place, address, views=2, staging=str(place / "another machine"))
    content = open_store(address, "the test").read(MANIFEST, 2**20)
    assert content is not None
    assert Manifest.of(content, MANIFEST).state.columns["logits"].error == error
