"""What ``softcache plan --probe`` measures on this machine: a teacher, a student and a disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from softcache.cache.schema import Grid
from softcache.config.plan import PlanConfig
from softcache.device import DTYPES, pick_device, reproducible
from softcache.dumping.batch_size import pick_batch
from softcache.dumping.disk import DiskRate, measure_disk
from softcache.dumping.estimate import existing_place, speeds
from softcache.dumping.forward import Forward
from softcache.dumping.identity import default_batch
from softcache.errors import UsageError
from softcache.models._arithmetic import pick_arithmetic
from softcache.models._open import open_network
from softcache.stages._skeleton import open_untrained
from softcache.training.pace import training_rate
from softcache.views._open import Viewed

STUDENT_BATCH = 128


@dataclass(frozen=True)
class Measured:
    """Rates a second on ``device``; None for what wasn't measured. ``rate``: of the teacher in inputs;
    ``inputs_rate``: at which one process makes inputs; ``student_rate``: in samples."""

    device: str = ""
    rate: float | None = None
    inputs_rate: float | None = None
    student_rate: float | None = None
    disk: DiskRate | None = None


def measure(
    asked: PlanConfig, viewed: Viewed, columns: Sequence[str], block_rows: int, folder: Path | None
) -> Measured:
    """All rates that aren't given. ``columns``: that are kept of the teacher; ``folder``: where the cache would lie,
    None in a store.

    Errors: ``UsageError`` where a dump on GPUs is planned on a machine without one; those of the disk.
    """
    device = pick_device(asked.device)
    has_teacher = asked.teacher is not None or asked.rows is None
    teacher = asked.rate is None and has_teacher
    student = asked.student is not None and asked.student_rate is None
    if asked.gpus is not None and device.type != "cuda" and (teacher or student):
        raise UsageError(f"--probe measures this machine's {device.type}, and --gpus plans for GPUs: give --rate")
    # The disk comes first: it is the shortest, and its folder may be wrong.
    disk = None
    if folder is not None and asked.disk_rate is None:
        disk = measure_disk(existing_place(folder), int(asked.probe_gib * 2**30))
    with reproducible(tf32=False):
        rates = _teacher_rates(asked, viewed, columns, block_rows, device) if teacher else (None, None)
        student_rate = _student_rate(asked, viewed, device) if student else None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Measured(name, rates[1], rates[0], student_rate, disk)


def _teacher_rates(
    asked: PlanConfig, viewed: Viewed, columns: Sequence[str], block_rows: int, device: torch.device
) -> tuple[float, float]:
    """Of making inputs and of the teacher, run as a dump runs it; parameters make no difference."""
    network = open_untrained(asked, viewed.samples, skeleton=False)
    batch = asked.batch_size or default_batch(viewed, device.type)
    arithmetic = pick_arithmetic(network, viewed.clean(np.arange(2) % len(viewed)), batch, device)
    if asked.batch_size is None and device.type == "cuda":
        batch = pick_batch(network, viewed, device, dtype="float32", arithmetic=arithmetic, columns=columns)
    network = arithmetic.apply(network.to(device, DTYPES["float32"])).eval()
    forward = Forward(network, columns, device, amp=arithmetic.amp)
    return speeds(forward, viewed, Grid(block_rows, batch))


def _student_rate(asked: PlanConfig, viewed: Viewed, device: torch.device) -> float:
    samples = viewed.samples
    assert asked.student is not None
    network = open_network(
        asked.student,
        classes=len(samples.classes) or 1000,
        class_names=samples.classes,
        statistics=samples.statistics,
        seed=0,
        pictures=samples.pictures,
    )
    network.refuse_untrainable()
    inputs = viewed.clean(np.arange(STUDENT_BATCH) % len(viewed)).to(device)
    arithmetic = pick_arithmetic(network, inputs, STUDENT_BATCH, device)
    return training_rate(arithmetic.apply(network), inputs, device, arithmetic.amp)
