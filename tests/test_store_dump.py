"""Dumping into a store: the same bytes as on disk, however often it is killed, and one writer at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import time
from pathlib import Path

import pytest
from harness_cache import make_cache
from harness_dump import HINTS, Setting, Warm, shards
from harness_store import SECRET_KEY, Proxy, Server, environment
from harness_train import command
from test_store_systems import memory as memory

from softcache.cache.listing import LISTING
from softcache.cache.locks import MANIFEST_LOCK, PATIENCE_S
from softcache.cache.reader import Cache
from softcache.cache.schema import VIRTUAL
from softcache.cache.writer import update_state
from softcache.config.dump import DumpConfig
from softcache.console import size
from softcache.errors import LockedError
from softcache.locks import locked
from softcache.stages._to_store import writing_to_store
from softcache.stages.copy import copy
from softcache.store import lock
from softcache.store.lock import LASTS_S, NAME, StoreLock
from softcache.store.opened import open_store
from softcache.store.retry import Patience

pytestmark = pytest.mark.timeout(900)
KILLS = pytest.param(100, id="100", marks=pytest.mark.torture)


@pytest.fixture(scope="module")
def undisturbed(setting: Setting, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The shards of a dump into a folder."""
    folder = tmp_path_factory.mktemp("undisturbed") / "cache"
    assert warm.run(arguments(setting, str(folder))).status == 0
    return shards(folder)


def arguments(setting: Setting, out: str, *more: str) -> list[str]:
    """Two views of two columns in five shards each."""
    return ["dump", *setting.base, "--views", "2", "--hint", HINTS[0], "--out", out, *more]


@pytest.fixture
def address(server: Server, faults: Proxy) -> str:
    return f"s3://{server.bucket()}/caches/arrays"


def stored(address: str) -> dict[str, str]:
    """Name → sha256 of every shard in the store, and of rows and samples."""
    store = open_store(address, "the test")
    named = {name: count for name, count in store.files().items() if name.startswith(("view-", "rows.", "samples."))}
    return {name: str(store.sha256(name, count)) for name, count in named.items()}


def run(warm: Warm, setting: Setting, address: str, faults: Proxy, here: Path, *more: str, **how: object) -> str:
    """A whole dump; what it said."""
    ended = start(warm, setting, address, faults, here, *more, **how)
    assert ended.status == 0, ended.output
    return ended.output


def start(warm, setting, address, faults, here, *more, **how):  # type: ignore[no-untyped-def]
    log = {"FORWARDS": str(here / "forwards")}
    command = arguments(setting, address, "--staging", str(here / "staging"), *more)
    return warm.run(command, env={**environment(faults.url), **log}, **how)


def check(address: str, undisturbed: dict[str, str], here: Path) -> None:
    """The store has what a folder would have, the listing says so, and nothing waits here."""
    assert stored(address) == undisturbed
    store = open_store(address, "the test")
    assert store.size(NAME) is None
    listed = json.loads(store.read(LISTING, 2**20) or b"")["files"]
    assert set(listed) == {*undisturbed, "cache.json", "cache.h5"}
    assert {name: sha256 for name, (_, sha256) in listed.items() if name in undisturbed} == undisturbed
    assert not list((here / "staging").rglob("view-*/*"))
    assert not list((here / "staging").rglob(".*.part"))


def test_a_store_gets_the_bytes_that_a_folder_gets(
    setting: Setting, warm: Warm, undisturbed: dict[str, str], address: str, faults: Proxy, tmp_path: Path
) -> None:
    said = run(warm, setting, address, faults, tmp_path)
    check(address, undisturbed, tmp_path)
    content = open_store(address, "the test").read(LISTING, 2**20)
    assert content is not None
    pin = hashlib.sha256(content).hexdigest()
    assert f"pin            {pin}" in said
    assert address in said
    assert SECRET_KEY not in said
    again = run(warm, setting, address, faults, tmp_path)
    assert "all of it was there" in again
    assert pin in again
    copied = copy(address, tmp_path / "copy", expect=[pin])
    assert copied.pin == pin
    assert shards(tmp_path / "copy") == undisturbed


