"""``softcache.Keys`` in a transformers Trainer and in Lightning: each epoch has the keys of ``softcache train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from harness_examples import example
from harness_train import make_cache, make_teacher
from torch import nn

from softcache.stages.keys import Keys
from softcache.stream.plan import Plan


@pytest.fixture
def cache(here: Path) -> Path:
    make_teacher(here / "teacher")
    return make_cache(here / "caches" / "digits", here / "teacher")


def tiny(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))


LOOPS = [("own_trainer", ("transformers", "accelerate")), ("own_lightning", ("lightning",))]


@pytest.mark.parametrize(("name", "needs"), LOOPS)
@pytest.mark.filterwarnings("default")  # what these libraries warn of is theirs
def test_each_epoch_has_its_keys(
    name: str, needs: tuple[str, ...], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in needs:
        pytest.importorskip(package, reason=f"needs {package}, of the extra [loops]")
    read: list[tuple[int, np.ndarray]] = []
    in_view = Keys._in_view

    def watched(self: Keys, rows: np.ndarray, view: int) -> Any:
        read.append((view, rows))
        return in_view(self, rows, view)

    monkeypatch.setattr(Keys, "_in_view", watched)
    monkeypatch.setattr("torchvision.models.resnet18", tiny)  # the keys are the same, and it is done in seconds
    done = CliRunner().invoke(
        example(name).main, ["--epochs", "3", "--batch-size", "256", "--workers", "0"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    keys = Keys(cache)
    plan = Plan(np.arange(len(keys.viewed)), 256, 0, 2)
    expected = [(part.views[0], part.rows) for epoch in range(3) for (part,) in plan.batches(epoch)]
    assert [view for view, _ in read] == [view for view, _ in expected]
    assert all(np.array_equal(ours, theirs) for (_, ours), (_, theirs) in zip(read, expected, strict=True))
