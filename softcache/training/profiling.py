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
SKIPPED, TRACED = 3, 20  # steps that warm up, and steps that go into the trace
SHOWN = 12


class Watch:
    """Watches nothing: the face of ``Profile`` where none is wanted. ``overhead``: seconds that watching has taken."""

    overhead = 0.0

    def phase(self, name: str) -> AbstractContextManager[None]:
        """For the duration of a phase of a step."""
        return nullcontext()

    def step(self) -> None:
        """A step has ended."""

    def report(self, line: dict[str, Any]) -> None:
        """The epoch has ended; ``line`` is that of ``metrics.jsonl``."""


class Profile(Watch):
    """Watches an epoch. On a GPU each phase waits for the device, so that its time is its own; the epoch is slower for
    it, and its shares are what counts."""

    def __init__(self, folder: Path, device: torch.device):
        self._folder, self._device = folder, device
        self._seconds: dict[str, float] = {}
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        # There is one cycle, so that nothing accumulates; without the flag torch 2.10 and 2.11 warn in every profile.
        self._profiler: Any = torch.profiler.profile(activities=activities, acc_events=True)
        self._events: list[Any] = []
        self._steps = 0

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
        if self._steps == SKIPPED:
            began = time.perf_counter()
            self._profiler.start()
            self.overhead += time.perf_counter() - began
        elif self._steps == SKIPPED + TRACED:
            self._stop()

    def report(self, line: dict[str, Any]) -> None:
        """Writes the trace and says where the time went."""
        self._stop()
        seconds = {"data": line["data_s"], **self._seconds}
        seconds["other"] = max(line["epoch_s"] - sum(seconds.values()), 0.0)
        log.info(f"epoch {line['epoch']} took {line['epoch_s']:.2f} s:")
        for name, part in seconds.items():
            log.info(f"  {name:<10} {part:8.2f} s  {100 * part / max(line['epoch_s'], 1e-9):5.1f} %")
        if self._steps < SKIPPED:  # a trace that is there is another training's
            log.info(f"no trace: the epoch has fewer than {SKIPPED} steps")
            return
        own = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        events = sorted(self._events, key=lambda event: -getattr(event, own))
        total = sum(getattr(event, own) for event in events) or 1.0
        log.info(f"operations of {min(TRACED, self._steps - SKIPPED + 1)} steps, by their own time:")
        for event in events[:SHOWN]:
            taken = getattr(event, own)
            log.info(
                f"  {event.key[:48]:<48} {taken / 1e3:9.1f} ms  {100 * taken / total:5.1f} %  {event.count:6d} calls"
            )
        log.info(f"trace: {self._folder / TRACE} (open it in https://ui.perfetto.dev or chrome://tracing)")

    def _stop(self) -> None:
        if self._profiler is None or self._steps < SKIPPED:
            return
        self._wait()
        began = time.perf_counter()
        self._profiler.stop()
        self._events = list(self._profiler.key_averages())
        part = temporary_path(self._folder / TRACE)
        self._profiler.export_chrome_trace(str(part))
        commit(part, self._folder / TRACE)
        self._profiler = None
        self.overhead += time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def bottleneck(lines: list[dict[str, Any]]) -> str:
    """One sentence on what the epochs waited for; the first is left out where there are more, as it warms up."""
    counted = lines[1:] or lines
    total = sum(line["epoch_s"] for line in counted) or 1e-9
    teacher = sum(line["teacher_s"] for line in counted) / total
    data = max(sum(line["data_s"] for line in counted) / total - teacher, 0.0)
    shares = f"{100 * (1 - data - teacher):.0f} % student, {100 * data:.0f} % data"
    if teacher:
        shares += f", {100 * teacher:.0f} % live teacher"
    if teacher > 0.5:
        return f"bottleneck: the live teacher ({shares}); train from a cache: softcache dump"
    if data > 0.2:
        return f"bottleneck: data ({shares}); try more --workers, or --views-per-image 4 where images are decoded"
    return f"bottleneck: the student ({shares})"