def test_only_what_the_store_lacks_is_computed(
    setting: Setting, warm: Warm, undisturbed: dict[str, str], address: str, faults: Proxy, tmp_path: Path
) -> None:
    run(warm, setting, address, faults, tmp_path)
    store = open_store(address, "the test")
    store.delete("view-0001/logits-00002.h5")
    whole = (tmp_path / "forwards").stat().st_size
    (tmp_path / "forwards").unlink()
    shutil.rmtree(tmp_path / "staging")  # as on another machine
    run(warm, setting, address, faults, tmp_path)
    check(address, undisturbed, tmp_path)
    assert (tmp_path / "forwards").stat().st_size < whole / 4
    more = run(warm, setting, address, faults, tmp_path, "--hint", HINTS[1], "--views", "3")
    assert "900 keys computed" in more
    found = stored(address)
    assert {name: found[name] for name in undisturbed} == undisturbed
    assert len(found) == 3 * 3 * 5 + 2


def test_faults_change_nothing(
    setting: Setting, warm: Warm, undisturbed: dict[str, str], address: str, faults: Proxy, tmp_path: Path
) -> None:
    faults.share = 0.03
    run(warm, setting, address, faults, tmp_path)
    faults.share = 0.0
    assert sum(faults.faults.values()) > 2
    check(address, undisturbed, tmp_path)


@pytest.mark.parametrize("kills", [1, KILLS])
def test_bytes_are_the_same_however_often_an_upload_is_killed(
    setting: Setting,
    warm: Warm,
    undisturbed: dict[str, str],
    server: Server,
    faults: Proxy,
    tmp_path: Path,
    kills: int,
) -> None:
    import random

    # As long as a dump takes, more or less: longer where many die, shorter where they come to their end.
    rng, died, number, seconds = random.Random(5), 0, 0, 3.0
    while died < kills:
        address, here = f"s3://{server.bucket()}/cache", tmp_path / str(number)
        here.mkdir()
        number += 1
        while True:
            ended = start(warm, setting, address, faults, here, kill_after=rng.uniform(0.1, seconds))
            assert ended.status in (0, -9), ended.output
            # no half shard is ever there, and nothing is a cache that isn't whole
            found = stored(address)
            assert all(undisturbed[name] == sha256 for name, sha256 in found.items())
            if ended.status == 0:
                seconds *= 0.7
                break
            died += 1
            seconds *= 1.2
            if rng.random() < 0.3 and (here / "staging").exists():
                shutil.rmtree(here / "staging")
        check(address, undisturbed, here)


def test_a_lock_that_a_killed_dump_had_not_signed_is_no_obstacle(
    setting: Setting, warm: Warm, undisturbed: dict[str, str], address: str, faults: Proxy, tmp_path: Path
) -> None:
    """The manifest's lock is a file, and who made it dies before it says whose it is. Nobody can tell then that its
    holder is gone, but under the lock of the address nobody else is at work."""
    run(warm, setting, address, faults, tmp_path)
    store, (staging,) = open_store(address, "the test"), (tmp_path / "staging").iterdir()
    for name in (LISTING, VIRTUAL):
        store.delete(name)
    (staging / VIRTUAL).unlink()
    # as before the end of a dump, which changes the manifest once more
    assert Cache(staging).manifest.state.teacher_top1 is not None
    update_state(staging, lambda state: dataclasses.replace(state, teacher_top1=None))
    (staging / MANIFEST_LOCK).touch()
    began = time.monotonic()
    run(warm, setting, address, faults, tmp_path)
    assert time.monotonic() - began < PATIENCE_S / 2
    check(address, undisturbed, tmp_path)


def test_two_writers_do_not_mix(
    setting: Setting, warm: Warm, undisturbed: dict[str, str], address: str, faults: Proxy, tmp_path: Path
) -> None:
    with StoreLock(open_store(address, "the test"), f"{address} is being written"):
        ended = start(warm, setting, address, faults, tmp_path)
        assert ended.status == 1
        assert f"{address} is being written by process" in ended.output
    run(warm, setting, address, faults, tmp_path)
    check(address, undisturbed, tmp_path)


