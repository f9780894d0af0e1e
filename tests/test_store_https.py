"""Caches on a web server: read over TLS alone, byte by byte counted, and no secret of an address anywhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness_https import https_server
from harness_store import same_files
from harness_train import STUDENT, command, fit, make_cache, make_teacher, same, weights
from test_store_systems import memory as memory

from softcache.addresses import parse_address, printable, without_secret
from softcache.cache.listing import LISTING, Listed, Listing
from softcache.errors import IntegrityError, SoftcacheError, StoreError, UsageError
from softcache.stages.copy import copy
from softcache.stages.train import train
from softcache.store import retry
from softcache.store.https import Https
from softcache.store.opened import open_store
from softcache.store.retry import Patience

SECRET = "c2lnbmVkLWJ5LXRoZS10ZXN0cw"
QUERY = f"sv=2026&sig={SECRET}"
QUICK = Patience(attempts=3, first_s=0.01, most_s=0.05)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    pytest.importorskip("cryptography")
    from harness_https import certificate

    found = certificate(tmp_path_factory.mktemp("tls") / "keys")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SSL_CERT_FILE", str(found[0]))
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher")
    copy(folder / "cache", folder / "served" / "digits")
    return folder


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cache_is_copied_from_a_web_server(
    made: Path, here: Path, keys: tuple[Path, Path], ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softcache.store.https.PIECE", 5000)  # several pieces a file
    with https_server(made / "served", keys, ranges=ranges) as url:
        copied = copy(f"{url}/digits", here / "copy")
    assert same_files(made / "served" / "digits", here / "copy")
    assert copied.files == len([p for p in (here / "copy").rglob("*") if p.is_file()]) - 1


def test_no_secret_of_an_address_is_written_or_said(
    made: Path, here: Path, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry.Patience, "wait_s", lambda self, failed: 0.001)
    with https_server(made / "served", keys, query=QUERY) as url:
        signed = f"{url}/digits?{QUERY}"
        local = ["--local-cache", here / "local"]
        fit_options = ["--student", STUDENT, "--epochs", 1, "--batch-size", 128, "--seed", 3, "--workers", 0]
        assert command("info", signed, *local) == 0
        assert command("verify", signed, *local) == 0
        assert command("copy", signed, here / "copy") == 0
        assert command("train", "--cache", signed, *local, *fit_options, "--out", here / "run") == 0
        wrong = f"{url}/digits?sig={SECRET}x"
        for failing in (
            ["train", "--cache", wrong, *local],  # refused by the server
            ["info", f"{url}/nothing?{QUERY}", *local],  # not there
            ["copy", here / "copy", signed],  # can't be written to
            ["train", "--resume", signed],  # no folder
            ["info", f"http://host/cache?{QUERY}"],
            ["info", f"ftp://me:{SECRET}@host/cache"],
        ):
            assert command(*failing) != 0
        with pytest.raises(UsageError) as raised:
            command("--debug", "info", f"ftp://me:{SECRET}@host/cache")
        assert SECRET not in repr(raised.value)
    assert command("info", signed, *local) == 1  # the server is gone
    said = capfd.readouterr()
    assert f"{url}/digits?…" in said.out
    assert SECRET not in said.out + said.err
    for root in (here, Path(os.environ["SOFTCACHE_STATE"]), Path(os.environ["SOFTCACHE_CACHE"])):
        for file in (path for path in root.rglob("*") if path.is_file()):
            assert SECRET.encode() not in file.read_bytes(), file


def test_a_signed_training_has_the_same_bits(made: Path, here: Path, keys: tuple[Path, Path]) -> None:
    fit(here / "disk", cache=str(made / "cache"))
    with https_server(made / "served", keys, query=QUERY) as url:
        fit(here / "web", cache=f"{url}/digits?{QUERY}", local_cache=str(here / "local"))
    assert same(weights(here / "disk"), weights(here / "web"))


def test_a_signature_is_asked_for_again(here: Path) -> None:
    """As in a process that reads a record: it has the address without it."""
    with pytest.raises(UsageError, match="its signature is never written down: give it in full again"):
        parse_address("https://elsewhere/cache?…", "--cache")
    with pytest.raises(UsageError, match="its signature is never written down"):
        train(STUDENT, cache="https://elsewhere/cache?…")


def test_a_server_that_sends_without_end_fills_nothing(made: Path, here: Path, keys: tuple[Path, Path]) -> None:
    """Every file is as large as the listing says, or no file."""

    def endless(path: str, content: bytes) -> bytes:
        return content if path.endswith(".json") else content + bytes(64 * 2**20)

    with https_server(made / "served", keys, ranges=False, change=endless) as url:
        copied = copy(f"{url}/digits", here / "copy")  # the first bytes are the right ones, and no more are read
    assert copied.bytes == sum(
        p.stat().st_size for p in (here / "copy").rglob("*") if p.name != LISTING and p.is_file()
    )
    assert same_files(made / "served" / "digits", here / "copy")


@pytest.mark.parametrize(
    ("victim", "what"),
    [
        ("rows.h5", r"rows\.h5 is said to have .* set TMPDIR to a folder on a larger disk"),
        ("view-0000/logits-00000.h5", r"logits-00000\.h5 would have .* and no shard has more than 1\.0 GiB"),
    ],
)
def test_sizes_that_fill_the_disk_are_refused_before_anything_is_fetched(
    made: Path,
    here: Path,
    keys: tuple[Path, Path],
    memory: str,
    monkeypatch: pytest.MonkeyPatch,
    victim: str,
    what: str,
) -> None:
    """Between two stores a file passes through a folder of this machine, and the listing may be anybody's."""
    shutil.copytree(made / "served" / "digits", here / "web" / "digits")
    told = here / "web" / "digits" / LISTING
    listing = Listing.parse(told.read_bytes(), "it")
    forged = {**listing.files, victim: Listed(2**50, listing.files[victim].sha256)}
    told.write_bytes(Listing(listing.cache_id, forged).render())
    (here / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(here / "tmp"))
    with https_server(here / "web", keys) as url, pytest.raises(SoftcacheError, match=what):
        copy(f"{url}/digits", memory, card=False)
    assert not [path for path in (here / "tmp").rglob("*") if path.is_file()]
    assert open_store(memory, "the test").size("cache.json") is None


