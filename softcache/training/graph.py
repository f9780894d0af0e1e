"""Training steps as CUDA graphs: the host launches one graph a step in place of some hundred kernels.

A step of a small network has more kernels than a host can launch in the time that a GPU needs for them. A step that is
recorded once is replayed with the next batches, by the same kernels and so to the same bits. What the host itself does
in a step is done only when it is recorded: numbers that change over the epochs are part of what is compared before each
replay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

from softcache.stream.batches import Batch

log = logging.getLogger(__name__)
Said = TypeVar("Said")

UNRECORDED = 3  # steps before a recording, in which libraries choose algorithms and optimizers make their state


class GraphedStep(Generic[Said]):
    """``step``: forward, backward and the optimizer's step for a batch; returns tensors, in whatever holds them. It
    must not wait for the device.

    ``cuda``: where graphs come from, ``torch.cuda``, or in tests a fake of it.
    """

    def __init__(self, step: Callable[[Batch], Said], *, cuda: Any = torch.cuda):
        self._step, self._cuda = step, cuda
        self._graph: Any = None
        self._key: Hashable = None  # of what was recorded or is about to be
        self._seen = 0
        self._held: list[torch.Tensor] = []  # the recorded step reads its batch from these
        self._said: Said | None = None
        self.off = False

    def __call__(self, batch: Batch, numbers: Hashable) -> Said:
        """What ``step`` returns for the batch; its tensors are overwritten by the next step. ``numbers``: all that the
        host brings into a step."""
        if self.off or not batch.fixed:
            return self._step(batch)
        tensors = _tensors(batch)
        key = numbers, tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if key != self._key:
            # A last batch that is smaller leaves the recording of the others as it is.
            if self._graph is not None and self._key is not None and key[0] == self._key[0]:  # type: ignore[index]
                return self._step(batch)
            self._graph, self._key, self._seen = None, key, 0
        if self._graph is None:
            if self._seen < UNRECORDED:
                self._seen += 1
                return self._step(batch)
            if not self._record(batch):
                return self._step(batch)
        for held, tensor in zip(self._held, tensors, strict=True):
            held.copy_(tensor)
        self._graph.replay()
        assert self._said is not None
        return self._said

    def _record(self, batch: Batch) -> bool:
        """Whether the step could be recorded. Nothing is computed by that."""
        static = batch.each(torch.clone)
        self._held = _tensors(static)
        graph = self._cuda.CUDAGraph()
        try:
            # The threads of a DataLoader pin memory meanwhile, which may go on.
            with self._cuda.graph(graph, capture_error_mode="thread_local"):
                self._said = self._step(static)
        except RuntimeError as error:
            # What the step itself raised says more than the end of the recording.
            cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            log.warning(
                f"steps are launched kernel by kernel: one can't be recorded as a CUDA graph "
                f"({' '.join(str(cause).split())[:160]}); --no-cuda-graphs leaves that out"
            )
            self.off, self._held, self._said = True, [], None
            return False
        self._graph = graph
        return True


def _tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    batch.each(keep)
    return found
