"""What a loss is a mean over, so that means of parts of a batch can be put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Counted:
    """Of a batch's rows: all of them (``rows``), those with a label that may be used (``labels``), the numbers that
    their labels have (``task``); of a ``column`` in which rows have different numbers of places, the places
    (``places``), the rows that have any (``filled``), or those of them that have a label too (``labels``). Labels and
    numbers of places alone decide how many there are."""

    what: Literal["rows", "labels", "task", "places", "filled"]
    column: str | None = None


ROWS = Counted("rows")
# Tensors of this rank's part of a batch, with the given first axis → those of all ranks, in the order of the batch.
Gather = Callable[["torch.Tensor", Counted], "torch.Tensor"]
