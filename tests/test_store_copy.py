"""softcache copy: folders and stores, resumed, pinned, and with faults in between."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harness_cache import make_cache
from harness_store import SECRET_KEY, Proxy, Server, same_files
from harness_train import command

from softcache.cache.listing import LISTING, Listed, Listing
from softcache.cache.reader import Cache
from softcache.cache.schema import ColumnRecord
from softcache.errors import CacheError, IntegrityError, LockedError, SoftcacheError, StoreError, UsageError
from softcache.stages.copy import copy
from softcache.stages.verify import verify
from softcache.store import lock
from softcache.store.opened import open_store
from softcache.store.retry import Patience

QUICK = Patience(attempts=4, first_s=0.01, most_s=0.05)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    make_cache(tmp_path / "cache", rows=600, views=3)
    return tmp_path / "cache"


def listed(folder: Path) -> dict[str, list[object]]:
    return json.loads((folder / LISTING).read_text())["files"]


def test_a_copied_folder_has_the_same_bytes_and_lists_them(cache: Path, tmp_path: Path) -> None:
    copied = copy(cache, tmp_path / "copy")
    assert same_files(cache, tmp_path / "copy", but=[LISTING])
    files = listed(tmp_path / "copy")
    assert set(files) == {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file()}
    for name, (size, sha256) in files.items():
        content = (cache / name).read_bytes()
        assert (size, sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert copied.pin == hashlib.sha256((tmp_path / "copy" / LISTING).read_bytes()).hexdigest()
    assert copied.sent == len(files) - 1  # the manifest is written, not sent


def test_the_listing_has_the_form_of_the_specification(cache: Path, tmp_path: Path) -> None:
    """docs/format.md, without softcache's own code."""
    copy(cache, tmp_path / "copy")
    names = sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
    lines = [
        f'  "{name}": [{(cache / name).stat().st_size}, "{hashlib.sha256((cache / name).read_bytes()).hexdigest()}"]'
        for name in names
    ]
    cache_id = json.loads((cache / "cache.json").read_text())["cache_id"]
    head = f'{{\n "softcache": 2,\n "cache_id": "{cache_id}",\n "files": {{\n'
    assert (tmp_path / "copy" / LISTING).read_text() == head + ",\n".join(lines) + "\n }\n}\n"


@pytest.mark.parametrize(
    "forged",
    [
        '"../../evil": [1, "%s"]',
        '"view-0000/../../x-00000.h5": [1, "%s"]',
        '"/etc/passwd": [1, "%s"]',
        '"rows.h5": [-1, "%s"]',
        '"rows.h5": [1.5, "%s"]',
        '"rows.h5": [true, "%s"]',
        '"rows.h5": [99999999999999999999, "%s"]',
        '"rows.h5": [1, "xyz"]',
        '"rows.h5": [1]',
        '"rows.h5": {}',
    ],
)
def test_a_hostile_listing_is_refused(forged: str) -> None:
    sha256 = "0" * 64
    entry = forged % sha256 if "%s" in forged else forged
    text = f'{{"softcache": 2, "cache_id": "{sha256}", "files": {{"cache.json": [1, "{sha256}"], {entry}}}}}'
    with pytest.raises(IntegrityError):
        Listing.parse(text.encode(), "it")


def test_what_is_there_is_not_sent_again(cache: Path, tmp_path: Path) -> None:
    first = copy(cache, tmp_path / "copy")
    again = copy(cache, tmp_path / "copy")
    assert (again.sent, again.pin) == (0, first.pin)
    victim = tmp_path / "copy" / "view-0001" / "logits-00001.h5"
    size = victim.stat().st_size
    victim.write_bytes(b"\1" * size)  # same size, other bytes
    repaired = copy(cache, tmp_path / "copy")
    assert (repaired.sent, repaired.sent_bytes) == (1, size)
    assert same_files(cache, tmp_path / "copy", but=[LISTING])


def test_a_cache_goes_through_stores_and_comes_back(cache: Path, tmp_path: Path, faults: Proxy, server: Server) -> None:
    one, other = f"s3://{server.bucket()}/a", f"s3://{server.bucket()}/deep/er"
    first = copy(cache, one)
    assert first.target == one
    second = copy(one, other, expect=[first.pin])
    third = copy(other, tmp_path / "back", expect=[first.pin])
    assert first.pin == second.pin == third.pin
    assert same_files(cache, tmp_path / "back", but=[LISTING])
    assert copy(cache, one).sent == 0


def test_faults_change_nothing(cache: Path, tmp_path: Path, faults: Proxy, server: Server) -> None:
    faults.share = 0.1
    address = f"s3://{server.bucket()}/cache"
    pin = copy(cache, address).pin
    assert copy(address, tmp_path / "back", expect=[pin]).pin == pin
    assert sum(faults.faults.values()) > 3, "the proxy had no chance"
    assert same_files(cache, tmp_path / "back", but=[LISTING])


