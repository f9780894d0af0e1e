"""What a learner is given, stage by stage, and what its training comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from softcache.errors import SoftcacheError
from softcache.models._arithmetic import Arithmetic
from softcache.training.hint_losses import HintLosses
from softcache.training.objective import Objective
from softcache.training.optimization import Optimization
from softcache.training.scores import Scores


@dataclass
class Fitted:
    """What a training came to. ``lines`` are those of ``metrics.jsonl``, one an epoch; ``seconds`` all of it in this
    process; ``test`` the last epoch's scores, if this process trained it and it was looked at. ``leading``: the number
    that chooses the best epoch, by its name; the higher the better. ``failure``: why it ended early, in a cohort."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    test: Scores | None = None
    leading: str = "top1"
    failure: SoftcacheError | None = None

    def best(self) -> dict[str, Any] | None:
        """The line of the epoch with the highest number on the validation rows, the first of equals."""
        name = f"val_{self.leading}"
        validated = [line for line in self.lines if line.get(name) is not None]
        return max(validated, key=lambda line: line[name]) if validated else None


@dataclass(frozen=True)
class Stage:
    """Some epochs that share a loss and a course of the learning rate.

    ``hint_losses``: hint losses of this stage. ``hints_alone``: nothing after the guided layers is run or trained.
    ``columns``: what is read of the teacher, outputs and hints by the names of their columns.
    """

    objective: Objective
    epochs: int
    hint_losses: HintLosses | None = None
    hints_alone: bool = False
    columns: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Settings:
    """How a learner is trained, beside its loss. ``seed``: of dropout and the like.
    ``cuda_graphs``: whether steps are recorded and replayed (``training.graph``). ``profile``: trace an epoch.
    ``log_every``: steps between lines of ``steps.jsonl``, 0 for none. ``leading``: of the scores, the number that
    chooses the best epoch."""

    optimization: Optimization
    arithmetic: Arithmetic
    seed: int = 0
    compiled: bool = False
    cuda_graphs: bool = False
    profile: bool = False
    log_every: int = 0
    leading: str = "top1"
