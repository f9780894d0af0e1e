"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softcache.console import bar, say
from softcache.errors import NumericsError
from softcache.models._network import Network
from softcache.training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from softcache.training.config import FitConfig, autocast
from softcache.training.evaluation import Accuracy
from softcache.training.objective import Objective, Parts
from softcache.training.schedule import build_optimizer, learning_rate, set_learning_rate
from softcache.training.stream import Batch, Stream

METRICS, STEPS = "metrics.jsonl", "steps.jsonl"


@dataclass
class Fitted:
    """What a training came to. ``lines`` are those of ``metrics.jsonl``, one an epoch; ``seconds`` all of it."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def fit(
    student: Network,
    stream: Stream,
    objective: Objective,
    config: FitConfig,
    device: torch.device,
    folder: Path,
    evaluate: Callable[[Network], Accuracy | None],
    *,
    log_every: int = 0,
    resume: bool = False,
) -> Fitted:
    """Trains ``student`` in place and writes ``metrics.jsonl``, ``steps.jsonl`` and a checkpoint into ``folder``.

    The same arguments give the same bits on the same machine; a resumed training the same as an undisturbed one.
    Errors: ``NumericsError`` where the loss is no number at the end of an epoch.
    """
    student.to(device)
    if config.channels_last:
        student.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(config, [student], device)
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    model: nn.Module = torch.compile(student) if config.compile else student  # type: ignore[assignment]
    began, fitted, start = time.perf_counter(), Fitted(), 0
    if resume:
        start = _restore(folder, student, optimizer, scaler, fitted, device)
    steps = stream.plan.steps
    with (
        _appending(folder / METRICS, fitted.lines) as write_line,
        bar("train", config.epochs * steps, "steps") as shown,
    ):
        shown.advance(start * steps)
        for epoch in range(start, config.epochs):
            # Dropout and the like draw from a generator that depends on the epoch alone, so that it needs no saving.
            torch.manual_seed(_mix(config.seed, epoch))
            student.train()
            meter, epoch_began, teacher_before = _Meter(device), time.perf_counter(), stream.teacher_seconds
            step_lines: list[tuple[int, Parts]] = []
            for number, batch in enumerate(meter.timed(stream.epoch(epoch))):
                step = epoch * steps + number
                set_learning_rate(optimizer, learning_rate(config, step, steps))
                with autocast(device, config.amp):
                    logits = model(batch.pixels)  # (B, C)
                parts = objective(logits, batch.said.logits, batch.labels, batch.visible, batch.mixed, epoch)
                scaler.scale(parts.total / config.accumulate).backward()
                if (number + 1) % config.accumulate == 0 or number + 1 == steps:
                    if config.clip_grad:
                        scaler.unscale_(optimizer)
                        nn.utils.clip_grad_norm_(student.parameters(), config.clip_grad)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                meter.add(parts, batch)
                if log_every and step % log_every == 0:
                    step_lines.append((step, parts))
                shown.advance(1, f"epoch {epoch + 1}/{config.epochs}")
            line = {"epoch": epoch + 1, **meter.means(), "lr": learning_rate(config, epoch * steps, steps)}
            if not line["loss"] == line["loss"] or line["loss"] in (float("inf"), float("-inf")):
                raise NumericsError(
                    f"the loss of epoch {epoch + 1} is {line['loss']}: lower --lr, raise --warmup, or try --clip-grad 1"
                )
            line["epoch_s"] = time.perf_counter() - epoch_began
            line["data_s"] = meter.data_s
            line["teacher_s"] = stream.teacher_seconds - teacher_before
            accuracy = evaluate(student)
            line["test_top1"] = accuracy.top1 if accuracy is not None else None
            line["eval_s"] = time.perf_counter() - epoch_began - line["epoch_s"]
            fitted.lines.append(line)
            write_line(line)
            _write_steps(folder / STEPS, step_lines, config.epochs)
            save_checkpoint(folder, _state(student, optimizer, scaler, epoch + 1, fitted))
            say(describe_epoch(line, config.epochs))
    fitted.seconds = time.perf_counter() - began
    return fitted


def describe_epoch(line: dict[str, Any], epochs: int) -> str:
    """One line for people."""
    test = f"  test {100 * line['test_top1']:.2f} %" if line["test_top1"] is not None else ""
    return (
        f"epoch {line['epoch']:>3}/{epochs}  loss {line['loss']:.4f}  soft {line['soft_loss']:.4f}  "
        f"hard {line['hard_loss']:.4f}{test}  {line['epoch_s']:.1f} s (data {line['data_s']:.1f} s)"
    )


class _Meter:
    """Sums on the device, read once an epoch, so that no step waits for another; and the time spent on waiting."""

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(4, dtype=torch.float32, device=device)
        self._steps = 0
        self._samples = 0
        self.data_s = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The clock starts before a batch is asked for."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.data_s += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def add(self, parts: Parts, batch: Batch) -> None:
        values = [parts.total, parts.soft, parts.hard, parts.hint]
        self._sums += torch.stack([value.detach().float() for value in values])
        self._steps += 1
        self._samples += len(batch.rows)

    def means(self) -> dict[str, Any]:
        total, soft, hard, hint = (self._sums / max(self._steps, 1)).tolist()
        return {
            "loss": total,
            "soft_loss": soft,
            "hard_loss": hard,
            "hint_loss": hint,
            "samples": self._samples,
        }


def _state(
    student: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, epoch: int, fitted: Fitted
) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "student": student.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "lines": fitted.lines,
    }


def _restore(
    folder: Path,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    fitted: Fitted,
    device: torch.device,
) -> int:
    if not (folder / CHECKPOINT).exists():
        return 0
    state = load_checkpoint(folder, device)
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    fitted.lines = state["lines"]
    say(f"resuming after epoch {state['epoch']}")
    return int(state["epoch"])


class _appending:  # reads as a verb where it is used
    """A file of JSON lines that begins with those given and is flushed after each."""

    def __init__(self, path: Path, lines: list[dict[str, Any]]):
        self._path, self._lines = path, list(lines)

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        self._file = open(self._path, "w", encoding="utf-8")
        for line in self._lines:
            self._write(line)
        return self._write

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _write_steps(path: Path, lines: list[tuple[int, Parts]], epochs: int) -> None:
    if not lines:
        return
    # One copy from the device for all steps of an epoch.
    values = torch.stack([torch.stack([p.total, p.soft, p.hard, p.hint]).detach().float() for _, p in lines]).tolist()
    with open(path, "a", encoding="utf-8") as file:
        for (step, _), (total, soft, hard, hint) in zip(lines, values, strict=True):
            line = {"step": step, "loss": total, "soft_loss": soft, "hard_loss": hard, "hint_loss": hint}
            file.write(json.dumps(line) + os.linesep)


def _mix(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) & (2**63 - 1)