def test_a_lock_that_could_not_be_renewed_in_time_is_lost(
    address: str, faults: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer may take it over from then on, which would find it renewed by a request that came too late."""
    monkeypatch.setattr(lock, "EVERY_S", 0.05)
    monkeypatch.setattr(lock, "LASTS_S", 2.5)  # a renewal takes as long as that on no machine
    for name, value in environment(faults.url).items():
        monkeypatch.setenv(name, value)
    store = open_store(address, "the test", Patience(attempts=1, first_s=0.01, most_s=0.05))
    with StoreLock(store, f"{address} is being written") as held:
        time.sleep(1)
        held.check()
        faults.gone = True
        time.sleep(3)
        faults.gone = False
        with pytest.raises(LockedError, match=r"couldn't be reached for .* run the same command again"):
            held.check()


@pytest.mark.parametrize("gone", ["long ago", "here"])
def test_the_lock_of_a_writer_that_is_gone_is_taken_over(address: str, gone: str) -> None:
    from softcache.atomic import writer_name

    store, now = open_store(address, "the test"), time.time()
    host, boot, _, token = writer_name().split("~")
    other = f"elsewhere~1234~77~{token}" if gone == "long ago" else f"{host}~{boot}~999999999~{token}"
    until = now - 1 if gone == "long ago" else now + LASTS_S
    store.write(NAME, json.dumps({"owner": other, "until": until}).encode())
    with StoreLock(store, "it is being written"):
        pass
    assert store.size(NAME) is None
    store.write(NAME, json.dumps({"owner": "elsewhere~1234~77~ab", "until": now + LASTS_S}).encode())
    with pytest.raises(LockedError, match=r"by process 77 on elsewhere: .* its lock ends in 10 min 00 s|9 min"):
        StoreLock(store, "it is being written").__enter__()
    store.write(NAME, json.dumps({"owner": "elsewhere~1234~77~ab", "until": 1e300}).encode())
    with pytest.raises(LockedError, match="ends in 10 min"):
        StoreLock(store, "it is being written").__enter__()


def test_only_one_of_many_gets_the_lock(address: str) -> None:
    import threading

    got, refused, leave = [], [], threading.Event()

    def enter(number: int) -> None:
        try:
            with StoreLock(open_store(address, "the test"), "it is being written"):
                got.append(number)
                leave.wait(60)
        except LockedError:
            refused.append(number)
            if len(refused) == 4:
                leave.set()

    threads = [threading.Thread(target=enter, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (
            ["--out", "https://host/cache"],
            "nothing to https:// addresses, only into folders and to s3://, gs:// and az://",
        ),
        (["--out", "s3://bucket/cache", "--part", "1/2"], "one process at a time dumps into a store"),
        (
            ["--out", "http://host/cache"],
            "nothing to http:// addresses, only into folders and to s3://, gs:// and az://",
        ),
        (["--out", "hf://datasets/someone/cache"], "dump into a folder, and softcache copy it there"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], what: str, here: Path, memory: str, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert command("dump", "--teacher", "cifar:resnet8", *arguments) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert what in line


def test_a_dump_removes_nothing_of_the_users(
    setting: Setting,
    warm: Warm,
    server: Server,
    address: str,
    undisturbed: dict[str, str],
    faults: Proxy,
    tmp_path: Path,
) -> None:
    """``--staging`` may be a folder with other things in it, and serve several dumps."""
    mine = [tmp_path / "staging" / name for name in ("thesis.txt", "mydir/x", "rows.h5", "view-0000/logits-00000.h5")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    before = sorted((tmp_path / "staging").rglob("*"))
    run(warm, setting, address, faults, tmp_path, "--dry-run")
    assert sorted((tmp_path / "staging").rglob("*")) == before
    run(warm, setting, address, faults, tmp_path)
    other = f"s3://{server.bucket()}/other"
    run(warm, setting, other, faults, tmp_path, "--views", "1")
    assert stored(address) == undisturbed
    for path in mine:
        assert path.read_bytes() == b"mine"
    one, _ = [path for path in (tmp_path / "staging").iterdir() if (path / "cache.json").exists()]
    (one / "notes.txt").write_text("mine too")
    for store in (open_store(address, "the test"), open_store(other, "the test")):
        for name in store.files():
            store.delete(name)
    run(warm, setting, address, faults, tmp_path)
    run(warm, setting, other, faults, tmp_path, "--views", "1")
    assert (one / "notes.txt").read_text() == "mine too"
    assert stored(address) == undisturbed


def test_a_dry_run_writes_nothing_into_the_store(
    setting: Setting, warm: Warm, address: str, faults: Proxy, tmp_path: Path
) -> None:
    with StoreLock(open_store(address, "the test"), f"{address} is being written"):
        faults.requests.clear()
        said = run(warm, setting, address, faults, tmp_path, "--dry-run")  # beside a dump
        assert address in said
        # nobody knows what is free there, and this machine's disk is not what the cache lies on
        assert not re.search(r"^free", said, re.M)
        assert re.search(rf"^already there +{re.escape(size(0))}$", said, re.M)
        assert {method for method, _ in faults.requests} <= {"GET", "HEAD"}
    run(warm, setting, address, faults, tmp_path)
    faults.requests.clear()
    said = run(warm, setting, address, faults, tmp_path, "--dry-run", "--views", "3")
    there = sum(count for name, count in open_store(address, "the test").files().items() if name.endswith(".h5"))
    assert re.search(rf"^already there +{re.escape(size(there))}$", said, re.M)
    assert {method for method, _ in faults.requests} <= {"GET", "HEAD"}


def test_one_process_at_a_time_uses_a_staging_folder(
    setting: Setting, warm: Warm, address: str, faults: Proxy, tmp_path: Path
) -> None:
    """Nothing there is looked at, and nothing removed, before this process holds it."""
    folder = tmp_path / "staging" / hashlib.sha256(address.encode()).hexdigest()
    folder.mkdir(parents=True)
    (folder / "rows.h5").write_bytes(b"of the other process")
    with locked(folder / ".staging.lock", "the test"):
        ended = start(warm, setting, address, faults, tmp_path)
        assert ended.status == 1
        assert f"{address} is being written by process" in ended.output
        assert (folder / "rows.h5").read_bytes() == b"of the other process"
    run(warm, setting, address, faults, tmp_path)


def test_a_bucket_that_is_missing_is_named(setting: Setting, warm: Warm, faults: Proxy, tmp_path: Path) -> None:
    ended = start(warm, setting, "s3://no-such-bucket-here/cache", faults, tmp_path)
    assert ended.status == 1
    assert "s3://no-such-bucket-here/cache: there is no such bucket" in ended.output


def test_shards_of_nobody_are_not_taken_for_done(
    setting: Setting, warm: Warm, address: str, faults: Proxy, tmp_path: Path
) -> None:
    open_store(address, "the test").write("view-0000/logits-00000.h5", b"whose?")
    ended = start(warm, setting, address, faults, tmp_path)
    assert ended.status == 1
    assert "has shards and no cache.json" in ended.output


def test_shards_of_another_form_of_the_cache_are_not_stored_or_taken_for_done(
    address: str, faults: Proxy, tmp_path: Path
) -> None:
    """The cache id is the same in every codec, so it alone doesn't say whose a shard is."""
    make_cache(tmp_path / "there", rows=600, views=2, codec="int:bits=8")
    folder = tmp_path / "staging" / hashlib.sha256(address.encode()).hexdigest()
    make_cache(folder, rows=600, views=2, codec="fp16")  # as a dump left it that was killed
    copy(tmp_path / "there", address)
    store = open_store(address, "the test")
    store.write("view-0005/logits-00000.h5", b"of a view that the manifest doesn't have")
    before = stored(address)
    asked = DumpConfig("cifar:resnet8", out=address, staging=str(tmp_path / "staging"))
    with writing_to_store(asked) as (_, goal):
        goal.uploading.finish()
        assert goal.uploading.in_view(5) == []
    assert stored(address) == before
    assert not list(folder.glob("view-*/*"))


def test_shards_that_wait_for_the_same_form_are_stored(address: str, faults: Proxy, tmp_path: Path) -> None:
    folder = tmp_path / "staging" / hashlib.sha256(address.encode()).hexdigest()
    make_cache(folder, rows=600, views=2)
    copy(folder, address)
    before = stored(address)
    open_store(address, "the test").delete("view-0001/logits-00001.h5")
    asked = DumpConfig("cifar:resnet8", out=address, staging=str(tmp_path / "staging"))
    with writing_to_store(asked) as (_, goal):
        goal.uploading.finish()
    assert stored(address) == before
    assert not list(folder.glob("view-*/*"))
