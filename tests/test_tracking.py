"""Trackers: what is told of a training is what its own files say, whoever is told and whatever happens to it."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from harness_train import STUDENT, TEACHER, command, config, fit, lines, make_cache, make_teacher, same, weights

from softcache import registry
from softcache.config.parsed import parse
from softcache.config.train import TrainConfig
from softcache.errors import MissingExtraError, SoftcacheError, UsageError
from softcache.extras import install_command
from softcache.stages._cohort import train_cohort
from softcache.stages._tracked import tracked
from softcache.stages._training import prepare
from softcache.stages.sweep import sweep
from softcache.stages.teach import teach
from softcache.stages.train import train
from softcache.tracking import _log
from softcache.tracking._kept import TRACKING, Kept, KeptFile
from softcache.tracking._names import configuration, scalars
from softcache.tracking._specs import canonical_trackers, check_trackers
from softcache.tracking._tracker import TrackedRun
from softcache.tracking.tensorboard import Tensorboard
from softcache.training.ranks import Ranks


@dataclasses.dataclass(frozen=True)
class Recorder:
    """A tracker that keeps what it is told in this process. ``fails``: when it raises; ``hangs``: when it never comes
    back."""

    package: ClassVar[str] = "json"
    told: ClassVar[list[tuple[Any, ...]]] = []
    runs: ClassVar[list[TrackedRun]] = []
    fails: str = ""
    hangs: str = ""

    def load(self) -> None:
        self._maybe("load")

    def open(self, run: TrackedRun) -> Any:
        self._maybe("open")
        self.runs.append(run)
        return _Opened(self, run.key or f"key-{len(self.runs)}")

    def _maybe(self, what: str) -> None:
        if self.fails == what:
            raise OSError(28, f"no space left, in {what}")
        if self.hangs == what:
            threading.Event().wait()


@dataclasses.dataclass
class _Opened:
    tracker: Recorder
    key: str

    def log(self, axis: str, number: int, values: Mapping[str, float]) -> None:
        self.tracker._maybe(f"log {number}")
        self.tracker.told.append((self.key, axis, number, dict(values)))

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        self.tracker._maybe("close")
        self.tracker.told.append((self.key, "close", status, dict(summary)))


class _Point:
    value = f"{__name__}:Recorder"

    @staticmethod
    def load() -> type[Recorder]:
        return Recorder


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Recorder]]:
    """``--log recorder``, as another package would add it: by an entry point."""
    known = registry._plugins
    monkeypatch.setattr(registry, "_plugins", lambda kind: {"recorder": _Point} if kind == "tracking" else known(kind))
    registry.names.cache_clear()
    registry._installed.cache_clear()
    Recorder.told.clear()
    Recorder.runs.clear()
    yield Recorder
    registry.names.cache_clear()
    registry._installed.cache_clear()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracking")
    make_teacher(folder / "teacher")
    return make_cache(folder / "cache", folder / "teacher", hint=("layer1",))


def of_axis(told: list[tuple[Any, ...]], axis: str) -> dict[int, dict[str, float]]:
    return {number: values for _, of, number, values in told if of == axis}


def flat(line: Mapping[str, Any], without: str) -> dict[str, float]:
    """A line of JSON, written out by hand: what is null, and the line's own number, is left out."""
    found = {}
    for name, value in line.items():
        if isinstance(value, dict):
            found |= {f"{name}/{inner}": number for inner, number in flat(value, "").items()}
        elif value is not None and name != without:
            found[name] = value
    return found


# What is told.


