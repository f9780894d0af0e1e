"""Distillation from a cache against the same loop with labels alone, and against a live teacher in the loop.

All sides are ``softcache train`` itself; what is compared is the time of the last of two epochs, without evaluation,
shared by its steps. ``k`` is what the live teacher costs in units of the student's step: with it in the loop a step
can't be cheaper than 1 + k.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.made import make_arrays, pick_device
from benchmarks.measure import Result, Row, arguments, paired, ratio, row
from softcache.config.record import TEACHER_FILE, Record
from softcache.config.teach import TeachConfig
from softcache.console import show_messages
from softcache.models._folder import describe, save_network
from softcache.models._open import open_network
from softcache.stages.dump import dump
from softcache.stages.train import train


def main() -> Result:
    options = arguments(__doc__)
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    show_messages(quiet=True)
    folder = Path(tempfile.mkdtemp(prefix="softcache-training-"))
    start = Path.cwd()
    lines: list[Row] = []
    try:
        os.chdir(folder)
        rows = 256 if options.tiny else 50_000 if gpu else 1280
        sizes = [("cifar:resnet56", "cifar:resnet20", rows, 32, 100, 128)]
        if options.tiny:
            sizes = [("cifar:resnet14", "cifar:resnet8", rows, 16, 100, 64)]
        if options.full:
            sizes.append(("resnet50", "resnet18", 2560 if gpu else 64, 224, 1000, 128 if gpu else 16))
        for sized in sizes:
            lines += _measured(folder, *sized, str(device), options.repetitions)
    finally:
        os.chdir(start)
        shutil.rmtree(folder)
    return Result("training", f"Train, time of a step, on {device}", lines)


def _measured(
    folder: Path, teacher: str, student: str, rows: int, size: int, classes: int, batch: int, device: str, count: int
) -> list[Row]:
    data = make_arrays(folder / f"data-{size}", rows, size, classes)
    for name, spec in (("live", teacher), ("cached", "cifar:resnet8")):
        save_teacher(folder / f"{name}-{size}", spec, classes)
    seen: dict[str, Any] = {"dataset": data, "size": size, "augment": "crop+flip" if size <= 96 else "rrc+flip"}
    cache = str(dump(str(folder / f"cached-{size}"), views=2, out=f"cache-{size}", **seen).folder)
    common: dict[str, Any] = {
        "student": student, "epochs": 2, "batch_size": batch, "device": device, **seen,
    }  # fmt: skip
    cached = {"cache": (cache,), "T": "4", "alpha": "1"}
    ways: dict[str, dict[str, Any]] = {
        "labels, resident": {"alpha": "0"},
        "cache, resident": cached,
        "labels, mapped": {"alpha": "0", "resident": "off"},
        "cache, mapped": {**cached, "resident": "off"},
        "online": {"alpha": "1", "T": "4", "online": True, "teacher": str(folder / f"live-{size}"), "views": 2},
    }
    asked: list[float] = []

    def side(name: str) -> Callable[[], float]:
        def run() -> float:
            done = train(**common, **ways[name], out=f"run-{size}")
            shutil.rmtree(done.folder)
            if name == "online":
                asked.append(done.lines[-1]["teacher_s"])
            return float(done.lines[-1]["epoch_s"])

        return run

    taken = paired({name: side(name) for name in ways}, count)
    pair = f"{teacher} → {student} at {size}²"
    found = [
        ratio(f"{pair}: cache / labels alone, resident", taken["cache, resident"], taken["labels, resident"], "≤ 1.03"),
        ratio(f"{pair}: cache / labels alone, mapped", taken["cache, mapped"], taken["labels, mapped"], "≤ 1.03"),
        ratio(f"{pair}: online / cache, resident", taken["online"], taken["cache, resident"]),
    ]
    if device == "cpu":
        k = [seconds / labels for seconds, labels in zip(asked[1:], taken["labels, resident"], strict=True)]
        found.append(row(f"{pair}: 1 + k, the live teacher's and the student's cost", [1 + part for part in k]))
    steps = -(-rows // batch)
    found[0].note = f"{statistics.median(taken['labels, resident']) / steps * 1e3:.1f} ms a step of {batch} with labels"
    return found


def save_teacher(folder: Path, spec: str, classes: int) -> None:
    """A teacher's folder with random parameters."""
    folder.mkdir()
    network = open_network(spec, classes=classes, statistics=((0.5,) * 3, (0.25,) * 3), seed=0)
    save_network(network, folder, TEACHER_FILE)
    Record("teach", TeachConfig(network.spec), {**describe(network), "weights": TEACHER_FILE}).save(folder)


if __name__ == "__main__":
    main().show()
