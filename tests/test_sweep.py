"""Sweeps in folders, with processes of their own: the bits of single runs, whatever kills them, and one look at the
test split."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness_many import BRITTLE, DATASET, OPENED, QUICK, digests, scores, small_cache
from harness_readers import pets
from harness_train import STUDENT, command, config, same, weights

from softcache.config.record import read_record
from softcache.config.sweep import read_specification
from softcache.config.train import TrainConfig
from softcache.errors import SoftcacheError, UsageError
from softcache.stages._cohort import train_cohort
from softcache.stages._worker import work
from softcache.stages.dump import dump
from softcache.stages.sweep import Swept, plan_sweep, sweep
from softcache.stages.train import train
from softcache.sweeping.folder import ManyFolder

pytestmark = [
    pytest.mark.timeout(600),  # processes that import torch, on a machine that is busy with other work
    pytest.mark.usefixtures("forked_crew"),
]
GRID: dict[str, Any] = {"student": STUDENT, "loss": ["kl", "mse"], "T": [1, 4], "alpha": [0, 0.9], "seeds": 2, **QUICK}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_cache(tmp_path_factory.mktemp("sweeps"), dataset=DATASET)


@pytest.fixture(scope="module")
def swept(cache: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Swept, Path]:
    """A sweep that nobody disturbed, and the file of the splits that were opened."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(OPENED, str(folder / "opened"))
        done = sweep(cache=cache, dataset=DATASET, out=str(folder / "sweep"), processes=2, **GRID)
    return done, folder / "opened"


def test_a_sweep_chooses_by_held_out_rows_and_its_best_alone_sees_the_test_split(swept: tuple[Swept, Path]) -> None:
    done, opened = swept
    assert done.best is not None
    means = {row.combination.text(): sum(row.vals) / 2 for row in done.table.rows}
    assert len(means) == 4  # labels alone, kl at two temperatures, mse
    assert means[done.best.combination.text()] == max(means.values())
    for row in done.table.rows:
        assert len(row.vals) == 2
        assert len(row.tests) == (2 if row is done.best else 0)
    looked = [line for line in opened.read_text().splitlines() if line.startswith("test ")]
    assert len(looked) == 2  # once for each seed of the chosen one
    # What the records say, from which the table was made.
    for row in done.table.rows:
        for run, val in zip(row.runs, row.vals, strict=True):
            record = config(done.folder / "runs" / run.name)
            assert record["result"]["val_top1"] == val
            assert (record["result"]["test_top1"] is None) == (row is not done.best)


