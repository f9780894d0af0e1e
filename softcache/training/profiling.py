"""``--profile``: where the time of an epoch goes, by phase and by operation, and a trace to look at."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from softcache.atomic import commit, temporary_path

log = logging.getLogger(__name__)

TRACE = "trace.json"
WAIT, WARMUP, ACTIVE = 2, 1, 20  # steps of torch.profiler.schedule
SHOWN = 12


class Watch:
    """Watches nothing: the interface of ``Profile`` where none is wanted. ``overhead``: seconds that watching takes."""

    overhead = 0.0

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A context for one phase of a step."""
        return nullcontext()

    def step(self) -> None:
        """A step has ended."""

    def report(self, line: dict[str, Any]) -> None:
        """The epoch has ended; ``line`` is the epoch's line of ``metrics.jsonl``."""


class Profile(Watch):
    """Measures one epoch: the time of each phase over all its steps, and a trace of ``ACTIVE`` steps.

    On a GPU the host waits for the device at both ends of a phase, so that work is counted in the phase that asked for
    it. The epoch takes longer because of that; the shares are what counts.
    """

    def __init__(self, folder: Path, device: torch.device):
        self._folder, self._device = folder, device
        self._seconds: dict[str, float] = {}
        self._operations: list[Any] | None = None
        self._steps = 0
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1),
            on_trace_ready=self._keep,
            acc_events=True,  # there is one cycle, so nothing accumulates; without it torch 2.10 and 2.11 warn
        )
        self._profiler.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._wait()
        began = time.perf_counter()
        with torch.profiler.record_function(name):
            yield
            self._wait()
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def step(self) -> None:
        self._steps += 1
        with self._not_counted():
            self._profiler.step()

    def report(self, line: dict[str, Any]) -> None:
        """Writes the trace and says where the time went."""
        if self._steps <= WAIT + WARMUP:
            self._operations = []  # so that no empty trace replaces that of another training
        with self._not_counted():
            self._profiler.stop()
        seconds = {"data": line["data_s"], **self._seconds}
        seconds["other"] = max(line["epoch_s"] - sum(seconds.values()), 0.0)
        log.info(f"epoch {line['epoch']} took {line['epoch_s']:.2f} s:")
        for name, part in seconds.items():
            log.info(f"  {name:<10} {part:8.2f} s  {100 * part / max(line['epoch_s'], 1e-9):5.1f} %")
        if not self._operations:
            log.info(f"no trace: the first {WAIT + WARMUP} steps are not traced, and the epoch has {self._steps}")
            return
        own = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        operations = sorted(self._operations, key=lambda operation: -getattr(operation, own))
        total = sum(getattr(operation, own) for operation in operations) or 1.0
        log.info(f"operations of {min(ACTIVE, self._steps - WAIT - WARMUP)} steps, by their own time:")
        for operation in operations[:SHOWN]:
            taken = getattr(operation, own)
            log.info(
                f"  {operation.key[:48]:<48} {taken / 1e3:9.1f} ms  {100 * taken / total:5.1f} %  "
                f"{operation.count:6d} calls"
            )
        log.info(f"trace: {self._folder / TRACE} (open it in https://ui.perfetto.dev or chrome://tracing)")

    def _keep(self, profiler: torch.profiler.profile) -> None:
        """Called by torch when the traced steps are over, or the epoch before them."""
        if self._operations is None:
            # torch's own marks of steps hold whatever lies between operations
            self._operations = [o for o in profiler.key_averages() if not o.key.startswith("ProfilerStep")]
            part = temporary_path(self._folder / TRACE)
            profiler.export_chrome_trace(str(part))
            commit(part, self._folder / TRACE)

    @contextmanager
    def _not_counted(self) -> Iterator[None]:
        self._wait()
        began = time.perf_counter()
        yield
        self.overhead += time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def bottleneck(lines: list[dict[str, Any]]) -> str:
    """One sentence on what the epochs waited for. The first epoch warms up and counts only where it is the only one."""
    counted = lines[1:] or lines
    total = sum(line["epoch_s"] for line in counted) or 1e-9
    teacher = sum(line["teacher_s"] for line in counted) / total
    data = max(sum(line["data_s"] for line in counted) / total - teacher, 0.0)
    shares = f"{100 * (1 - data - teacher):.0f} % network, {100 * data:.0f} % data"
    if teacher:
        shares += f", {100 * teacher:.0f} % live teacher"
    if teacher > 0.5:
        return f"bottleneck: the live teacher ({shares}); train from a cache: softcache dump"
    largest = "data" if data > 0.5 else "the network"
    # Where less than a second was waited in all, there is nothing to gain.
    if data > 0.2 and data * total > 1:
        return f"bottleneck: {largest} ({shares}); more --workers or --views-per-image 4 may shorten the wait for data"
    return f"bottleneck: {largest} ({shares})"
