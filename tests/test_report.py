"""A report says what its runs' files say, and leaves out what it can't know with a reason."""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from harness_many import QUICK, small_cache
from harness_report import GRID, Parsed, is_self_contained, made_sweep, parsed, write_run
from harness_train import SIZE, STUDENT, command, config, make_cache

from softcache.cache.reader import Cache
from softcache.config.sweep import Specification
from softcache.dumping.spent import keep_spent, spent_on
from softcache.errors import MissingExtraError, SoftcacheError, UsageError
from softcache.extras import install_command
from softcache.stages.eval import evaluate
from softcache.stages.report import report
from softcache.stages.train import train
from softcache.sweeping.folder import ManyFolder
from softcache.sweeping.grid import Combination, runs

pytest.importorskip("matplotlib")
FILES_ONLY = {"Comparison", "Over the epochs", "Temperature and weight", "What it cost", "Provenance"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps") / "digits"
    made_sweep(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students on labels alone and two distilled, of one order of rows."""
    folder = tmp_path_factory.mktemp("trained")
    cache = small_cache(folder)
    for seed in (0, 1):
        shared: dict[str, Any] = {**QUICK, "cache": cache, "seed": seed, "order_seed": 0, "val_fraction": 0.1}
        train(STUDENT, out=str(folder / f"alone-{seed}"), alpha=0, **shared)
        train(STUDENT, out=str(folder / f"distilled-{seed}"), loss="kl", T=2, alpha=0.9, **shared)
    return folder


@pytest.fixture(scope="module")
def page(trained: Path) -> Parsed:
    found = report(*(str(trained / f"{name}-{seed}") for name in ("alone", "distilled") for seed in (0, 1)),
                   out=str(trained / "report.html"))  # fmt: skip
    assert found.bytes == (trained / "report.html").stat().st_size
    # one temperature for all, so there is nothing to draw over it
    assert set(found.left) == {"Temperature and weight"}
    return parsed(trained / "report.html")


def test_a_row_of_a_sweep_is_the_mean_over_its_seeds(sweep: Path, tmp_path: Path) -> None:
    report(str(sweep), out=str(tmp_path / "report.html"))
    rows = parsed(tmp_path / "report.html").columns("comparison")
    by_setting: dict[tuple[str, str], list[float]] = {}
    for folder in (sweep / "runs").iterdir():
        options, result = config(folder)["options"], config(folder)["result"]
        T = f"{options['T']:g}" if options["T"] is not None else "–"
        by_setting.setdefault((T, f"{float(options['alpha']):g}"), []).append(result["val_top1"])
    assert len(rows) == len(by_setting) == 13
    for row in rows:
        values = by_setting[row["T"], row["alpha"]]
        assert row["held-out top-1, %"] == f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}"
        assert row["students"] == "2/2"
    means = [float(row["held-out top-1, %"].split()[0]) for row in rows]
    assert means == sorted(means, reverse=True)
    chosen = next(row for row in rows if row["alpha"] != "0")  # the best that learns from a teacher
    assert [row for row in rows if "chosen" in row[""]] == [chosen]
    assert [row["alpha"] for row in rows if "labels alone" in row[""]] == ["0"]


def test_a_gain_is_that_of_pairs_of_one_seed(sweep: Path, tmp_path: Path) -> None:
    report(str(sweep), out=str(tmp_path / "report.html"))
    rows = parsed(tmp_path / "report.html").columns("comparison")
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for folder in (sweep / "runs").iterdir():
        options, result = config(folder)["options"], config(folder)["result"]
        T = f"{options['T']:g}" if options["T"] is not None else "–"
        scores.setdefault((T, f"{float(options['alpha']):g}"), {})[options["seed"]] = 100 * result["val_top1"]
    base = scores["–", "0"]
    for row in rows:
        if row["alpha"] == "0":
            assert row["gain over labels alone"] == "–"
            continue
        own = scores[row["T"], row["alpha"]]
        known = scipy.stats.ttest_rel([own[0], own[1]], [base[0], base[1]])
        half = (known.confidence_interval(0.95).high - known.confidence_interval(0.95).low) / 2
        mean = statistics.mean(own[k] - base[k] for k in (0, 1))
        text = row["gain over labels alone"].replace("−", "-")
        assert text == f"{mean:+.2f} ± {half:.2f}"


def test_a_sweep_whose_choice_is_written_down_keeps_it(sweep: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chosen"
    every = made_sweep(folder)
    worst = [run.name for run in every if (run.options.get("T"), run.options["alpha"]) == (1.0, 0.3)]
    document = {"version": 1, "sweep": "chosen", "score": "top1", "rows": [], "chosen": {"runs": worst}}
    (folder / "table.json").write_text(json.dumps(document))
    report(str(folder), out=str(tmp_path / "report.html"))
    found = parsed(tmp_path / "report.html")
    (row,) = (row for row in found.columns("comparison") if "chosen" in row[""])
    assert (row["T"], row["alpha"]) == ("1", "0.3")
    assert "the sweep chose it" in found.sections["comparison"]


def test_what_a_comparison_knows_of_its_teacher_is_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "compared"
    folder.mkdir()
    options = {"student": "cifar:resnet8", "loss": ("kl",), "T": 4.0, "order_seed": 0}
    Specification("compare", {**options, "seeds": 2, "generations": 1}, 1, 8).save(folder)
    rows = [
        Combination({"row": "alone"}, {**options, "alpha": 0, "loss": ()}),
        Combination({"row": "distilled"}, options),
    ]
    every, many, random = runs(rows, [0, 1]), ManyFolder(folder), np.random.default_rng(0)
    many.prepare()
    many.add_cohort(0, every)
    for run in every:
        result = {"test_top1": 0.9 if "distilled" in run.name else 0.8, "val_top1": None, "seconds": 9.0}
        write_run(many.run_folder(run.name), run.options, random, 3, result=result)
    (folder / "table.json").write_text(json.dumps({"version": 1, "teachers": {"cifar:resnet56": 0.9375}, "rows": []}))
    report(str(folder), out=str(tmp_path / "report.html"))
    found = parsed(tmp_path / "report.html")
    teacher, *others = found.columns("comparison")
    assert (teacher["trained"], teacher["test top-1, %"], teacher[""]) == ("cifar:resnet56", "93.75", "teacher")
    assert {row["trained"]: row["test top-1, %"] for row in others} == {
        "labels alone": "80.00 ± 0.00",
        "distilled": "90.00 ± 0.00",
    }
    assert "gain over labels alone+10.00 points" in found.sections["header"]


def test_figures_are_in_the_page_and_nothing_else_is_asked_for(page: Parsed, trained: Path) -> None:
    assert is_self_contained(page)
    assert sum(tag == "svg" for tag, _ in page.tags) == 6
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert (trained / "report.html").stat().st_size < 500_000
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_students_and_the_teacher_are_those_that_eval_measures(page: Parsed, trained: Path) -> None:
    rows = {row[""]: row for row in page.columns("calibration")}
    runs = {"student": "distilled-0", "labels alone": "alone-0", "teacher": "teacher"}
    for name, run in runs.items():
        known = evaluate(str(trained / run), size=SIZE)  # the teacher's own is another one
        assert rows[name]["top-1, %"] == f"{100 * known['top1']:.2f}"
        assert float(rows[name]["calibration error, %"]) == pytest.approx(100 * known["ece"], abs=0.006)


def test_what_the_teacher_cost_is_in_the_cache(trained: Path, page: Parsed) -> None:
    cache = Cache(trained / "cache")
    spent = spent_on(cache)
    assert spent is not None
    assert spent.keys == cache.rows * cache.views
    keep_spent(trained / "cache", 10, 1.5)
    more = spent_on(Cache(trained / "cache"))
    assert more is not None
    assert (more.keys, more.seconds) == (spent.keys + 10, spent.seconds + 1.5)
    samples = sum(
        json.loads(line)["samples"]
        for seed in (0, 1)
        for line in (trained / f"distilled-{seed}" / "metrics.jsonl").read_text().splitlines()
    )
    assert f"2 distilled students saw {samples:,} samples" in page.sections["cost"]


def test_provenance_names_the_cache_and_a_command_that_parses(page: Parsed, trained: Path) -> None:
    text = page.sections["provenance"]
    assert Cache(trained / "cache").manifest.cache_id in text
    assert "softcache train" in text
    assert config(trained / "distilled-0")["data"]["fingerprint"] in text


def test_what_is_missing_is_said_and_nothing_is_opened(sweep: Path, tmp_path: Path) -> None:
    found = report(str(sweep), out=str(tmp_path / "report.html"))
    assert set(found.sections) == FILES_ONLY
    page = parsed(tmp_path / "report.html")
    assert "No student that is done was trained from a cache." in page.sections["similarity"]
    assert all(why.endswith(".") and len(why) < 400 for why in found.left.values()), found.left


def test_a_path_that_only_a_folder_names_is_not_opened(trained: Path, state: Path, tmp_path: Path) -> None:
    """Somebody else's runs say where their cache is and which code their student is; neither is touched."""
    found = report(str(trained / "distilled-0"), out=str(tmp_path / "report.html"))
    assert "For safety" in found.left["What the teacher takes for alike"]
    named = report(str(trained / "distilled-0"), out=str(tmp_path / "report.html"), cache=[str(trained / "cache")])
    assert "What the teacher takes for alike" in named.sections


def test_a_cache_that_says_nothing_of_the_students_is_refused(sweep: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is neither the cache that the students were trained from nor one of the"):
        report(str(sweep), cache=str(trained / "cache"), out=str(tmp_path / "report.html"))


def test_a_cache_of_the_test_split_stands_for_the_teacher(trained: Path, page: Parsed, tmp_path: Path) -> None:
    """What it says there is read, and is what it says when it is run."""
    cache = make_cache(tmp_path / "test", trained / "teacher", split="test", views=1, augment="none")
    report(str(trained / "distilled-0"), cache=str(cache), out=str(tmp_path / "report.html"))
    cached = {row[""]: row for row in parsed(tmp_path / "report.html").columns("calibration")}["teacher"]
    live = {row[""]: row for row in page.columns("calibration")}["teacher"]
    assert float(cached["top-1, %"]) == pytest.approx(float(live["top-1, %"]), abs=0.011)
    name = "mean probability of the top class, %"
    assert float(cached[name]) == pytest.approx(float(live[name]), abs=0.011)


def test_a_report_is_replaced_and_no_other_file_is(sweep: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert command("report", sweep, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["path"], told["bytes"]) == ("report.html", (here / "report.html").stat().st_size)
    (here / "mine.html").write_text("<p>my own</p>")
    with pytest.raises(UsageError, match=r"mine\.html is there and is no report of softcache"):
        report(str(sweep), out="mine.html")
    assert (here / "mine.html").read_text() == "<p>my own</p>"
    with pytest.raises(UsageError, match="is a folder: name a file, such as"):
        report(str(sweep), out=".")
    with pytest.raises(UsageError, match="there is no folder nowhere"):
        report(str(sweep), out="nowhere/report.html")


def test_what_is_no_run_is_refused(trained: Path, here: Path) -> None:
    with pytest.raises(SoftcacheError, match="is a teacher: name the runs of its students"):
        report(str(trained / "teacher"))
    with pytest.raises(SoftcacheError, match="is no run, sweep or comparison"):
        report(str(here))
    with pytest.raises(SoftcacheError, match="there is no folder"):
        report(str(here / "nothing"))
    assert not list(here.iterdir())


def test_the_extra_is_named_where_matplotlib_is_missing(
    sweep: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("report"))):
        report(str(sweep))
    assert not list(here.iterdir())


def test_the_same_runs_give_the_same_page(sweep: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("one.html", "other.html"):
        report(str(sweep), out=str(tmp_path / name))
        text = (tmp_path / name).read_text()
        date = next(part for part in text.split("<") if part.startswith("dd>softcache "))
        pages.append(text.replace(date, "").replace(date.rpartition(", ")[2], ""))
    assert pages[0] == pages[1]


def test_runs_that_are_being_trained_are_shown_as_far_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "going"
    every = made_sweep(folder, T=(1.0, 4.0), alpha=(0.5,))
    going = folder / "runs" / every[0].name
    record = config(going)
    (going / "config.json").write_text(json.dumps({**record, "result": None}))
    with open(going / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 21, "lo')
    for name in (every[1].name,):
        (folder / "runs" / name / "failed.json").write_text('{"version": 1, "error": "it fell", "pruned": false}')
    report(str(folder), out=str(tmp_path / "report.html"))
    page = parsed(tmp_path / "report.html")
    rows = {row["T"]: row for row in page.columns("comparison")}
    assert rows["1"]["students"] == rows["4"]["students"] == "1/2"
    assert "1 failed" in rows["4"][""]
    assert "1 of 4 students was not finished" in page.sections["comparison"]


def test_one_option_that_varies_is_a_line_and_two_are_a_map(tmp_path: Path) -> None:
    for name, changes, wanted in (
        ("line", {"alpha": (0.5,)}, "over the temperature T"),
        ("weight", {"T": (2.0,)}, "over the weight alpha"),
        ("map", {}, "the darker the field"),
    ):
        made_sweep(tmp_path / name, **changes)
        report(str(tmp_path / name), out=str(tmp_path / "report.html"))
        assert wanted in parsed(tmp_path / "report.html").sections["temperature"], name
    assert len(GRID["T"]) * (len(GRID["alpha"]) - 1) == 12
    drawn = parsed(tmp_path / "report.html").sections["temperature"]
    for run in (tmp_path / "map" / "runs").iterdir():
        options = config(run)["options"]
        if float(options["alpha"]):
            twins = [
                config(other)["result"]["val_top1"]
                for other in (tmp_path / "map" / "runs").iterdir()
                if [config(other)["options"][key] for key in ("T", "alpha")] == [options["T"], options["alpha"]]
            ]
            assert f"{100 * statistics.mean(twins):.2f}" in drawn


def test_runs_of_different_data_are_refused(tmp_path: Path) -> None:
    kinds = {
        "one": ("folder:/a/shapes", "ab"),
        "moved": ("folder:/b/shapes", "ab"),
        "other": ("digits", "cd"),
        "newer": ("folder:/a/shapes", "ef"),
    }
    for name, (spec, fingerprint) in kinds.items():
        data = {"spec": spec, "split": "train", "rows": 9, "fingerprint": fingerprint * 32}
        write_run(tmp_path / name, {"T": 4.0, "loss": ("kl",)}, np.random.default_rng(0), 1, data=data)
    out = str(tmp_path / "report.html")
    report(str(tmp_path / "one"), str(tmp_path / "moved"), out=out)
    with pytest.raises(UsageError, match=r"are of different data \(folder:shapes, digits\): make a report for each"):
        report(str(tmp_path / "one"), str(tmp_path / "other"), out=out)
    with pytest.raises(UsageError, match=r"different data \(folder:shapes abababab…, folder:shapes efefefef…\)"):
        report(str(tmp_path / "one"), str(tmp_path / "newer"), out=out)


def test_a_student_on_labels_alone_is_told_to_have_no_teacher(trained: Path, tmp_path: Path) -> None:
    """It was never trained from a cache, so none is asked for."""
    train(STUDENT, out=str(tmp_path / "run"), alpha=0, dataset="digits", size=SIZE, **QUICK)
    report(str(tmp_path / "run"), out=str(tmp_path / "report.html"))
    text = parsed(tmp_path / "report.html").sections["calibration"]
    assert "the students weren't trained by one; --teacher names one that they are compared with" in text
    assert "--cache" not in text


def test_labels_alone_that_a_sweep_chose_are_chosen(tmp_path: Path) -> None:
    """The report looks into a setting that learns from a teacher, and doesn't say that the sweep chose it."""
    folder = tmp_path / "chosen"
    alone = [run.name for run in made_sweep(folder) if run.options["alpha"] == 0]
    document = {"version": 1, "sweep": "chosen", "score": "top1", "rows": [], "chosen": {"runs": alone}}
    (folder / "table.json").write_text(json.dumps(document))
    report(str(folder), out=str(tmp_path / "report.html"))
    found = parsed(tmp_path / "report.html")
    marks = {row["alpha"]: row[""] for row in found.columns("comparison") if row[""]}
    assert marks.pop("0") == "chosen: labels alone"
    assert list(marks.values()) == ["shown"]
    assert (
        "it has the highest mean on held-out rows, of those that learn from a teacher; the sweep chose labels alone."
        in found.sections["comparison"]
    )


def test_what_a_live_teacher_took_is_said(trained: Path, tmp_path: Path) -> None:
    live: dict[str, Any] = {"online": True, "teacher": str(trained / "teacher"), "dataset": "digits", "size": SIZE}
    train(STUDENT, out=str(tmp_path / "live"), loss="kl", T=2, alpha=0.9, **live, **QUICK)
    report(str(tmp_path / "live"), out=str(tmp_path / "report.html"))
    page = parsed(tmp_path / "report.html")
    assert "without a teacher" not in page.sections["header"] + page.sections["cost"]
    assert "with the teacher running" in page.sections["header"]
    assert page.columns("comparison")[0]["trained"].endswith("teacher")
    assert "In 1 training the teacher was running, and took" in page.sections["cost"]
    runs = [str(trained / "distilled-0"), str(tmp_path / "live")]
    report(*runs, cache=str(trained / "cache"), out=str(tmp_path / "report.html"))
    cost = parsed(tmp_path / "report.html").sections["cost"]
    assert "1 distilled student saw" in cost
    assert "In 1 training the teacher was running, and took" in cost


def test_a_gain_is_above_labels_alone_of_the_same_student_and_labels(tmp_path: Path) -> None:
    made_sweep(tmp_path / "two", student=("cifar:resnet8", "cifar:resnet14"), T=(4.0,), alpha=(0.0, 0.9))
    report(str(tmp_path / "two"), out=str(tmp_path / "report.html"))
    rows = parsed(tmp_path / "report.html").columns("comparison")
    alone = {row["student"]: row for row in rows if "labels alone" in row[""]}
    means = {name: float(row["held-out top-1, %"].split()[0]) for name, row in alone.items()}
    gains = {row["student"]: row for row in rows if row not in alone.values()}
    assert len(gains) == len(means) == 2
    for student, row in gains.items():
        known = float(row["held-out top-1, %"].split()[0]) - means[student]
        assert float(row["gain over labels alone"].split()[0].replace("−", "-")) == pytest.approx(known, abs=0.011)
    options = {"student": "cifar:resnet8", "val_fraction": 0.1}
    for name, own in (("few", {"alpha": 0, "label_fraction": 0.1}), ("all", {"loss": ("kl",), "T": 4.0})):
        write_run(tmp_path / name, {**options, **own}, np.random.default_rng(0), 1)
    report(str(tmp_path / "few"), str(tmp_path / "all"), out=str(tmp_path / "report.html"))
    page = parsed(tmp_path / "report.html")
    rows = page.columns("comparison")
    assert {row["label fraction"] for row in rows} == {"0.1", "1"}
    assert "gain over labels alone" not in rows[0]
    assert "gain over labels alone" not in page.sections["header"]
    assert "No student on labels alone has the same student, share of labels" in page.sections["comparison"]


def test_a_teacher_that_is_named_has_its_own_name(trained: Path, tmp_path: Path) -> None:
    report(str(trained / "alone-0"), teacher=str(trained / "distilled-1"), out=str(tmp_path / "report.html"))
    row = next(row for row in parsed(tmp_path / "report.html").columns("comparison") if row[""] == "teacher")
    assert row["trained"].endswith("distilled-1")
    assert row["test top-1, %"] == f"{100 * evaluate(str(trained / 'distilled-1'), size=SIZE)['top1']:.2f}"
