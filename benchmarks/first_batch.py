"""Seconds from ``import torch`` done to the first batch of ``softcache train`` on the digits cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Result, arguments, row
from softcache.config.record import TEACHER_FILE, Record
from softcache.config.teach import TeachConfig
from softcache.console import show_messages
from softcache.models._folder import describe, save_network
from softcache.models._open import open_network
from softcache.stages.dump import dump
from softcache.views._open import open_viewed

CHILD = """
import os, sys, time, torch
began = time.perf_counter()
from softcache.stages.train import train
import softcache.training.loop as loop

class First(loop.SideStream):
    def batches(self, made):
        next(made)
        print(time.perf_counter() - began, flush=True)
        os._exit(0)

loop.SideStream = First
train(sys.argv[1], cache=("cache",), out="run")
"""
IMPORT = """
import time, torch
began = time.perf_counter()
import torch._dynamo
print(time.perf_counter() - began)
"""

IMPORTED = "importing torch._dynamo, as building any torch optimizer does"


def main() -> Result:
    options = arguments(__doc__)
    show_messages(quiet=True)
    folder, start = Path(tempfile.mkdtemp(prefix="softcache-first-")), Path.cwd()
    try:
        os.chdir(folder)
        samples = open_viewed("digits", "train").samples
        network = open_network("cifar:resnet8", classes=10, statistics=samples.statistics, seed=0)
        Path("teacher").mkdir()
        save_network(network, Path("teacher"), TEACHER_FILE)
        Record("teach", TeachConfig(network.spec), {**describe(network), "weights": TEACHER_FILE}).save(Path("teacher"))
        dump("teacher", out="cache")
        taken: dict[str, list[float]] = {"resnet18": [], "cifar:resnet20": [], IMPORTED: []}
        for _ in range(options.repetitions + 1):
            for what, seconds in taken.items():
                child = [IMPORT] if what == IMPORTED else [CHILD, what]
                done = subprocess.run([sys.executable, "-c", *child], capture_output=True, text=True, check=True)
                seconds.append(float(done.stdout))
                shutil.rmtree("run", ignore_errors=True)
    finally:
        os.chdir(start)
        shutil.rmtree(folder)
    lines = [row(f"student {what}: built, cache opened and checked, first batch", seconds[1:], "≤ 2")
             for what, seconds in taken.items() if what != IMPORTED]  # fmt: skip
    lines.append(row(f"of which {IMPORTED}", taken[IMPORTED][1:]))
    return Result("first_batch", "First batch of train", lines, unit="seconds")


if __name__ == "__main__":
    main().show()
