"""Intervals of means and differences, against the textbook; and tables that are kept run by run."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="needs scipy, of the extra [bench]")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import intervals, rows  # noqa: E402
from benchmarks.cifar100_rows import TABLES  # noqa: E402
from benchmarks.rows import Trial, recorded, run, trials  # noqa: E402
from softcache.cli.train import command as train  # noqa: E402

T_975 = {2: 4.303, 4: 2.776, 10: 2.228, 30: 2.042}  # Student's t, two-sided 95 %, from printed tables


@pytest.mark.parametrize("freedom", T_975)
def test_half_a_width_is_student_s_t_times_the_standard_error(freedom: int) -> None:
    spread = intervals.Pooled(2.0, freedom)
    assert spread.half_width(4) == pytest.approx(T_975[freedom] * 2.0 / 2, rel=1e-3)
    assert spread.half_width(3, 5) == pytest.approx(T_975[freedom] * 2.0 * math.sqrt(1 / 3 + 1 / 5), rel=1e-3)


def test_the_spread_is_pooled_over_rows_around_their_own_means() -> None:
    found = intervals.pool({"a": [1.0, 3.0], "b": [10.0, 10.0, 16.0], "one": [7.0]})
    assert found.freedom == 3
    assert found.deviation == pytest.approx(math.sqrt((2 + 24) / 3))  # squares around 2, around 12, and none of one run
    with pytest.raises(ValueError, match="two runs"):
        intervals.pool({"a": [1.0], "b": [2.0]})


def test_two_rows_give_the_interval_of_the_two_sample_t_test() -> None:
    """scipy's own, with equal variances."""
    from scipy.stats import ttest_ind

    a, b = [70.1, 71.0, 70.4, 70.9], [69.0, 69.9, 69.2]
    mean, half = intervals.difference({"a": a, "b": b}, "a", "b")
    low, high = ttest_ind(a, b).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert intervals.better((mean, half)) == (low > 0)


def test_verdicts() -> None:
    assert intervals.better((0.5, 0.4))
    assert not intervals.better((0.4, 0.4))
    assert intervals.as_good((-0.1, 0.4), 0.5)
    assert not intervals.as_good((-0.2, 0.4), 0.5)
    assert not intervals.as_good((2.0, 0.1), 0.5)  # better isn't as good


def running(file: Path, *given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    rows.add_running(parser, file)
    return parser.parse_args(["--place", str(file.parent), *given])


def test_some_rows_and_seeds_can_be_chosen(tmp_path: Path) -> None:
    wanted = trials("t", {"alone": "train", "kl, T 1": "train --T 1", "kl, T 2": "train --T 2"}, (0, 1))
    found = rows.chosen(wanted, running(tmp_path / "t.jsonl", "--rows", "^kl", "--seeds", "1"))
    assert [(trial.name, trial.seed) for trial in found] == [("kl, T 1", 1), ("kl, T 2", 1)]
    assert rows.chosen(wanted, running(tmp_path / "t.jsonl")) == wanted


def test_another_command_has_another_folder() -> None:
    """A run of an earlier version of a row isn't taken for one of this."""
    assert Trial("t", "a", "train --T 1", 0).folder != Trial("t", "a", "train --T 2", 0).folder


def test_trials_come_seed_by_seed_and_have_folders_of_their_own() -> None:
    found = trials("t", {"a": "train", "b, c": "train --T 2"}, (0, 1))
    assert [(trial.name, trial.seed) for trial in found] == [("a", 0), ("b, c", 0), ("a", 1), ("b, c", 1)]
    assert len({trial.folder for trial in found}) == len({trial.key for trial in found}) == 4


def test_a_run_is_kept_at_once_and_never_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that failed; a line that was cut off is."""
    made: list[str] = []

    def once(trial: Trial, *_: object) -> dict[str, object]:
        made.append(trial.key)
        outcome = {"failed": "no"} if trial.seed == 1 else {"top1": 0.5}
        return {"key": trial.key, "seconds": 1.0, **outcome}

    monkeypatch.setattr(rows, "_run", once)
    options = running(tmp_path / "kept" / "t.jsonl")
    wanted, file = trials("t", {"a": "train"}, (0, 1, 2)), options.results
    found = run(wanted[:2], tmp_path, {}, options)
    assert set(found) == set(recorded(file)) == {trial.key for trial in wanted[:2]}
    text = file.read_text()
    file.write_text(text + '{"key": "t: train --seed 2", "top')
    made.clear()
    assert set(run(wanted, tmp_path, {}, options)) == {trial.key for trial in wanted}
    assert made == [wanted[2].key]
    assert json.loads(file.read_text().splitlines()[-1])["top1"] == 0.5


@pytest.mark.torture
def test_a_run_is_softcache_itself(tmp_path: Path) -> None:
    command = "train --student cifar:resnet8 --dataset digits --size 8 --alpha 0 --epochs 1 {fast}"
    wanted, options = trials("t", {"a": command}, (3,)), running(tmp_path / "t.jsonl")
    (record,) = run(wanted, tmp_path, {"fast": "--amp off"}, options).values()
    config = json.loads((tmp_path / "runs" / wanted[0].folder / "config.json").read_text())
    assert config["result"]["test_top1"] == record["top1"]
    assert config["options"]["seed"] == record["seed"] == 3
    (failed,) = run(trials("t", {"b": command + " --T x"}, (3,)), tmp_path, {"fast": ""}, options).values()
    assert "top1" not in failed
    assert "--T" in failed["failed"]


@pytest.mark.torture
def test_what_runs_when_the_time_is_up_goes_on_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't in the file, and ends as if it had never been interrupted."""
    command = "train --student cifar:resnet8 --dataset digits --size 8 --alpha 0 --epochs 4 --amp off"
    wanted, out = trials("t", {"a": command}, (0,)), tmp_path / "t.jsonl"
    (tmp_path / "other").mkdir()
    (whole,) = run(wanted, tmp_path / "other", {}, running(tmp_path / "other.jsonl")).values()
    begun = tmp_path / "runs" / wanted[0].folder / "checkpoint.pt"
    monkeypatch.setattr(rows, "seconds_left", lambda _: 3600.0)
    stopped = rows.subprocess.Popen.communicate

    def until_it_has_begun(process: subprocess.Popen[str], timeout: float | None = None) -> tuple[str, str]:
        if timeout is None:
            return stopped(process)
        while not begun.exists():
            time.sleep(0.01)
        raise subprocess.TimeoutExpired("softcache", timeout)

    monkeypatch.setattr(rows.subprocess.Popen, "communicate", until_it_has_begun)
    run(wanted, tmp_path, {}, running(out, "--minutes", "60"))
    assert recorded(out) == {}
    monkeypatch.undo()
    (resumed,) = run(wanted, tmp_path, {}, running(out)).values()
    assert resumed["top1"] == whole["top1"]
    steps = [json.loads(line)["epoch"] for line in begun.with_name("metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("table", TABLES)
def test_all_commands_of_a_table_are_softcache_s(table: str) -> None:
    paths = defaultdict(lambda: "somewhere", weights="")
    for trial in TABLES[table]():
        _, *given = shlex.split(trial.command.format_map(paths))
        train.make_context("train", [*given, "--seed", str(trial.seed)])
