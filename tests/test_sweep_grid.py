"""Which students a grid is of, how they are named, and what their numbers say; nothing is trained here."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import scipy.stats
from harness_train import command
from hypothesis import given
from hypothesis import strategies as st

from softcache.cli import _main
from softcache.config.several import SETTLED
from softcache.config.sweep import SweepConfig, absolute_options, divided, read_specification
from softcache.config.train import TrainConfig
from softcache.errors import NotNamedError, SoftcacheError, UsageError
from softcache.stages._worker import work
from softcache.sweeping.command import train_command
from softcache.sweeping.folder import Outcome
from softcache.sweeping.grid import Combination, cohorts, combinations, runs
from softcache.sweeping.statistics import deviation, paired, t_cdf, t_quantile
from softcache.sweeping.table import tabled


def expanded(**options: Any) -> list[dict[str, Any]]:
    return [one.varied for one in combinations(divided(SweepConfig, options)[1])]


def test_a_grid_is_the_product_of_its_values() -> None:
    found = expanded(student=["a", "b"], T=[1, 2, 4], alpha=[0.5, 0.9], loss=["kl"], epochs=3)
    wanted = [{"student": s, "T": T, "alpha": a} for s in "ab" for T in (1, 2, 4) for a in (0.5, 0.9)]
    assert found == wanted


def test_combinations_that_mean_the_same_are_trained_once() -> None:
    assert expanded(loss=["kl", "mse"], T=[1, 4]) == [
        {"loss": ("kl",), "T": 1},
        {"loss": ("kl",), "T": 4},
        {"loss": ("mse",)},  # has no temperature
    ]
    assert expanded(loss=["kl", "kl:T=4", "kl:T=4,weight=1"], T=[4]) == [{}]  # spelled three times
    found = expanded(alpha=[0, 0.9], loss=["kl", "dkd"], T=[2, 4])
    assert [one for one in found if one["alpha"] == 0] == [{"alpha": 0}]  # labels alone
    assert len(found) == 1 + 4
    assert expanded(alpha=[0.9], beta=[0.1], loss=["kl"]) == [{}]
    assert len(expanded(targets=["matched", "both"], fresh_share=[0.25, 0.75])) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 4}, "no option 'epoch': did you mean epochs"),
        ({"loss": ["kll"]}, "kll"),
        ({"T": [4], "loss": ["mse"]}, "--T 4 has no effect on any of these students"),
        ({"lr": [0.1, "x"]}, "--lr must be a number or None, is 'x'"),
        ({"student": []}, "--student has no value"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"join": "a", "resume": "b"}, "give one of them"),
    ],
)
def test_what_can_t_be_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        expanded(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_typo_on_the_command_line_names_the_nearest(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("sweep", "--alhpa", "0.5") == 2
    assert "--alhpa" in (said := capfd.readouterr().err)
    assert "--alpha" in said
    assert command("sweep", "--lr", "0.1,x") == 2
    assert "'x' is not a valid float" in capfd.readouterr().err
    Path("sweep.json").write_text(json.dumps({"options": {"epoch": 3}}))
    assert command("sweep", "--spec", "sweep.json") == 2
    assert "--spec sweep.json has no option 'epoch' of softcache sweep: did you mean epochs" in capfd.readouterr().err


def test_a_cache_may_be_named_as_train_names_it(here: Path) -> None:
    """By its name in ``caches/``, as far as nothing here has it."""
    (here / "caches" / "mine").mkdir(parents=True)
    (here / "caches" / "mine" / "cache.json").touch()
    found = absolute_options({"cache": (("mine",), "s3://b/c"), "hint_cache": ("elsewhere",)})
    assert found == {
        "cache": ((str(here / "caches" / "mine"),), "s3://b/c"),
        "hint_cache": (str(here / "elsewhere"),),
    }


def test_names_of_runs_are_readable_and_of_one_run_each() -> None:
    found = runs(combinations(divided(SweepConfig, {"student": ["cifar:resnet8", "resnet18"], "T": [1, 4]})[1]), [0, 1])
    names = [run.name for run in found]
    assert len(set(names)) == 8
    assert names[0].startswith("cifar-resnet8-T1-seed0-")
    elsewhere = runs(combinations(divided(SweepConfig, {"T": [1, 4], "device": "cuda"})[1]), [0])
    here = runs(combinations(divided(SweepConfig, {"T": [1, 4], "device": "cpu"})[1]), [0])
    assert [run.name for run in elsewhere] == [run.name for run in here]  # where it runs is not what it is


def test_cohorts_have_students_that_can_share_a_stream_and_no_more_than_asked() -> None:
    options = {"T": [1, 2, 4, 8], "alpha": [0, 0.5, 0.9], "loss": "kl", "batch_size": [32, 64], "order_seed": 0}
    every = runs(combinations(divided(SweepConfig, options)[1]), [0, 1])
    parts = cohorts(every, 8)
    assert sorted(run.name for part in parts for run in part) == sorted(run.name for run in every)
    assert max(map(len, parts)) <= 8
    for part in parts:
        assert len({(run.options["batch_size"], run.options["alpha"] == 0) for run in part}) == 1
    # 16 distilled ones of each batch size are two cohorts each, the 2 on labels alone another
    assert sorted(map(len, parts)) == [2, 2, 8, 8, 8, 8]


def test_the_command_line_takes_the_options_of_train() -> None:
    made = _main.main.get_command(click.Context(_main.main), "sweep")
    assert made is not None
    trained = {p.name for p in _main.main.get_command(click.Context(_main.main), "train").params}  # type: ignore[union-attr]
    assert trained - {p.name for p in made.params} == SETTLED - {"out", "resume"}


def test_a_printed_command_asks_for_the_same_run() -> None:
    options = {
        "student": "cifar:resnet8", "loss": ("kl:weight=0.5", "rkd"), "T": "8:2:linear", "alpha": 0.9, "lr": 0.05,
        "nesterov": False, "milestones": (3, 5), "cache": ("a b", "c"), "teacher_weight": (0.7, 0.3), "seed": 3,
        "order_seed": 0, "freeze": ("layer1.*",), "tf32": False, "bucket": True, "weights": None,
    }  # fmt: skip
    made = _main.main.get_command(click.Context(_main.main), "train")
    words = shlex.split(train_command(options, threads=2))
    assert words[:4] == ["softcache", "--threads", "2", "train"]
    assert made is not None
    context = made.make_context("train", words[4:])
    given = {name: value for name, value in context.params.items() if value not in (None, ())}
    asked = [TrainConfig.of(**given), TrainConfig.of(**options)]
    # T and alpha are texts on a command line, which mean the same
    plain = [{name: str(value) for name, value in config.to_json().items()} for config in asked]
    assert plain[0] == plain[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is of version 2, this softcache knows 1"),
        ({"surprise": 1}, "has other entries than this softcache knows"),
        ({"command": "compare"}, "is of softcache compare, not of softcache sweep"),
        ({"threads": "2"}, "is not the specification of a sweep"),
        ({"options": []}, "is not the specification of a sweep"),
    ],
)
def test_a_specification_with_anything_unknown_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    whole = {"version": 1, "command": "sweep", "options": {"T": [1, 2]}, "threads": 1, "at_once": 8}
    (tmp_path / "sweep.json").write_text(json.dumps(whole))
    assert read_specification(tmp_path, "sweep").options == {"T": (1, 2)}
    (tmp_path / "sweep.json").write_text(json.dumps({**whole, **change}))
    with pytest.raises(SoftcacheError, match=message):
        read_specification(tmp_path, "sweep")


def test_a_folder_of_a_stranger_runs_no_code(here: Path, state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evil = here / "evil.py"
    evil.write_text(f"open({str(here / 'ran')!r}, 'w')\ndef make(num_classes): pass\n")
    folder = here / "sweep"
    (folder / "cohorts").mkdir(parents=True)
    document = {"version": 1, "command": "sweep", "options": {}, "threads": 1, "at_once": 1}
    named = {**document, "options": {"student": [f"{evil}:make"], "val_fraction": 0.1}}
    (folder / "sweep.json").write_text(json.dumps(named))
    for option in ("--resume", "--join"):
        assert command("sweep", option, folder) == 1
        assert "For safety, softcache does not open a path or run code" in capfd.readouterr().err
    # In a cohort's file, which the specification doesn't name.
    (folder / "sweep.json").write_text(json.dumps(document))
    entry = {"name": "a", "options": {"student": f"{evil}:make", "alpha": 0}}
    (folder / "cohorts/0000.json").write_text(json.dumps({"version": 1, "runs": [entry], "bars": {}}))
    (folder / "cohorts/closed").touch()
    work(folder, read_specification(folder, "sweep"), {})
    assert "which its specification doesn't" in json.loads((folder / "runs/a/failed.json").read_text())["error"]
    entry["name"] = "../../a"
    (folder / "cohorts/0000.json").write_text(json.dumps({"version": 1, "runs": [entry]}))
    with pytest.raises(SoftcacheError, match="is not the name of a run"):
        work(folder, read_specification(folder, "sweep"), {})
    assert not (here / "ran").exists()
    assert NotNamedError.exit_status == 1


# Numbers.


@given(st.floats(-50, 50), st.integers(1, 200))
def test_students_distribution_is_that_of_scipy(x: float, freedom: int) -> None:
    assert t_cdf(x, freedom) == pytest.approx(scipy.stats.t.cdf(x, freedom), rel=1e-9, abs=1e-13)


@given(st.floats(0.001, 0.9999), st.integers(1, 200))
def test_its_quantiles_are_those_of_scipy(p: float, freedom: int) -> None:
    assert t_quantile(p, freedom) == pytest.approx(scipy.stats.t.ppf(p, freedom), rel=1e-7, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=9))
def test_a_paired_test_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    differences = [a - b for a, b in pairs]
    found = paired(one, other)
    assert found.mean == pytest.approx(sum(differences) / len(pairs), abs=1e-12)
    spread = deviation(differences)
    assert spread is not None
    if spread < 1e-9:
        return
    known = scipy.stats.ttest_rel(one, other)
    assert found.p == pytest.approx(known.pvalue, rel=1e-6, abs=1e-12)
    low, high = known.confidence_interval(0.95)
    assert found.half_width == pytest.approx((high - low) / 2, rel=1e-6)


def test_one_pair_says_nothing_of_the_spread() -> None:
    assert paired([0.5], [0.25]).half_width is None
    assert deviation([0.5]) is None


def test_the_best_is_the_highest_mean_of_those_that_have_all_their_seeds() -> None:
    every = runs([Combination({"T": T}, {"T": T}) for T in (1, 2, 4)], [0, 1])
    vals = {1: [0.5, 0.7], 2: [0.8, 0.6], 4: [0.99, None]}

    def came_to(T: int, seed: int) -> Outcome:
        val = vals[T][seed]
        return Outcome(error="no") if val is None else Outcome({"val_top1": val, "test_top1": None})

    table = tabled(every, [came_to(run.options["T"], run.seed) for run in every])
    best = table.best()
    assert best is not None
    assert best.combination.varied == {"T": 2}
    header, lines = table.lines()
    assert header == ["T", "held-out top-1", "done", ""]
    assert lines == [
        ["1", "60.00 ± 14.14 %", "2/2", ""],
        ["2", "70.00 ± 14.14 %", "2/2", "best"],
        ["4", "99.00 %", "1/2", "1 failed"],
    ]
