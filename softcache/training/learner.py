"""One student in training: what it is trained towards, how, and where it stands."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softcache.device import autocast
from softcache.errors import NumericsError, PrunedError, SoftcacheError
from softcache.models._arithmetic import Arithmetic
from softcache.models._folder import save_network
from softcache.models._network import Network
from softcache.stream.batches import Batch
from softcache.training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from softcache.training.distiller import Distiller
from softcache.training.evaluation import Evaluate
from softcache.training.hint_losses import HintLosses
from softcache.training.metrics import METRICS, Lines, Meter, StepLines, describe_epoch
from softcache.training.objective import LossValues, Objective
from softcache.training.optimization import Optimization, set_learning_rate
from softcache.training.profiling import Profile, Watch
from softcache.training.scores import Scores, recorded_numbers

log = logging.getLogger(__name__)

BEST_FILE = "best.safetensors"
Leaves = Callable[[Sequence[dict[str, Any]]], str | None]


@dataclass
class Fitted:
    """What a training came to. ``lines`` are those of ``metrics.jsonl``, one an epoch; ``seconds`` all of it in this
    process; ``test`` the last epoch's scores, if this process trained it and it was looked at. ``leading``: the number
    that chooses the best epoch, by its name; the higher the better. ``failure``: why it ended early, in a cohort."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    test: Scores | None = None
    leading: str = "top1"
    failure: SoftcacheError | None = None

    def best(self) -> dict[str, Any] | None:
        """The line of the epoch with the highest number on the validation rows, the first of equals."""
        name = f"val_{self.leading}"
        validated = [line for line in self.lines if line.get(name) is not None]
        return max(validated, key=lambda line: line[name]) if validated else None


@dataclass(frozen=True)
class Stage:
    """Some epochs that share a loss and a course of the learning rate.

    ``hint_losses``: hint losses of this stage. ``hints_alone``: nothing after the guided layers is run or trained.
    ``columns``: what is read of the teacher, outputs and hints by the names of their columns.
    """

    objective: Objective
    epochs: int
    hint_losses: HintLosses | None = None
    hints_alone: bool = False
    columns: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Settings:
    """How a learner is trained, beside its loss. ``seed``: of dropout and the like. ``profile``: trace an epoch.
    ``log_every``: steps between lines of ``steps.jsonl``, 0 for none. ``leading``: of the scores, the number that
    chooses the best epoch."""

    optimization: Optimization
    arithmetic: Arithmetic
    seed: int = 0
    compiled: bool = False
    profile: bool = False
    log_every: int = 0
    leading: str = "top1"


