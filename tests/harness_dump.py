"""Dumps in processes of their own that can be killed: for the tests of kills, signals, full disks and concurrency.

``Warm`` runs the real command line in processes that don't import torch anew (``harness_process``), so that a hundred
kills don't import it a hundred times. Nothing here is a test.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness_process
import numpy as np

ROWS, CLASSES, SHARD_ROWS, BATCH = 300, 7, 64, 8
HINTS = ("body.2", "head:in")
VIEWS = 3

TEACHER = '''
import os, torch
from torch import nn


class Net(nn.Module):
    """Deterministic, with random-looking parameters from a seed; counts its forward passes in a file."""

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), nn.Flatten())
        self.head = nn.Linear(6 * 9, num_classes)

    def forward(self, x):
        if os.environ.get("FORWARDS"):
            with open(os.environ["FORWARDS"], "ab", buffering=0) as log:
                log.write(b".")
        return self.head(self.body(x))


def make(num_classes=7):
    return Net(num_classes)
'''


@dataclass
class Setting:
    """A tiny dataset and a tiny teacher in a folder; ``arguments`` dump the whole of what the tests compare."""

    root: Path

    @property
    def arguments(self) -> list[str]:
        hints = [part for layer in HINTS for part in ("--hint", layer)]
        return [*self.base, "--views", str(VIEWS), *hints]

    @property
    def base(self) -> list[str]:
        """Without views and hints."""
        return [
            *("--teacher", f"{self.root / 'teacher.py'}:make", "--teacher-weights", str(self.root / "weights.pt")),
            *("--dataset", f"arrays:{self.root / 'data.npz'}", "--size", "8", "--device", "cpu"),
            *("--batch-size", str(BATCH), "--shard-rows", str(SHARD_ROWS), "--augment", "crop:pad=1+flip"),
        ]

    def command(self, out: Path, *more: str, base: bool = False) -> list[str]:
        return ["dump", *(self.base if base else self.arguments), "--out", str(out), *more]


def make_setting(root: Path, rows: int = ROWS) -> Setting:
    import torch

    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (rows, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, rows)
    labels[:CLASSES] = np.arange(CLASSES)
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "data.npz", train_images=images, train_labels=labels)
    (root / "teacher.py").write_text(TEACHER)
    space: dict[str, Any] = {}
    exec(TEACHER, space)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        torch.save(space["make"](CLASSES).state_dict(), root / "weights.pt")
    return Setting(root)


WORDS_TEACHER = """
import torch
from torch import nn


