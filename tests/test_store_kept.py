"""The bounded folder for files of stores: what goes, what stays, and what several processes do with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from softcache.errors import IntegrityError, StoreError, UsageError
from softcache.store.kept import MARGIN, Kept, Wanted

SIZE = 20_000
FILES = {f"view-0000/logits-{k:05d}.h5": SIZE for k in range(20)}
NAMES = list(FILES)
GROUP = "a" * 64


class Source:
    """Counts how often each file is fetched."""

    def __init__(self, seconds: float = 0.0):
        self.fetched: Counter[str] = Counter()
        self._seconds = seconds

    def __call__(self, name: str, to: Path) -> None:
        self.fetched[name] += 1
        time.sleep(self._seconds)
        to.write_bytes(name[-8:].encode().ljust(FILES[name]))


def folder_of(path: Path, files: int, **options: float) -> Kept:
    return Kept(path, MARGIN + files * SIZE + 2000, **options)


def there(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path / GROUP)) for p in (path / GROUP).rglob("*.h5"))


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    source = Source()
    kept, wanted = folder_of(tmp_path, 3), Wanted(GROUP, FILES, source)
    for name in NAMES[:3]:
        kept.hold(wanted, [name])
        kept.release(wanted, [name])
    kept.hold(wanted, NAMES[:1])  # used again
    kept.release(wanted, NAMES[:1])
    kept.hold(wanted, NAMES[3:4])
    assert there(tmp_path) == [NAMES[0], NAMES[2], NAMES[3]]
    assert set(source.fetched.values()) == {1}


def test_only_files_from_stores_go(tmp_path: Path) -> None:
    """What else lies in that folder isn't counted and isn't removed, whatever it is called."""
    linked = tmp_path / "linked"
    for name in (
        "thesis.txt",
        "data.h5",
        "photos/a.jpg",
        "my-cache/view-0000/logits-00000.h5",
        f"{GROUP}/notes.txt",
        f"{GROUP}/.hidden.h5",
        f"{GROUP}/mine/logits-00000.h5",
        f"{GROUP}/view-0000/deeper/logits-00000.h5",
        f"{'A' * 64}/rows.h5",
        "linked/rows.h5",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(10 * SIZE))
    (tmp_path / ("b" * 64)).symlink_to(linked)
    mine = {path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()}
    kept, wanted = folder_of(tmp_path, 1), Wanted(GROUP, FILES, Source())
    for name in NAMES[:3]:
        assert kept.hold(wanted, [name])
        kept.release(wanted, [name])
    assert all(path.exists() for path in mine)
    assert set(tmp_path.rglob("logits-*.h5")) - mine == {tmp_path / GROUP / NAMES[2]}


def test_what_is_in_use_stays_and_what_cannot_fit_is_refused(tmp_path: Path) -> None:
    kept, wanted = folder_of(tmp_path, 3), Wanted(GROUP, FILES, Source())
    assert kept.hold(wanted, NAMES[:2])
    assert not kept.hold(wanted, NAMES[2:4], wait=False)
    assert there(tmp_path) == NAMES[:2]
    with pytest.raises(UsageError, match=r"too small for .*: what has to be there at the same time takes 342"):
        kept.hold(wanted, NAMES[2:4])
    kept.release(wanted, NAMES[:1])
    assert kept.hold(wanted, NAMES[2:4])
    assert there(tmp_path) == NAMES[1:4]


def test_each_hold_counts(tmp_path: Path) -> None:
    kept, wanted = folder_of(tmp_path, 1), Wanted(GROUP, FILES, Source())
    kept.hold(wanted, NAMES[:1])
    kept.hold(wanted, NAMES[:1])
    kept.release(wanted, NAMES[:1])
    assert not kept.hold(wanted, NAMES[1:2], wait=False)
    kept.release(wanted, NAMES[:1])
    assert kept.hold(wanted, NAMES[1:2], wait=False)


def test_a_fetch_that_fails_holds_nothing(tmp_path: Path) -> None:
    def failing(name: str, to: Path) -> None:
        to.write_bytes(b"half")
        raise IntegrityError("other bytes")

    kept = folder_of(tmp_path, 1)
    with pytest.raises(IntegrityError, match="other bytes"):
        kept.hold(Wanted(GROUP, FILES, failing), NAMES[:1])
    assert not list(tmp_path.rglob("*.h5")) + list(tmp_path.rglob("*.part"))
    assert kept.hold(Wanted(GROUP, FILES, Source()), NAMES[1:2], wait=False)


def test_threads_fetch_a_file_once(tmp_path: Path) -> None:
    source = Source(0.05)
    kept, wanted = folder_of(tmp_path, 20), Wanted(GROUP, FILES, source)
    threads = [threading.Thread(target=kept.hold, args=(wanted, NAMES[k : k + 10])) for k in (0, 3, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.fetched == Counter(NAMES[:16])


OTHER = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from test_store_kept import FILES, GROUP, NAMES, Source, Wanted, folder_of
kept, source = folder_of(Path(sys.argv[1]), int(sys.argv[2])), Source(0.02)
kept.hold(Wanted(GROUP, FILES, source), NAMES[int(sys.argv[3]):int(sys.argv[4])])
print(*sorted(source.fetched), flush=True)
time.sleep(60 if len(sys.argv) > 5 else 0)
"""


