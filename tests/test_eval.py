"""``softcache eval`` of runs beside their teacher: its figures against their definitions, whichever way they come."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness_train import STUDENT, command, fit, lines, make_cache, make_teacher

from softcache.cli._print import fitted, rows, table
from softcache.config.record import read_record
from softcache.errors import SoftcacheError
from softcache.models._open import open_network
from softcache.remembered import allowing_too
from softcache.stages.eval import evaluate, evaluate_all
from softcache.sweeping.evaluation import Evaluation
from softcache.sweeping.evaluation_lines import at_length, heading, of_classes, tables
from softcache.sweeping.folder import ManyFolder
from softcache.sweeping.grid import Combination, Run
from softcache.views._open import open_viewed

CLEAN: dict[str, Any] = {"split": "test", "augment": "none", "views": 1}
LEARNT: dict[str, Any] = {"loss": "kl", "alpha": 0.9}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with its caches of augmented views and of the clean test split, and runs: of two seeds at T = 4, of one
    at T = 1, and one on labels alone."""
    folder = tmp_path_factory.mktemp("eval")
    make_teacher(folder / "teacher")
    cache = make_cache(folder / "train" / "cache", folder / "teacher", augment="crop:pad=1")
    make_cache(folder / "test" / "cache", folder / "teacher", **CLEAN)
    for name, options in {
        "four": {**LEARNT, "T": 4},
        "four-again": {**LEARNT, "T": 4, "seed": 4},
        "one": {**LEARNT, "T": 1},
        "alone": {"alpha": 0},
    }.items():
        fit(folder / "runs" / name, cache=cache, **options)
    return folder


