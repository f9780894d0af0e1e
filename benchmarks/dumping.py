"""A dump against the bare forward pass of its teacher over the same batches, and against decoding alone.

First where the teacher is the bottleneck: images in memory, so that all that a dump adds (views, digests, the codec and
its error, finite checks, checksums, files flushed to the disk) stands against batches that are ready. Then where
decoding is: JPEG files, against a DataLoader with as many workers that makes the same views and throws them away
(on a CPU with torch on one thread, for the teacher and the workers share the cores).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.made import black_row, made_identity, make_arrays, make_jpegs, pick_device, wait
from benchmarks.measure import Result, arguments, paired, ratio
from softcache.cache.schema import LOGITS, ColumnRecord
from softcache.cache.writer import create_or_extend, plan
from softcache.console import show_messages
from softcache.dumping.forward import Forward
from softcache.dumping.pipeline import run_blocks
from softcache.models._network import Network, Preprocess
from softcache.models._open import open_network
from softcache.stream.inputs import WorkerInputs, pick_workers
from softcache.stream.parts import in_view
from softcache.views._open import open_viewed
from softcache.views._viewed import ViewedDataset

STATISTICS = ((0.5,) * 3, (0.25,) * 3)


def main() -> Result:
    options = arguments(__doc__)
    device = pick_device(options.device)
    show_messages(quiet=True)
    gpu = device.type == "cuda"
    folder = Path(tempfile.mkdtemp(prefix="softcache-dumping-"))
    rows = 256 if options.tiny else 50_000 if gpu else 3072
    spec = "cifar:resnet8" if options.tiny else "cifar:resnet56"
    files = 64 if options.tiny else 20_000 if options.full else 1000
    lines = []
    try:
        viewed = open_viewed(make_arrays(folder / "arrays", rows, 32, 100), "train", augment="crop+flip")
        teacher = open_network(spec, classes=100, statistics=STATISTICS, seed=0)
        batch = 512 if gpu else 64
        sides = _memory_sides(folder, viewed, teacher, device, batch)
        taken = paired(sides, options.repetitions)
        what = f"dump / bare forward pass, {spec}, {rows:,} images of 32×32 in memory"
        lines.append(ratio(what, taken["dump"], taken["forward"], "≤ 1.05"))
        if options.full:
            big = open_network("resnet50", classes=1000, statistics=STATISTICS, seed=0)
            images = open_viewed(make_arrays(folder / "big", 128 * 20, 224, 1000), "train", augment="flip", size=224)
            taken = paired(_memory_sides(folder, images, big, device, 128), options.repetitions)
            lines.append(ratio("dump / bare forward pass, resnet50 at 224²", taken["dump"], taken["forward"], "≤ 1.05"))
        if not gpu:
            torch.set_num_threads(1)  # the teacher and the decoding worker share the cores
        jpegs = open_viewed(make_jpegs(folder / "jpegs", files), "train")
        taken = paired(_decoding_sides(folder, jpegs, device), options.repetitions)
        what = f"dump / the DataLoader alone, {files:,} JPEG files of 400×500, rrc+flip at 224²"
        lines.append(ratio(what, taken["dump"], taken["loader"], "≤ 1.05"))
        few, many = taken["dump"], taken["dump 4 views"]
        lines.append(ratio("4 views dumped from one decode / 4 times 1 view", many, [4 * t for t in few]))
    finally:
        shutil.rmtree(folder)
    return Result("dumping", f"Dump, on {device}", lines)


def dumped(
    folder: Path, viewed: ViewedDataset, teacher: Network, device: torch.device, batch: int, views: int
) -> float:
    """Seconds from the first batch that is asked for to the last shard on the disk."""
    place = Path(tempfile.mkdtemp(dir=folder))
    identity = made_identity(viewed, len(viewed), 16384, batch=batch, device=device.type, preprocess=teacher.preprocess)
    cache = create_or_extend(
        place / "cache",
        identity,
        views=views,
        columns={LOGITS: ColumnRecord("classes", [teacher.classes], "fp16", 16384)},
        made={},
        class_names=[],
        labels=viewed.samples.labels,
        names=None,
        samples=black_row(viewed.inputs),
    )
    forward = Forward(teacher, [LOGITS], device)
    began = time.perf_counter()
    run_blocks(cache, viewed, forward, plan(cache, views, [LOGITS]))
    seconds = time.perf_counter() - began
    shutil.rmtree(place)
    return seconds


def _memory_sides(
    folder: Path, viewed: ViewedDataset, teacher: Network, device: torch.device, batch: int
) -> dict[str, Callable[[], float]]:
    teacher = teacher.to(device).eval()
    ready = [
        viewed.batch(np.arange(k, min(k + batch, len(viewed))), 0).to(device) for k in range(0, len(viewed), batch)
    ]

    @torch.inference_mode()
    def forward() -> float:
        wait(device)
        began = time.perf_counter()
        for pixels in ready:
            teacher(pixels)
        wait(device)
        return time.perf_counter() - began

    return {"forward": forward, "dump": lambda: dumped(folder, viewed, teacher, device, batch, 1)}


def _decoding_sides(folder: Path, viewed: ViewedDataset, device: torch.device) -> dict[str, Callable[[], float]]:
    body = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3 * 14 * 14, 10))
    light = Network(body, spec="light", classes=10, channels=3, preprocess=Preprocess(*STATISTICS)).to(device).eval()
    batches = in_view((np.arange(k, min(k + 32, len(viewed))) for k in range(0, len(viewed), 32)), 0)

    def loader() -> float:
        source = WorkerInputs(viewed, torch.device("cpu"), pick_workers(viewed, -1))
        began = time.perf_counter()
        for _ in source.epoch(batches):
            pass
        return time.perf_counter() - began

    return {
        "loader": loader,
        "dump": lambda: dumped(folder, viewed, light, device, 32, 1),
        "dump 4 views": lambda: dumped(folder, viewed, light, device, 32, 4),
    }


if __name__ == "__main__":
    main().show()