def test_epochs_and_steps_are_those_of_the_runs_files(cache: Path, here: Path, recorder: type[Recorder]) -> None:
    hint = "fitnet:teacher=layer1,student=layer1"
    run = fit(here / "run", cache=cache, log="recorder", log_every=5, hint=hint, loss=("kl",), T=2)
    epochs = of_axis(recorder.told, "epoch")
    assert sorted(epochs) == [1, 2]
    for line in lines(run.folder):
        told = epochs[line["epoch"]]
        assert told.pop("samples_per_s") == pytest.approx(line["samples"] / line["epoch_s"])
        assert told == flat(line, "epoch")
        assert {"loss", "soft_loss", "hard_loss", "hint_loss", "lr", "data_s", "teacher_s", "test_top1"} <= set(told)
        assert any(name.startswith("hint_losses/fitnet:") for name in told)
    steps = of_axis(recorder.told, "step")
    written = {line["step"]: flat(line, "step") for line in lines(run.folder, "steps.jsonl")}
    assert len(written) > 2
    assert steps == {
        step: {f"step/{name}": value for name, value in values.items()} for step, values in written.items()
    }


def test_the_configuration_names_cache_teacher_and_data(cache: Path, here: Path, recorder: type[Recorder]) -> None:
    run = fit(here / "run", cache=cache, log="recorder", epochs=1)
    (told,) = recorder.runs
    recorded, manifest = config(run.folder), json.loads((cache / "cache.json").read_text())
    assert (told.folder, told.name, told.command, told.group, told.key) == (run.folder, "run", "train", None, None)
    assert told.config["cache_id"] == recorded["caches"][0]["cache_id"]
    assert told.config["teacher"] == manifest["identity"]["teacher"]["spec"]
    assert told.config["dataset_fingerprint"] == recorded["data"]["fingerprint"]
    assert told.config["torch_version"] == recorded["versions"]["torch"]
    for name in ("epochs", "batch_size", "lr", "weight_decay", "optimizer", "seed"):  # the preset's among them
        assert told.config[name] == recorded["options"][name]
    assert None not in told.config.values()


def test_what_a_run_came_to_is_its_summary(cache: Path, here: Path, recorder: type[Recorder]) -> None:
    run = fit(here / "run", cache=cache, log="recorder", val_fraction=0.2)
    (_, _, status, summary) = recorder.told[-1]
    assert status == "finished"
    result = config(run.folder)["result"]
    numbers = {name: value for name, value in result.items() if name != "student" and value is not None}
    assert summary == {"final/status": "finished", **{f"final/{name}": value for name, value in numbers.items()}}


def test_a_teacher_is_told_of_too(here: Path, recorder: type[Recorder]) -> None:
    taught = teach(TEACHER, size=8, epochs=2, batch_size=256, workers=0, out="teacher", log="recorder")
    epochs = of_axis(recorder.told, "epoch")
    assert {number: told["loss"] for number, told in epochs.items()} == {
        line["epoch"]: line["loss"] for line in lines(taught.folder)
    }
    assert recorder.runs[0].command == "teach"
    assert recorder.told[-1][2:] == (
        "finished",
        {
            "final/status": "finished",
            "final/test_top1": taught.test.top1,
            "final/seconds": config(taught.folder)["result"]["seconds"],
        },
    )


@pytest.mark.parametrize("index", [0, 1])
def test_the_first_rank_alone_tells(cache: Path, here: Path, recorder: type[Recorder], index: int) -> None:
    asked = TrainConfig(STUDENT, cache=cache, epochs=1, workers=0, log=("recorder",))
    prepared = prepare(parse(asked), ranks=Ranks(index, 2))
    with tracked([prepared], [here]) as (log,):
        log.end("finished")
    assert len(recorder.runs) == (index == 0)


def test_a_training_has_the_bits_that_it_has_untold(cache: Path, here: Path, recorder: type[Recorder]) -> None:
    told, untold = fit(here / "told", cache=cache, log="recorder"), fit(here / "untold", cache=cache)
    assert same(weights(told.folder), weights(untold.folder))
    assert not (untold.folder / TRACKING).exists()


# Runs that go on.


