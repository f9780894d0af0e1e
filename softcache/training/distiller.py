"""All that the loss's gradient flows through as one module: the student, its hint losses, what other losses train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from softcache.cache.schema import LOGITS
from softcache.fields import Inputs
from softcache.losses._counted import Gather
from softcache.models._hooks import Taps
from softcache.models._network import Network
from softcache.ragged import Offsets, counts_of, own_places
from softcache.training.hint_losses import HintLosses, run_up_to
from softcache.training.loss_modules import LossModules


class Distiller(nn.Module):
    """``outputs``: names of the student's outputs that are read; none where ``hints_alone`` ends its forward pass after
    the last guided layer. ``classifies``: whether logits are one vector a sample. ``compiled``: whether the student
    runs through ``torch.compile``. ``loss_modules``: those of losses on outputs. They are trained as a part of it, and
    the objective calls them."""

    def __init__(
        self,
        student: Network,
        hint_losses: HintLosses | None,
        outputs: Sequence[str],
        *,
        hints_alone: bool = False,
        classifies: bool = True,
        compiled: bool = False,
        loss_modules: LossModules | None = None,
    ):
        super().__init__()
        self.student = student
        self.hint_losses = hint_losses
        self.loss_modules = loss_modules
        self.outputs = list(outputs)
        self.hints_alone = hints_alone
        self._taps: Taps | None = None
        # The network itself gives such logits, and is more easily compiled than ``outputs``, which gives several.
        self._itself = classifies and self.outputs == [LOGITS]
        bare: Any = student if self._itself else student.outputs
        self._run = torch.compile(bare) if compiled else bare

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within it the student's guided layers are listened to. A forward pass with hint losses needs it; evaluation
        goes without."""
        if self.hint_losses is None:
            yield
            return
        with self.hint_losses.watching(self.student, stop=self.hints_alone) as taps:
            self._taps = taps
            yield

    def forward(
        self,
        inputs: Inputs,
        hints: Mapping[str, Tensor] = MappingProxyType({}),
        rows: Tensor | None = None,
        labels: Tensor | None = None,
        offsets: Offsets = MappingProxyType({}),
        gather: Gather | None = None,
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The student's outputs by name, (B, …), and the values of the hint losses, not weighted.

        ``hints``, ``rows``, ``labels``: as ``HintLosses`` takes them. ``offsets``: of columns whose rows have lengths
        of their own, where each row's places begin; such outputs are (P, …), the rows' own places end to end.
        ``gather``: where other ranks have parts of the batch.
        """
        outputs: dict[str, Tensor] = {}
        if self.hints_alone:
            run_up_to(self.student, inputs)
        else:
            outputs = {LOGITS: self._run(inputs)} if self._itself else self._run(inputs, self.outputs)
        for name in offsets.keys() & outputs.keys():
            outputs[name] = own_places(outputs[name], counts_of(offsets[name]), f"the student's output {name!r}")
        if self.hint_losses is None:
            return outputs, []
        assert self._taps is not None, "hint losses are computed under watching()"
        values = self.hint_losses(self._taps, hints, rows, labels, offsets, gather)
        # Otherwise this step's graph would live on into the next, which can't be recorded then (training.graph).
        self._taps.clear()
        return outputs, values
