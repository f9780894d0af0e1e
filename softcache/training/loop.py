"""The training loop, to be read from top to bottom: batches of one stream, and the learners that learn from them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from softcache.console import bar
from softcache.models._sharing import sharing
from softcache.stream.batches import Batch, Stream
from softcache.stream.transfer import SideStream
from softcache.training.learner import Learner
from softcache.training.profiling import bottleneck
from softcache.training.scores import Scores
from softcache.training.stage import Fitted
from softcache.training.turns import Turns

log = logging.getLogger(__name__)

# Makes a stream of batches with the columns of the teacher that these names say.
StreamOf = Callable[[frozenset[str]], Stream]


def fit(
    learners: Sequence[Learner],
    stream_of: StreamOf,
    *,
    steps: int,
    device: torch.device,
    resume: bool = False,
) -> list[Fitted]:
    """Trains the learners from one stream of batches, each as if it were alone.

    ``steps``: batches an epoch. With ``resume`` each learner goes on from its checkpoint, if it has one.

    The same arguments give the same bits on the same machine, for a learner alone and in a cohort, undisturbed and
    resumed. Errors: where one learner is trained, ``NumericsError`` where the loss is no number at the end of an epoch;
    of several, one that fails leaves, and its ``Fitted.failure`` says why.
    """
    began, side = time.perf_counter(), SideStream(device)
    # The caller's own random numbers go on, after this, as if nothing had been trained.
    generators = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with generators, contextlib.ExitStack() as files:
        for learner in learners:
            learner.begin(files, steps=steps, resume=resume)
        first, total = min(learner.done for learner in learners), max(learner.total for learner in learners)
        shown = files.enter_context(bar("train", total * steps, "steps"))
        shown.advance(first * steps)
        students = [learner.student for learner in learners if not learner.settings.compiled]
        files.enter_context(sharing(students))
        streams = _Streams(learners, stream_of)
        for epoch in range(first, total):
            active = [one for one in learners if one.done <= epoch < one.total and one.fitted.failure is None]
            if not active:
                continue
            stream, cohort = streams.at(epoch), Turns(active, device, alone=len(learners) == 1)
            with contextlib.ExitStack() as watching:
                began_epoch, asked, waits = time.perf_counter(), stream.teacher_seconds, _Waits()
                for learner in cohort.active:
                    with cohort.turn(learner):
                        learner.begin_epoch(epoch, watching)
                for number, batch in enumerate(waits.timed(side.batches(stream.epoch(epoch)))):
                    for learner in cohort.active:
                        with cohort.turn(learner):
                            learner.step(number, batch)
                    cohort.meet()
                    shown.advance(1, f"epoch {epoch + 1}")
            epoch_s, teacher_s = time.perf_counter() - began_epoch, stream.teacher_seconds - asked
            for learner in cohort.active:
                with cohort.turn(learner):
                    own_s = epoch_s - learner.watch.overhead
                    learner.end_steps(epoch_s=own_s, data_s=waits.seconds, teacher_s=teacher_s)
            cohort.meet()
            looked_at = time.perf_counter()
            scores = _scores(cohort.active)
            eval_s = time.perf_counter() - looked_at
            for learner in cohort.active:
                with cohort.turn(learner):
                    learner.keep(scores[learner], eval_s)
    for learner in learners:
        learner.fitted.seconds = time.perf_counter() - began
    trained = [one for one in learners if len(one.fitted.lines) > one.begun_at]
    if trained:
        log.info(bottleneck(max((one.fitted.lines[one.begun_at :] for one in trained), key=len)))
    return [learner.fitted for learner in learners]


class _Streams:
    """The stream of each epoch, with what its learners read. What one that has ended read last is read on, so that
    targets aren't loaded anew for the others."""

    def __init__(self, learners: Sequence[Learner], stream_of: StreamOf):
        self._learners, self._stream_of = learners, stream_of
        self._made: tuple[frozenset[str], Stream] | None = None

    def at(self, epoch: int) -> Stream:
        columns = frozenset[str]().union(*(learner.columns(epoch) for learner in self._learners))
        if self._made is None or self._made[0] != columns:
            if self._made is not None:
                self._made[1].release()
            self._made = columns, self._stream_of(columns)
        return self._made[1]


class _Waits:
    """The time that the loop waits for batches."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The clock starts before a batch is asked for."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch


def _scores(learners: Sequence[Learner]) -> dict[Learner, Scores | None]:
    """What each student reaches. Those that are judged by the same inputs are judged from one stream of them."""
    found: dict[Learner, Scores | None] = dict.fromkeys(learners)
    judges = {id(learner.judge): learner.judge for learner in learners}
    for judge in judges.values():
        if judge is None:
            continue
        judged = [learner for learner in learners if learner.judge is judge]
        scores = judge([(learner.student, learner.settings.arithmetic.amp) for learner in judged])
        found |= dict(zip(judged, scores, strict=True))
    return found
