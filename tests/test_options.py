"""Options: from Python, from a file and from the command line they mean the same, and bad ones are one line."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import harness_process
import numpy as np
import pytest
from click.testing import CliRunner
from harness_train import command, make_cache, make_teacher, same, weights

import softcache
from softcache import ConvertConfig, DumpConfig, SoftcacheError, TeachConfig, TrainConfig, train
from softcache.cli import _main
from softcache.cli._options import Sectioned
from softcache.config.parsed import parse
from softcache.config.record import read_record
from softcache.errors import UsageError

STUDENT = f"{Path(__file__).parent / 'harness_train.py'}:student"
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 128, "workers": 0}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    make_teacher(folder / "teacher")
    return make_cache(folder / "cache", folder / "teacher", hint=("layer1",))


# From Python.


def test_one_value_is_taken_where_several_may_be_given(cache: Path, here: Path) -> None:
    """A text was once read as the sequence of its letters."""
    many = train(STUDENT, cache=(str(cache),), loss=("kl",), T="4", alpha="0.9", out="many", **QUICK)
    one = train(STUDENT, cache=cache, loss="kl", T=4, alpha=0.9, out=Path("one"), **QUICK)
    assert same(weights(many.folder), weights(one.folder))
    whole = train(TrainConfig(STUDENT, cache=cache, loss="kl", T=4, out="whole", **QUICK))
    assert same(weights(many.folder), weights(whole.folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": "1"}, "--epochs must be a whole number or None, is '1'"),
        ({"epochs": 1.5}, "--epochs must be a whole number or None, is 1.5"),
        ({"epochs": True}, "--epochs must be a whole number or None, is True"),
        ({"lr": "0.1"}, "--lr must be a number or None, is '0.1'"),
        ({"online": "no"}, "--online must be True or False, is 'no'"),
        ({"loss": 3}, "--loss must be text or a list of such, is 3"),
        ({"milestones": (1, "2")}, "--milestones must be whole number or a list of such or None, is (1, '2')"),
        ({"dataset": 7}, "--dataset must be text or None, is 7"),
        ({"T": [4]}, r"--T must be a number or text or None, is [4]"),
        ({"temperature": 4}, "TrainConfig has no option 'temperature'"),
        ({"losses": ("kl",)}, "TrainConfig has no option 'losses': did you mean loss"),
    ],
)
def test_a_value_of_another_type_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        train(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    made = TrainConfig(epochs=np.int64(3), lr=np.float32(0.5), milestones=[np.int32(1)])
    assert (made.epochs, made.lr, made.milestones) == (3, 0.5, (1,))
    json.dumps(made.to_json())


def test_a_configuration_is_given_alone() -> None:
    with pytest.raises(UsageError, match="got TrainConfig, must be one TrainConfig, or options one by one"):
        train(TrainConfig(), epochs=3)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="got TeachConfig, must be one TrainConfig"):
        train(TeachConfig())  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("function", "config"),
    [
        (train, TrainConfig), (softcache.dump, DumpConfig), (softcache.teach, TeachConfig),
        (softcache.convert, ConvertConfig),
    ],
)  # fmt: skip
def test_signatures_list_every_option_with_its_default(function: Any, config: Any) -> None:
    found = inspect.signature(function).parameters
    fields = {own.name: own for own in dataclasses.fields(config)}
    assert set(found) == set(fields)
    required = {dataclasses.MISSING: inspect.Parameter.empty}
    assert all(found[name].default == required.get(own.default, own.default) for name, own in fields.items())


def test_editors_and_type_checkers_know_the_signatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mypy stands for them: it accepts what is right and names each mistake."""
    file = tmp_path / "use.py"
    file.write_text(
        "import softcache\n"
        "softcache.train('resnet18', cache=('c',), T=4.0, alpha='1:0:linear')\n"
        "softcache.train(softcache.TrainConfig('resnet18'))\n"
        "softcache.dump('resnet50', views=4, hint=('layer3',))\n"
        "softcache.train(epoch=3)\n"
        "softcache.dump(views='4')\n"
    )
    mypy = pytest.importorskip("mypy.api")
    monkeypatch.setenv("MYPYPATH", str(Path(softcache.__file__).parents[1]))
    # Of the package the signatures alone, and nothing of what it imports, which takes a minute.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nignore_missing_imports = True\nfollow_imports = skip\n"
        "[mypy-softcache.*]\nfollow_imports = silent\nignore_errors = True\n"
    )
    given = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "known")]
    out, _, _ = mypy.run([*given, str(file)])
    wrong = sorted({int(line.split(":")[1]) for line in out.splitlines() if line.startswith(str(file))})
    assert wrong == [5, 6], out


