"""A term that makes up nearly all of the loss at the first step is told, with the weight that would balance it."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

import pytest
import torch
from harness_train import HINTS, STUDENT, command, lines, make_cache, make_teacher

from softcache.losses._schedule import Schedule
from softcache.losses._terms import parse_terms
from softcache.losses.hints._spec import parse_hints
from softcache.training.objective import Objective

HEAVY = "fitnet:teacher=layer2,student=layer2"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dominance")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=HINTS)
    return folder


def trained(made: Path, out: Path, *options: str, epochs: int = 1) -> int:
    quick = ["--epochs", epochs, "--batch-size", "128", "--workers", "0", "--log-every", "1", "--lr", "1e-6"]
    return command("train", "--student", STUDENT, "--cache", made / "cache", "--out", out, *quick, *options)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [message for message in found if "% of the loss" in message]


def test_with_the_weight_that_the_warning_gives_the_term_equals_the_others(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert trained(made, tmp_path / "heavy", "--hint", f"{HEAVY},weight=1e6", epochs=2) == 0
    (message,) = warnings(caplog)  # once, whatever the number of steps and epochs
    first = lines(tmp_path / "heavy", "steps.jsonl")[0]
    assert message.startswith(f"hint loss {HEAVY},weight=1e+06 is ")
    assert float(re.search(r"is ([\d.]+) %", message)[1]) == pytest.approx(  # type: ignore[index]
        100 * first["hint_loss"] / first["loss"], abs=0.01
    )
    caplog.clear()
    advised = re.search(r"with weight=(\S+) it would equal", message)[1]  # type: ignore[index]
    assert trained(made, tmp_path / "balanced", "--hint", f"{HEAVY},weight={advised}") == 0
    assert warnings(caplog) == []
    first = lines(tmp_path / "balanced", "steps.jsonl")[0]
    assert first["hint_loss"] / first["loss"] == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize(
    "options",
    [
        ["--alpha", "1", "--beta", "0"],
        ["--alpha", "0", "--beta", "0", "--hint", f"{HEAVY},weight=1e6"],
        ["--hint", f"{HEAVY},weight=1e6", "--hint-epochs", "1"],
    ],
    ids=["logits", "hint", "two stages"],
)
def test_a_term_that_is_alone_is_no_reason_for_a_warning(
    options: list[str], made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert trained(made, tmp_path / "run", *options) == 0
    assert warnings(caplog) == []


def test_labels_alone_give_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quick = ["--dataset", "digits", "--size", "8", "--epochs", "1", "--out", tmp_path / "run", "--workers", "0"]
    assert command("train", "--student", STUDENT, "--alpha", "0", *quick) == 0
    assert warnings(caplog) == []


def objective(losses: list[str], hints: list[str], *, alpha: float, beta: float) -> Objective:
    constant = Schedule.constant
    return Objective(parse_terms(losses), constant(alpha), constant(beta), None, 10, hints=parse_hints(hints))


@pytest.mark.parametrize(
    ("beta", "share", "advice"),
    [
        (1000.0, 100 * 1000 / 1005, r"the hard-label loss is 99\.50 %.*with --beta 5 it"),
        (400.0, 100 * 400 / 405, None),  # 98.8 %
    ],
)
def test_shares_are_those_of_the_weighted_values(
    beta: float, share: float, advice: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Uniform students: the hard-label loss is log e = 1 over e classes, here scaled to 1; mse is mean 5² = 25."""
    made = objective(["mse:weight=0.2"], [], alpha=1.0, beta=beta)
    student, labels = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    values = made.values({"logits": student}, {"logits": [student + 5]}, labels, labels, None, 0)
    assert values.hard is not None
    scaled = dataclasses.replace(values, hard=values.hard / values.hard)
    made.warn_of_dominance(made.total(scaled, 0), 0)
    found = warnings(caplog)
    assert (share > 99) is bool(found)
    if advice is not None:
        assert re.search(advice, found[0])


def test_a_negative_term_counts_by_its_size(caplog: pytest.LogCaptureFixture) -> None:
    made = objective(["kl"], ["vid:teacher=a,student=a,weight=1000"], alpha=0.0, beta=1.0)
    student, labels = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    hints = [torch.tensor(-2.0)]
    values = made.values({"logits": student}, {"logits": [student]}, labels, labels, None, 0, hints=hints)
    made.warn_of_dominance(made.total(values, 0), 0)
    (message,) = warnings(caplog)
    assert "2,000 beside 0.6931" in message  # log 2
    assert "weight=0.347 it" in message  # log 2 / 2
