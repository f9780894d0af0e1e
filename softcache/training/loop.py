"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softcache.console import Bar, bar, say
from softcache.errors import NumericsError
from softcache.models._folder import save_network
from softcache.models._network import Network
from softcache.training.ahead import beside
from softcache.training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from softcache.training.config import FitConfig, autocast
from softcache.training.evaluation import Accuracy
from softcache.training.guide import Guide, run_up_to
from softcache.training.metrics import METRICS, Lines, Meter, StepLines, describe_epoch
from softcache.training.objective import Objective
from softcache.training.profiling import Profile, Watch, bottleneck
from softcache.training.schedule import build_optimizer, learning_rate, set_learning_rate
from softcache.training.stream import Stream

BEST_FILE = "best.safetensors"
Evaluate = Callable[[Network], Accuracy | None]


@dataclass
class Fitted:
    """What a training came to. ``lines`` are those of ``metrics.jsonl``, one an epoch; ``seconds`` all of it in this
    process; ``test`` the last epoch's accuracy, if this process trained it and it was looked at."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    test: Accuracy | None = None

    def best(self) -> dict[str, Any] | None:
        """The line of the epoch with the highest accuracy on the validation rows, the first of equals."""
        validated = [line for line in self.lines if line.get("val_top1") is not None]
        return max(validated, key=lambda line: line["val_top1"]) if validated else None


@dataclass(frozen=True)
class Stage:
    """Some epochs that share keys, loss and a course of the learning rate.

    ``guide``: hint losses of this stage. ``hints_alone``: nothing after the guided layers is run or trained.
    """

    stream: Stream
    objective: Objective
    epochs: int
    guide: Guide | None = None
    hints_alone: bool = False


def fit(
    student: Network,
    stream: Stream,
    objective: Objective,
    config: FitConfig,
    device: torch.device,
    folder: Path,
    evaluate: Evaluate,
    *,
    validate: Evaluate | None = None,
    guide: Guide | None = None,
    before: Stage | None = None,
    log_every: int = 0,
    resume: bool = False,
) -> Fitted:
    """Trains ``student`` in place and writes ``metrics.jsonl``, ``steps.jsonl`` and a checkpoint into ``folder``.

    ``before``: a stage that comes first, with an optimizer of its own. ``validate``: accuracy on held-out rows, which
    is then looked at after each epoch in place of ``evaluate``; the best epoch's parameters are kept in ``BEST_FILE``.
    The same arguments give the same bits on the same machine; a resumed training the same as an undisturbed one.
    Errors: ``NumericsError`` where the loss is no number at the end of an epoch.
    """
    student.to(device)
    if config.channels_last:
        student.to(memory_format=torch.channels_last)
    last = Stage(stream, objective, config.epochs, guide)
    stages = [last] if before is None else [before, last]
    guides = [stage.guide.to(device) for stage in stages if stage.guide is not None]
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    model: nn.Module = torch.compile(student) if config.compile else student  # type: ignore[assignment]
    began, fitted, start, kept = time.perf_counter(), Fitted(), 0, None
    if resume and (folder / CHECKPOINT).exists():
        kept = load_checkpoint(folder, device)
        student.load_state_dict(kept["student"])
        for own, state in zip(guides, kept["guides"], strict=True):
            own.load_state_dict(state)
        scaler.load_state_dict(kept["scaler"])
        start, fitted.lines = int(kept["epoch"]), kept["lines"]
        say(f"resuming after epoch {start}")
    total, steps, first = sum(stage.epochs for stage in stages), stream.plan.steps, 0
    step_lines = StepLines(folder, log_every, start * steps)
    # The caller's own random numbers go on, after this, as if nothing had been trained.
    generators = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with generators, Lines(folder / METRICS, fitted.lines) as write_line, bar("train", total * steps, "steps") as shown:
        shown.advance(start * steps)
        work = _Work(student, model, device, scaler, step_lines, shown)
        for number, stage in enumerate(stages, 3 - len(stages)):
            # Milestones are those of the last stage; the other has them at the usual shares of its own length.
            course = config if stage is last else dataclasses.replace(config, epochs=stage.epochs, milestones=())
            modules = [student] if stage.guide is None else [student, stage.guide]
            optimizer = build_optimizer(course, modules, device)
            if kept is not None and first < start < first + stage.epochs:
                optimizer.load_state_dict(kept["optimizer"])
            for epoch in range(max(start, first), first + stage.epochs):
                line: dict[str, Any] = {"epoch": epoch + 1}
                if len(stages) > 1:
                    line["stage"] = number
                # Dropout and the like draw from a generator that depends on the epoch alone, so that it needs no
                # saving.
                torch.manual_seed(_mix(config.seed, epoch))
                # The first epoch warms up, so that it says little of the others.
                watched = config.profile and epoch == max(start, min(1, total - 1))
                watch = Profile(folder, device) if watched else Watch()
                line |= _epoch(work, stage, course, optimizer, epoch, epoch - first, watch)
                watch.report(line)
                if not line["loss"] == line["loss"] or line["loss"] in (float("inf"), float("-inf")):
                    raise NumericsError(
                        f"the loss of epoch {epoch + 1} is {line['loss']}: lower --lr, raise --warmup, or try "
                        "--clip-grad 1"
                    )
                looked_at = time.perf_counter()
                line |= _accuracy(student, stage, fitted, evaluate, validate, folder)
                line["eval_s"] = time.perf_counter() - looked_at
                fitted.lines.append(line)
                write_line(line)
                step_lines.write()
                save_checkpoint(
                    folder,
                    {
                        "epoch": epoch + 1,
                        "student": student.state_dict(),
                        "guides": [own.state_dict() for own in guides],
                        "optimizer": optimizer.state_dict(),
                        "scaler": scaler.state_dict(),
                        "lines": fitted.lines,
                    },
                )
                say(describe_epoch(line, total))
            if stage is not last:
                stage.stream.release()
            first += stage.epochs
    if total > start:
        say(bottleneck(fitted.lines[start:]))
    fitted.seconds = time.perf_counter() - began
    return fitted


@dataclass(frozen=True)
class _Work:
    """What all epochs of a training share. ``model`` is the student, compiled if that was asked for."""

    student: Network
    model: nn.Module
    device: torch.device
    scaler: torch.amp.GradScaler
    step_lines: StepLines
    shown: Bar


def _epoch(
    work: _Work,
    stage: Stage,
    config: FitConfig,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    local: int,
    watch: Watch,
) -> dict[str, Any]:
    """One pass over an epoch's batches: means of the losses, and where the time went.

    ``epoch`` counts from the start of the training, and says which keys; ``local`` from that of the stage, and says
    where its knobs are.
    """
    student, device, scaler = work.student, work.device, work.scaler
    stream, objective, guide = stage.stream, stage.objective, stage.guide
    began, asked, steps = time.perf_counter(), stream.teacher_seconds, stream.plan.steps
    meter = Meter(device, [str(term) for term in guide.terms] if guide is not None else [])
    student.train()
    if guide is not None:
        guide.train()
    with _watching(guide, student, stop=stage.hints_alone) as taps:
        for number, batch in enumerate(meter.timed(beside(stream.epoch(epoch), device))):
            set_learning_rate(optimizer, learning_rate(config, local * steps + number, steps))
            with watch.phase("forward"), autocast(device, config.amp):
                if stage.hints_alone:
                    run_up_to(student, batch.pixels)
                else:
                    logits = work.model(batch.pixels)  # (B, C)
                hints = guide(taps, batch.said.hints, batch.rows, batch.labels) if guide is not None else ()
            with watch.phase("loss"):
                if stage.hints_alone:
                    parts = objective.hint_only(hints, local)
                else:
                    parts = objective(logits, batch.said.logits, batch.labels, batch.visible, batch.mixed, local, hints)
            with watch.phase("backward"):
                # The last optimizer step of an epoch may have fewer batches.
                together = min(config.accumulate, steps - number // config.accumulate * config.accumulate)
                scaler.scale(parts.total / together).backward()
            if (number + 1) % config.accumulate == 0 or number + 1 == steps:
                with watch.phase("optimizer"):
                    if config.clip_grad:
                        scaler.unscale_(optimizer)
                        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], config.clip_grad)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
            meter.add(parts, batch)
            work.step_lines.add(epoch * steps + number, parts)
            work.shown.advance(1, f"epoch {epoch + 1}")
            watch.step()
    return {
        **meter.means(),
        "lr": learning_rate(config, local * steps, steps),
        "epoch_s": time.perf_counter() - began - watch.overhead,
        "data_s": meter.data_s,
        "teacher_s": stream.teacher_seconds - asked,
    }


@contextlib.contextmanager
def _watching(guide: Guide | None, student: Network, *, stop: bool) -> Iterator[Any]:
    if guide is None:
        yield {}
        return
    with guide.watching(student, stop=stop) as taps:
        yield taps


def _accuracy(
    student: Network, stage: Stage, fitted: Fitted, evaluate: Evaluate, validate: Evaluate | None, folder: Path
) -> dict[str, float | None]:
    """On the validation rows where there are some, else on the test split; in a stage on hints alone on neither."""
    if stage.hints_alone:
        return {"test_top1": None} if validate is None else {"test_top1": None, "val_top1": None}
    if validate is None:
        fitted.test = evaluate(student)
        return {"test_top1": fitted.test.top1 if fitted.test is not None else None}
    found = validate(student)
    assert found is not None
    best = fitted.best()
    if best is None or found.top1 > best["val_top1"]:
        save_network(student, folder, BEST_FILE)
    return {"test_top1": None, "val_top1": found.top1}


def _mix(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) & (2**63 - 1)
