"""Hint losses in a training: the watched layers, the modules that are trained beside the student, and their values."""

from __future__ import annotations

import contextlib
import logging
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softcache.console import size
from softcache.errors import ModelError
from softcache.fields import Inputs
from softcache.losses.hints._shapes import Shape
from softcache.losses.hints._spec import HintModule, HintTerm
from softcache.models._hooks import Taps, classifier_path, find_module
from softcache.models._network import Network
from softcache.models._through import Through

log = logging.getLogger(__name__)
REGRESSORS_FILE = "regressors.safetensors"


class HintLosses(nn.Module):
    """The hint terms of a run, with their modules (regressors, variances, memory banks) in ``by_term``.

    ``rows``: the rows of the dataset that are trained on, of ``total``. A module with a memory has one entry for each
    of them, in this order. ``events``: how often the watched layers run in one forward pass.
    """

    def __init__(
        self, terms: Sequence[HintTerm], modules: Sequence[HintModule], rows: np.ndarray, total: int, events: int
    ):
        super().__init__()
        self.terms = tuple(terms)
        self.by_term = nn.ModuleList(modules)
        self.events = events
        position_of_row = torch.full((total,), -1, dtype=torch.int64)
        position_of_row[torch.from_numpy(rows)] = torch.arange(len(rows))
        self.position_of_row: Tensor
        self.register_buffer("position_of_row", position_of_row, persistent=False)

    @property
    def layers(self) -> list[str]:
        """The student's layers that are watched."""
        return watched(self.terms)

    def forward(self, taps: Mapping[str, Tensor], hints: Mapping[str, Tensor], rows: Tensor, labels: Tensor) -> Any:
        """The loss of each term, not weighted: a list of scalars.

        ``taps``, ``hints``: activations of the student and of the teacher by layer, batch first. ``rows`` (B,) int64:
        rows of the dataset. ``labels`` (B,) int64, -1 for a sample without a label that may be used.
        """
        positions = self.position_of_row.index_select(0, rows)
        values = []
        for term, module in zip(self.terms, self.by_term, strict=True):
            student, teacher = [taps[layer] for layer in term.student], [hints[layer] for layer in term.teacher]
            built = typing.cast(HintModule, module)
            values.append(term.value(built, student, teacher, positions=positions, labels=labels))
        return values

    @contextlib.contextmanager
    def watching(self, student: Network, *, stop: bool = False) -> Iterator[Taps]:
        """Catches the student's activations; with ``stop``, ``Reached`` ends a forward pass after the last of them."""
        model, layers = bare(student), self.layers
        with Taps(model, layers) as taps, _events(model, layers, self.events if stop else None):
            yield taps


class Reached(Exception):
    """The last watched layer has run, so the rest of the forward pass is not needed."""


def run_up_to(student: Network, inputs: Inputs) -> None:
    """A forward pass under ``HintLosses.watching(stop=True)``: no module after the last watched one runs."""
    with contextlib.suppress(Reached):
        student(inputs)


def bare(student: Network) -> nn.Module:
    """The architecture whose layers are named, without the wrapper that ``simkd`` adds."""
    return student.model.backbone if isinstance(student.model, Through) else student.model


def watched(terms: Sequence[HintTerm]) -> list[str]:
    return sorted({layer for term in terms for layer in term.student})


@torch.no_grad()
def probe(student: Network, layers: Sequence[str], inputs: Inputs) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes of a student's layers without the batch, and how often they run in one forward pass.

    ``inputs``: any. Errors: ``ModelError`` with the nearest names for a layer that doesn't exist.
    """
    was_training = student.training
    student.eval()
    try:
        with Taps(bare(student), layers) as taps, _events(bare(student), layers, None) as counted:
            student(inputs)
        return {layer: tuple(taps[layer].shape[1:]) for layer in layers}, counted[0]
    finally:
        student.train(was_training)


@contextlib.contextmanager
def _events(model: nn.Module, layers: Sequence[str], stop_at: int | None) -> Iterator[list[int]]:
    """Counts runs of layers; raises ``Reached`` at the one with number ``stop_at`` of each forward pass."""
    counted = [0]

    def count(*_: Any) -> None:
        counted[0] += 1
        if counted[0] == stop_at:
            counted[0] = 0
            raise Reached

    handles = []
    for layer in layers:
        module = find_module(model, layer)
        register = module.register_forward_pre_hook if layer.endswith(":in") else module.register_forward_hook
        handles.append(register(count))
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


def build_hint_losses(
    network: Network,
    terms: Sequence[HintTerm],
    inputs: Inputs,
    teacher_shapes: Callable[[Sequence[str]], Sequence[Shape]],
    rows: np.ndarray,
    visible: np.ndarray,
    *,
    classes: int,
    seed: int,
    teacher: Network | None = None,
) -> HintLosses:
    """Builds the modules of all hint terms; one that replaces the logits (``simkd``) wraps the student's architecture.

    ``inputs``: any, from which the shapes of the student's layers are found.
    ``teacher_shapes``: returns the shapes of the teacher's layers without the batch. ``rows``: the rows of the dataset
    that are trained on. ``visible`` (N,): labels of all rows of the dataset, -1 for those that may not be used.
    ``teacher``: for terms that need its classifier.
    Errors: ``ModelError`` for a layer that the student doesn't have, ``UsageError`` for shapes that a loss can't use.
    """
    shapes, events = probe(network, watched(terms), inputs)
    modules: list[HintModule] = []
    for term in terms:
        classifier = _classifier(term, teacher) if "teacher classifier" in term.needs else None
        bank = term.loss.bank_bytes(len(rows))
        if bank:
            log.info(f"hint loss {term.name!r} keeps {size(bank)} of memory banks for {len(rows):,} rows")
        module = term.build(
            [shapes[layer] for layer in term.student],
            teacher_shapes(term.teacher),
            row_count=len(rows),
            classes=classes,
            seed=seed,
            row_labels=torch.from_numpy(visible[rows].astype(np.int64)),
            teacher_classifier=classifier,
        )
        if term.replaces_logits:
            assert classifier is not None, f"hint loss {term.name!r} replaces logits without a classifier"
            learning: Any = module.by_layer[-1]
            network.model = Through(network.model, term.student[0], learning.projector, classifier, size=learning.size)
        modules.append(module)
    return HintLosses(terms, modules, rows, len(visible), events)


def _classifier(term: HintTerm, teacher: Network | None) -> nn.Linear:
    """A copy of the layer that makes the teacher's logits."""
    assert teacher is not None
    path = classifier_path(teacher.model, teacher.classes)
    found = teacher.model.get_submodule(path)
    if not isinstance(found, nn.Linear):
        raise ModelError(f"hint loss {term.name!r} needs a linear classifier, {path} of the teacher is {found}")
    copied = nn.Linear(found.in_features, found.out_features, bias=found.bias is not None)
    copied.load_state_dict(found.state_dict())
    return copied
