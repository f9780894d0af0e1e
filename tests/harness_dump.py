"""Dumps in processes of their own that can be killed: for the tests of kills, signals, full disks and concurrency.

``Warm`` is a process that has imported everything and forks one child a command, so that a hundred kills don't
import torch a hundred times. The child runs the real command line. Nothing here is a test.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


class Warm:
    """Forks children that run ``softcache`` commands. Not one of them outlives it."""

    def __init__(self, folder: Path, *, threads: int = 1):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._ask({})["ready"]

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def start(self, arguments: list[str], *, prepare: str = "", env: dict[str, str] | None = None) -> int:
        """The pid of a child, in a process group of its own. ``prepare``: Python that it runs first."""
        self._count += 1
        job = {"arguments": arguments, "prepare": prepare, "env": env or {}}
        return self._ask({"start": job, "output": str(self.folder / f"output-{self._count}.txt")})["pid"]

    def wait(self, pid: int, timeout: float = 180.0) -> Ended:
        """Ends the child with SIGKILL after ``timeout`` seconds."""
        return Ended(**self._ask({"wait": pid, "timeout": timeout}))

    def run(self, arguments: list[str], *, kill_after: float | None = None, number: int = signal.SIGKILL,
            prepare: str = "", env: dict[str, str] | None = None) -> Ended:  # fmt: skip
        """Runs a command to its end, or sends it a signal after so many seconds."""
        pid = self.start(arguments, prepare=prepare, env=env)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, number)  # not yet waited for, so the pid is still this child's
        return self.wait(pid)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that forks has died"
        return json.loads(line)


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


def temporaries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*.part"))


def _serve(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    import softcache.cli.convert
    import softcache.cli.dump
    import softcache.cli.info
    import softcache.cli.train
    import softcache.stages.convert
    import softcache.stages.dump
    import softcache.stages.train  # noqa: F401

    outputs: dict[int, str] = {}
    for line in sys.stdin:
        message = json.loads(line)
        if "start" in message:
            pid = os.fork()
            if pid == 0:
                _child(message["start"], message["output"])
            outputs[pid] = message["output"]
            reply: dict[str, Any] = {"pid": pid}
        elif "wait" in message:
            pid, end = message["wait"], time.monotonic() + message["timeout"]
            while True:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    break
                if time.monotonic() > end:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.001)
            text = Path(outputs.pop(pid)).read_text(errors="replace")
            reply = {"status": os.waitstatus_to_exitcode(status), "output": text}
        else:
            reply = {"ready": True}
        print(json.dumps(reply), flush=True)
    for pid in outputs:
        os.kill(pid, signal.SIGKILL)


def _child(job: dict[str, Any], output: str) -> None:
    """Never returns."""
    try:
        os.setpgid(0, 0)
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.environ.update(job["env"])
        exec(job["prepare"], {})
        from softcache.cli._main import run

        status = run(job["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
