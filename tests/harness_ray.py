"""A Ray cluster of several nodes on this machine, and a teacher whose speed a test sets while it runs.

Nothing here is a test.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_dump import CLASSES, TEACHER, Setting, make_setting
from PIL import Image

NODES = 3

# Its forward passes take as long as a file says; each is noted in another one, with the process that it was in.
CONTROLLED = TEACHER.replace(
    "import os, torch", "import os, time, torch\nfrom pathlib import Path\n\nHERE = Path(__file__).parent"
).replace(
    "        return self.head",
    """        with open(HERE / "forwards", "ab", buffering=0) as log:
            log.write(b"%d\\n" % os.getpid())
        kind, _, number = (HERE / "does").read_text().partition(" ")
        if kind == "sleeps":
            time.sleep(float(number))
        if kind == "dies":
            os.kill(os.getpid(), 9)
        if kind == "fails":
            raise OSError("stale file handle")
        if kind == "nan":
            return self.head(self.body(x)) * float("nan")
        return self.head""",
)


class Controlled(Setting):
    """A setting whose teacher does what it is told."""

    def tell(self, what: str) -> None:
        """``works``, ``sleeps 0.1`` (seconds a forward pass), ``dies``, ``fails``, ``nan``: from the next pass on."""
        part = self.root / "does.part"
        part.write_text(what)
        part.replace(self.root / "does")

    def forget(self) -> None:
        """Forgets who has run it so far."""
        (self.root / "forwards").write_bytes(b"")

    def processes(self) -> list[int]:
        """Processes that have run it, in the order of their first pass."""
        return list(dict.fromkeys(map(int, (self.root / "forwards").read_bytes().split())))


def controlled(root: Path) -> Controlled:
    made = Controlled(make_setting(root).root)
    (root / "teacher.py").write_text(CONTROLLED)
    made.tell("works")
    made.forget()
    return made


def pictures(root: Path) -> Setting:
    """60 files of colour pictures in class folders, and a teacher of such."""
    rng = np.random.default_rng(3)
    for number in range(60):
        path = root / "train" / f"class-{number % CLASSES}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    code, space = TEACHER.replace("Conv2d(1, 8", "Conv2d(3, 8"), {}
    (root / "teacher.py").write_text(code)
    exec(code, space)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        torch.save(space["make"](CLASSES).state_dict(), root / "weights.pt")
    return Setting(root)


class Nodes:
    """A cluster whose head has no CPU, and ``NODES`` nodes of one CPU each."""

    def __init__(self) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
            from ray.cluster_utils import Cluster

            self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.all: list[Any] = []
        self.fill()

    @property
    def environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": str(self._cluster.address)}

    def fill(self, count: int = NODES) -> None:
        """Adds nodes until there are as many as are wanted."""
        while len(self.all) < count:
            self.all.append(self._cluster.add_node(num_cpus=1, wait=False))

    def add_gpu(self) -> None:
        """Adds a node that says it has a GPU."""
        self.all.append(self._cluster.add_node(num_cpus=1, num_gpus=1))

    def kill(self, number: int) -> None:
        """Kills a node's processes, as a machine that is taken away loses them."""
        self._cluster.remove_node(self.all.pop(number), allow_graceful=False)

    def leave(self, number: int) -> None:
        """Ends a node, which takes leave of the cluster."""
        self._cluster.remove_node(self.all.pop(number), allow_graceful=True)

    def close(self) -> None:
        self._cluster.shutdown()


def until(what: Callable[[], Any], seconds: float = 90.0) -> None:
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it hasn't come true"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
