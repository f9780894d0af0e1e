"""Pages of the benchmarks of accuracy: what is made of runs, and what is said of those that are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="needs scipy, of the extra [bench]")
pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra [bench]")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import cifar100_page, defaults_page  # noqa: E402
from benchmarks.cifar100_rows import TABLES  # noqa: E402
from benchmarks.measure import machine  # noqa: E402
from benchmarks.rows import recorded  # noqa: E402

REACHED = {"alone": 0.48, "live": 0.54, "matched, 8 views": 0.541, "mean, 8 views": 0.56}


def runs(table: str) -> dict[str, dict[str, Any]]:
    """Of the rows above, all seeds, a tenth of a point apart."""
    found: dict[str, dict[str, Any]] = {}
    for trial in TABLES[table]():
        if trial.name in REACHED:
            record = {"key": trial.key, "table": table, "top1": REACHED[trial.name] + trial.seed / 1000}
            found[trial.key] = {**record, **machine()}
    return found


def test_the_page_of_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar100_page, "PAGE", tmp_path / "real.md")
    done = runs("targets")
    done["dump"] = {"table": "dump", "seconds": 100.0, "keys": 90_000, **machine()}
    page = cifar100_page.page(done)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines() if line.startswith("| ")}
    # Three seeds a tenth of a point apart: one run scatters by 0.1, t of 8 degrees of freedom is 2.306.
    assert "+6.10 ± 0.19: better | +0.10 ± 0.19: as good" in lines["matched, 8 views"]
    assert "+8.00 ± 0.19: better | +2.00 ± 0.19: better" in lines["mean, 8 views"]
    assert f"targets: - Not run yet: {len(TABLES['targets']()) - 12} of {len(TABLES['targets']())} runs." in page
    assert "The test split hasn't been looked at yet." in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"real-views.png", "real-seconds.png"}


def test_seconds_of_the_teacher_are_those_of_one_pass_for_each_view() -> None:
    done, trials = runs("targets"), TABLES["targets"]()
    assert cifar100_page.teacher_seconds(trials, done, 45_000) == {}, "no dump has been timed"
    done["dump"] = {"table": "dump", "seconds": 100.0, "keys": 90_000}
    found = cifar100_page.teacher_seconds(trials, done, 45_000)
    assert (found["matched, 1 view"], found["mean, 8 views"], found["live"]) == (50.0, 400.0, 600.0)  # 12 epochs
    assert "alone" not in found


def test_the_readme_has_the_table_of_what_was_run() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert cifar100_page.in_readme(text, recorded(cifar100_page.FILE)) == text


def test_a_run_that_failed_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar100_page, "PAGE", tmp_path / "real.md")
    done = runs("targets")
    key = next(trial.key for trial in TABLES["targets"]() if trial.name == "live")
    done[key] = {"key": key, "table": "targets", "failed": "the disk was full", **machine()}
    assert "targets: - Failed: live, seed 0: the disk was full" in cifar100_page.page(done)


def test_the_page_of_the_defaults_says_what_was_not_run() -> None:
    page = defaults_page.page({}, {})
    for name in defaults_page.CASES:
        assert f"## {name}\n" in page
    views = sum(case.data in defaults_page.VIEWED for case in defaults_page.CASES.values())
    assert views == len(defaults_page.VIEWED)
    assert page.count("Not run yet.") == len(defaults_page.CASES) + 2 + views  # two of CIFAR-100


def test_figures_in_the_words_of_the_page_of_the_defaults_are_those_of_the_runs() -> None:
    reached = {"alone, default": 0.30, "alone, sgd 0.2": 0.31, "alone, sgd 0.4": 0.29, "distilled, dist": 0.36}
    done = {
        trial.key: {"key": trial.key, "top1": reached[trial.name]}
        for trial in defaults_page.rows(defaults_page.DEEPER)
        if trial.name in reached and trial.seed == 0
    }
    page = " ".join(defaults_page.page(done, {}).split())
    assert "with a deeper student, 0.2 is better than 0.4 by 2.00." in page
    assert "is at most 1.00 points behind the best way that was tried on the same set" in page
    assert "by (not run yet) points on the 5,000 rows and by 6.00 on the 10,000." in page
    assert f"| {defaults_page.DEEPER} | 31.00 (1) | 30.00 (1) | 29.00 (1) |" in page


def test_targets_are_shown_over_the_number_of_views() -> None:
    name, reached = "cifar100, 5,000 rows", {"matched": 0.2, "mean": 0.3}
    done = {
        trial.key: {"key": trial.key, "top1": reached[kind] + trial.seed / 1000}
        for trial in defaults_page.viewed(name)
        for kind, _, views in [trial.name.partition(", ")]
        if kind in reached and views in ("2 views", "8 views")
    }
    page = defaults_page.views(name, done)
    # Three seeds a tenth of a point apart in four rows: t of 8 degrees of freedom is 2.306; 2.306 · 0.1 / √3 = 0.13.
    assert "| matched |  | 20.10 ± 0.13 |  | 20.10 ± 0.13 |" in page
    assert "| mean |  | 30.10 ± 0.13 |  | 30.10 ± 0.13 |" in page
    assert "| both |  |  |  |  |" in page
    assert "Runs of each: 3. A single run scatters by 0.10 points (8 degrees of freedom)." in page
    assert "- Not run yet: 24 of 36 runs." in page


def test_a_student_in_float32_is_not_the_best_way_by_hand() -> None:
    runs = {"alone, default": [50.0], "alone, sgd 0.2": [51.0], "alone, sgd 0.2, float32": [52.0], "distilled": [60.0]}
    assert defaults_page.best_alone(runs) == "alone, sgd 0.2"
    assert defaults_page.best_alone({"alone, default": [50.0]}) is None, "there is nothing to compare it with"
