"""How students of a sweep do, epoch by epoch, and what one needs to have reached to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from softcache import strictjson
from softcache.sweeping.folder import ManyFolder, held_out
from softcache.sweeping.grid import Run
from softcache.training.metrics import METRICS

BEFORE_PRUNING = 5  # students that have been trained to the end


def bars(many: ManyFolder, before: Sequence[Run], begins: float, share: float = 0.5) -> dict[int, float]:
    """After so many epochs, what a ``share`` of the students of earlier rounds that were trained to the end had not
    reached by then, at their best. It depends on whole rounds alone, and so not on which student was quicker.
    ``begins``: the share of the epochs before which no student ends."""
    finished = [scores(many, run) for run in before if many.outcome(run.name).result is not None]
    if len(finished) < BEFORE_PRUNING or len({len(one) for one in finished}) != 1:
        return {}
    total = len(finished[0])
    return {
        epochs: float(np.quantile([max(one[:epochs]) for one in finished], share))
        for epochs in range(max(1, round(begins * total)), total)
    }


def scores(many: ManyFolder, run: Run) -> list[float]:
    """On the held-out rows, epoch by epoch."""
    return held_out(epochs_of(many, run))


def epochs_of(many: ManyFolder, run: Run) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, none where it hasn't trained."""
    path = many.run_folder(run.name) / METRICS
    return [strictjson.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
