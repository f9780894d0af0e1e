"""A short training of a network whose batch norms follow slowly is warned of."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_train import command
from torch import nn

from softcache.models._norms import warn_of_slow_norms
from softcache.models._open import open_network


def network(momentum: float | None, *, tracked: bool = True) -> Any:
    found = open_network("cifar:resnet8", classes=10, statistics=((0.3,), (0.2,)), seed=0)
    norm = nn.BatchNorm2d(2, track_running_stats=tracked)
    norm.momentum = momentum
    found.model.extra = norm
    return found


@pytest.mark.parametrize(
    ("momentum", "rows", "warned"),
    [
        (0.01, 64 * 458, True),  # 0.99^458 = 0.01002
        (0.01, 64 * 459, False),  # 0.99^459 = 0.00992
        (0.1, 64, False),  # torch's own
        (None, 64, False),  # a mean over all batches, which begins at nothing
    ],
)
def test_more_than_a_hundredth_is_warned_of(
    momentum: float | None, rows: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "softcache"):
        warn_of_slow_norms(network(momentum), rows, 64, 1)
    assert ["momentum 0.01" in record.message for record in caplog.records] == [True] * warned


def test_the_share_is_what_a_statistic_keeps(caplog: pytest.LogCaptureFixture) -> None:
    norm = nn.BatchNorm1d(1, momentum=0.01)
    assert norm.running_var is not None
    for _ in range(3 * 4):
        norm(torch.zeros(8, 1))  # of variance 0, so that what is left is of the first value, 1
    warn_of_slow_norms(network(0.01), 250, 64, 3)
    assert f"after these 12 batches {100 * float(norm.running_var):.2g} % " in caplog.text


def test_statistics_that_are_not_kept_need_no_time(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_slow_norms(network(0.01, tracked=False), 64, 64, 1)
    assert caplog.records == []


def test_teach_and_train_say_it_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--size", "32", "--epochs", "1", "--batch-size", "256"]
    assert command("-q", "teach", "--model", "mobilenet_v3_small", *small, "--out", "teacher") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "batch norms" in line]
    assert "of mobilenet_v3_small have momentum 0.01: after these 6 batches 94 % " in line
    given = ["--student", "mobilenet_v3_small", "--alpha", "0"]
    assert command("-q", "train", *given, *small) == 0
    assert capsys.readouterr().err.count("batch norms of mobilenet_v3_small") == 1
    assert command("-q", "train", *given, *small, "--weights", "teacher/teacher.safetensors") == 0
    assert "batch norms" not in capsys.readouterr().err, "it starts from statistics that were learnt"
