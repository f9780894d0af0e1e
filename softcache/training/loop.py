"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softcache.cache.schema import LOGITS
from softcache.console import Bar, bar
from softcache.device import autocast
from softcache.errors import NumericsError
from softcache.fields import Inputs
from softcache.models._arithmetic import Arithmetic
from softcache.models._folder import save_network
from softcache.models._network import Network
from softcache.ragged import counts_of, own_places
from softcache.stream.batches import Stream
from softcache.stream.transfer import SideStream
from softcache.training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from softcache.training.hint_losses import HintLosses, run_up_to
from softcache.training.metrics import METRICS, Lines, Meter, StepLines, describe_epoch
from softcache.training.objective import Objective
from softcache.training.optimization import Optimization, set_learning_rate
from softcache.training.profiling import Profile, Watch, bottleneck
from softcache.training.scores import Scores, recorded_numbers

log = logging.getLogger(__name__)

BEST_FILE = "best.safetensors"
Evaluate = Callable[[Network], Scores | None]
Answer = Callable[[Inputs], dict[str, torch.Tensor]]


@dataclass
class Fitted:
    """What a training came to. ``lines`` are those of ``metrics.jsonl``, one an epoch; ``seconds`` all of it in this
    process; ``test`` the last epoch's scores, if this process trained it and it was looked at. ``leading``: the number
    that chooses the best epoch, by its name; the higher the better."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    test: Scores | None = None
    leading: str = "top1"

    def best(self) -> dict[str, Any] | None:
        """The line of the epoch with the highest number on the validation rows, the first of equals."""
        name = f"val_{self.leading}"
        validated = [line for line in self.lines if line.get(name) is not None]
        return max(validated, key=lambda line: line[name]) if validated else None


@dataclass(frozen=True)
class Stage:
    """Some epochs that share keys, loss and a course of the learning rate.

    ``hint_losses``: hint losses of this stage. ``hints_alone``: nothing after the guided layers is run or trained.
    """

    stream: Stream
    objective: Objective
    epochs: int
    hint_losses: HintLosses | None = None
    hints_alone: bool = False


def fit(
    student: Network,
    stages: Sequence[Stage],
    optimization: Optimization,
    device: torch.device,
    folder: Path,
    evaluate: Evaluate,
    *,
    validate: Evaluate | None = None,
    seed: int = 0,
    arithmetic: Arithmetic,
    compiled: bool = False,
    profile: bool = False,
    log_every: int = 0,
    resume: bool = False,
    leading: str = "top1",
) -> Fitted:
    """Trains ``student`` in place and writes ``metrics.jsonl``, ``steps.jsonl`` and a checkpoint into ``folder``.

    ``stages`` follow each other, each with an optimizer of its own. ``validate``: scores on held-out rows, which is
    then looked at after each epoch in place of ``evaluate``; the best epoch's parameters are kept in ``BEST_FILE``.
    ``seed``: of dropout and the like. ``profile``: trace an epoch. ``log_every``: steps between lines of
    ``steps.jsonl``, 0 for none. ``leading``: of the scores, the number that chooses the best epoch.

    The same arguments give the same bits on the same machine; a resumed training the same as an undisturbed one.
    Errors: ``NumericsError`` where the loss is no number at the end of an epoch.
    """
    amp = arithmetic.amp
    arithmetic.apply(student.to(device))
    hint_losses = [stage.hint_losses.to(device) for stage in stages if stage.hint_losses is not None]
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    began, fitted, start, kept = time.perf_counter(), Fitted(leading=leading), 0, None
    if resume and (folder / CHECKPOINT).exists():
        kept = load_checkpoint(folder, device)
        student.load_state_dict(kept["student"])
        for module, state in zip(hint_losses, kept["hint_losses"], strict=True):
            module.load_state_dict(state)
        scaler.load_state_dict(kept["scaler"])
        start, fitted.lines = int(kept["epoch"]), kept["lines"]
    total, steps, first = sum(stage.epochs for stage in stages), stages[0].stream.plan.steps, 0
    if kept is not None:
        log.info(f"resuming after epoch {start}" if start < total else f"all {total} epochs are done already")
    step_lines = StepLines(folder, log_every, start * steps)
    # The caller's own random numbers go on, after this, as if nothing had been trained.
    generators = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with generators, Lines(folder / METRICS, fitted.lines) as write_line, bar("train", total * steps, "steps") as shown:
        shown.advance(start * steps)
        work = _Work(student, device, SideStream(device), amp, scaler, step_lines, shown)
        for number, stage in enumerate(stages, 3 - len(stages)):
            # Milestones are those of the last stage; the other has them at the usual shares of its own length.
            own = optimization if stage is stages[-1] else dataclasses.replace(optimization, milestones=())
            modules = [student] if stage.hint_losses is None else [student, stage.hint_losses]
            optimizer = own.build(modules, device)
            answer = _answering(student, stage.objective, compiled)
            if kept is not None and first < start < first + stage.epochs:
                optimizer.load_state_dict(kept["optimizer"])
            for epoch in range(max(start, first), first + stage.epochs):
                line: dict[str, Any] = {"epoch": epoch + 1}
                if len(stages) > 1:
                    line["stage"] = number
                # Dropout and the like draw from a generator that depends on the epoch alone, so that it needs no
                # saving.
                torch.manual_seed(_mix(seed, epoch))
                # The first epoch warms up, so that it says little of the others.
                watched = profile and epoch == max(start, min(1, total - 1))
                watch = Profile(folder, device) if watched else Watch()
                line |= _epoch(work, stage, answer, own, optimizer, epoch, epoch - first, watch)
                watch.report(line)
                if not line["loss"] == line["loss"] or line["loss"] in (float("inf"), float("-inf")):
                    raise NumericsError(
                        f"the loss of epoch {epoch + 1} is {line['loss']}: lower --lr, raise --warmup, or try "
                        "--clip-grad 1"
                    )
                looked_at = time.perf_counter()
                line |= _scored(student, stage, fitted, evaluate, validate, folder)
                line["eval_s"] = time.perf_counter() - looked_at
                fitted.lines.append(line)
                write_line(line)
                step_lines.write()
                save_checkpoint(
                    folder,
                    {
                        "epoch": epoch + 1,
                        "student": student.state_dict(),
                        "hint_losses": [module.state_dict() for module in hint_losses],
                        "optimizer": optimizer.state_dict(),
                        "scaler": scaler.state_dict(),
                        "lines": fitted.lines,
                    },
                )
                log.info(describe_epoch(line, total))
            if stage is not stages[-1]:
                stage.stream.release()
            first += stage.epochs
    if total > start:
        log.info(bottleneck(fitted.lines[start:]))
    fitted.seconds = time.perf_counter() - began
    return fitted


@dataclass(frozen=True)
class _Work:
    """What all epochs of a training share."""

    student: Network
    device: torch.device
    side: SideStream
    amp: str
    scaler: torch.amp.GradScaler
    step_lines: StepLines
    shown: Bar


def _epoch(
    work: _Work,
    stage: Stage,
    answer: Answer,
    optimization: Optimization,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    local: int,
    watch: Watch,
) -> dict[str, Any]:
    """One pass over an epoch's batches: means of the losses, and where the time went.

    ``answer``: the student as a function to the outputs that the objective reads. ``epoch`` counts from the start of
    the training, and says which keys; ``local`` from that of the stage, and says where its knobs are.
    """
    student, device, scaler = work.student, work.device, work.scaler
    stream, objective, hint_losses = stage.stream, stage.objective, stage.hint_losses
    began, asked, steps = time.perf_counter(), stream.teacher_seconds, stream.plan.steps
    every = optimization.accumulate
    meter = Meter(device, [str(term) for term in hint_losses.terms] if hint_losses is not None else [])
    student.train()
    if hint_losses is not None:
        hint_losses.train()
    with _watching(hint_losses, student, stop=stage.hints_alone) as taps:
        for number, batch in enumerate(meter.timed(work.side.batches(stream.epoch(epoch)))):
            set_learning_rate(optimizer, optimization.learning_rate(local * steps + number, steps, stage.epochs))
            with watch.phase("forward"), autocast(device, work.amp):
                if stage.hints_alone:
                    run_up_to(student, batch.inputs)
                else:
                    outputs = answer(batch.inputs)  # by name, (B, …)
                    for name in batch.offsets.keys() & outputs.keys():
                        counts = counts_of(batch.offsets[name])
                        outputs[name] = own_places(outputs[name], counts, f"the student's output {name!r}")
                hints = (
                    hint_losses(taps, batch.targets.hints, batch.rows, batch.labels, batch.offsets)
                    if hint_losses is not None
                    else ()
                )
            with watch.phase("loss"):
                if stage.hints_alone:
                    parts = objective.hint_only(hints, local)
                else:
                    parts = objective(
                        outputs,
                        batch.targets.outputs,
                        batch.labels,
                        batch.visible,
                        batch.mixed,
                        local,
                        hints,
                        batch.offsets,
                    )
            with watch.phase("backward"):
                # The last optimizer step of an epoch may have fewer batches.
                together = min(every, steps - number // every * every)
                scaler.scale(parts.total / together).backward()
            if (number + 1) % every == 0 or number + 1 == steps:
                with watch.phase("optimizer"):
                    if optimization.clip_grad:
                        scaler.unscale_(optimizer)
                        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], optimization.clip_grad)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
            if local == 0 and number == 0:
                objective.warn_of_dominance(parts, local)
            meter.add(parts, batch)
            work.step_lines.add(epoch * steps + number, parts)
            work.shown.advance(1, f"epoch {epoch + 1}")
            watch.step()
    return {
        **meter.means(),
        "lr": optimization.learning_rate(local * steps, steps, stage.epochs),
        "epoch_s": time.perf_counter() - began - watch.overhead,
        "data_s": meter.data_s,
        "teacher_s": stream.teacher_seconds - asked,
    }


@contextlib.contextmanager
def _watching(hint_losses: HintLosses | None, student: Network, *, stop: bool) -> Iterator[Any]:
    if hint_losses is None:
        yield {}
        return
    with hint_losses.watching(student, stop=stop) as taps:
        yield taps


def _answering(student: Network, objective: Objective, compiled: bool) -> Answer:
    """The student as a function to its outputs that are read."""
    names = objective.outputs
    if names == [LOGITS] and objective.labels:
        run: Any = torch.compile(student) if compiled else student
        return lambda pixels: {LOGITS: run(pixels)}
    several: Any = torch.compile(student.outputs) if compiled else student.outputs
    return lambda pixels: several(pixels, names)


def _scored(
    student: Network, stage: Stage, fitted: Fitted, evaluate: Evaluate, validate: Evaluate | None, folder: Path
) -> dict[str, float | None]:
    """On the validation rows where there are some, else on the test split; in a stage on hints alone on neither."""
    unknown: dict[str, float | None] = {f"test_{fitted.leading}": None}
    if stage.hints_alone:
        return unknown if validate is None else {**unknown, f"val_{fitted.leading}": None}
    if validate is None:
        fitted.test = evaluate(student)
        return {f"test_{name}": value for name, value in recorded_numbers(fitted.test, fitted.leading).items()}
    found = recorded_numbers(validate(student), fitted.leading)
    best, now = fitted.best(), found[fitted.leading]
    assert now is not None
    if best is None or now > best[f"val_{fitted.leading}"]:
        save_network(student, folder, BEST_FILE)
    return {**unknown, **{f"val_{name}": value for name, value in found.items()}}


def _mix(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) & (2**63 - 1)
