"""One student in training: what it is trained towards, how, and where it stands."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softcache.device import autocast
from softcache.errors import NumericsError, PrunedError, SoftcacheError
from softcache.losses._counted import Gather
from softcache.models._folder import save_network
from softcache.models._network import Network
from softcache.stream.batches import Batch
from softcache.tracking._log import RunLog
from softcache.training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from softcache.training.distiller import Distiller
from softcache.training.evaluation import Evaluate
from softcache.training.graph import GraphedStep
from softcache.training.hint_losses import bare
from softcache.training.metrics import METRICS, Lines, Meter, StepLines, StepValues, describe_epoch
from softcache.training.objective import LossValues, TermValues
from softcache.training.optimization import restore, set_learning_rate
from softcache.training.portion import Portion
from softcache.training.profiling import Profile, Watch
from softcache.training.ranks import ALONE, Ranks
from softcache.training.scores import Scores, recorded_numbers
from softcache.training.stage import Fitted, Settings, Stage

log = logging.getLogger(__name__)

BEST_FILE = "best.safetensors"
Leaves = Callable[[Sequence[dict[str, Any]]], str | None]


class Learner:
    """Trains ``student`` in place and writes ``metrics.jsonl``, ``steps.jsonl`` and a checkpoint into ``folder``.

    ``stages`` follow each other, each with an optimizer of its own. ``evaluate``: scores on the test split after each
    epoch; ``validate``: on held-out rows, which are then looked at in its place; the best epoch's parameters are kept
    in ``BEST_FILE``. ``title``: what it is called where several learn, else empty. ``ranks``: which all train the same
    student, each on its share of the batches; the first alone writes. ``leaves``: given the lines of the epochs so far,
    says why the learner ends early, or None. ``told``: what is told of each epoch beside the files.

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
        ranks: Ranks = ALONE,
        leaves: Leaves | None = None,
        told: RunLog | None = None,
    ):
        self.ranks = ranks
        self.student, self.stages, self.settings, self.device = student, list(stages), settings, device
        self.folder, self.title = folder, title
        self.evaluate, self.validate, self._leaves = evaluate, validate, leaves
        self._told = told or RunLog()
        self.fitted = Fitted(leading=settings.leading)
        self.total = sum(stage.epochs for stage in stages)
        self.done = self.begun_at = 0
        self._hint_losses = [stage.hint_losses for stage in stages if stage.hint_losses is not None]
        self._loss_modules = [stages[-1].objective.modules] if stages[-1].objective.modules is not None else []
        self._scaler = torch.amp.GradScaler(device.type, enabled=settings.arithmetic.amp == "fp16")
        self._entered: Stage | None = None
        self._stopped: list[nn.Parameter] = []
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
        """What an epoch reads of the teacher; after the last one what that read."""
        return self.stages[self.stage_of(epoch)[0]].columns

    def begin(self, files: contextlib.ExitStack, *, steps: int, resume: bool) -> None:
        """Moves to the device, goes back to the checkpoint with ``resume``, and opens what is written until ``files``
        closes. ``steps``: batches an epoch."""
        self._steps = steps
        self.settings.arithmetic.apply(self.student.to(self.device))
        for module in (*self._hint_losses, *self._loss_modules):
            module.to(self.device)
        if resume and (self.folder / CHECKPOINT).exists():
            kept = load_checkpoint(self.folder, self.device)
            self.student.load_state_dict(kept["student"])
            for name, modules in (("hint_losses", self._hint_losses), ("loss_modules", self._loss_modules)):
                for module, state in zip(modules, kept[name], strict=True):
                    module.load_state_dict(state)
            self._scaler.load_state_dict(kept["scaler"])
            self.done, self.fitted.lines = int(kept["epoch"]), kept["lines"]
            self._optimizer_state = kept["optimizer"]
            self.say(
                f"resuming after epoch {self.done}"
                if self.done < self.total
                else f"all {self.total} epochs are done already"
            )
        if self.ranks.first:
            self._write_line = files.enter_context(Lines(self.folder / METRICS, self.fitted.lines))
        self._step_lines = StepLines(self.folder, self.settings.log_every, self.done * steps, self.ranks)
        self._told.begin(self.fitted.lines)
        self.begun_at = self.done
        self._leave_early()

    def begin_epoch(self, epoch: int, files: contextlib.ExitStack) -> None:
        """Until ``files`` closes, the student's guided layers are listened to."""
        number, first = self.stage_of(epoch)
        stage = self.stages[number]
        if stage is not self._entered:
            self._enter(stage, resumed=first < epoch)
        self._epoch, self._local = epoch, epoch - first
        # Dropout and the like draw from a generator that depends on the epoch and rank alone, and needs no saving.
        torch.manual_seed(_mix(self.settings.seed, epoch, self.ranks.index))
        # The first epoch warms up, so that it says little of the others.
        watched = self.settings.profile and self.ranks.first and epoch == max(self.begun_at, min(1, self.total - 1))
        self.watch = Profile(self.folder, self.device) if watched else Watch()
        terms = stage.hint_losses.terms if stage.hint_losses is not None else ()
        self._meter = Meter(self.device, [str(term) for term in terms], self.ranks)
        stage.objective.begin_epoch(self._local)
        self._distiller.train()
        files.enter_context(self._distiller.watching())

    def _enter(self, stage: Stage, *, resumed: bool) -> None:
        """Makes the optimizer of a stage, with the state that it had where the training is resumed within it."""
        optimization = self.settings.optimization
        # Milestones are those of the last stage; the other has them at the usual shares of its own length.
        if stage is not self.stages[-1]:
            optimization = dataclasses.replace(optimization, milestones=())
        self._reach(stage)
        self._distiller = Distiller(
            self.student,
            stage.hint_losses,
            [] if stage.hints_alone else stage.objective.outputs,
            hints_alone=stage.hints_alone,
            classifies=stage.objective.labels,
            compiled=self.settings.compiled,
            loss_modules=None if stage.hints_alone else stage.objective.modules,
        )
        self._module = self.ranks.wrapped(self._distiller)
        recording = self.settings.cuda_graphs and optimization.accumulate == 1 and not self._scaler.is_enabled()
        recording = recording and self.ranks.alone
        self._optimizer = optimization.build([self._distiller], self.device, recorded=recording)
        self._graphed = GraphedStep(self._whole_step) if recording else None
        if self._optimizer_state is not None and resumed:
            restore(self._optimizer, self._optimizer_state)
        self._optimizer_state = None
        self._buffers = {name for name, _ in self._distiller.named_buffers()}
        self._optimization, self._entered = optimization, stage

    def _reach(self, stage: Stage) -> None:
        """Stops the parameters from learning that a stage on hints alone doesn't reach, and lets others learn again."""
        for parameter in self._stopped:
            parameter.requires_grad_(True)
        self._stopped.clear()
        if stage.hints_alone:
            assert stage.hint_losses is not None
            parameters = dict(bare(self.student).named_parameters())
            self._stopped += [parameters[name] for name in stage.hint_losses.unreached]
        for parameter in self._stopped:
            parameter.requires_grad_(False)

    def step(self, number: int, batch: Batch) -> None:
        """The batch with this number in the epoch, forward and backward, and the optimizer's step where it is due."""
        stage, every = self._stage, self._optimization.accumulate
        step = self._local * self._steps + number
        set_learning_rate(self._optimizer, self._optimization.learning_rate(step, self._steps, stage.epochs))
        # The last optimizer step of an epoch may have fewer batches.
        first = number // every * every
        portion = Portion(batch.counts, number, first, min(first + every, self._steps), self.ranks)
        if self._graphed is not None and step > 0 and not self.settings.profile:
            values = self._graphed(batch, stage.objective.numbers(self._local))
        else:
            values = self._whole_step(batch, portion, first=step == 0)
        self._meter.add(values, portion.samples)
        self._step_lines.add(self._epoch * self._steps + number, values)
        self.watch.step()

    def _whole_step(self, batch: Batch, portion: Portion | None = None, *, first: bool = False) -> StepValues:
        """``portion``: what the batch is of the optimizer's step, None where it is all of it; ``first``: whether it is
        the first of its stage."""
        stage, watch = self._stage, self.watch
        due = portion is None or portion.number + 1 == portion.last
        gather = None if portion is None or self.ranks.alone else portion.gather
        with contextlib.nullcontext() if due or self.ranks.alone else self._module.no_sync():
            with watch.phase("forward"), autocast(self.device, self.settings.arithmetic.amp):
                outputs, hints = self._module(
                    batch.inputs, batch.targets.hints, batch.rows, batch.labels, batch.offsets, gather
                )
            with watch.phase("loss"):
                parts, learnt = self._losses(batch, outputs, hints, portion, gather)
            with watch.phase("backward"):
                self._scaler.scale(learnt).backward()
        if due:
            with watch.phase("optimizer"):
                self._update()
        if first:
            stage.objective.warn_of_dominance(parts, self._local)
        return StepValues.of(parts)

    def _losses(
        self,
        batch: Batch,
        outputs: dict[str, Tensor],
        hints: list[Tensor],
        portion: Portion | None,
        gather: Gather | None,
    ) -> tuple[LossValues, Tensor]:
        """What is written down of a batch, and what its backward pass begins with."""
        objective, alone = self._stage.objective, self._stage.hints_alone
        values = TermValues(hints=tuple(hints))
        if not alone:
            values = objective.values(
                outputs,
                batch.targets.outputs,
                batch.labels,
                batch.visible,
                batch.mixed,
                self._local,
                hints,
                batch.offsets,
                gather,
            )
        if portion is None or portion.whole:
            parts = objective.total(values, self._local, hints_alone=alone)
            return parts, parts.total
        reported, learnt = portion.reported(objective, batch.offsets), portion.learnt(objective, batch.offsets)
        parts = objective.total(values.times(reported), self._local, hints_alone=alone)
        return parts, objective.total(values.times(learnt), self._local, hints_alone=alone).total

    def _update(self) -> None:
        if self._optimization.clip_grad:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._optimizer.param_groups[0]["params"], self._optimization.clip_grad)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def end_steps(self, **seconds: float) -> None:
        """All batches of the epoch have come. ``seconds``: by name, for ``metrics.jsonl``.

        Errors: ``NumericsError`` where the loss is no number.
        """
        # Running means of batch norms are each rank's own until here. The student is evaluated and kept with those of
        # the first, and a training that goes on from a checkpoint is the same as one that wasn't disturbed.
        self.ranks.as_first([value for name, value in self._distiller.state_dict().items() if name in self._buffers])
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
        steps = self._step_lines.write()
        self.done = self._epoch + 1
        if self.ranks.first:
            self._write_line(line)
            save_checkpoint(
                self.folder,
                {
                    "epoch": self.done,
                    "student": self.student.state_dict(),
                    "hint_losses": [module.state_dict() for module in self._hint_losses],
                    "loss_modules": [module.state_dict() for module in self._loss_modules],
                    "optimizer": self._optimizer.state_dict(),
                    "scaler": self._scaler.state_dict(),
                    "lines": self.fitted.lines,
                },
            )
        # After the checkpoint, so that no epoch is told that a resumed training does again.
        self._told.epoch(line, steps)
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
        if self.ranks.first and (best is None or now > best[f"val_{leading}"]):
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


def _mix(seed: int, epoch: int, rank: int) -> int:
    return (seed * 1_000_003 + epoch + rank * 0x9E3779B97F4A7C15) & (2**63 - 1)