@pytest.mark.parametrize(
    "config", [TrainConfig(T=4, loss=("kl", "dkd")), DumpConfig(part=(1, 2)), TeachConfig(), ConvertConfig("a", "b")]
)
def test_options_survive_json(config: Any) -> None:
    again = type(config).of(**json.loads(json.dumps(config.to_json())))
    assert again == config


# From a file.


def test_a_file_gives_options_and_the_command_line_replaces_them(
    cache: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("mine.json").write_text(json.dumps({"student": STUDENT, "cache": str(cache), "T": 8, **QUICK}))
    assert command("train", "--config", "mine.json", "--T", "2", "--out", "a") == 0
    assert "--T 2 replaces 8 of mine.json" in capfd.readouterr().err
    made = read_record(Path("a")).options
    assert (made.T, made.student, made.epochs) == ("2", STUDENT, 1)
    # A run's own record is such a file.
    assert command("train", "--config", "a/config.json", "--out", "b") == 0
    assert same(weights(Path("a")), weights(Path("b")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"epoch": 3}', "no option 'epoch' of softcache train: did you mean epochs"),
        ("[1]", "no JSON object"),
        ("{", "can't be read"),
        ('{"command": "teach", "options": {}}', "is of softcache teach, not of softcache train"),
    ],
)
def test_a_bad_file_is_one_line(here: Path, capfd: pytest.CaptureFixture[str], content: str, message: str) -> None:
    Path("bad.json").write_text(content)
    assert command("train", "--config", "bad.json") == 2
    assert message in capfd.readouterr().err


# Help.


@pytest.mark.parametrize("name", ["teach", "layers", "dump", "convert", "train", "compare", "sweep", "eval", "verify"])
def test_help_has_sections_of_a_screen_each(name: str) -> None:
    shown = CliRunner().invoke(_main.main, [name, "--help"], terminal_width=100).output
    made = _main.main.get_command(click.Context(_main.main), name)
    assert isinstance(made, Sectioned)
    sections = {getattr(p, "section", "Other") for p in made.params if isinstance(p, click.Option)}
    for title in sections:
        assert f"\n{title}:\n" in shown
        body = shown.split(f"\n{title}:\n")[1].split("\n\n")[0]
        assert len(body.splitlines()) <= 24
    if len(sections) > 2:
        assert shown.index("Most used:") < min(shown.index(f"{title}:\n") for title in sections - {"Most used"})


@pytest.mark.parametrize(("name", "config"), [("teach", TeachConfig), ("train", TrainConfig), ("dump", DumpConfig)])
def test_help_states_the_defaults_of_the_configuration(name: str, config: Any) -> None:
    """Every number and word that a default is; options whose default depends on the data say how."""
    made = _main.main.get_command(click.Context(_main.main), name)
    assert made is not None
    fields = {own.name: own for own in dataclasses.fields(config)}
    options = {
        p.name: p
        for p in made.params
        if isinstance(p, click.Option) and p.expose_value and p.name not in ("from_file", "json_")
    }
    del options["test_fraction"]  # it is a part of the dataset's spec, and no field beside it
    assert set(options) == set(fields)
    for key, option in options.items():
        default = fields[key].default
        if isinstance(default, bool) or default in (None, (), -1):
            continue
        stated = option.help.rpartition("[default:")[2]  # type: ignore[attr-defined]
        assert f"{default:g}" in stated if isinstance(default, float) else str(default) in stated, (key, stated)


# One parse.


