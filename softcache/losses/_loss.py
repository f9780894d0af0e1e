"""The contract of losses on outputs."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from softcache import registry
from softcache.losses._contract import Kind, Need, Scope, check_contract

if TYPE_CHECKING:
    import torch

    from softcache.losses._module import LossModule


class Loss(Protocol):
    """A loss on an output: a frozen dataclass whose fields are the options of its spec.

    A class that inherits from this one declares only what differs from the defaults. A class that doesn't inherit
    declares all of the class variables, and ``build``.

    formula: one line; source: the paper.
    example: options of ``softcache train`` with the weights of the paper.
    needs: see ``Need``. A loss that needs ``labels`` is a mean over the labelled samples of a batch, and 0 with a graph
        where there is none.
    scope: whether it is a mean over samples or relates the samples of a batch, see ``Scope``.
    kinds: of the outputs that it takes, see ``Kind``.
    default_alpha, default_beta: weights of the losses on outputs and of the hard-label loss where nobody says.
    default_weight, standardized_weight: text of a schedule; the second holds with ``standardize=true``, where it
        isn't None.
    default_T: None for a loss without a temperature.
    standardizes: whether ``standardize=true`` makes a difference.
    through_softmax: whether the teacher's logits are used only as ``softmax(z / T)``, of a binary output as
        ``sigmoid(z / T)``, so that logits of averaged probabilities can take their place. A property in a loss where
        its options decide (``rld``).
    least_classes: the smallest number of classes for which the loss says anything. The softmax over one class is 1,
        whatever the logit is.
    zero_for_perfect: whether the loss is 0 where student and teacher are equal.

    >>> from dataclasses import dataclass
    >>> import torch
    >>> @dataclass(frozen=True)
    ... class L1(Loss):
    ...     formula = "scale · mean |z_s - z_t|"
    ...     scale: float = 1.0
    ...
    ...     def __call__(self, student, teacher, T, labels=None):
    ...         return self.scale * (student - teacher).abs().mean()
    >>> L1(scale=2.0)(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), T=1.0)
    tensor(4.)
    """

    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    example: ClassVar[str] = ""
    scope: ClassVar[Scope] = "samples"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})
    needs: ClassVar[frozenset[Need]] = frozenset()
    default_alpha: ClassVar[float] = 1.0
    default_beta: ClassVar[float] = 1.0
    default_weight: ClassVar[str] = "1"
    standardized_weight: ClassVar[str | None] = None
    default_T: ClassVar[float | None] = None
    standardizes: ClassVar[bool] = True
    through_softmax: ClassVar[bool] = False
    least_classes: ClassVar[int] = 2
    zero_for_perfect: ClassVar[bool] = False
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def build(self, *, classes: int, seed: int) -> LossModule | None:
        """The module that is trained beside the student and called in the loss's place, on the CPU in float32; None for
        a loss without parameters.

        ``classes``: how many numbers a vector of the output has. ``seed``: of the module's initial parameters.
        """
        return None

    def target_T(self, T: float) -> float:
        """The temperature at which it looks at the teacher's softmax, when it is called with ``T``. Where a cache keeps
        the largest logits alone (``Leaders``), it is given what all others weigh at this one."""
        return 1.0 if self.default_T is None else T

    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Outputs (B, C) of student and teacher, the temperature, labels (B,) int64 with -1 for none → a scalar.

        B counts samples or, of an output with positions, positions; with ``vectors`` in ``needs``, samples.
        """
        ...


def loss_type(name: str) -> type[Loss]:
    """The class of a loss on outputs.

    Errors: ``UsageError`` where no loss has this name, and for a class that doesn't keep the contract.

    >>> loss_type("kl").default_T
    4.0
    """
    found = registry.component("losses", name)
    check_contract(found, Loss, "__call__", f"loss {name!r}")
    return typing.cast(type[Loss], found)