def test_a_listing_without_end_is_refused(made: Path, here: Path, keys: tuple[Path, Path]) -> None:
    with https_server(made / "served", keys, change=lambda _, content: content + bytes(2**20)) as url:
        store = Https(parse_address(f"{url}/digits"), QUICK)
        with pytest.raises(IntegrityError, match=r"files\.json has more than the 100,000 bytes"):
            store.read(LISTING, 100_000)


def test_no_server_leads_away_from_tls(made: Path, here: Path, keys: tuple[Path, Path]) -> None:
    with (
        https_server(made / "served", keys, change=lambda path, _: f"http://127.0.0.1:1{path}") as url,
        pytest.raises(StoreError, match="which is not https"),
    ):
        copy(f"{url}/digits", here / "copy")


def test_a_certificate_that_nobody_trusts_is_refused(
    made: Path, here: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    with https_server(made / "served", keys) as url:
        store = Https(parse_address(f"{url}/digits"), QUICK)
        with pytest.raises(StoreError, match="certificate"):
            store.read("cache.json", 1000)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://host/a?sig=x", "https://host/a?…"),
        ("see https://me:pw@host/a?b=c&d=e, then", "see https://host/a?… then"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("folder:/data/what?.png is a path", "folder:/data/what?.png is a path"),
        ("gs://b/c#frag", "gs://b/c?…"),
        ("a?b=c", "a?b=c"),
    ],
)
def test_what_is_printed_of_an_address(given: str, shown: str) -> None:
    assert printable(given) == shown


def test_the_secret_is_found_again_in_this_process_alone() -> None:
    assert without_secret("https://host/of/mine?key=42") == "https://host/of/mine?…"
    assert parse_address("https://host/of/mine?…").query == "key=42"
    assert "42" not in repr(parse_address("https://host/of/mine?…"))
    assert printable("anything with key=42 in it") == "anything with … in it"