def test_a_resumed_run_is_the_same_one_and_is_told_once_of_each_epoch(
    cache: Path, here: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(here / "run", cache=cache, log="recorder", epochs=4)
    assert recorder.told[-1][1:] == (
        "close",
        "stopped",
        {"final/status": "stopped", "final/reason": "ended from outside"},
    )
    monkeypatch.undo_loop()  # type: ignore[attr-defined]
    run = train(resume=here / "run")
    assert [told[2] for told in recorder.told if told[1] == "epoch"] == [1, 2, 3, 4]
    assert {told[0] for told in recorder.told} == {"key-1"}
    assert [(one.key, one.epochs) for one in recorder.runs] == [(None, 0), ("key-1", 2)]
    assert recorder.told[-1][2] == "finished"
    assert [line["epoch"] for line in run.lines] == [1, 2, 3, 4]


def test_what_a_tracker_lacks_is_sent_when_the_run_goes_on(
    cache: Path, here: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took the first epoch and failed at the second; another one is named for the first time."""
    interrupted_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        fit(here / "run", cache=cache, log="recorder:fails=log 2", epochs=4)
    monkeypatch.undo_loop()  # type: ignore[attr-defined]
    kept = KeptFile(here / "run")
    assert kept.of("recorder:fails=log 2,hangs=") == Kept("key-1", 1)
    recorder.told.clear()
    train(resume=here / "run", log="recorder")
    assert [told[2] for told in recorder.told if told[1] == "epoch"] == [1, 2, 3, 4]
    assert recorder.told[0][0] == "key-2"


def interrupted_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Ctrl-C after so many epochs; ``undo_loop`` of the fixture takes it away."""
    from softcache.training.learner import Learner

    keep = Learner.keep

    def keep_and_leave(self: Learner, *arguments: Any) -> None:
        keep(self, *arguments)
        if self.done == epochs:
            raise KeyboardInterrupt

    Learner.keep = keep_and_leave  # type: ignore[method-assign]

    def undo() -> None:
        Learner.keep = keep  # type: ignore[method-assign]

    monkeypatch.undo_loop = undo  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"version": 2, "trackers": {}}', '{"version": 1, "trackers": {"recorder": 3}}',
        '{"version": 1, "trackers": {"recorder": {"key": "a/../b", "epochs": 1}}}',
        '{"version": 1, "trackers": {"recorder": {"key": "a", "epochs": -1}}}',
        '{"version": 1, "trackers": {"recorder": {"key": "a", "epochs": true}}}',
    ],
)  # fmt: skip
def test_a_damaged_file_of_keys_begins_anew_with_a_warning(
    tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / TRACKING).write_text(text)
    assert KeptFile(tmp_path).of("recorder") == Kept()
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("warning: ")
    assert "trackers begin this run anew" in said


# Many students.


