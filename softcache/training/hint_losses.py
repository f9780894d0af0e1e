"""Hint losses in a training: the watched layers, the modules that are trained beside the student, and their values."""

from __future__ import annotations

import contextlib
import logging
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softcache import registry
from softcache.cache.schema import hint_column, share_of
from softcache.console import size
from softcache.errors import ModelError, UsageError
from softcache.fields import Inputs
from softcache.losses._counted import ROWS, Counted, Gather
from softcache.losses.hints._hint_loss import hint_loss_type
from softcache.losses.hints._shapes import Shape
from softcache.losses.hints._spec import HintModule, HintTerm
from softcache.models._hooks import Taps, classifier_path, find_module, takes_input
from softcache.models._network import Network
from softcache.models._through import Through
from softcache.ragged import Int64, Offsets, counts_of, on_device, own_places, row_means

log = logging.getLogger(__name__)
REGRESSORS_FILE = "regressors.safetensors"


class HintLosses(nn.Module):
    """The hint terms of a run, with their modules (regressors, variances, memory banks) in ``by_term``.

    ``rows``: the rows of the dataset that are trained on, of ``total``. A module with a memory has one entry for each
    of them, in this order; of a layer of the teacher that is kept for a share of the rows, for each of ``kept``, the
    rows of this share that are trained on. ``events``: how often the watched layers run in one forward pass;
    ``unreached``: the student's parameters that no watched layer depends on, by name.
    """

    def __init__(
        self,
        terms: Sequence[HintTerm],
        modules: Sequence[HintModule],
        rows: np.ndarray,
        total: int,
        events: int,
        unreached: Sequence[str] = (),
        kept: Mapping[float, np.ndarray] = MappingProxyType({}),
    ):
        super().__init__()
        self.terms = tuple(terms)
        self.by_term = nn.ModuleList(modules)
        self.events = events
        self.unreached = tuple(unreached)
        self._positions: dict[float | None, str] = {}
        rows_of: list[tuple[float | None, np.ndarray]] = [(None, rows), *kept.items()]
        for number, (share, some) in enumerate(rows_of):
            position_of_row = torch.full((total,), -1, dtype=torch.int64)
            position_of_row[torch.from_numpy(some)] = torch.arange(len(some))
            self._positions[share] = f"position_of_row_{number}"
            self.register_buffer(self._positions[share], position_of_row, persistent=False)

    @property
    def layers(self) -> list[str]:
        """The student's layers that are watched."""
        return watched(self.terms)

    def forward(
        self,
        taps: Mapping[str, Tensor],
        hints: Mapping[str, Tensor],
        rows: Tensor,
        labels: Tensor,
        offsets: Offsets = MappingProxyType({}),
        gather: Gather | None = None,
    ) -> Any:
        """The loss of each term, not weighted: a list of scalars.

        ``taps``, ``hints``: activations of the student and of the teacher by layer, batch first; those of the teacher
        whose rows have different numbers of places, which ``offsets`` names by their columns, (P, …) end to end.
        ``rows`` (B,) int64: rows of the dataset. ``labels`` (B,) int64, -1 for a sample without a label that may be
        used. ``gather``: where other ranks have parts of the batch, for losses whose scope is the batch.
        """
        values = []
        for term, module in zip(self.terms, self.by_term, strict=True):
            student, teacher = [taps[layer] for layer in term.student], [hints[layer] for layer in term.teacher]
            built, column = typing.cast(HintModule, module), hint_column(term.teacher[0])
            offset, share = offsets.get(column), share_of(column)
            positions = self.get_buffer(self._positions[share]).index_select(0, rows)
            given = _Given(student, teacher, positions, labels)
            if share is not None:
                given = _of_share(given, offsets[column])
            elif offset is not None:
                given = _of_lengths(term, given, offset)
            if gather is not None and term.loss.scope == "batch":
                counted = term.counted(None if offset is None else column, of_rows=share is not None)
                given = given.gathered(gather, counted)
            if len(given.student[0]):
                values.append(
                    term.value(built, given.student, given.teacher, positions=given.positions, labels=given.labels)
                )
            else:  # no row has a place
                values.append(_zero([*student, *built.parameters()]))
        return values

    @contextlib.contextmanager
    def watching(self, student: Network, *, stop: bool = False) -> Iterator[Taps]:
        """Catches the student's activations; with ``stop``, ``Reached`` ends a forward pass after the last of them."""
        model, layers = bare(student), self.layers
        with Taps(model, layers) as taps, _events(model, layers, self.events if stop else None):
            yield taps


