"""Whose turn it is: learners of a cohort get each batch one after the other, and on a GPU compute side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from softcache.errors import SoftcacheError
from softcache.training.learner import Learner


class Turns:
    """``active``: the learners of an epoch that haven't failed.

    On a GPU each of several learners computes on a CUDA stream of its own: the kernels of a small network leave most of
    a GPU idle. Replays of recorded steps that draw random numbers would read each other's state there, so that all
    learners share one stream where one of them draws some.
    """

    def __init__(self, active: Sequence[Learner], device: torch.device, *, alone: bool):
        self.active = tuple(active)
        self._alone = alone
        several = len(active) > 1
        self._random = {learner: RandomState(device) for learner in active if several}
        cuda = several and device.type == "cuda"
        self._streams = {learner: torch.cuda.Stream(device) for learner in active if cuda}
        self._device = device

    @contextlib.contextmanager
    def turn(self, learner: Learner) -> Iterator[None]:
        """Within it a learner draws random numbers as if it were alone. Of several, one that fails leaves."""
        try:
            with contextlib.ExitStack() as own:
                if learner in self._random:
                    own.enter_context(self._random[learner].own())
                if learner in self._streams and not any(state.drew for state in self._random.values()):
                    stream = self._streams[learner]
                    stream.wait_stream(torch.cuda.current_stream(self._device))
                    own.enter_context(torch.cuda.stream(stream))
                yield
        except (SoftcacheError, RuntimeError) as error:
            if self._alone:
                raise
            learner.fail(error)
            self.active = tuple(other for other in self.active if other is not learner)

    def meet(self) -> None:
        """What comes now waits on the device for all that the learners have computed there."""
        for stream in self._streams.values():
            torch.cuda.current_stream(self._device).wait_stream(stream)


class RandomState:
    """The state of torch's generators of the CPU and of ``device``, apart from what anybody else does with them.
    ``drew``: whether random numbers were drawn on a GPU."""

    def __init__(self, device: torch.device):
        self._device = device
        self._kept: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self.drew = False

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Within it the generators go on where they were at the end of the last time."""
        if self._kept is not None:
            cpu, device = self._kept
            torch.set_rng_state(cpu)
            if device is not None:
                torch.cuda.set_rng_state(device, self._device)
        try:
            yield
        finally:
            now = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
            # The first time is the epoch's begin, which sets a seed.
            if self._kept is not None and now is not None and self._kept[1] is not None:
                self.drew = self.drew or not torch.equal(now, self._kept[1])
            self._kept = torch.get_rng_state(), now
