"""``sweep --auto``: what is tried, within the time that there is, and the best with fresh seeds."""

from __future__ import annotations

import json
import math
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness_many import QUICK, digests, small_cache
from harness_train import STUDENT, command, config, same, weights

from softcache.config.parsed import parse
from softcache.config.sweep import budget_seconds
from softcache.config.train import TrainConfig
from softcache.errors import SoftcacheError, UsageError
from softcache.stages.sweep import Swept, sweep
from softcache.stages.train import train
from softcache.sweeping.auto import FACTORS, Point, neighbours, point_of, portfolio

pytestmark = [
    pytest.mark.timeout(600),  # processes that import torch, on a machine that is busy with other work
    pytest.mark.usefixtures("forked_crew"),
]
DEFAULT = Point(("dist",), 4.0, 1.0, 1.0, 0.2)
BUDGET = 60.0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_cache(tmp_path_factory.mktemp("auto"))


@pytest.fixture(scope="module")
def searched(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    out = tmp_path_factory.mktemp("search") / "out"
    return sweep(auto=True, budget=f"{BUDGET}s", cache=cache, student=STUDENT, out=str(out), seeds=2, **QUICK)


# What is tried.


def test_the_defaults_are_tried_first_and_nothing_twice() -> None:
    found = portfolio(DEFAULT, set())
    assert found[0] == DEFAULT
    assert len(set(found)) == len(found) == 10
    assert {point.loss for point in found} == {("dist",), ("kl",), ("kl:standardize=true",)}
    assert {point.lr for point in found} == {0.1, 0.2, 0.4}
    for point in found:
        parse(TrainConfig.of(**point.values()))  # all of them can be trained


@pytest.mark.parametrize("name", ["loss", "T", "lr", "alpha"])
def test_what_is_given_stays(name: str) -> None:
    own = Point(("kl",), 3.0, 0.8, None, 0.07)
    found = [*portfolio(own, {name}), *neighbours(own, 2.0, {name})]
    assert len(found) > 5
    assert {getattr(point, name) for point in found if getattr(point, name) is not None} == {getattr(own, name)}
    everything = {"loss", "T", "lr", "alpha"}
    assert portfolio(own, everything) == [own]
    assert neighbours(own, 2.0, everything) == []


def test_a_loss_of_another_kind_is_searched_around() -> None:
    """A regression's mse has no temperature, and where labels aren't learnt no weight to balance."""
    own = Point(("mse",), None, 1.0, 0.0, 0.1)
    assert {point.lr for point in portfolio(own, set())} == {0.05, 0.1, 0.2}
    assert {point.loss for point in portfolio(own, set())} == {("mse",)}


def test_weights_that_sum_to_1_still_do_and_their_ratio_changes_by_the_square() -> None:
    own = Point(("kl",), 4.0, 0.9, None, 0.1)
    shares = [point for point in neighbours(own, 2.0, set()) if point.alpha != own.alpha]
    ratios = [float(p.alpha) / float(p.beta or 0) for p in shares]
    assert [float(p.alpha) + float(p.beta or 0) for p in shares] == pytest.approx([1, 1])
    assert ratios == pytest.approx([9 * 4, 9 / 4], rel=2e-3)  # rounded to four digits
    other = Point(("dist",), 4.0, 1.0, 1.0, 0.1)
    assert {point.alpha for point in neighbours(other, 2.0, set())} == {0.5, 1.0, 2.0}


def test_schedules_are_left_as_they_are() -> None:
    own = point_of(TrainConfig.of(loss=("kl",), T="8:2:linear", alpha="1:0.5:linear", lr=0.1))
    assert {point.T for point in neighbours(own, 2.0, set())} == {"8:2:linear"}
    assert {point.alpha for point in neighbours(own, 2.0, set())} == {"1:0.5:linear"}
    assert {point.lr for point in neighbours(own, 2.0, set())} == {0.05, 0.2}


def test_neighbours_lead_to_the_best_of_a_smooth_hill() -> None:
    """Whose top is at T 11, rate 0.013 and weight 3: as near as the smaller step lets it."""

    def height(point: Point) -> float:
        far = zip((float(point.T or 1), point.lr, float(point.alpha)), (11, 0.013, 3), strict=True)
        return -sum(math.log(own / top) ** 2 for own, top in far)

    best = DEFAULT
    for factor in FACTORS:
        while (better := max(neighbours(best, factor, set()), key=height)) and height(better) > height(best):
            best = better
    for own, top in ((best.T, 11), (best.lr, 0.013), (best.alpha, 3)):
        assert abs(math.log(float(own or 1) / top)) <= math.log(FACTORS[-1]) / 2 + 1e-3


# A search.


def test_a_search_ends_in_time_and_its_best_has_fresh_seeds(searched: Swept) -> None:
    assert searched.seconds < BUDGET
    assert searched.searched is not None
    assert searched.best is not None
    tried = searched.searched.rows
    assert len(tried) >= 4  # on a quiet machine more than thirty
    assert {run.seed for row in tried for run in row.runs} == {0}
    finalists = searched.table.rows
    assert {run.seed for row in finalists for run in row.runs} == {1, 2}
    # The defaults are one of them, so that it is seen what the search is worth.
    default = tried[0].combination.varied
    assert default == {"loss": ("dist",), "T": 4.0, "alpha": 1.0, "beta": 1.0, "lr": pytest.approx(default["lr"])}
    assert default in [row.combination.varied for row in finalists]
    assert [sum(row.vals) for row in finalists if row is searched.best] == [max(sum(row.vals) for row in finalists)]
    # The others are the best that were tried.
    vals = {row.combination.text(): row.vals[0] for row in tried if row.complete}
    others = [row.combination.text() for row in finalists if row.combination.varied != default]
    left = [val for text, val in vals.items() if text not in others and text != tried[0].combination.text()]
    assert min(vals[text] for text in others) >= max(left)
    # And the chosen one alone has seen the test split.
    every = [run for table in (searched.searched, searched.table) for row in table.rows for run in row.runs]
    looked = {
        run.name for run in every if (config(searched.folder / "runs" / run.name)["result"] or {}).get("test_top1")
    }
    assert looked == {run.name for run in searched.best.runs}


def test_the_command_that_is_printed_gives_the_bits_of_the_best(
    searched: Swept, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert searched.best is not None
    words = shlex.split(str(searched.command))
    assert command(*words[1:], "--out", "alone") == 0
    assert same(weights(here / "alone"), weights(searched.folder / "runs" / searched.best.runs[0].name))


def test_the_defaults_of_a_search_are_those_of_training(searched: Swept, cache: str, tmp_path: Path) -> None:
    """Though the search spells them out."""
    assert searched.searched is not None
    run = searched.searched.rows[0].runs[0]
    train(STUDENT, cache=cache, val_fraction=0.1, order_seed=0, test=False, out=str(tmp_path / "run"), **QUICK)
    assert same(weights(tmp_path / "run"), weights(searched.folder / "runs" / run.name))


def test_a_search_that_is_done_trains_nothing_again(searched: Swept) -> None:
    before = {path: path.stat().st_mtime_ns for path in searched.folder.glob("runs/*/*")}
    again = sweep(resume=str(searched.folder))
    assert again.to_json() | {"seconds": 0} == searched.to_json() | {"seconds": 0}
    assert {path: path.stat().st_mtime_ns for path in searched.folder.glob("runs/*/*")} == before


@pytest.mark.torture
def test_a_killed_search_goes_on_with_the_time_that_it_had_left(cache: str, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    listed = [f"--{name}={value}".replace("_", "-") for name, value in QUICK.items()]
    arguments = ["sweep", "--auto", "--budget", f"{BUDGET:g}s", "--cache", cache, "--student", STUDENT, "--seeds", "2"]
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "softcache", *arguments, *listed, "--out", str(out)], stdout=output, stderr=output
        )
    until = time.monotonic() + 300
    while len(digests(out)) < 3:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before, spent = digests(out), json.loads((out / "spent.json").read_text())["seconds"]
    assert 0 < spent < BUDGET
    done = sweep(resume=str(out))
    assert done.best is not None
    assert done.seconds < BUDGET - spent + 5
    after = digests(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(done.table.rows) * 2 + sum(row.complete for row in done.searched.rows)  # type: ignore[union-attr]


def test_what_has_no_time_is_cut_off_and_said_so(cache: str, tmp_path: Path, here: Path) -> None:
    """A student of thousands of epochs isn't trained to the end in five seconds."""
    began = time.monotonic()
    options = {**QUICK, "epochs": 100_000}
    with pytest.raises(SoftcacheError, match=r"no student was trained to the end in .*: give more --budget than 8s"):
        sweep(auto=True, budget="8s", cache=cache, student=STUDENT, out=str(tmp_path / "out"), **options)
    assert time.monotonic() - began < 60
    failures = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("runs/*/failed.json")]
    assert [failure["error"] for failure in failures] == ["its time was up"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "30m"], "--budget 30m is the time for --auto: give both"),
        (["--auto", "--budget", "soon"], "--budget soon: must be a time, such as 30m, 90s or 1h30m"),
        (["--auto", "--budget", "0m"], "--budget 0m: must be a time"),
        (["--auto", "--trials", "4"], "--auto chooses what to try by itself, --trials draws it: give one of them"),
        (["--auto", "--T", "1,4"], "--T 1, 4: --auto keeps options that are given and takes one value of each"),
        (["--auto", "--alpha", "0"], "leave out --alpha 0"),
        (["--auto", "--lr", "0.01..0.1"], "is a range"),
        (["--auto", "--dry-run"], "--dry-run knows the students of a grid; those of --auto are chosen as it goes"),
        (["--auto", "--student", "cifar:resnet9"], "no CIFAR network is called 'resnet9'"),
    ],
)
def test_what_a_search_refuses_is_one_line(
    arguments: list[str], message: str, cache: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("sweep", "--cache", cache, *arguments) in (1, 2)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("softcache: ")]
    assert message in line
    assert not list(here.glob("sweeps/*/runs/*"))


def test_a_budget_is_a_time() -> None:
    assert [budget_seconds(text) for text in ("90s", "1h 30m", "0.5h", "1m30s")] == [90, 5400, 1800, 90]
    for text in ("", "30", "m", "-3m", "1e3s"):
        with pytest.raises(UsageError):
            budget_seconds(text)