def test_a_half_copy_is_no_cache_and_goes_on(
    cache: Path, tmp_path: Path, faults: Proxy, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"s3://{server.bucket()}/cache"
    copy(cache, address)
    store = open_store(address, "the test", QUICK)
    store.delete("cache.json")
    store.delete("view-0002/logits-00002.h5")
    with pytest.raises(CacheError, match=r"is no cache: it has no cache\.json"):
        copy(address, tmp_path / "back")
    again = copy(cache, address)
    assert again.sent == 1
    copy(address, tmp_path / "back", expect=[again.pin])
    assert same_files(cache, tmp_path / "back", but=[LISTING])


def test_a_store_that_is_gone_is_one_line(cache: Path, faults: Proxy, server: Server) -> None:
    faults.gone = True
    store = open_store(f"s3://{server.bucket()}/cache", "the test", QUICK)
    with pytest.raises(StoreError, match=r"failed 4 times in .* run the same command again later") as raised:
        store.size("cache.json")
    assert "\n" not in str(raised.value)
    assert SECRET_KEY not in str(raised.value)


@pytest.mark.parametrize("victim", ["view-0001/logits-00000.h5", "cache.json", LISTING])
def test_expect_finds_a_forger(cache: Path, tmp_path: Path, victim: str) -> None:
    """One who changes a file and everything that lists it, but can't change what the user was told."""
    pin = copy(cache, tmp_path / "store").pin
    file = tmp_path / "store" / victim
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    if victim != LISTING:
        listing = Listing.parse((tmp_path / "store" / LISTING).read_bytes(), "it")
        forged = {
            **listing.files,
            victim: Listed(len(content), hashlib.sha256(content).hexdigest()),
        }
        (tmp_path / "store" / LISTING).write_bytes(Listing(listing.cache_id, forged).render())
    with pytest.raises(SoftcacheError, match=r"pin is|not as softcache writes it|no listing"):
        copy(tmp_path / "store", tmp_path / "back", expect=[pin])
    assert not (tmp_path / "back" / "cache.json").exists()


def test_a_flipped_bit_is_found_by_the_listing(cache: Path, tmp_path: Path) -> None:
    copy(cache, tmp_path / "store")
    file = tmp_path / "store" / "view-0002" / "logits-00001.h5"
    content = bytearray(file.read_bytes())
    content[5000] ^= 4
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"logits-00001\.h5 has other bytes than are listed"):
        copy(tmp_path / "store", tmp_path / "back")
    assert not (tmp_path / "back" / "cache.json").exists()


def test_another_cache_is_not_overwritten(cache: Path, tmp_path: Path) -> None:
    make_cache(tmp_path / "other", rows=300, views=1)
    before = {p: p.read_bytes() for p in (tmp_path / "other").rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="holds another cache"):
        copy(cache, tmp_path / "other")
    assert all(p.read_bytes() == content for p, content in before.items())


def test_a_cache_that_has_grown_is_copied_anew(cache: Path, tmp_path: Path) -> None:
    pin = copy(cache, tmp_path / "copy").pin
    make_cache(cache, rows=600, views=4)
    grown = copy(cache, tmp_path / "copy")
    assert grown.pin != pin
    assert Cache(tmp_path / "copy").complete_views() == [0, 1, 2, 3]
    assert same_files(cache, tmp_path / "copy", but=[LISTING])


def test_a_bucket_that_is_missing_is_named(cache: Path, faults: Proxy, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert command("copy", str(cache), "s3://no-such-bucket-here/cache") == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert "s3://no-such-bucket-here/cache: there is no such bucket, container or repository: make it first" in last


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("http://host/cache", "nothing to http:// addresses, only into folders and to s3://, gs://, az:// and hf://"),
        ("s4://bucket/cache", "knows no s4://: did you mean s3"),
        ("s3://", "names no folder"),
        ("https://host/cache", "nothing to https:// addresses, only into folders and to s3://, gs://, az:// and hf://"),
        ("ftp://host/cache", "softcache knows no ftp://: there are az, gs, hf, s3"),
        (f"s3://me:{SECRET_KEY}@bucket/cache", "leave them out of the address"),
        (f"s3://bucket/cache?X-Amz-Signature={SECRET_KEY}", "only https:// addresses may have a query"),
    ],
)
def test_addresses_that_cannot_be_are_one_line(
    cache: Path, capfd: pytest.CaptureFixture[str], target: str, what: str
) -> None:
    capfd.readouterr()
    assert command("copy", str(cache), target) == 2
    said = capfd.readouterr()
    [line] = said.err.splitlines()
    assert what in line
    assert SECRET_KEY not in said.err + said.out


HINT = {"body": ColumnRecord("values", [4], "fp16", 256)}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"codec": "int:bits=8"}, "with logits as fp16 in shards of 256 rows, not as int:bits=8"),
        ({"compress": "zstd"}, "with logits as fp16 in shards of 256 rows, not as fp16, compressed"),
        ({"views": 2}, "with more views than the 2"),
    ],
)
def test_a_cache_that_has_more_is_not_overwritten(
    cache: Path, tmp_path: Path, other: dict[str, Any], what: str
) -> None:
    """The cache id is that of the teacher, the data and the views, and the same in every codec."""
    if "compress" in other:
        pytest.importorskip("zstandard")
    make_cache(tmp_path / "other", **{"rows": 600, "views": 3, **other})
    assert Cache(tmp_path / "other").manifest.cache_id == Cache(cache).manifest.cache_id
    copy(cache, tmp_path / "copy")
    before = contents(tmp_path / "copy")
    with pytest.raises(UsageError, match=rf"copy holds this cache {what}.*: copy to another place"):
        copy(tmp_path / "other", tmp_path / "copy")
    assert contents(tmp_path / "copy") == before