def process(folder: Path, files: int, first: int, last: int, *stay: str) -> subprocess.Popen[str]:
    code = OTHER.format(path=[str(Path(__file__).parent), *sys.path])
    numbers = map(str, (files, first, last))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *numbers, *stay], stdout=subprocess.PIPE, text=True
    )


def line(started: subprocess.Popen[str]) -> list[str]:
    assert started.stdout is not None
    return started.stdout.readline().split()


def test_processes_share_what_is_there_and_keep_what_others_use(tmp_path: Path) -> None:
    with process(tmp_path, 4, 0, 2, "stay") as other:
        assert line(other) == NAMES[:2]
        source = Source()
        kept, wanted = folder_of(tmp_path, 4, wait_s=0.3), Wanted(GROUP, FILES, source)
        kept.hold(wanted, NAMES[1:4])
        assert sorted(source.fetched) == NAMES[2:4]
        kept.release(wanted, NAMES[1:4])
        with pytest.raises(StoreError, match="full of files that other processes use"):
            kept.hold(wanted, NAMES[5:8])
        assert set(NAMES[:2]) <= set(there(tmp_path))
        other.send_signal(signal.SIGKILL)
    assert kept.hold(wanted, NAMES[5:9])  # what a dead process held may go
    assert there(tmp_path) == NAMES[5:9]


def test_processes_fetch_a_file_once(tmp_path: Path) -> None:
    started = [process(tmp_path, 20, 0, 12) for _ in range(3)]
    fetched = Counter(name for one in started for name in one.communicate()[0].split())
    assert all(one.returncode == 0 for one in started)
    assert fetched == Counter(NAMES[:12])


def test_a_half_file_of_a_dead_process_goes(tmp_path: Path) -> None:
    code = OTHER.format(path=[str(Path(__file__).parent), *sys.path]).replace("Source(0.02)", "Source(60)")
    slow = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "4", "0", "2"])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(f"{GROUP}/view-0000")) and time.monotonic() < deadline:
        time.sleep(0.05)
    (tmp_path / GROUP / "view-0000").mkdir(parents=True, exist_ok=True)
    slow.kill()
    slow.wait()
    from softcache.atomic import writer_name

    dead = writer_name().replace(f"~{os.getpid()}~", f"~{slow.pid}~")
    (tmp_path / GROUP / "view-0000" / f".logits-00000.h5~{dead}00.part").write_bytes(b"half")
    kept = folder_of(tmp_path, 2)
    assert kept.hold(Wanted(GROUP, FILES, Source()), NAMES[:2])
    assert there(tmp_path) == NAMES[:2]
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_of_another_size_is_fetched_again(tmp_path: Path) -> None:
    source = Source()
    kept, wanted = folder_of(tmp_path, 3), Wanted(GROUP, FILES, source)
    kept.hold(wanted, NAMES[:1])
    kept.release(wanted, NAMES[:1])
    (tmp_path / GROUP / NAMES[0]).write_bytes(b"short")
    kept.hold(wanted, NAMES[:1])
    assert source.fetched[NAMES[0]] == 2
    assert (tmp_path / GROUP / NAMES[0]).stat().st_size == SIZE


def test_what_is_fetched_ahead_gives_way_to_what_is_needed(tmp_path: Path) -> None:
    kept, needless, began = folder_of(tmp_path, 3), threading.Event(), threading.Event()

    def slow(name: str, to: Path) -> None:
        began.set()
        needless.wait(60)
        to.write_bytes(bytes(FILES[name]))

    failed: list[str] = []

    def ahead() -> None:
        try:
            kept.hold(Wanted(GROUP, FILES, slow), NAMES[:3], wait=False, unless=needless.is_set)
        except StoreError as error:
            failed.append(str(error))

    thread = threading.Thread(target=ahead)
    thread.start()
    assert began.wait(60)
    wanted = Wanted(GROUP, FILES, Source())
    assert not kept.hold(wanted, NAMES[5:7], wait=False)
    needless.set()
    assert kept.hold(wanted, NAMES[5:7])  # and isn't told that the bound is too small
    thread.join()
    assert failed == ["what was being fetched ahead is not needed any more"]
    assert kept.held_bytes() == 2 * SIZE
