"""What the fourth student costs: students of a cohort, which share a stream, against one of them.

JPEG files of 400 × 500 pixels, ``rrc+flip`` at 224², with four unlike students that take 16 × 16 pixels: there decoding
is the bottleneck, and it is done once for all of them. The same with students that take 32 × 32 pixels, whose steps are
dearer. And pictures of 32² that are in memory, where almost all of the time is the students' own. What is compared is
the time of the last of two epochs, on a CPU with one thread, as the processes of a sweep have.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.made import make_arrays, make_jpegs, pick_device
from benchmarks.measure import Result, Row, arguments, paired, ratio
from benchmarks.training import save_teacher
from softcache.config.train import TrainConfig
from softcache.console import show_messages
from softcache.stages._cohort import train_cohort
from softcache.stages._running import Trained
from softcache.stages.dump import dump

UNLIKE: tuple[dict[str, Any], ...] = (
    {"student": "cifar:resnet8", "loss": ("kl",), "T": 4},
    {"student": "cifar:resnet8", "loss": ("dkd",), "seed": 1},
    {"student": "cifar:resnet14", "loss": ("dist",)},
    {"student": "cifar:resnet8", "loss": ("kl",), "T": 1, "optimizer": "adamw", "lr": 0.002},
)


def main() -> Result:
    options = arguments(__doc__, 3)
    show_messages(quiet=True)
    folder, start = Path(tempfile.mkdtemp(prefix="softcache-cohort-")), Path.cwd()
    device = str(pick_device(options.device))
    if device == "cpu":
        torch.set_num_threads(1)
    count = 64 if options.tiny else 5_000 if options.full else 1_280
    lines: list[Row] = []
    try:
        os.chdir(folder)
        jpegs = {"dataset": make_jpegs(folder / "jpegs", count), "augment": "rrc+flip", "size": 224}
        arrays = {"dataset": make_arrays(folder / "arrays", count, 32, 10), "augment": "crop+flip", "size": 32}
        cases = (
            ("JPEG at 224², students of 16²", jpegs, 16, "≤ 1.3"),
            ("JPEG at 224², students of 32²", jpegs, 32, ""),
            ("pictures at 32²", arrays, None, ""),
        )
        for name, data, size, target in cases:
            save_teacher(folder / f"teacher-{size}", "cifar:resnet8", 10)
            cache = str(dump(str(folder / f"teacher-{size}"), views=2, out=f"cache-{size}", **data).folder)
            common = {"cache": (cache,), "epochs": 2, "batch_size": 32 if size else 128, "device": device}
            common |= {"student_size": size, "order_seed": 0}
            sides = {str(n): _epoch(common, UNLIKE[:n]) for n in (1, 2, 4)}
            taken = paired(sides, options.repetitions)
            lines += [
                ratio(f"{name}: 2 students / one", taken["2"], taken["1"]),
                ratio(f"{name}: 4 students / one", taken["4"], taken["1"], target),
            ]
    finally:
        os.chdir(start)
        shutil.rmtree(folder)
    return Result("cohort", f"Cohorts, time of an epoch, on {device}", lines)


def _epoch(common: dict[str, Any], students: Sequence[dict[str, Any]]) -> Callable[[], float]:
    def run() -> float:
        configs = [TrainConfig.of(**common, **own, out=f"runs/{n}") for n, own in enumerate(students)]
        done = train_cohort(configs)
        shutil.rmtree("runs")
        first = done[0]
        assert isinstance(first, Trained)
        return float(first.lines[-1]["epoch_s"])

    return run


if __name__ == "__main__":
    main().show()