def test_each_student_of_a_sweep_is_a_run_of_its_group(cache: Path, here: Path, forked_crew: None) -> None:
    """Its processes are real ones, so that a tracker is needed that others can read."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    swept = sweep(
        student=STUDENT, cache=(str(cache),), T=(1, 4), loss=("kl",), epochs=2, batch_size=256, workers=0,
        out=str(here / "swept"), processes=1, log=(f"tensorboard:dir={here}/logs",),
    )  # fmt: skip
    runs = sorted(path.name for path in (swept.folder / "runs").iterdir())
    assert len(runs) == 2
    assert sorted(path.name for path in (here / "logs" / "swept").iterdir()) == runs
    assert swept.best is not None
    for name in runs:
        events = EventAccumulator(str(here / "logs" / "swept" / name))
        events.Reload()
        written = [line["loss"] for line in lines(swept.folder / "runs" / name)]
        assert [one.value for one in events.Scalars("loss")] == pytest.approx(written)
        # The test split is looked at when all are trained, and the tracker of the chosen one is told of it.
        chosen = name == swept.best.runs[0].name
        assert ("final/test_top1" in events.Tags()["scalars"]) == chosen
    assert swept.command is not None
    assert "--log" not in swept.command


def test_students_of_a_cohort_have_runs_of_their_own(cache: Path, here: Path, recorder: type[Recorder]) -> None:
    options: dict[str, Any] = {"cache": (str(cache),), "epochs": 2, "batch_size": 256, "workers": 0, "log": "recorder"}
    configs = [TrainConfig.of(STUDENT, out=str(here / f"t{T}"), T=T, loss="kl", **options) for T in (1, 4)]
    found = train_cohort(configs, lambda rows: "enough" if len(rows) == 1 else None, "together")
    assert all(isinstance(one, SoftcacheError) for one in found)
    assert sorted(run.name for run in recorder.runs) == ["t1", "t4"]
    assert {run.group for run in recorder.runs} == {"together"}
    ends = [told for told in recorder.told if told[1] == "close"]
    assert [told[2] for told in ends] == ["stopped", "stopped"]
    assert all(told[3]["final/reason"] == "enough" for told in ends)


# Trackers that fail.


@pytest.mark.parametrize("when", ["open", "log 1", "log 2", "close"])
def test_a_tracker_that_fails_costs_one_warning(
    cache: Path, here: Path, recorder: type[Recorder], when: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = fit(here / "run", cache=cache, log=("recorder", f"recorder:fails={when}"), epochs=3)
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "recorder:fails=" in warnings[0]
    assert "the training goes on" in warnings[0]
    assert len(lines(run.folder)) == 3
    assert config(run.folder)["result"] is not None
    assert [told[2] for told in recorder.told if told[1] == "epoch" and told[0] == recorder.told[-1][0]][-1] == 3


@pytest.mark.parametrize("when", ["open", "log 1", "close"])
def test_a_tracker_that_never_answers_holds_nothing_up(
    cache: Path,
    here: Path,
    recorder: type[Recorder],
    when: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(_log, "FINISHED_S", 0.5)
    quick = fit(here / "quick", cache=cache)
    began = time.monotonic()
    run = fit(here / "run", cache=cache, log=f"recorder:hangs={when}")
    assert time.monotonic() - began < 0.5 + 10 * quick.seconds + 5
    assert same(weights(run.folder), weights(quick.folder))
    assert "doesn't answer" in capfd.readouterr().err


def test_a_training_that_fails_is_told_so(cache: Path, here: Path, recorder: type[Recorder]) -> None:
    with pytest.raises(SoftcacheError, match="the loss of epoch 1"):
        fit(here / "run", cache=cache, log="recorder", lr=1e30, clip_grad=0.0)
    _, _, status, summary = recorder.told[-1]
    assert status == "failed"
    assert summary["final/reason"].startswith("the loss of epoch 1 is ")


# Options.


def test_an_unknown_tracker_is_refused_by_name(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for given, said in [
        ("wandbb", "no tracker is called 'wandbb': did you mean wandb?"),
        ("wandb:projct=a", "tracker 'wandb' has no option 'projct': did you mean project?"),
        ("wandb:mode=of", "mode=of is unknown"),
    ]:
        assert command("train", "--log", given) == 2
        assert said in capfd.readouterr().err
    with pytest.raises(UsageError, match=r"--log tensorboard is given twice"):
        canonical_trackers(["tensorboard", "tensorboard"])


@pytest.mark.parametrize("name", registry.names("tracking"))
def test_a_missing_package_names_its_extra(name: str, cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    package = registry.component("tracking", name).package  # type: ignore[attr-defined]
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == package else find(wanted))
    with pytest.raises(MissingExtraError, match=re.escape(f"--log {name} needs {package}: {install_command(name)}")):
        fit(here / "run", cache=cache, log=name)
    assert not (here / "run").exists()


def test_extras_have_the_names_of_trackers() -> None:
    import configparser

    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    extras = dict(setup["options.extras_require"])
    for name in registry.names("tracking"):
        package = registry.component("tracking", name).package  # type: ignore[attr-defined]
        assert extras[name].strip().startswith(package)


def test_nothing_is_imported_unless_asked(cache: Path, here: Path) -> None:
    """In a process of its own."""
    import subprocess

    code = (
        "import sys; from harness_train import fit; from pathlib import Path; "
        f"fit(Path('run'), cache=r'{cache}', epochs=1); "
        "print([name for name in ('tensorboard', 'wandb', 'mlflow', 'trackio') if name in sys.modules])"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    import os

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "uri", ["https://me:hunter2@host/", "http://host:5000/?token=abc", "postgresql://me:hunter2@host/runs", "//a@b"]
)
def test_no_secret_is_taken_in_a_spec(uri: str) -> None:
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI") as caught:
        TrainConfig(log=(f"mlflow:uri={uri}",))
    assert "hunter2" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_signatures_are_not_told() -> None:
    told = configuration({"cache": ["https://host/cache?sig=abc", "caches/mine"], "T": 4.0, "none": None, "empty": ()})
    assert told == {"cache": "https://host/cache?…, caches/mine", "T": 4.0}


def test_places_of_this_machine_are_written_in_full(here: Path) -> None:
    made = TrainConfig(log=("tensorboard:dir=logs", "mlflow:uri=sqlite:///runs.db", "mlflow:uri=databricks"))
    assert made.log == (
        f"tensorboard:dir={here}/logs",
        f"mlflow:uri=sqlite:///{here}/runs.db,experiment=softcache",
        "mlflow:uri=databricks,experiment=softcache",
    )
    assert TrainConfig.of(**json.loads(json.dumps(made.to_json()))).log == made.log


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("mlflow:uri=mlruns", "MLflow keeps runs in no folder any more: write uri=sqlite:///runs.db"),
        ("tensorboard:dir=logs", "a,b/logs has a comma, which separates options"),
        ("mlflow:uri=sqlite:///runs.db", "a,b/runs.db has a comma, which separates options"),
    ],
)
def test_a_place_that_can_not_be_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch, log: str, said: str) -> None:
    (here / "a,b").mkdir()
    monkeypatch.chdir(here / "a,b")
    with pytest.raises(UsageError, match=re.escape(said)):
        TrainConfig(log=(log,))


def test_two_runs_of_one_name_are_two_in_one_folder_of_tensorboard(here: Path) -> None:
    """One that goes on finds its own again."""
    pytest.importorskip("tensorboard")
    tracker = Tensorboard(dir="logs")
    keys = []
    for key in (None, None, "second"):
        run = TrackedRun(here, "run", "train", key=keys[1] if key else None)
        opened = tracker.open(run)
        opened.close("finished", {})
        keys.append(opened.key)
    assert keys[0] != keys[1] == keys[2]
    assert sorted(path.name for path in (here / "logs").iterdir()) == ["run", f"run-{keys[1]}"]


def test_a_place_that_only_a_run_names_is_not_written_to(
    cache: Path, here: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's folder must not send anybody's numbers somewhere."""
    interrupted_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        fit(here / "run", cache=cache, log="recorder")
    monkeypatch.undo_loop()  # type: ignore[attr-defined]
    document = json.loads((here / "run" / "config.json").read_text())
    document["options"]["log"] = [f"tensorboard:dir={here}/elsewhere"]
    (here / "run" / "config.json").write_text(json.dumps(document))
    with pytest.raises(SoftcacheError, match=r"--allow tensorboard:dir=\S+/elsewhere"):
        train(resume=here / "run")
    assert not (here / "elsewhere").exists()


# Pure functions.


def test_scalars_leave_out_what_is_no_number() -> None:
    line = {"epoch": 3, "stage": 1, "loss": 0.5, "hard_loss": None, "learnt": {"ctkd": {"T": 2.5}}, "test_top1": None}
    assert scalars(line, "epoch") == {"stage": 1, "loss": 0.5, "learnt/ctkd/T": 2.5}


def test_check_imports_before_anything_else(recorder: type[Recorder]) -> None:
    check_trackers(["recorder"])
    with pytest.raises(OSError, match="in load"):
        check_trackers(["recorder:fails=load"])


def test_warnings_of_trackers_are_softcaches_own() -> None:
    assert logging.getLogger("softcache.tracking._courier").getEffectiveLevel() <= logging.WARNING