def test_a_run_of_a_sweep_has_the_bits_of_the_printed_command(
    swept: tuple[Swept, Path], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, _ = swept
    assert done.best is not None
    assert done.command is not None
    words = shlex.split(done.command)
    assert words[0] == "softcache"
    assert command(*words[1:], "--out", "alone") == 0
    first = done.folder / "runs" / done.best.runs[0].name
    assert same(weights(here / "alone"), weights(first))
    alone, swept_one = config(here / "alone")["result"], config(first)["result"]
    assert {**alone, "seconds": 0} == {**swept_one, "seconds": 0}  # the test split's scores among them


def test_a_sweep_that_is_done_trains_nothing_again(swept: tuple[Swept, Path], cache: str) -> None:
    done, opened = swept
    before = {path: path.stat().st_mtime_ns for path in done.folder.glob("runs/*/*")}
    seen = opened.read_text()
    again = sweep(resume=str(done.folder))
    assert scores(done.folder)[0] == again.table.to_json()
    assert {path: path.stat().st_mtime_ns for path in done.folder.glob("runs/*/*")} == before
    assert opened.read_text() == seen
    # The same command is the same sweep; another one isn't.
    assert sweep(cache=cache, dataset=DATASET, out=str(done.folder), **GRID).command == done.command
    with pytest.raises(UsageError, match=r"was begun with --T \(1, 4\), not \(1, 8\)"):
        sweep(cache=cache, dataset=DATASET, out=str(done.folder), **{**GRID, "T": [1, 8]})
    with pytest.raises(UsageError, match="leave out --T"):
        sweep(resume=str(done.folder), T=[1])


def test_a_sweep_of_a_specification_is_the_same(
    swept: tuple[Swept, Path], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done, _ = swept
    specification = done.folder / "sweep.json"
    assert command("sweep", "--spec", specification, "--dry-run", "--json") == 0
    planned = json.loads(capfd.readouterr().out)
    # 1,438 rows less those held out, in batches of up to 128, for 2 epochs
    held = config(done.folder / "runs" / done.table.rows[0].runs[0].name)["held_out_rows"]
    assert planned["students"] == 8
    assert planned["steps"] == 8 * 2 * -(-(1438 - held) // 128)
    assert not list(here.iterdir())


def test_labels_alone_beside_distilled_students_have_the_bits_that_they_have_alone(cache: str, tmp_path: Path) -> None:
    """They see fresh views, and the others recorded ones."""
    shared = {"student": STUDENT, "cache": cache, "dataset": DATASET, "order_seed": 0, **QUICK}
    both = [TrainConfig.of(**shared, alpha=alpha, out=str(tmp_path / f"{alpha}")) for alpha in (0.9, 0)]
    assert not any(isinstance(one, SoftcacheError) for one in train_cohort(both))
    train(**shared, alpha=0, out=str(tmp_path / "alone"))
    assert same(weights(tmp_path / "0"), weights(tmp_path / "alone"))


def test_a_student_that_fails_is_in_the_table_and_the_others_go_on(
    cache: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"cache": cache, "dataset": DATASET, "loss": "kl", **QUICK}
    done = sweep(student=[STUDENT, BRITTLE], out=str(tmp_path / "some"), **options)
    good, bad = done.table.rows
    assert done.best is good
    assert bad.outcomes[0].error == "this one is brittle"
    assert done.table.lines()[1][1][-1] == "1 failed"
    alone = train(STUDENT, val_fraction=0.1, order_seed=0, out=str(tmp_path / "alone"), **options)
    assert same(weights(alone.folder), weights(tmp_path / "some" / "runs" / good.runs[0].name))
    assert done.failed == 1
    assert command("sweep", "--resume", done.folder) == 1, "a script has to learn of it"
    assert "1 of 2 students failed" in capfd.readouterr().err
    with pytest.raises(SoftcacheError, match="all 1 students failed, the first of them because this one is brittle"):
        sweep(student=BRITTLE, out=str(tmp_path / "none"), **options)


def test_held_out_rows_are_what_a_sweep_chooses_by(cache: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="never chooses by the test split"):
        plan_sweep(student=STUDENT, cache=cache, dataset=DATASET, val_fraction=0.0)


def test_a_run_without_the_test_split_never_opens_it(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OPENED, str(tmp_path / "opened"))
    run = train(STUDENT, cache=cache, dataset=DATASET, val_fraction=0.1, test=False, out=str(tmp_path / "run"), **QUICK)
    assert {line.split()[0] for line in (tmp_path / "opened").read_text().splitlines()} == {"train"}
    assert run.test is None
    assert run.val is not None
    assert read_record(run.folder).options.test is False


# Kills.


def begin(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with open(folder, "ab") as output:
        return subprocess.Popen([sys.executable, "-m", "softcache", *arguments], stdout=output, stderr=output)


@pytest.mark.torture
@pytest.mark.parametrize("kills", [10])
def test_a_sweep_that_is_killed_at_any_moment_goes_on_as_if_it_hadn_t_been(
    swept: tuple[Swept, Path], cache: str, tmp_path: Path, kills: int
) -> None:
    done, _ = swept
    out, log = tmp_path / "sweep", tmp_path / "log"
    listed = [f"--{name}={value}" for name, value in QUICK.items()]
    arguments = [
        *("sweep", "--cache", cache, "--dataset", DATASET, "--out", str(out), "--student", STUDENT, "--T", "1,4"),
        *("--loss", "kl", "--loss", "mse", "--alpha", "0,0.9", "--seeds", "2", "--processes", "2"),
        *(option.replace("_", "-") for option in listed),
    ]
    rng, died, longest = random.Random(5), 0, 1.2 * done.seconds
    while True:
        process = begin(arguments, log)
        if died < kills:
            time.sleep(rng.uniform(0.3, 1) * longest / (1 + died % 3))
            died += process.poll() is None
            process.send_signal(signal.SIGKILL)
        status = process.wait()
        if status == 0:
            break
        assert status == -signal.SIGKILL, log.read_text()
        assert died <= kills
    assert digests(out) == digests_of_the_same(done, out)
    # T and alpha are texts on a command line, where the table of the other has numbers
    assert [row["val"] for row in scores(out)[0]] == [row["val"] for row in scores(done.folder)[0]]
    assert [row["test"] for row in scores(out)[0]] == [row["test"] for row in scores(done.folder)[0]]
    time.sleep(1)
    assert not [path for path in out.rglob("*.lock") if path.name != ".lock"]  # and no process holds any


def digests_of_the_same(done: Swept, out: Path) -> dict[str, str]:
    """What the students of another folder should be: those of ``done``, row by row and seed by seed."""
    found, theirs = digests(done.folder), scores(out)[0]
    names = [name for row in theirs for name in row["runs"]]
    ours = [run.name for row in done.table.rows for run in row.runs]
    return dict(sorted(zip(names, (found[name] for name in ours), strict=True)))


def test_processes_end_with_the_one_that_started_them(cache: str, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    arguments = ["sweep", "--cache", cache, "--dataset", DATASET, "--student", STUDENT, "--epochs", "10000"]
    process = begin([*arguments, "--device", "cpu", "--processes", "1", "--out", str(out)], tmp_path / "log")
    until = time.monotonic() + 120
    while not list(out.glob("runs/*/metrics.jsonl")):
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < until
        time.sleep(0.1)
    process.kill()
    process.wait()
    (cohort,) = out.glob("cohorts/*.json")
    while ManyFolder(out).is_taken(cohort):
        assert time.monotonic() < until, "the process that trained it lives on"
        time.sleep(0.1)


# Several at one folder.


def test_cohorts_of_dead_processes_are_taken_and_those_of_living_ones_left(cache: str, tmp_path: Path) -> None:
    """A process that joins trains all that nobody holds, and leaves."""
    out = tmp_path / "sweep"
    common = {"student": STUDENT, "cache": cache, "dataset": DATASET, "loss": "kl", "T": [1, 2, 4], **QUICK}
    done = sweep(out=str(out), at_once=1, processes=1, **common)
    many = ManyFolder(out)
    before = digests(out)
    for row in done.table.rows:  # as if two of them had never been trained
        for run in row.runs[:1]:
            for file in many.run_folder(run.name).iterdir():
                file.unlink()
    cohorts = many.cohorts()
    assert len(cohorts) == 3
    holding = (
        "import sys, time, pathlib; from softcache.locks import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'held'): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(cohorts[0].with_suffix(".lock"))], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        work(out, read_specification(out, "sweep"), {})
        assert len(digests(out)) == 2
        holder.kill()
    work(out, read_specification(out, "sweep"), {})
    assert digests(out) == before
    assert os.path.exists(out / "cohorts" / "closed")


def test_a_process_joins_a_sweep(cache: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    common = {"student": STUDENT, "cache": cache, "dataset": DATASET, "loss": "kl", "T": [1, 2], **QUICK}
    done = sweep(out=str(out), at_once=1, **common)
    for run in done.table.rows[0].runs:
        for file in (out / "runs" / run.name).iterdir():
            file.unlink()
    assert command("sweep", "--join", out, "--processes", "1", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert [row["val"] for row in found["rows"]] == [row.to_json()["val"] for row in done.table.rows]
    assert found["chosen"] is None


@pytest.mark.timeout(120)
def test_students_of_picture_files_have_processes_that_decode(tmp_path: Path, small_teacher) -> None:
    """These are forked while a thread waits for the sweep's process to end."""
    pets(tmp_path, train=4, test=2)
    data = f"folder:{tmp_path / 'pets'}"
    teacher = small_teacher(tmp_path / "teacher", dataset=data)
    made = dump(teacher, dataset=data, size=8, views=1, out=str(tmp_path / "cache"))
    grid: dict[str, Any] = {"student": "cifar:resnet8", "loss": "kl", "T": [1, 2], "epochs": 1, "val_fraction": 0.25}
    done = sweep(
        cache=str(made.folder),
        workers=1,
        start_method="fork",
        processes=2,
        out=str(tmp_path / "sweep"),
        batch_size=4,
        **grid,
    )
    assert [len(row.vals) for row in done.table.rows] == [1, 1]
