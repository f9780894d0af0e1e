"""Follows a page: runs its steps in an empty folder with an empty home, 80 columns wide. Nothing here is a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness_pages import ROOT, Step, arguments

TRAINING = ("teach", "train", "compare", "sweep")

# Blocks of Python share their names, as in a notebook. What they print comes back on a copy of the output.
_NOTEBOOK = """
def answer():
    import contextlib, io, json, os, sys, traceback, types
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    page = sys.modules["__main__"] = types.ModuleType("__main__")
    for line in sys.stdin:
        told, done = io.StringIO(), True
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            try:
                exec(compile(json.loads(line), "<page>", "exec"), vars(page))
            except BaseException:
                done = False
                traceback.print_exc()
        print(json.dumps([done, told.getvalue()]), file=answers, flush=True)

answer()
"""


@dataclass(frozen=True)
class Place:
    """Where a page is followed. ``prepare`` makes what the page says its reader has; ``instead``: text of the page that
    is replaced before a step runs, so that it is quick or has its data here; ``short``: trainings for which the page
    gives no number of epochs have one; ``commands``: what the reader has run before; ``needs``: packages without which
    the page is skipped; ``before``: Python that the page's blocks take for granted, run before the first of them;
    ``skip``: beginnings of steps that can't run here, with the reason; ``mentions``: commands in sentences are run too;
    ``anew``: a step before which the page says that its reader begins in an empty folder; ``store``: the page's bucket
    is on a server of S3; ``after`` looks at the folder at the end."""

    prepare: Callable[[Path], None] | None = None
    instead: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    before: str = ""
    commands: tuple[str, ...] = ()
    short: bool = False
    skip: Mapping[str, str] = field(default_factory=dict)
    mentions: bool = False
    anew: str = ""
    store: bool = False
    after: Callable[[Path, Mapping[str, str]], None] | None = None

    def text(self, step: Step) -> str:
        """What is run."""
        found = step.text
        for old, new in self.instead.items():
            found = found.replace(old, new)
        given = arguments(found) if step.kind == "shell" and not found.startswith("#!") else None
        if self.short and given and given[0] in TRAINING and not {"--epochs", "--resume"} & set(given):
            found = f"{found.partition(' #')[0].rstrip()} --epochs 1"
        return found


class Reader:
    """A reader with a terminal and a notebook in ``folder``."""

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None):
        self.there, home = folder / "there", folder / "home"
        home.mkdir()
        self.notebook: subprocess.Popen[str] | None = None
        self.begin(self.there)
        known = {k: v for k, v in os.environ.items() if not k.startswith(("SOFTCACHE_", "XDG_", "HF_", "TORCH_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        python = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        own = {"HOME": str(home), "PATH": path, "PYTHONPATH": python, "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
        self.environment = {**known, **own, **(variables or {})}
        self.log = folder / "notebook.log"

    def begin(self, there: Path) -> None:
        """In a folder that has nothing but what a clone has, with a new notebook."""
        self.close()
        self.notebook, self.there = None, there
        there.mkdir()
        for name in ("examples", "benchmarks"):
            (there / name).symlink_to(ROOT / name)

    def run(self, kind: str, text: str, name: str = "") -> tuple[bool, str]:
        """Whether a step succeeded, and all that it printed, as if it had run in ``/home/you``."""
        done, printed = self._run(kind, text, name)
        return done, printed.replace(str(self.there), "/home/you")

    def _run(self, kind: str, text: str, name: str) -> tuple[bool, str]:
        if kind == "file":
            (self.there / name).parent.mkdir(parents=True, exist_ok=True)
            (self.there / name).write_text(text)
            return True, ""
        if kind == "python":
            return self._block(text)
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=self.there,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode == 0, done.stdout

    def _block(self, text: str) -> tuple[bool, str]:
        if self.notebook is None:
            with self.log.open("w") as log:
                self.notebook = subprocess.Popen(
                    [sys.executable, "-c", _NOTEBOOK],
                    cwd=self.there,
                    env=self.environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        assert self.notebook.stdin is not None
        assert self.notebook.stdout is not None
        self.notebook.stdin.write(json.dumps(text) + "\n")
        self.notebook.stdin.flush()
        answer = self.notebook.stdout.readline()
        if not answer:
            return False, self.log.read_text()
        done, told = json.loads(answer)
        return done, told

    def close(self) -> None:
        if self.notebook is not None:
            self.notebook.communicate(timeout=60)
            self.notebook = None


@contextmanager
def reader(folder: Path, variables: Mapping[str, str] | None = None) -> Iterator[Reader]:
    made = Reader(folder, variables)
    try:
        yield made
    finally:
        made.close()