def test_a_column_or_shard_that_the_source_lacks_is_not_lost(cache: Path, tmp_path: Path) -> None:
    make_cache(tmp_path / "more", rows=600, views=3, hints=HINT)
    copy(tmp_path / "more", tmp_path / "copy")
    before = contents(tmp_path / "copy")
    with pytest.raises(UsageError, match=r"holds this cache with hint\.body, which this one doesn't have"):
        copy(cache, tmp_path / "copy")
    (tmp_path / "more" / "view-0001" / "logits-00001.h5").unlink()
    with pytest.raises(UsageError, match=r"with view-0001/logits-00001\.h5, which is missing in this one"):
        copy(tmp_path / "more", tmp_path / "copy")
    assert contents(tmp_path / "copy") == before
    grown = copy(cache, tmp_path / "small").pin
    make_cache(cache, rows=600, views=3, hints=HINT)
    assert copy(cache, tmp_path / "small").pin != grown
    assert same_files(cache, tmp_path / "small", but=[LISTING])


def test_a_target_in_a_store_is_not_overwritten_either(
    cache: Path, tmp_path: Path, faults: Proxy, server: Server
) -> None:
    address = f"s3://{server.bucket()}/cache"
    pin = copy(cache, address).pin
    make_cache(tmp_path / "other", rows=600, views=3, codec="int:bits=8")
    with pytest.raises(UsageError, match="holds this cache with logits as fp16"):
        copy(tmp_path / "other", address)
    copy(address, tmp_path / "back", expect=[pin])


def test_files_of_an_earlier_copy_that_are_none_of_this_one_go(cache: Path, tmp_path: Path) -> None:
    """Such as the kept samples, which a published copy leaves out; and nothing that may be the user's."""
    copy(cache, tmp_path / "copy")
    assert (tmp_path / "copy" / "samples.h5").exists()
    mine = [tmp_path / "copy" / name for name in ("notes.txt", "data.h5", "mine/samples.h5", "view-0000/plot.png")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    (tmp_path / "copy" / "view-0007").mkdir()
    (tmp_path / "copy" / "view-0007" / "logits-00000.h5").write_bytes(b"of a view that was trimmed")
    copied = copy(cache, tmp_path / "copy", card=True)
    assert not (tmp_path / "copy" / "samples.h5").exists()
    assert not list((tmp_path / "copy").glob("view-0007/*"))
    assert all(path.read_bytes() == b"mine" for path in mine)
    copy(tmp_path / "copy", tmp_path / "again", expect=[copied.pin])
    assert verify(tmp_path / "again").ok


def test_a_file_that_may_be_anybodys_is_not_removed(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "samples.h5").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"copy has samples\.h5, which is no file of this cache, .* remove it"):
        copy(cache, tmp_path / "copy", card=True)
    assert (tmp_path / "copy" / "samples.h5").read_bytes() == b"mine"


def test_a_copy_whose_lock_is_lost_stops(
    cache: Path, faults: Proxy, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer takes the place over while the copy is stopped in the middle of a file."""
    monkeypatch.setattr(lock, "EVERY_S", 0.05)
    address, failed = f"s3://{server.bucket()}/cache", []
    store = open_store(address, "the test", QUICK)

    def copying() -> None:
        try:
            copy(cache, address, threads=1)
        except LockedError as error:
            failed.append(str(error))

    faults.stuck = True
    thread = threading.Thread(target=copying)
    thread.start()
    assert faults.reached.wait(60)
    theirs = json.dumps({"owner": "elsewhere~1234~77~ab", "until": time.time() + 600}).encode()
    for _ in range(200):  # a renewal that had looked just before writes once more
        store.write(lock.NAME, theirs)
        time.sleep(random.uniform(0.1, 0.4))
        if store.read(lock.NAME, 1000) == theirs:
            break
    faults.release()
    thread.join()
    assert failed == [f"{address} is being written by another process, which has taken it over from this one"]
    assert store.size("cache.json") is None
    assert len(store.files()) < 5
    assert store.size(lock.NAME) is not None  # the other's


def test_a_listing_that_is_behind_its_cache_says_what_to_do(cache: Path, tmp_path: Path) -> None:
    pin = copy(cache, tmp_path / "copy").pin
    manifest = tmp_path / "copy" / "cache.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(IntegrityError, match="it has changed since, and softcache copy lists it anew"):
        copy(tmp_path / "copy", tmp_path / "again", expect=[pin])
    assert copy(tmp_path / "copy", tmp_path / "anew").pin != pin