def logits(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What a folder's network says of the test split, and the labels."""
    viewed = open_viewed("digits", "test", augment="none", size=8)
    network = open_network(str(folder), classes=10, statistics=viewed.samples.statistics).eval()
    with torch.inference_mode():
        return network(viewed.clean(range(len(viewed)))), torch.from_numpy(viewed.samples.labels).long()


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert command("-q", "eval", *arguments) == 0
    return capsys.readouterr().out


# One run.


def test_a_run_has_the_figures_of_its_own_last_epoch(there: Path) -> None:
    for name in ("four", "one", "alone"):
        run = there / "runs" / name
        assert evaluate(str(run))["top1"] == lines(run)[-1]["test_top1"] == read_record(run).result["test_top1"]


def test_measures_are_what_they_are_defined_as(there: Path) -> None:
    found = evaluate(str(there / "runs" / "four"))
    (ours, labels), (theirs, _) = logits(there / "runs" / "four"), logits(there / "teacher")
    assert found["loss"] == pytest.approx(F.cross_entropy(ours, labels).item(), rel=1e-5)
    assert found["agreement"] == pytest.approx((ours.argmax(1) == theirs.argmax(1)).float().mean().item())
    for name, T in (("kl", 1.0), ("kl_T", 4.0)):
        p, q = ((z.double() / T).softmax(1) for z in (theirs, ours))
        assert found[name] == pytest.approx((p * (p.log() - q.log())).sum(1).mean().item(), rel=1e-4)
    assert found["kl_temperature"] == 4.0
    assert found["teacher"]["top1"] == pytest.approx((theirs.argmax(1) == labels).float().mean().item())
    # a convolution from 1 to 4 channels at 4×4 places, one to 8 at 2×2, a layer from 8 to 10, and two batch norms
    assert found["flops"] == 2 * (9 * 4 * 16 + 9 * 4 * 8 * 4 + 80)
    assert found["parameters"] == 9 * 4 + 8 + 9 * 4 * 8 + 16 + 80 + 10


def test_a_student_that_is_its_teacher_says_the_same(there: Path) -> None:
    teacher = str(there / "teacher")
    found = evaluate(teacher, size=8, teacher=teacher, T=3)
    assert found["agreement"] == 1.0
    assert (found["kl"], found["kl_T"]) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    for name in ("top1", "top5", "loss", "ece", "parameters", "flops"):
        assert found[name] == found["teacher"][name]


def test_a_cached_teacher_says_what_a_live_one_says(there: Path, tmp_path: Path) -> None:
    run = str(there / "runs" / "four")
    live, named = evaluate(run), evaluate(run, teacher=str(there / "teacher"))
    cached = evaluate(run, cache=str(there / "test" / "cache"))
    assert (live["teacher"]["source"], named["teacher"]["source"]) == ("run now", "run now")
    assert cached["teacher"]["source"] == f"cache {there / 'test' / 'cache'}"
    for name in ("agreement", "kl", "kl_T", "top1", "ece"):
        assert live[name] == named[name] == pytest.approx(cached[name], rel=1e-5)
    for name in ("top1", "top5", "loss", "ece"):
        assert live["teacher"][name] == pytest.approx(cached["teacher"][name], rel=1e-5)
    # By itself, where it lies beside the cache of the training.
    beside = there / "train" / "of-test"
    shutil.copytree(there / "test" / "cache", beside)
    try:
        found = evaluate(run)
    finally:
        shutil.rmtree(beside)
    assert found["teacher"]["source"] == f"cache {beside}"
    assert {**found, "teacher": None} == {**cached, "teacher": None}


def test_a_run_with_a_live_teacher_is_compared_with_it(there: Path, tmp_path: Path) -> None:
    teacher = str(there / "teacher")
    fit(tmp_path / "run", online=True, teacher=teacher, size=8, epochs=1, views=1, **LEARNT, T="4:2:linear")
    found = evaluate(str(tmp_path / "run"))
    assert found["kl_temperature"] == 4.0, "of one epoch the schedule has its beginning"
    named = evaluate(str(tmp_path / "run"), teacher=teacher)
    assert (found["agreement"], found["kl"]) == (named["agreement"], pytest.approx(named["kl"], rel=1e-6))


def test_a_temperature_of_ones_own_replaces_that_of_the_training(there: Path) -> None:
    run = str(there / "runs" / "four")
    found = evaluate(run, T=1)
    assert found["kl_T"] == found["kl"] == evaluate(run)["kl"]
    assert "kl_T" not in evaluate(str(there / "runs" / "alone")), "nothing has told a temperature"
    assert "agreement" in evaluate(str(there / "runs" / "alone")), "its cache knows the teacher"


def test_a_teacher_that_cant_be_had_is_left_out_and_a_line_says_why(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = there / "runs" / "four"
    (there / "teacher").rename(there / "gone")
    try:
        found = evaluate(str(run))
        shown = said(capsys, run)
    finally:
        (there / "gone").rename(there / "teacher")
    assert "agreement" not in found
    assert "teacher" not in found
    assert "--teacher, or with --cache what `softcache dump --teacher" in found["left_out"]
    assert f"not compared: {found['left_out']}" in shown
    without = evaluate(str(run), compare=False)
    assert {**found, "left_out": None} == {**without, "left_out": None}
    weights = there / "teacher" / "teacher.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes((there / "runs" / "four" / "student.safetensors").read_bytes())
        assert "not compared" in said(capsys, run), "other parameters are no teacher of that cache"
    finally:
        weights.write_bytes(kept)


def test_several_teachers_have_to_be_told_apart(there: Path, tmp_path: Path) -> None:
    make_teacher(tmp_path / "other", seed=5)
    second = make_cache(tmp_path / "cache", tmp_path / "other", augment="crop:pad=1")
    fit(tmp_path / "run", cache=(there / "train" / "cache", second), epochs=1)
    found = evaluate(str(tmp_path / "run"))
    assert "trained from 2 caches, and it is compared with one teacher" in found["left_out"]
    assert "agreement" in evaluate(str(tmp_path / "run"), teacher=str(tmp_path / "other"))


def test_a_run_whose_teacher_is_gone_says_nothing_of_another_run(there: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(there / "runs" / "four", theirs)
    record = json.loads((theirs / "config.json").read_text())
    elsewhere = str(tmp_path / "nowhere")
    record["options"]["cache"] = [elsewhere]
    record["caches"][0]["path"] = elsewhere
    (theirs / "config.json").write_text(json.dumps(record))
    with allowing_too([STUDENT]):
        first, own = evaluate_all([str(theirs), str(there / "runs" / "four")]).models
    assert first.left_out is not None
    assert (own.left_out, "agreement" in own.beside) == (None, True)


# Several runs.


def test_runs_that_differ_in_the_seed_alone_are_one_row(there: Path) -> None:
    names = ("four", "one", "four-again", "alone")
    found = evaluate_all([str(there / "runs" / name) for name in names])
    assert [one.model for one in found.models] == [str(there / "runs" / name) for name in names]
    assert [row.varied["T"] for row in found.rows] == ["4", "1", "–"]
    assert [row.varied["loss"] for row in found.rows] == ["kl", "kl", "–"]
    each = [evaluate(str(there / "runs" / name)) for name in ("four", "four-again")]
    row = found.to_json()["rows"][0]
    assert len(found.rows[0].models) == 2
    for name in ("top1", "loss", "ece", "agreement", "kl", "kl_T"):
        values = [one[name] for one in each]
        assert row[name] == {"mean": statistics.mean(values), "deviation": statistics.stdev(values)}
    assert found.to_json()["rows"][1]["top1"]["deviation"] is None


def test_a_teacher_is_a_row_of_its_own(there: Path) -> None:
    named = [str(there / name) for name in ("teacher", "runs/four", "runs/one")]
    found = evaluate_all(named, size=8, compare=False)
    assert [row.varied["model"] for row in found.rows] == named
    assert [{**row.varied, "model": ""} for row in found.rows] == [
        {"model": "", "T": "–"},
        {"model": "", "T": "4"},
        {"model": "", "T": "1"},
    ]
    assert evaluate_all(named[:2], size=8, compare=False).rows[0].varied == {"model": named[0]}


def test_a_sweeps_folder_stands_for_its_finished_runs(
    there: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = ManyFolder(tmp_path / "sweep")
    many.prepare()
    combination = Combination({}, {})
    runs = [Run(name, 3, combination, {}) for name in ("four", "one", "late")]
    many.add_cohort(0, runs)
    with pytest.raises(SoftcacheError, match="has no finished run yet, of 3"):
        evaluate_all(str(tmp_path / "sweep"))
    for name in ("four", "one"):
        shutil.copytree(there / "runs" / name, many.run_folder(name))
    with allowing_too([STUDENT]):
        found = evaluate_all(str(tmp_path / "sweep"), compare=False)
    assert [one.model for one in found.models] == [str(many.run_folder(name)) for name in ("four", "one")]
    assert "1 of 3 runs are not finished and left out" in caplog.text


def test_tables_fit_80_columns_and_have_the_figures(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [there / "runs" / name for name in ("four", "four-again", "one", "alone")]
    shown = said(capsys, *runs, "--cache", there / "test" / "cache", "--per-class")
    tables = shown.split("\n\n", 1)[1]
    assert all(len(line) <= 80 for line in tables.splitlines()), tables
    top1 = [evaluate(str(run), compare=False)["top1"] for run in runs[:2]]
    told = f"{100 * statistics.mean(top1):.2f} ± {100 * statistics.stdev(top1):.2f} %"
    assert told in tables
    assert "± is the standard deviation of a single run over seeds" in tables
    alone = said(capsys, runs[0], "--latency")
    assert "KL(teacher‖student) at T=4" in alone
    assert "latency, batch 32" in alone
    assert all(len(line) <= 80 for line in alone.split("\n\n", 1)[1].splitlines()), alone


def test_teachers_of_one_name_are_told_apart(there: Path, tmp_path: Path) -> None:
    found = evaluate_all([str(there / "runs" / name) for name in ("four", "one", "alone")])
    assert [name for name, _ in heading(found)].count("teacher") == 1
    first, second, third = found.models
    assert second.teacher is not None
    assert second.teacher.scores is not None
    other = dataclasses.replace(
        second.teacher,
        scores=dataclasses.replace(second.teacher.scores, top1=0.125),  # type: ignore[arg-type]
        cost={"parameters": 12_000, "flops": None},
    )
    several = Evaluation.of([first, dataclasses.replace(second, teacher=other), third])
    name = there / "teacher"
    told = [(label, text) for label, text in heading(several) if label.startswith("teacher")]
    assert told == [("teacher 1", f"{name} (run now)"), ("teacher 2", f"{name} (run now)")]
    scores, *_, costs = tables(several)
    of_teachers = [line for line in scores[1] if line[0].startswith("teacher")]
    assert [line[0] for line in of_teachers] == ["teacher 1", "teacher 2"]
    assert "12.50 %" in of_teachers[1]
    assert "12.50 %" not in of_teachers[0]
    assert [line[0] for line in costs[1] if line[0].startswith("teacher")] == ["teacher 1 teacher", "teacher 2 teacher"]
    # Each row says which of them it is compared with; where there is one, or a row is compared with none, it doesn't.
    compared = [line[header.index("teacher")] for header, lines in [tables(several)[1]] for line in lines]
    assert compared == ["1", "2", "1"]
    none = dataclasses.replace(third, teacher=None)
    header, lines = tables(Evaluation.of([first, dataclasses.replace(second, teacher=other), none]))[1]
    assert [line[header.index("teacher")] for line in lines] == ["1", "2", "–"]
    assert "teacher" not in tables(found)[1][0]
    both = Evaluation.of([first, dataclasses.replace(first, seed=9, teacher=other)])
    assert at_length(both)[0] == ["", "student", "teacher 1"]
    assert of_classes(both.rows[0], both)[0][3] == "teacher 1, 2"
    assert of_classes(several.rows[1], several)[0][3] == "teacher 2"
    assert of_classes(found.rows[1], found)[0][3] == "teacher"


def test_a_list_of_settings_that_is_too_wide_is_wrapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header = ["setting", *(f"option_{number}" for number in range(12))]
    lines = [["[1]", *["some-value"] * 12], ["[2]", *["–"] * 11, "other"], ["[10]", *["–"] * 12]]
    monkeypatch.setenv("COLUMNS", "60")
    fitted(header, lines)
    shown = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 60 for line in shown)
    assert " ".join(" ".join(shown).split()) == " ".join([
        "[1]", *(f"option_{number}=some-value" for number in range(12)), "[2] option_11=other", "[10] –",
    ])  # fmt: skip
    monkeypatch.setenv("COLUMNS", "400")
    fitted(header, lines)
    assert capsys.readouterr().out.splitlines()[0].split() == header
    # Where the first cells are wide, what follows them is as wide as the terminal.
    monkeypatch.setenv("COLUMNS", "60")
    fitted(header, [["folder/" * 4, *["some-value"] * 12], ["b", *["–"] * 12]])
    first, *told, second, nothing = capsys.readouterr().out.splitlines()
    assert (first, second, nothing) == ("folder/" * 4, "b", "  –")
    assert " ".join(" ".join(told).split()) == " ".join(f"option_{number}=some-value" for number in range(12))
    assert all(line.startswith("  o") and len(line) <= 60 for line in told)


def test_classes_make_up_the_accuracy(there: Path) -> None:
    (one,) = evaluate_all([str(there / "runs" / "four")], per_class=True).models
    assert one.scores is not None
    assert one.teacher is not None
    assert sum(own.rows for own in one.classes) == one.scores.samples
    assert [own.name for own in one.classes] == [str(digit) for digit in range(10)]
    for of, scores in (("student", one.scores), ("teacher", one.teacher.scores)):
        hits = sum(own.rows * getattr(own, of) for own in one.classes)
        assert hits / one.scores.samples == pytest.approx(scores.top1)  # type: ignore[union-attr]
    own = one.to_json()["classes"][3]
    assert own["difference"] == own["student"] - own["teacher"]


def test_json_and_csv_say_the_same(there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [there / "runs" / name for name in ("four", "alone")]
    found = json.loads(said(capsys, *runs, "--json", "--csv", tmp_path / "numbers.csv"))
    printed = said(capsys, *runs, "--csv", "-")
    assert printed == (tmp_path / "numbers.csv").read_text()
    table = list(csv.DictReader(io.StringIO(printed)))
    for line, one in zip(table, found["models"], strict=True):
        assert line["model"] == one["model"]
        for name in ("top1", "loss", "ece", "agreement", "kl", "parameters", "flops", "seed"):
            assert float(line[name]) == one[name]
        assert float(line["teacher_top1"]) == one["teacher"]["top1"]
    assert [line["T"] for line in table] == ["4", "–"]
    assert json.loads(said(capsys, runs[0], "--json")) == evaluate(str(runs[0]))
    classes = list(csv.DictReader(io.StringIO(said(capsys, *runs, "--per-class", "--csv", "-"))))
    assert len(classes) == 20
    assert {line["class"] for line in classes} == {str(digit) for digit in range(10)}


def test_a_place_for_the_numbers_is_looked_at_before_anything_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def late(**_: Any) -> None:
        raise AssertionError("models were evaluated")

    monkeypatch.setattr("softcache.stages.eval.evaluate_all", late)
    (tmp_path / "link.csv").symlink_to(tmp_path / "there.csv")
    for name, status in (("none/numbers.csv", 2), (".", 2), ("link.csv", 1)):
        assert command("-q", "eval", "any", "--csv", tmp_path / name) == status
    assert "models were evaluated" not in capsys.readouterr().err


def test_numbers_are_shown_though_they_cant_be_written(
    there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("softcache.cli.eval.replace_file", full)
    run = there / "runs" / "alone"
    assert command("-q", "eval", run, "--no-compare", "--csv", tmp_path / "numbers.csv") == 1
    out, err = capsys.readouterr()
    assert "parameters" in out
    assert f"can't write --csv {tmp_path / 'numbers.csv'}: No space left on device" in err


def test_a_name_from_anywhere_stays_in_its_cell(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b]0;title\x07\x1b[31ma\u202eb\r\nc\ud800"
    table(["class", "rows"], [[hostile, "1"], ["d", "2"]])
    rows([(hostile, hostile), ("teacher", "https://me:word@host/cache?sig=abc")])
    header, _, first, second, *pairs = capsys.readouterr().out.split("\n")
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(first + "".join(pairs))
    assert "]0;title" in first
    assert first.index("1", first.index("c")) == second.index("2") == header.index("rows"), "columns are in line"
    assert "https://host/cache?…" in pairs[1]


# What can't be.


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "name a run, a sweep, a teacher, or a model with --weights"),
        (["runs"], 1, "runs is no teacher and no run: it has no config.json"),
        (["runs/none"], 1, "runs/none"),
        (["runs/four", "--cache", "train/cache"], 1, "views of crop:pad=1"),
        (["runs/four", "--cache", "test/cache", "--split", "train"], 1, "split test, digits has train"),
        (["runs/four", "--cache", "none"], 1, "none"),
        (["runs/four", "--size", "16", "--cache", "test/cache"], 1, "make it again with --size 16"),
        (["runs/four", "--cache", "test/cache", "--teacher", "teacher"], 2, "exclude each other"),
        (["runs/four", "--no-compare", "--T", "2"], 2, "which --no-compare leaves out"),
        (["runs/four", "--teacher-weights", "a.pt"], 2, "parameters of --teacher: name the network too"),
        (["runs/four", "--T", "0"], 2, "--T must be above 0"),
        (["runs/four", "runs/one", "--weights", "a.pt"], 2, "--weights are the parameters of one model"),
        (["runs/four", "--split", "val"], 2, "--split must be train or test, is 'val'"),
        (["runs/four", "--amp", "fp8"], 2, "--amp must be auto, off, bf16 or fp16"),
        (["runs/four", "--json", "--csv", "-"], 2, "--json and --csv - would both print"),
        (["runs/four", "--csv", "runs"], 2, "--csv runs is a folder: name a file, such as runs/evaluation.csv"),
        (["runs/four", "--csv", "none/numbers.csv"], 2, "--csv none/numbers.csv: there is no folder none"),
        (["runs/four", "--csv", "s3://bucket/numbers.csv"], 2, "is an address, and has to be a folder of this machine"),
        (["runs/four", "--teacher", "resnet18"], 1, "no weights for resnet18"),
    ],
)
def test_what_cant_be_is_one_line(
    arguments: list[str],
    status: int,
    message: str,
    there: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(there)
    assert command("-q", "eval", *arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_cache_of_other_data_is_refused(there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    from softcache.stages.dump import dump

    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "test"):
        samples = open_viewed("digits", split).samples
        assert samples.images is not None
        np.save(other / f"{split}_images.npy", 255 - samples.images)
        np.save(other / f"{split}_labels.npy", samples.labels)
    settings = {**CLEAN, "size": 8, "amp": "off", "out": tmp_path / "cache"}
    dump(str(there / "teacher"), dataset=f"arrays:{other}", **settings)
    assert command("-q", "eval", there / "runs" / "four", "--cache", tmp_path / "cache") == 1
    assert "has other pixels than the teacher" in capsys.readouterr().err


def test_latencies_are_medians_within_their_quartiles(there: Path) -> None:
    found = evaluate(str(there / "runs" / "four"), latency=True)
    for owner in (found, found["teacher"]):
        assert [time["batch"] for time in owner["latency"]] == [1, 32]
        assert all(0 < time["low"] <= time["median"] <= time["high"] for time in owner["latency"])
