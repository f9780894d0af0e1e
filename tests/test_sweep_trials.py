"""Trials that Optuna draws: ranges, rounds that an interruption doesn't change, and students that end early."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import harness_process
import pytest
from harness_many import QUICK, digests, small_cache
from harness_train import STUDENT, command, lines, same, weights

from softcache.config.train import TrainConfig
from softcache.errors import PrunedError, UsageError
from softcache.extras import install_command
from softcache.stages._cohort import train_cohort
from softcache.stages.sweep import Swept, sweep
from softcache.stages.train import Trained, train
from softcache.sweeping.space import Range, is_range, rounded, space

optuna = pytest.importorskip("optuna")
pytestmark = [
    pytest.mark.timeout(600),  # processes that import torch, on a machine that is busy with other work
    pytest.mark.usefixtures("forked_crew"),
]
SEARCH: dict[str, Any] = {"student": STUDENT, "lr": "0.001..0.3", "T": "1..8", "loss": ["kl", "dist"], "trials": 8}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_cache(tmp_path_factory.mktemp("trials"))


@pytest.fixture(scope="module")
def searched(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    out = tmp_path_factory.mktemp("search") / "out"
    return sweep(cache=cache, out=str(out), prune=False, **SEARCH, **QUICK)


# What is drawn from.


def test_ranges_and_lists() -> None:
    found = space({"lr": ("0.01..0.5",), "T": ("1..8",), "epochs": ("2..5",), "loss": ("kl", "dist"), "alpha": (0.9,)})
    assert found == {
        "loss": ("kl", "dist"),
        "T": Range(1, 8),
        "epochs": Range(2, 5, whole=True),
        "lr": Range(0.01, 0.5, log=True),
    }
    assert is_range("1e-4..1e-2")
    assert not is_range("../net.py:make")
    assert rounded(0.0123456) == 0.01235


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": ["0.5..0.1"]}, "a range goes up"),
        ({"lr": ["0..0.1"]}, "from above 0"),
        ({"lr": ["0.1..0.2", 0.3]}, "give one range, or a list"),
        ({"student": ["1..2"]}, "it has no range"),
        ({"epochs": ["1..2.5"]}, "whole numbers only"),
    ],
)
def test_a_range_that_can_t_be_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        space(options)


def test_what_trials_refuse(cache: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("sweep", "--cache", cache, "--lr", "0.01..0.5") == 2
    assert "is a range, and a grid has values" in capfd.readouterr().err
    assert command("sweep", "--cache", cache, "--trials", "3") == 2
    assert "--trials draws from options that have several values or a range" in capfd.readouterr().err
    assert command("sweep", "--cache", cache, "--trials", "3", "--T", "0..4") == 2
    assert "--T must be above 0" in capfd.readouterr().err
    assert not list(here.iterdir())


def test_without_optuna_one_line_names_the_extra(cache: str, here: Path) -> None:
    code = "import sys; sys.modules['optuna'] = None; from softcache.cli._main import run; sys.exit(run(sys.argv[1:]))"
    arguments = ["sweep", "--cache", cache, "--student", STUDENT, "--trials", "3", "--T", "1..4", "--device", "cpu"]
    done = harness_process.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"softcache: --trials needs Optuna: {install_command('sweep')}")


# Rounds.


def test_trials_are_optunas_and_lie_in_their_ranges(searched: Swept) -> None:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(searched.folder / "optuna.log")))
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert len(study.trials) == 8
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    assert searched.best is not None
    assert study.best_value == max(row.vals[0] for row in searched.table.rows) == searched.best.vals[0]
    for row in searched.table.rows:
        assert 0.001 <= row.combination.options["lr"] <= 0.3
        assert 1 <= row.combination.options["T"] <= 8
    assert [len(row.tests) for row in searched.table.rows].count(1) == 1  # the chosen one's


def test_a_trial_has_the_bits_of_a_single_run(searched: Swept, tmp_path: Path) -> None:
    run = searched.table.rows[3].runs[0]
    train(**{**run.options, "test": False, "out": str(tmp_path / "alone")})
    assert same(weights(tmp_path / "alone"), weights(searched.folder / "runs" / run.name))


def test_a_search_that_is_done_trains_nothing_again(searched: Swept) -> None:
    before = {path: path.stat().st_mtime_ns for path in searched.folder.glob("runs/*/*")}
    again = sweep(resume=str(searched.folder))
    assert again.table.to_json() == searched.table.to_json()
    assert {path: path.stat().st_mtime_ns for path in searched.folder.glob("runs/*/*")} == before


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.torture)])
def test_a_search_that_is_killed_at_any_moment_draws_what_it_would_have_drawn(
    searched: Swept, cache: str, tmp_path: Path, kills: int
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    listed = [f"--{name}={value}".replace("_", "-") for name, value in {**QUICK, "lr": "0.001..0.3"}.items()]
    arguments = ["sweep", "--cache", cache, "--out", str(out), "--student", STUDENT, "--T", "1..8", "--no-prune"]
    arguments += ["--trials", "8", "--loss", "kl", "--loss", "dist", *listed]
    rng, died = random.Random(3), 0
    while True:
        with open(log, "ab") as output:
            started = [sys.executable, "-m", "softcache", *arguments]
            process = harness_process.Popen(started, stdout=output, stderr=output)
        if died < kills:
            time.sleep(rng.uniform(0.4, 1) * searched.seconds)
            died += process.poll() is None
            process.send_signal(signal.SIGKILL)
        status = process.wait()
        if status == 0:
            break
        assert status == -signal.SIGKILL, log.read_text()
    rows = json.loads((out / "table.json").read_text())["rows"]
    theirs = searched.table.to_json()
    assert [(row["lr"], row["T"], row["val"], row["test"]) for row in rows] == [
        (row["lr"], row["T"], row["val"], row["test"]) for row in theirs
    ]
    assert sorted(digests(out).values()) == sorted(digests(searched.folder).values())


# Students that end early.


def test_a_learner_that_leaves_keeps_its_epochs_and_the_others_their_bits(cache: str, tmp_path: Path) -> None:
    shared = {"student": STUDENT, "cache": cache, "order_seed": 0, "val_fraction": 0.1, **QUICK, "epochs": 3}
    every = [TrainConfig.of(**shared, seed=seed, out=str(tmp_path / f"{seed}")) for seed in (0, 1)]
    counted: list[int] = []

    def leaves(found: Any) -> str | None:
        counted.append(len(found))
        return "others are better" if len(found) == 1 and len(counted) < 5 else None

    first, other = train_cohort(every, leaves)
    both = {0: first, 1: other}
    left = [seed for seed, one in both.items() if isinstance(one, PrunedError)]
    stayed = [seed for seed, one in both.items() if isinstance(one, Trained)]
    assert len(left) == 2 - len(stayed)
    for seed in left:
        assert len(lines(tmp_path / f"{seed}")) == 1
    for seed in stayed:
        train(**shared, seed=seed, out=str(tmp_path / f"alone-{seed}"))
        assert same(weights(tmp_path / f"{seed}"), weights(tmp_path / f"alone-{seed}"))


def test_trials_below_half_of_those_before_end_early(cache: str, tmp_path: Path) -> None:
    """Rates of a hundred thousandth learn nothing in four epochs, and the first rounds have good ones too."""
    options = {**SEARCH, **QUICK, "lr": "0.00001..0.3", "trials": 16, "epochs": 4}
    done = sweep(cache=cache, out=str(tmp_path / "out"), **options)
    early = [run for row in done.table.rows for run, o in zip(row.runs, row.outcomes, strict=True) if o.pruned]
    assert early
    assert done.best is not None
    for run in early:
        bars = next(
            document["bars"]
            for path in (tmp_path / "out" / "cohorts").glob("*.json")
            for document in [json.loads(path.read_text())]
            if any(entry["name"] == run.name for entry in document["runs"])
        )
        found = [line["val_top1"] for line in lines(tmp_path / "out" / "runs" / run.name)]
        assert 1 <= len(found) < 4
        assert max(found) < bars[str(len(found))]
        assert all(max(found[:k]) >= bars[str(k)] for k in range(1, len(found)) if str(k) in bars)
    # They aren't tried again where the search goes on.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/*")}
    assert sweep(resume=str(tmp_path / "out")).table.to_json() == done.table.to_json()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/*")} == before