@dataclass(frozen=True)
class _Given:
    """What a hint loss is given of a batch: activations of both sides, one a layer, positions and labels (B,)."""

    student: Sequence[Tensor]
    teacher: Sequence[Tensor]
    positions: Tensor
    labels: Tensor

    def gathered(self, gather: Gather, counted: Counted) -> _Given:
        """Of all ranks. ``counted``: what the activations have one of."""
        of_rows = ROWS if counted.what == "places" else counted
        student, teacher = [[gather(x, counted) for x in side] for side in (self.student, self.teacher)]
        return _Given(student, teacher, gather(self.positions, of_rows), gather(self.labels, of_rows))


def _of_lengths(term: HintTerm, given: _Given, offset: Int64) -> _Given:
    """Of rows that have lengths of their own, their places, or the means over those of each row that has any.
    ``given``: layers (B, L, …) of the student, (P, …) of the teacher."""
    counts = counts_of(offset)
    ours = [own_places(x, counts, f"the student's layer {y}") for x, y in zip(given.student, term.student, strict=True)]
    if term.loss.of_lengths != "rows":
        return replace(given, student=ours)
    there = on_device(np.flatnonzero(counts), given.positions.device)
    return _Given(
        [row_means(x, offset) for x in ours],
        [row_means(x, offset) for x in given.teacher],
        given.positions.index_select(0, there),
        given.labels.index_select(0, there),
    )


def _of_share(given: _Given, offset: Int64) -> _Given:
    """Of a batch of which the teacher's layers (R, …) have some rows, the same rows of the student's (B, …)."""
    there = np.flatnonzero(counts_of(offset))
    if len(there) == len(given.positions):
        return given
    at = on_device(there, given.positions.device)
    student = [x.index_select(0, at) for x in given.student]
    return _Given(student, given.teacher, given.positions.index_select(0, at), given.labels.index_select(0, at))


def _zero(tensors: Sequence[Tensor]) -> Tensor:
    """0 with a graph in which each of these has the gradient 0. Without one, optimizers would leave parameters out of a
    step, and fused ones fail where some of them have no momentum yet."""
    nothing = [tensor.flatten()[:0] for tensor in tensors]  # whose sum is 0, whatever the numbers are
    total = torch.zeros((), device=tensors[0].device)
    for empty in nothing:
        total = total + empty.sum(dtype=torch.promote_types(empty.dtype, torch.float32))
    return total


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


def probe(student: Network, layers: Sequence[str], inputs: Inputs) -> tuple[dict[str, tuple[int, ...]], int, list[str]]:
    """Shapes of a student's layers without the batch, how often they run in one forward pass, and the names of the
    parameters that none of them depends on.

    ``inputs``: any. Errors: ``ModelError`` with the nearest names for a layer that doesn't exist.
    """
    was_training, model = student.training, bare(student)
    student.eval()
    try:
        with torch.enable_grad(), Taps(model, layers) as taps, _events(model, layers, None) as counted:
            student(inputs)
        reached = _leaves([taps[layer] for layer in layers])
        unreached = [name for name, own in model.named_parameters() if own.requires_grad and id(own) not in reached]
        return {layer: tuple(taps[layer].shape[1:]) for layer in layers}, counted[0], unreached
    finally:
        student.train(was_training)


