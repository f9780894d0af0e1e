"""Training from a store: the same bits as from disk, within the bound, whatever the network does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import harness_process
import pytest
from harness_store import Proxy, Server
from harness_train import HINTS, STUDENT, command, config, fit, lines, make_cache, make_teacher, same, weights

import softcache
from softcache.cache.listing import LISTING, Listing
from softcache.config.opening import STORES
from softcache.errors import CacheError, StoreError, UsageError
from softcache.stages.copy import copy
from softcache.stages.train import train
from softcache.stages.verify import verify
from softcache.store import retry

HINT = "fitnet:teacher=layer1,student=layer1"
TIMES = ("epoch_s", "data_s", "eval_s", "teacher_s")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=HINTS[:1], views=2, shard_rows=256)
    copy(folder / "cache", folder / "listed")
    return folder


@pytest.fixture
def address(made: Path, server: Server, faults: Proxy) -> str:
    found = f"s3://{server.bucket()}/caches/digits"
    copy(made / "cache", found)
    faults.requests.clear()
    return found


def asked(cache: str | Path, here: Path, **options: Any) -> dict[str, Any]:
    return {"cache": str(cache), "hint": HINT, "local_cache": str(here / "local"), **options}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines(folder)]


def equal(one: Path, other: Path) -> bool:
    return same(weights(one), weights(other)) and metrics(one) == metrics(other)


def tight(made: Path, shards: int) -> str:
    """A bound with room for so many shards of two columns, beside what stays."""
    files = Listing.parse((made / "listed" / LISTING).read_bytes(), LISTING).files
    stays = sum(file.size for name, file in files.items() if not name.startswith("view-"))
    each = sum(files[f"view-0000/{column}-00000.h5"].size for column in ("logits", "hint.layer1"))
    return str(stays + shards * each + 2**18 + 2**12)


class Watch:
    """Looks at the size of a folder all the time."""

    def __init__(self, folder: Path):
        self._folder, self._stop, self.largest = folder, threading.Event(), 0
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.is_set():
            total = 0
            for folder, _, names in os.walk(self._folder):
                for name in names:
                    try:
                        total += os.lstat(os.path.join(folder, name)).st_size
                    except FileNotFoundError:
                        continue
            self.largest = max(self.largest, total)


@pytest.mark.parametrize("shuffle", ["auto", "block", "shards:3"])
def test_a_training_from_the_store_has_the_bits_of_one_from_disk(
    made: Path, address: str, here: Path, shuffle: str
) -> None:
    fit(here / "disk", **asked(made / "cache", here, shuffle=shuffle, resident="off"))
    fit(here / "store", **asked(address, here, shuffle=shuffle, resident="off"))
    assert equal(here / "disk", here / "store")
    assert config(here / "store")["caches"][0]["path"] == address


def test_faults_change_nothing_but_time(made: Path, address: str, here: Path, faults: Proxy) -> None:
    fit(here / "disk", **asked(made / "cache", here))
    faults.share = 0.1
    fit(here / "store", **asked(address, here))
    assert sum(faults.faults.values()) > 2
    assert equal(here / "disk", here / "store")


def test_the_local_folder_stays_within_its_bound_and_each_shard_is_fetched_once_an_epoch(
    made: Path, address: str, here: Path, faults: Proxy
) -> None:
    bound = tight(made, 4)
    with Watch(here / "local") as watch:
        fit(here / "store", **asked(address, here, local_size=bound, epochs=4))
    assert 0 < watch.largest <= int(bound)
    read = Counter(path.partition("?")[0].rpartition("caches/digits/")[2] for m, path in faults.requests if m == "GET")
    shards = {name: count for name, count in read.items() if name.startswith("view-")}
    assert len(shards) == 2 * 2 * 6  # views, columns, shards
    assert set(shards.values()) == {2}  # two epochs in each view
    assert {name.partition("-0")[0] for name in shards} == {"view"}
    fit(here / "disk", **asked(made / "cache", here, epochs=4, shuffle="shards:2"))
    assert equal(here / "disk", here / "store")


def test_a_bound_that_is_too_small_is_refused_with_what_is_needed(made: Path, address: str, here: Path) -> None:
    with pytest.raises(UsageError, match=r"are needed for 2 of each column"):
        fit(here / "store", **asked(address, here, local_size=tight(made, 1)))
    with pytest.raises(UsageError, match=r"too small for .*takes \d"):
        fit(here / "store", **asked(address, here, local_size="300kB"))
    with pytest.raises(UsageError, match=r"--shuffle block needs all of an epoch there, \d.*or use --shuffle shards"):
        fit(here / "store", **asked(address, here, local_size=tight(made, 4), shuffle="block"))


def test_what_is_there_is_not_fetched_again(address: str, here: Path, faults: Proxy) -> None:
    fit(here / "one", **asked(address, here))
    assert faults.gets("view-")
    faults.requests.clear()
    fit(here / "other", **asked(address, here))
    assert not faults.gets("view-")


def test_a_killed_fetch_leaves_nothing_that_is_taken_for_whole(
    made: Path, address: str, here: Path, faults: Proxy
) -> None:
    faults.stuck = True
    code = "import sys; from harness_train import command; sys.exit(command(*sys.argv[1:]))"
    options = ["--cache", address, "--hint", HINT, "--local-cache", "local", "--epochs", "2", "--seed", "3"]
    arguments = ["train", "--student", STUDENT, *options, "--batch-size", "128", "--workers", "0", "--out"]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = harness_process.Popen(
        [sys.executable, "-c", code, *arguments, "killed"], env={**os.environ, "PYTHONPATH": path}, cwd=here
    )
    assert faults.reached.wait(60)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    faults.release()
    files = Listing.parse((made / "listed" / LISTING).read_bytes(), LISTING).files
    for file in (p for p in (here / "local").rglob("*") if p.is_file() and not p.name.startswith(".")):
        assert file.stat().st_size == files[file.relative_to(here / "local" / STORES).as_posix().partition("/")[2]].size
    fit(here / "store", **asked(address, here))
    assert not list((here / "local").rglob(".*.part"))
    fit(here / "disk", **asked(made / "cache", here))
    assert equal(here / "disk", here / "store")


def test_a_store_that_goes_away_ends_the_training_in_one_line(
    made: Path, address: str, here: Path, faults: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry.Patience, "wait_s", lambda self, failed: 0.001)
    faults.gone = True
    with pytest.raises(StoreError, match=r"reading|looking for") as raised:
        fit(here / "store", **asked(address, here))
    assert "run the same command again later" in str(raised.value)
    assert not (here / "store" / "config.json").exists()


def test_a_training_whose_store_goes_away_says_how_to_go_on(
    made: Path,
    address: str,
    here: Path,
    faults: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(retry.Patience, "wait_s", lambda self, failed: 0.001)
    fit(here / "whole", **asked(made / "cache", here, resident="off"))
    faults.gone_for = "view-0001"
    options = ["--hint", HINT, "--local-cache", here / "local", "--epochs", 2, "--seed", 3, "--batch-size", 128]
    out = ["--resident", "off", "--workers", 0, "--out", here / "run"]
    capfd.readouterr()
    assert command("train", "--student", STUDENT, "--cache", address, *options, *out) == 1
    stopped, error = capfd.readouterr().err.splitlines()[-2:]
    assert f"softcache train --resume {here / 'run'}" in stopped
    assert "view-0001/" in error
    assert "failed 8 times" in error
    faults.gone_for = "\0"
    train(resume=here / "run")
    assert equal(here / "whole", here / "run")


def test_keys_read_a_store_in_workers(made: Path, address: str, here: Path) -> None:
    from torch.utils.data import DataLoader

    far = softcache.Keys(address, hints=["layer1"], local_cache=str(here / "local"))
    near = softcache.Keys(made / "cache", hints=["layer1"])
    for epoch, far_workers in ((0, 1), (1, 0)):
        found = []
        for keys, workers in ((far, far_workers), (near, 0)):
            sampler = keys.sampler(300, seed=5)
            sampler.set_epoch(epoch)
            way = "spawn" if workers else None
            loader = DataLoader(
                keys,
                batch_sampler=sampler,
                collate_fn=keys.collate,
                num_workers=workers,
                multiprocessing_context=way,
            )
            found.append([(b.rows, b.targets["logits"], b.targets["layer1"]) for b in loader])
        for one, other in zip(*found, strict=True):
            assert all(bool((a == b).all()) for a, b in zip(one, other, strict=True))


def test_verify_and_info_read_a_store(
    made: Path, address: str, here: Path, capsys: pytest.CaptureFixture[str], faults: Proxy
) -> None:
    where = {"local_cache": str(here / "local"), "local_size": tight(made, 4)}
    found = verify(address, **where)
    assert found.ok
    assert found.files == 3 + 2 * 2 * 6
    assert command("info", address, "--local-cache", here / "local") == 0
    pin = Listing.parse((made / "listed" / LISTING).read_bytes(), LISTING).pin
    shown = capsys.readouterr().out
    assert pin in shown
    assert address in shown
    assert command("info", address, "--local-cache", here / "local", "--expect", "0" * 64) == 1
    assert f"its pin is {pin}" in capsys.readouterr().err
    assert command("verify", address, "--local-cache", here / "local", "--expect", pin) == 0


def test_expect_compares_files_of_a_folder(made: Path, here: Path) -> None:
    copied = copy(made / "cache", here / "copy")
    fit(here / "one", **asked(here / "copy", here, expect=copied.pin))
    assert verify(here / "copy", expect=[copied.pin]).ok
    victim = here / "copy" / "view-0001" / "logits-00003.h5"
    content = bytearray(victim.read_bytes())
    content[-100] ^= 1  # of a logit
    victim.write_bytes(content)
    with pytest.raises(CacheError, match=r"logits-00003\.h5 is not the file that --expect stands for"):
        fit(here / "two", **asked(here / "copy", here, expect=copied.pin))
    assert [d.file for d in verify(here / "copy", expect=[copied.pin]).damaged] == ["view-0001/logits-00003.h5"]
    with pytest.raises(CacheError, match=r"has no files\.json"):
        fit(here / "three", **asked(made / "cache", here, expect=copied.pin))


def test_a_run_from_a_store_goes_on(made: Path, address: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softcache.training import learner

    fit(here / "whole", **asked(address, here, epochs=3))
    save, count = learner.save_checkpoint, [0]

    def stopping(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(learner, "save_checkpoint", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(here / "stopped", **asked(address, here, epochs=3))
    train(resume=here / "stopped")
    assert equal(here / "whole", here / "stopped")


def test_what_else_is_in_the_local_folder_stays(made: Path, address: str, here: Path) -> None:
    mine = [here / "local" / name for name in ("thesis.txt", "photos/a.jpg", f"{'a' * 64}/view-0000/logits-00000.h5")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100_000))
    fit(here / "store", **asked(address, here, local_size=tight(made, 4)))
    assert all(path.stat().st_size == 100_000 for path in mine)
