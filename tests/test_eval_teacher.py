"""A run is compared with a teacher that it has learnt from: ``eval`` and ``report`` refuse any other network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness_train import STUDENT, TEACHER, command, config, fit, make_cache, make_teacher

from softcache.cache.reader import Cache
from softcache.errors import ModelError
from softcache.models._checkpoint import load_state
from softcache.models._weights import fingerprint
from softcache.remembered import allowing_too
from softcache.stages.eval import evaluate
from softcache.stages.train import train

CLEAN: dict[str, Any] = {"split": "test", "augment": "none", "views": 1}
LEARNT: dict[str, Any] = {"loss": "kl", "alpha": 0.9, "T": 4, "epochs": 1}
NAMES = ("one", "other", "third")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three teachers of one architecture, a cache of each of augmented views and of the clean test split, and runs that
    learnt from the first, from the first and the second, from the first live, and from labels alone."""
    folder = tmp_path_factory.mktemp("teachers")
    caches = {}
    for seed, name in enumerate(NAMES):
        make_teacher(folder / name, seed=seed)
        caches[name] = make_cache(folder / f"{name}-train", folder / name, augment="crop:pad=1")
        make_cache(folder / f"{name}-test", folder / name, **CLEAN)
    live = {"online": True, "teacher": str(folder / "one"), "size": 8, "views": 1}
    fit(folder / "runs" / "distilled", cache=caches["one"], **LEARNT)
    fit(folder / "runs" / "ensemble", cache=(caches["one"], caches["other"]), **LEARNT)
    fit(folder / "runs" / "live", **live, **LEARNT)
    fit(folder / "runs" / "alone", cache=caches["one"], alpha=0, epochs=1)
    return folder


@pytest.fixture
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any) -> None:
        raise AssertionError("a network was run")

    monkeypatch.setattr("softcache.stages._subject.predictions", late)


def parameters(folder: Path) -> str:
    return fingerprint(load_state(folder / "teacher.safetensors"))


def test_a_run_records_whose_parameters_it_has_learnt_from(there: Path, tmp_path: Path) -> None:
    by_run = {run: config(there / "runs" / run)["teachers"] for run in ("distilled", "ensemble", "live", "alone")}
    spec = Cache(there / "one-train").manifest.identity.teacher.spec
    one, other = ({"teacher": spec, "weights": parameters(there / name)} for name in ("one", "other"))
    assert by_run == {"distilled": [one], "ensemble": [one, other], "live": [one], "alone": []}
    # what a live teacher computes in is no part of who it is
    live: dict[str, Any] = {"online": True, "teacher": str(there / "one"), "size": 8, "views": 1, "dtype": "float64"}
    fit(tmp_path / "double", **live, **LEARNT)
    assert config(tmp_path / "double")["teachers"] == [one]


@pytest.mark.parametrize("run", ["distilled", "live", "ensemble"])
@pytest.mark.parametrize("option", ["--cache", "--teacher"])
def test_eval_refuses_what_is_not_the_runs_teacher(
    run: str, option: str, there: Path, nothing_is_computed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    named = there / ("third-test" if option == "--cache" else "third")
    # the first of the two has no teacher to be mistaken for
    assert command("-q", "eval", there / "runs" / "alone", there / "runs" / run, option, named) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    assert f"{option} {named} " in line
    assert f"{there / 'runs' / run} learnt from " in line
    for name, said in (("third", True), ("one", True), ("other", run == "ensemble")):
        assert (f"parameters {parameters(there / name)[:12]}…" in line) == said
    assert "name a teacher of that run with --teacher, or with --cache what it said of the split" in line


@pytest.mark.parametrize(
    ("run", "teachers"),
    [("distilled", ("one",)), ("live", ("one",)), ("ensemble", ("one", "other")), ("alone", NAMES)],
)
def test_eval_takes_each_teacher_of_a_run_and_any_beside_labels_alone(
    run: str, teachers: tuple[str, ...], there: Path
) -> None:
    for name in teachers:
        live = evaluate(str(there / "runs" / run), teacher=str(there / name))
        cached = evaluate(str(there / "runs" / run), cache=str(there / f"{name}-test"))
        assert live["agreement"] == pytest.approx(cached["agreement"], rel=1e-5)


def test_any_networks_that_are_no_runs_are_compared(there: Path) -> None:
    assert evaluate(str(there / "one"), teacher=str(there / "one"), size=8)["agreement"] == 1
    assert evaluate(str(there / "one"), teacher=str(there / "third"), size=8)["agreement"] < 1


def test_a_live_teacher_that_is_another_by_now_is_not_compared_with(there: Path, tmp_path: Path) -> None:
    live: dict[str, Any] = {"online": True, "teacher": str(tmp_path / "teacher"), "size": 8, "views": 1}
    shutil.copytree(there / "one", tmp_path / "teacher")
    with allowing_too([TEACHER]):
        fit(tmp_path / "run", **live, **LEARNT)
        assert "agreement" in evaluate(str(tmp_path / "run"))
        shutil.copy(there / "third" / "teacher.safetensors", tmp_path / "teacher")
        found = evaluate(str(tmp_path / "run"))
        with pytest.raises(ModelError, match=f"parameters {parameters(there / 'third')[:12]}….* can go on with these"):
            train(resume=str(tmp_path / "run"))
    assert "agreement" not in found
    assert f"has by now parameters {parameters(there / 'third')[:12]}…" in found["left_out"]


def test_a_run_that_does_not_say_who_taught_it_is_told_of(
    there: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / "old"
    shutil.copytree(there / "runs" / "distilled", old)
    record = config(old)
    del record["teachers"]
    (old / "config.json").write_text(json.dumps(record))
    with allowing_too([STUDENT]):
        assert "agreement" in evaluate(str(old), cache=str(there / "third-test"))
    assert "doesn't say which parameters its teacher had" in caplog.text


@pytest.mark.parametrize("option", ["cache", "teacher"])
def test_a_report_refuses_what_is_not_the_students_teacher(
    option: str, there: Path, tmp_path: Path, nothing_is_computed: None
) -> None:
    pytest.importorskip("matplotlib")
    from softcache.stages.report import report

    runs = [str(there / "runs" / name) for name in ("alone", "distilled")]
    named = str(there / ("third-test" if option == "cache" else "third"))
    with pytest.raises(ModelError, match=f"--{option} {named} .*distilled learnt from "):
        report(*runs, out=str(tmp_path / "report.html"), **{option: named})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("run", ["ensemble", "alone"])
def test_a_report_takes_each_teacher_of_a_run_and_any_beside_labels_alone(
    run: str, there: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from softcache.stages.report import report

    given: list[dict[str, Any]] = [{"cache": str(there / "other-test")}, {"teacher": str(there / "other")}]
    for one in given:
        found = report(str(there / "runs" / run), out=str(tmp_path / "report.html"), **one)
        assert "Calibration" in found.sections