def _leaves(tensors: Sequence[Tensor]) -> set[int]:
    """The ids of the parameters that tensors were computed from."""
    seen: set[Any] = set()
    found: set[int] = set()
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # where the gradient of a parameter is added up
            found.add(id(node.variable))
        waiting += [before for before, _ in node.next_functions]
    return found


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
        register = module.register_forward_pre_hook if takes_input(layer) else module.register_forward_hook
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
    places: Mapping[str, Int64] = MappingProxyType({}),
    sampled: Sequence[int] = (),
) -> HintLosses:
    """Builds the modules of all hint terms; one that replaces the logits (``simkd``) wraps the student's architecture.

    ``inputs``: those of some rows (``sampled``), from which the shapes of the student's layers are found.
    ``teacher_shapes``: returns the shapes of the teacher's layers without the batch. ``places``: of the teacher's
    layers in which rows have different numbers of places, by the names of their columns, (N,) how many each row has;
    their shapes are those of a place. ``rows``: the rows of the dataset that are trained on. ``visible`` (N,): labels
    of all rows of the dataset, -1 for those that may not be used. ``teacher``: for terms that need its classifier.
    Errors: ``ModelError`` for a layer that the student doesn't have, ``UsageError`` for shapes that a loss can't use,
    and where no row is trained on that a layer of the teacher is kept for.
    """
    shapes, events, unreached = probe(network, watched(terms), inputs)
    modules: list[HintModule] = []
    kept: dict[float, np.ndarray] = {}
    for term in terms:
        share, some = _share(term), rows
        lengths = [places.get(hint_column(layer)) for layer in term.teacher] if share is None else []
        if any(of_layer is not None for of_layer in lengths):
            _refuse_lengths(term, lengths, shapes, np.asarray(sampled, np.int64))
        if share is not None:
            some = kept[share] = _kept(term, rows, places)
        classifier = _classifier(term, teacher) if "teacher classifier" in term.needs else None
        bank = term.loss.bank_bytes(len(some))
        if bank:
            log.info(f"hint loss {term.name!r} keeps {size(bank)} of memory banks for {len(some):,} rows")
        module = term.build(
            [shapes[layer][1:] if any(x is not None for x in lengths) else shapes[layer] for layer in term.student],
            teacher_shapes(term.teacher),
            row_count=len(some),
            classes=classes,
            seed=seed,
            row_labels=torch.from_numpy(visible[some].astype(np.int64)),
            teacher_classifier=classifier,
        )
        if term.replaces_logits:
            assert classifier is not None, f"hint loss {term.name!r} replaces logits without a classifier"
            learning: Any = module.by_layer[-1]
            network.model = Through(network.model, term.student[0], learning.projector, classifier, size=learning.size)
        modules.append(module)
    return HintLosses(terms, modules, rows, len(visible), events, unreached, kept)


def _share(term: HintTerm) -> float | None:
    """The share of the rows that a term's layers of the teacher are kept for; None where they are for all of them.

    Errors: ``UsageError`` for layers of different shares.
    """
    shares = {share_of(hint_column(layer)) for layer in term.teacher}
    if len(shares) > 1:
        raise UsageError(
            f"hint loss {str(term)!r} compares layers that are kept for different rows: name layers with the same "
            "rows=, or write one --hint for each of them"
        )
    return shares.pop()


def _kept(term: HintTerm, rows: np.ndarray, places: Mapping[str, Int64]) -> np.ndarray:
    """Of the ``rows`` that are trained on those that a term's layers are kept for.

    Errors: ``UsageError`` where there are none.
    """
    found = rows[places[hint_column(term.teacher[0])][rows] > 0]
    if not len(found):
        raise UsageError(
            f"hint loss {str(term)!r}: of the {len(rows):,} rows that are trained on none is kept in "
            f"{term.teacher[0]!r}: keep a larger share"
        )
    return found


def _refuse_lengths(
    term: HintTerm, lengths: Sequence[Int64 | None], shapes: Mapping[str, tuple[int, ...]], sampled: np.ndarray
) -> None:
    """Errors: ``UsageError`` where a hint loss can't compare rows that have lengths of their own, and where the student
    has other places. ``lengths``: (N,) how many places each row has in the teacher's layers; ``shapes``: of the
    student's layers, of the rows ``sampled``."""
    if term.loss.of_lengths not in ("places", "rows"):
        able = [name for name in registry.names("losses.hints") if hint_loss_type(name).of_lengths is not None]
        raise UsageError(
            f"hint loss {str(term)!r} takes no layers whose rows have lengths of their own, such as "
            f"{term.teacher[0]!r}: those that do are {', '.join(able)}"
        )
    first = lengths[0]
    if first is None or any(of_layer is None or not np.array_equal(of_layer, first) for of_layer in lengths):
        raise UsageError(
            f"hint loss {str(term)!r} compares layers that have other places each: write one --hint for each of them"
        )
    longest = max(1, int(first[sampled].max()))
    for layer in term.student:
        if shapes[layer][:1] != (longest,):
            raise UsageError(
                f"hint loss {str(term)!r}: the student's layer {layer!r} gives {shapes[layer]} for a row that has "
                f"{longest} places in the teacher's layer: name one with as many"
            )


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
