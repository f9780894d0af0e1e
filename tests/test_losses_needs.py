"""A loss is given what it needs, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from softcache.losses.hints._spec import parse_hint
from softcache.training.hint_losses import HintLosses

OWN = """
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from softcache.losses import Need
from softcache.losses.hints import HintLoss


class Recorded(nn.Module):
    def __init__(self, built):
        super().__init__()
        self.built = built

    def forward(self, student, teacher, **given):
        self.given = given
        return student.sum()


@dataclass(frozen=True)
class Nothing(HintLoss):
    def build(self, student_shape, teacher_shape, **given):
        return Recorded(given)


@dataclass(frozen=True)
class Everything(Nothing):
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "positions", "row labels", "teacher classifier"})
"""


def test_positions_count_trained_rows_and_labels_are_those_of_the_batch(here: Path) -> None:
    """Rows 2, 5 and 7 of nine are trained on: row 7 is at position 2, whatever its place in the batch."""
    Path("own.py").write_text(OWN)
    rows, classifier = np.array([2, 5, 7]), torch.nn.Linear(3, 4)
    terms = [parse_hint(f"own.py:{name}:teacher=a,student=a") for name in ("Nothing", "Everything")]
    row_labels = torch.tensor([1, -1, 3])
    modules = [
        term.build([(3,)], [(3,)], row_count=3, classes=4, seed=5, row_labels=row_labels, teacher_classifier=classifier)
        for term in terms
    ]
    losses = HintLosses(terms, modules, rows, 9, 1)
    activations, labels = {"a": torch.ones(2, 3)}, torch.tensor([3, 1])
    assert [float(value) for value in losses(activations, activations, torch.tensor([7, 2]), labels)] == [6.0, 6.0]
    nothing, everything = (module.by_layer[0] for module in modules)
    assert nothing.built == {"row_count": 3, "classes": 4, "seed": 5}
    assert nothing.given == {}
    assert everything.built.keys() == {"row_count", "classes", "seed", "row_labels", "teacher_classifier"}
    assert everything.built["row_labels"] is row_labels
    assert everything.built["teacher_classifier"] is classifier
    assert {name: value.tolist() for name, value in everything.given.items()} == {"positions": [2, 0], "labels": [3, 1]}
