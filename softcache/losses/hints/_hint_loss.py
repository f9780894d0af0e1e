"""The contract of losses on activations."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from softcache import registry
from softcache.losses._contract import Need, Scope, check_contract

if TYPE_CHECKING:
    from torch import nn


class HintLoss(Protocol):
    """A loss on activations: a frozen dataclass whose fields are the options of its spec.

    A class that inherits from this one declares only what differs from the defaults. A class that doesn't inherit
    declares all of the class variables, and ``bank_bytes``.

    formula: one line; source: the paper.
    example: options of ``softcache train`` with the weights of the paper.
    scope: whether it is a mean over samples (or places) or relates the samples of a batch, see ``Scope``.
    needs: see ``Need``; empty for a loss that takes activations of any shape and nothing else.
    default_weight: text of a schedule.
    zero_for_perfect: whether the loss is 0 where student and teacher have the same activations.
    of_lengths: how activations are compared where rows have lengths of their own: ``places``, as if each place of a row
        were a sample; ``rows``, the mean over each row's places as one vector; None where they can't be.
    several: whether one module compares all layers of a spec: then ``build`` and the module take a list with one entry
        a layer. Otherwise each pair of layers gets a module of its own, and their losses are summed.
    replaces_logits: whether the student answers through the module's ``projector`` and the teacher's classifier, on
        maps pooled to the module's ``size`` (H, W).

    >>> from dataclasses import dataclass
    >>> import torch
    >>> class MeanSquare(torch.nn.Module):
    ...     def forward(self, student, teacher):
    ...         return (student - teacher).square().mean()
    >>> @dataclass(frozen=True)
    ... class L2(HintLoss):
    ...     formula = "mean (f_s - f_t)²"
    ...
    ...     def build(self, student_shape, teacher_shape, *, row_count, classes, seed):
    ...         return MeanSquare()
    >>> L2().build((2,), (2,), row_count=9, classes=3, seed=0)(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
    tensor(5.)
    """

    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    example: ClassVar[str] = ""
    scope: ClassVar[Scope] = "samples"
    needs: ClassVar[frozenset[Need]] = frozenset()
    default_weight: ClassVar[str] = "1"
    zero_for_perfect: ClassVar[bool] = False
    of_lengths: ClassVar[Literal["places", "rows"] | None] = None
    several: ClassVar[bool] = False
    replaces_logits: ClassVar[bool] = False
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def bank_bytes(self, row_count: int) -> int:
        """Bytes that ``build`` allocates for a memory of all rows, so that they can be reported before."""
        return 0

    def build(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The module that is trained beside the student, on the CPU in float32.

        Called as ``build(student_shape, teacher_shape, row_count=…, classes=…, seed=…)``: shapes of the activations
        without the batch, the number of rows that are trained on, the number of classes, and the seed of the module's
        initial parameters. A loss that needs ``row labels`` is also given ``row_labels``, one that needs
        ``teacher classifier`` is given ``teacher_classifier``.

        The module is called as ``module(student, teacher)`` with activations, batch first, and returns a scalar. It is
        also given ``positions`` and ``labels`` where the loss needs those.

        Errors: ``UsageError`` for shapes or values that the loss can't use.
        """
        ...


def hint_loss_type(name: str) -> type[HintLoss]:
    """The class of a loss on activations.

    Errors: ``UsageError`` where no hint loss has this name, and for a class that doesn't keep the contract.

    >>> hint_loss_type("at").default_weight
    '1000'
    """
    found = registry.component("losses.hints", name)
    check_contract(found, HintLoss, "build", f"hint loss {name!r}")
    return typing.cast(type[HintLoss], found)