def test_each_text_is_parsed_once(cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softcache.losses import _schedule, _terms
    from softcache.losses.hints import _spec

    seen: list[str] = []

    def noted(real: Any) -> Any:
        return lambda text: (seen.append(text), real(text))[1]

    monkeypatch.setattr(_terms, "parse_term", noted(_terms.parse_term))
    monkeypatch.setattr(_spec, "parse_hint", noted(_spec.parse_hint))
    monkeypatch.setattr(_schedule.Schedule, "parse", noted(_schedule.Schedule.parse))
    loss, hint = "kl:weight=0.77", "fitnet:teacher=layer1,student=layer1"
    train(STUDENT, cache=cache, loss=loss, hint=hint, T="8:2:linear", alpha="0.7:0.3:linear", out="a", **QUICK)
    for text in (loss, hint, "8:2:linear", "0.7:0.3:linear"):
        assert seen.count(text) == 1, text


def test_what_alpha_0_leaves_is_labels() -> None:
    assert parse(TrainConfig(alpha=0)).labels_alone
    assert not parse(TrainConfig(alpha=0, hint="fitnet:teacher=a,student=a")).labels_alone
    assert not parse(TrainConfig(alpha="0:1:linear")).labels_alone


# A run's record.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is a record of version 2"),
        ({"surprise": 1}, "has 'surprise', which this softcache doesn't know"),
        ({"options": {"epoch": 3}}, "has no option 'epoch'"),
        ({"options": {"epochs": "3"}}, "--epochs must be a whole number"),
        ({"losses": {}}, "losses is not a list"),
        ({"command": "sing"}, "is not the record of a run or a teacher"),
    ],
)
def test_a_record_with_anything_unknown_is_refused(
    cache: Path, here: Path, change: dict[str, Any], message: str
) -> None:
    train(STUDENT, cache=cache, out="run", **QUICK)
    path = Path("run/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SoftcacheError, match=message):
        train(resume="run")


def interrupted_after_an_epoch(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A training that Ctrl-C ends once its first checkpoint is written."""
    from softcache.training import learner

    save = learner.save_checkpoint

    def once(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(learner, "save_checkpoint", once)
        with pytest.raises(KeyboardInterrupt):
            train(**options)


def test_a_run_is_resumed_from_another_folder(
    cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Relative paths of the options are recorded as absolute ones."""
    folder = here / "mine"
    folder.mkdir()
    for split, rows in (("train", 60), ("test", 20)):
        np.save(folder / f"{split}_images.npy", np.random.default_rng(0).integers(0, 255, (rows, 8, 8, 1), np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(rows) % 3)
    Path("net.py").write_text(Path(STUDENT.rpartition(":")[0]).read_text())
    whole = {"student": "net.py:student", "alpha": 0, "dataset": "arrays:mine", **QUICK, "epochs": 2}
    train(**whole, out="whole")
    interrupted_after_an_epoch(monkeypatch, **whole, out="run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    train(resume=here / "run")
    assert same(weights(here / "whole"), weights(here / "run"))


def test_a_run_keeps_its_views_when_others_are_completed(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which views, not how many: a run on views 0 and 2 goes on with these once view 1 is there."""
    make_teacher(here / "teacher")
    cache = make_cache(here / "cache", here / "teacher", views=3)
    kept = {path.name: path.read_bytes() for path in (cache / "view-0001").iterdir()}
    for path in (cache / "view-0001").iterdir():
        path.unlink()
    options: dict[str, Any] = {"student": STUDENT, "cache": cache, **QUICK, "epochs": 4}
    train(**options, out="whole")
    interrupted_after_an_epoch(monkeypatch, **options, out="run")
    for name, content in kept.items():
        (cache / "view-0001" / name).write_bytes(content)
    train(resume="run")
    assert read_record(Path("run")).view_numbers == [0, 2]
    assert same(weights(Path("whole")), weights(Path("run")))


def test_ctrl_c_says_how_to_go_on(cache: Path, here: Path) -> None:
    """The same command would begin anew: a run has a number of its own."""
    arguments = ["train", "--student", STUDENT, "--cache", str(cache), "--epochs", "5000", "--out", "my runs/one"]
    process = harness_process.Popen(
        [sys.executable, "-m", "softcache", "--quiet", *arguments], stderr=subprocess.PIPE, text=True, cwd=here
    )
    while not (here / "my runs/one/checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [line for line in told.splitlines() if line][-2:] == [
        "stopped: go on with `softcache train --resume 'my runs/one'`",
        "softcache: interrupted",
    ]


# What a training is given.


def test_labels_alone_beside_a_cache_have_its_data_and_fresh_views(cache: Path, here: Path) -> None:
    """The baseline: as a run without a cache on the same data, recipe, size and seed of the views."""
    beside = train(STUDENT, alpha=0, cache=cache, out="beside", **QUICK)
    bare = train(STUDENT, alpha=0, dataset="digits", size=8, out="bare", **QUICK)
    assert same(weights(beside.folder), weights(bare.folder))
    record = read_record(Path("beside"))
    assert record.options.cache == (str(cache.resolve()),)
    assert record.view_numbers is None
    assert beside.lines[0]["soft_loss"] == 0


def test_a_live_teacher_is_not_run_where_nothing_asks_it(cache: Path, here: Path) -> None:
    """Its second stage has alpha 0 and no hint: labels are all that it learns from."""
    teacher = str(cache.parent / "teacher")
    common = {"alpha": 0, "hint": "fitnet:teacher=layer1,student=layer1", "hint_epochs": 1, **QUICK, "epochs": 2}
    done = train(STUDENT, online=True, teacher=teacher, size=8, out="run", **common)
    assert [line["teacher_s"] > 0 for line in done.lines] == [True, False, False]


def test_weights_of_other_classes_give_all_but_the_classifier(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As for a teacher that is fine-tuned: ImageNet's 1,000 classes in a file, ten here."""
    import torch

    from softcache.models._open import open_network

    source = open_network("cifar:resnet8", classes=1000, statistics=((0.5,), (0.5,)), seed=5)
    torch.save(source.model.state_dict(), "imagenet.pt")
    arguments = ["--student", "cifar:resnet8", "--alpha", "0", "--size", "8", "--lr", "1e-12", "--weight-decay", "0"]
    assert command("train", *arguments, "--epochs", "1", "--weights", "imagenet.pt", "--out", "run") == 0
    assert "imagenet.pt is for other classes: fc.weight, fc.bias of the student are new" in capfd.readouterr().err
    found = weights(Path("run"))
    torch.testing.assert_close(found["conv1.weight"], source.model.state_dict()["conv1.weight"])
    assert found["fc.weight"].shape[0] == 10


def test_a_shell_completes_commands_and_options() -> None:
    """As click's scripts for bash ask for it: docs/environment.md."""

    def suggested(*words: str) -> set[str]:
        asked = {
            "_SOFTCACHE_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        command = [sys.executable, "-m", "softcache"]
        done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
        return {line.removeprefix("plain,") for line in done.stdout.split()}

    assert suggested("softcache", "tr") == {"train", "trim"}
    assert suggested("softcache", "train", "--label-f") == {"--label-fraction"}


# What a cache that isn't whole, or isn't of these data, means for a training.


def test_a_training_on_a_cache_that_is_not_whole_says_so(
    cache: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    part = here / "part"
    shutil.copytree(cache, part)
    for shard in (part / "view-0001").iterdir():
        shard.unlink()
    arguments = ("train", "--student", STUDENT, "--epochs", "1", "--workers", "0", "--cache", part)
    assert command("-q", *arguments, "--out", "a") == 0
    assert "part is not complete: this training uses 1 of 2 views" in capfd.readouterr().err
    assert command("-q", *arguments, "--out", "b", "--views", "1") == 0
    assert "not complete" not in capfd.readouterr().err
    assert command("-q", *arguments, "--views", "3") == 1
    assert "softcache dump again with --views 3" in capfd.readouterr().err


def test_a_baseline_on_the_data_of_the_cache_that_is_there_is_not_warned_of(
    cache: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cache, here / "caches" / "mine")
    arguments = ("train", "--student", STUDENT, "--epochs", "1", "--workers", "0", "--alpha", "0", "--size", "8")
    assert command("-q", *arguments) == 0
    assert capfd.readouterr().err == ""
    manifest = here / "caches" / "mine" / "cache.json"
    manifest.write_text("{")
    assert command("-q", *arguments) == 0, "a damaged cache that nobody named is no obstacle"