class Learner:
    """Trains ``student`` in place and writes ``metrics.jsonl``, ``steps.jsonl`` and a checkpoint into ``folder``.

    ``stages`` follow each other, each with an optimizer of its own. ``evaluate``: scores on the test split after each
    epoch; ``validate``: on held-out rows, which are then looked at in its place; the best epoch's parameters are kept
    in ``BEST_FILE``. ``title``: what it is called where several learn, else empty. ``leaves``: given the lines of the
    epochs so far, says why the learner ends early, or None.

    The loop calls ``begin`` once, then of each epoch ``begin_epoch``, ``step`` with each batch, ``end_steps`` and
    ``keep``.
    """

    def __init__(
        self,
        student: Network,
        stages: Sequence[Stage],
        settings: Settings,
        device: torch.device,
        folder: Path,
        evaluate: Evaluate,
        *,
        validate: Evaluate | None = None,
        title: str = "",
        leaves: Leaves | None = None,
    ):
        self.student, self.stages, self.settings, self.device = student, list(stages), settings, device
        self.folder, self.title = folder, title
        self.evaluate, self.validate, self._leaves = evaluate, validate, leaves
        self.fitted = Fitted(leading=settings.leading)
        self.total = sum(stage.epochs for stage in stages)
        self.done = self.begun_at = 0
        self._hint_losses = [stage.hint_losses for stage in stages if stage.hint_losses is not None]
        self._scaler = torch.amp.GradScaler(device.type, enabled=settings.arithmetic.amp == "fp16")
        self._entered: Stage | None = None
        self._optimizer_state: dict[str, Any] | None = None

    def stage_of(self, epoch: int) -> tuple[int, int]:
        """The number of the stage that an epoch of the training lies in, and that stage's first epoch."""
        first = 0
        for number, stage in enumerate(self.stages):
            if epoch < first + stage.epochs or number == len(self.stages) - 1:
                return number, first
            first += stage.epochs
        raise AssertionError("a training has at least one stage")

    def columns(self, epoch: int) -> frozenset[str]:
        """What an epoch reads of the teacher."""
        return self.stages[self.stage_of(epoch)[0]].columns

    def begin(self, files: contextlib.ExitStack, *, steps: int, resume: bool) -> None:
        """Moves to the device, goes back to the checkpoint with ``resume``, and opens what is written until ``files``
        closes. ``steps``: batches an epoch."""
        self._steps = steps
        self.settings.arithmetic.apply(self.student.to(self.device))
        for module in self._hint_losses:
            module.to(self.device)
        if resume and (self.folder / CHECKPOINT).exists():
            kept = load_checkpoint(self.folder, self.device)
            self.student.load_state_dict(kept["student"])
            for module, state in zip(self._hint_losses, kept["hint_losses"], strict=True):
                module.load_state_dict(state)
            self._scaler.load_state_dict(kept["scaler"])
            self.done, self.fitted.lines = int(kept["epoch"]), kept["lines"]
            self._optimizer_state = kept["optimizer"]
            self.say(
                f"resuming after epoch {self.done}"
                if self.done < self.total
                else f"all {self.total} epochs are done already"
            )
        self._write_line = files.enter_context(Lines(self.folder / METRICS, self.fitted.lines))
        self._step_lines = StepLines(self.folder, self.settings.log_every, self.done * steps)
        self.begun_at = self.done
        self._leave_early()

    def begin_epoch(self, epoch: int, files: contextlib.ExitStack) -> None:
        """Until ``files`` closes, the student's guided layers are listened to."""
        number, first = self.stage_of(epoch)
        stage = self.stages[number]
        if stage is not self._entered:
            self._enter(stage, resumed=first < epoch)
        self._epoch, self._local = epoch, epoch - first
        # Dropout and the like draw from a generator that depends on the epoch alone, so that it needs no saving.
        torch.manual_seed(_mix(self.settings.seed, epoch))
        # The first epoch warms up, so that it says little of the others.
        watched = self.settings.profile and epoch == max(self.begun_at, min(1, self.total - 1))
        self.watch = Profile(self.folder, self.device) if watched else Watch()
        terms = stage.hint_losses.terms if stage.hint_losses is not None else ()
        self._meter = Meter(self.device, [str(term) for term in terms])
        self._distiller.train()
        files.enter_context(self._distiller.watching())

    def _enter(self, stage: Stage, *, resumed: bool) -> None:
        """Makes the optimizer of a stage, with the state that it had where the training is resumed within it."""
        optimization = self.settings.optimization
        # Milestones are those of the last stage; the other has them at the usual shares of its own length.
        if stage is not self.stages[-1]:
            optimization = dataclasses.replace(optimization, milestones=())
        self._distiller = Distiller(
            self.student,
            stage.hint_losses,
            [] if stage.hints_alone else stage.objective.outputs,
            hints_alone=stage.hints_alone,
            classifies=stage.objective.labels,
            compiled=self.settings.compiled,
        )
        self._optimizer = optimization.build([self._distiller], self.device)
        if self._optimizer_state is not None and resumed:
            self._optimizer.load_state_dict(self._optimizer_state)
        self._optimizer_state = None
        self._optimization, self._entered = optimization, stage

    def step(self, number: int, batch: Batch) -> None:
        """The batch with this number in the epoch, forward and backward, and the optimizer's step where it is due."""
        stage, optimization, watch = self._stage, self._optimization, self.watch
        objective, every, local = stage.objective, optimization.accumulate, self._local
        rate = optimization.learning_rate(local * self._steps + number, self._steps, stage.epochs)
        set_learning_rate(self._optimizer, rate)
        with watch.phase("forward"), autocast(self.device, self.settings.arithmetic.amp):
            outputs, hints = self._distiller(batch.inputs, batch.targets.hints, batch.rows, batch.labels, batch.offsets)
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
            together = min(every, self._steps - number // every * every)
            self._scaler.scale(parts.total / together).backward()
        if (number + 1) % every == 0 or number + 1 == self._steps:
            with watch.phase("optimizer"):
                self._update()
        if local == 0 and number == 0:
            objective.warn_of_dominance(parts, local)
        self._count(number, parts, batch)

    def _update(self) -> None:
        if self._optimization.clip_grad:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._optimizer.param_groups[0]["params"], self._optimization.clip_grad)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def _count(self, number: int, parts: LossValues, batch: Batch) -> None:
        self._meter.add(parts, batch)
        self._step_lines.add(self._epoch * self._steps + number, parts)
        self.watch.step()

    def end_steps(self, **seconds: float) -> None:
        """All batches of the epoch have come. ``seconds``: by name, for ``metrics.jsonl``.

        Errors: ``NumericsError`` where the loss is no number.
        """
        line: dict[str, Any] = {"epoch": self._epoch + 1}
        if len(self.stages) > 1:
            line["stage"] = self.stage_of(self._epoch)[0] + 1
        rate = self._optimization.learning_rate(self._local * self._steps, self._steps, self._stage.epochs)
        self._line = {**line, **self._meter.means(), "lr": rate, **seconds}
        self.watch.report(self._line)
        if not math.isfinite(self._line["loss"]):
            raise NumericsError(
                f"the loss of epoch {self._epoch + 1} is {self._line['loss']}: lower --lr, raise --warmup, or try "
                "--clip-grad 1"
            )

    @property
    def judge(self) -> Evaluate | None:
        """What looks at the student after this epoch: held-out rows where there are some, else the test split; nothing
        after an epoch on hints alone."""
        return None if self._stage.hints_alone else self.validate or self.evaluate

    def keep(self, scores: Scores | None, eval_s: float) -> None:
        """Writes down the epoch and where the training stands. ``scores``: what ``judge`` gave, in ``eval_s``."""
        line = {**self._line, **self._scored(scores), "eval_s": eval_s}
        self.fitted.lines.append(line)
        self._write_line(line)
        self._step_lines.write()
        self.done = self._epoch + 1
        save_checkpoint(
            self.folder,
            {
                "epoch": self.done,
                "student": self.student.state_dict(),
                "hint_losses": [module.state_dict() for module in self._hint_losses],
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "lines": self.fitted.lines,
            },
        )
        self.say(describe_epoch(line, self.total))
        self._leave_early()

    def _leave_early(self) -> None:
        why = self._leaves(self.fitted.lines) if self._leaves is not None and self.done < self.total else None
        if why is not None:
            self.fitted.failure = PrunedError(why)
            self.say(f"leaves after epoch {self.done}: {why}")

    def _scored(self, scores: Scores | None) -> dict[str, float | None]:
        """The scores by name; the best epoch's parameters are kept."""
        leading = self.settings.leading
        unknown: dict[str, float | None] = {f"test_{leading}": None}
        if self._stage.hints_alone:
            return unknown if self.validate is None else {**unknown, f"val_{leading}": None}
        found = recorded_numbers(scores, leading)
        if self.validate is None:
            self.fitted.test = scores
            return {f"test_{name}": value for name, value in found.items()}
        best, now = self.fitted.best(), found[leading]
        assert now is not None
        if best is None or now > best[f"val_{leading}"]:
            save_network(self.student, self.folder, BEST_FILE)
        return {**unknown, **{f"val_{name}": value for name, value in found.items()}}

    def fail(self, error: SoftcacheError | RuntimeError) -> None:
        """Says why it leaves the cohort."""
        self.fitted.failure = as_failure(error)
        log.error(f"{self.title} left the cohort: {self.fitted.failure}")

    def say(self, text: str) -> None:
        log.info(f"{self.title}: {text}" if self.title else text)

    @property
    def _stage(self) -> Stage:
        assert self._entered is not None, "an epoch has begun"
        return self._entered


def as_failure(error: SoftcacheError | RuntimeError) -> SoftcacheError:
    """Why a student could not be trained, in one line."""
    return error if isinstance(error, SoftcacheError) else SoftcacheError(" ".join(str(error).split())[:300])


def _mix(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) & (2**63 - 1)