class Words(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.words, self.answer = nn.Embedding(50, 8), nn.Linear(8, num_classes)

    def forward(self, ids, attention_mask):
        x = self.words(ids).cumsum(1) / 4
        return {"logits": self.answer((x * attention_mask[..., None]).sum(1)), "states": x, "pairs": x[:, ::2, :2]}


def make(num_classes=7):
    return Words(num_classes)
"""


class WordsSetting(Setting):
    """Rows that have lengths of their own, some of them empty, and a teacher that says something of each word."""

    @property
    def arguments(self) -> list[str]:
        outputs = [part for name in ("logits", "states", "pairs:codec=fp32") for part in ("--output", name)]
        return [*self.base, *outputs, "--hint", "words:codec=bf16"]

    @property
    def base(self) -> list[str]:
        return [
            *("--teacher", f"{self.root / 'teacher.py'}:make", "--teacher-weights", str(self.root / "weights.pt")),
            *("--dataset", f"arrays:{self.root / 'text'}", "--device", "cpu", "--batch-size", str(BATCH)),
            *("--shard-rows", str(SHARD_ROWS)),
        ]


def make_words_setting(root: Path) -> WordsSetting:
    import torch

    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 20, ROWS)
    lengths[SHARD_ROWS : 2 * SHARD_ROWS] = 0  # a shard of no places
    (root / "text").mkdir(parents=True)
    arrays = {
        "ids": rng.integers(0, 50, lengths.sum()),
        "ids_offsets": np.cumsum([0, *lengths]),
        "labels": np.arange(ROWS) % CLASSES,
    }
    for name, array in arrays.items():
        np.save(root / "text" / f"train_{name}.npy", array)
    (root / "teacher.py").write_text(WORDS_TEACHER)
    space: dict[str, Any] = {}
    exec(WORDS_TEACHER, space)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        torch.save(space["make"](CLASSES).state_dict(), root / "weights.pt")
    return WordsSetting(root)


@dataclass
class Ended:
    """How a child ended: ``status`` its exit status, or minus the signal that killed it; all that it printed."""

    status: int
    output: str


# ``prepare`` and the arguments of softcache come as arguments. In a process group of its own, as from a shell.
COMMAND = """
import os, sys
os.setpgid(0, 0)
import torch
torch.set_num_threads(1)
exec(sys.argv[1], {})
from softcache.cli._main import run
sys.exit(run(sys.argv[2:]))
"""


class Warm:
    """Runs ``softcache`` commands in processes of ``harness_process``. Not one of them outlives it."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._started: dict[int, tuple[Any, Path]] = {}
        self._count = 0

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: Any) -> None:
        for process, _ in self._started.values():
            process.kill()
            process.wait(20)

    def start(self, arguments: list[str], *, prepare: str = "", env: dict[str, str] | None = None) -> int:
        """The pid of a child, in a process group of its own. ``prepare``: Python that it runs first."""
        self._count += 1
        output = self.folder / f"output-{self._count}.txt"
        command = [sys.executable, "-c", COMMAND, prepare, *arguments]
        with open(output, "wb") as file:
            process = harness_process.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **(env or {})}
            )
        self._started[process.pid] = process, output
        return process.pid

    def wait(self, pid: int, timeout: float = 180.0) -> Ended:
        """Ends the child with SIGKILL after ``timeout`` seconds."""
        process, output = self._started.pop(pid)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
        return Ended(process.wait(20), output.read_text(errors="replace"))

    def run(self, arguments: list[str], *, kill_after: float | None = None, number: int = signal.SIGKILL,
            prepare: str = "", env: dict[str, str] | None = None) -> Ended:  # fmt: skip
        """Runs a command to its end, or sends it a signal after so many seconds."""
        pid = self.start(arguments, prepare=prepare, env=env)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, number)  # not yet waited for, so the pid is still this child's
        return self.wait(pid)


# A child kills itself with SIGKILL just before its n-th step that another process could see.
DIE_AT_STEP = """
import os
steps = [0]
def counted(name):
    original = getattr(os, name)
    def call(*arguments, **options):
        steps[0] += 1
        if steps[0] == {step}:
            os.kill(os.getpid(), 9)
        return original(*arguments, **options)
    setattr(os, name, call)
for name in ("replace", "fsync", "unlink", "link", "rename", "mkdir", "rmdir"):
    counted(name)
"""

# As on file systems that know no locks: every call fails with the error that Linux gives there.
NO_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = fcntl.lockf = flock
"""

# As on file systems that grant a lock to everybody (a Lustre mounted with localflock, seen from several hosts).
LOCKS_FOR_ALL = """
import fcntl
fcntl.flock = fcntl.lockf = lambda *_: None
"""


def shards(folder: Path) -> dict[str, str]:
    """Relative path → sha256 of every shard, and of the rows and samples."""
    paths = [*folder.glob("view-*/[!.]*.h5"), *folder.glob("rows.h5"), *folder.glob("samples.h5")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def times(folder: Path) -> dict[str, tuple[int, int]]:
    """Relative path → inode and time of every shard: equal where nobody wrote it again."""
    stats = {path: path.stat() for path in sorted(folder.glob("view-*/[!.]*.h5"))}
    return {str(path.relative_to(folder)): (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def remove_unsigned_locks(folder: Path) -> None:
    """For after a kill at a random moment: a process that dies between making a lock's file and signing it leaves one
    that nobody may take over, so whoever knows that it is gone removes it, as softcache's message says."""
    for lock in folder.glob(".*.lock*"):
        if lock.stat().st_size == 0:
            lock.unlink()


def temporaries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*.part"))
