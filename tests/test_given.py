"""What a folder names is followed only where the user gave it: no code of a stranger's run, teacher or cache runs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_train import command, config

from softcache import remembered
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.config.given import recorded_dataset
from softcache.errors import NotNamedError

NET = """
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

def wide(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""
QUICK = ("--size", "8", "--epochs", "1", "--workers", "0")


@pytest.fixture
def home(here: Path, state: Path) -> Path:
    """A working folder with a network and a small dataset of its user's own, who has given nothing yet."""
    (here / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 5
    images = (rng.integers(0, 60, (60, 8, 8)) + 40 * labels[:, None, None]).astype(np.uint8)
    (here / "data").mkdir()
    for split in ("train", "test"):
        np.save(here / "data" / f"{split}_images.npy", images)
        np.save(here / "data" / f"{split}_labels.npy", labels)
    return here


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must fail with status 1; returns its one line."""

    def check(*arguments: str | Path) -> str:
        capfd.readouterr()
        assert command(*arguments) == 1
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("softcache: ")]
        assert len(lines) == 1
        return lines[0]

    return check


def taught(home: Path) -> Path:
    assert command("-q", "teach", "--model", "net.py:net", "--dataset", "arrays:data", *QUICK, "--out", "teacher") == 0
    return home / "teacher"


def plant(folder: Path, home: Path, **changes: Any) -> None:
    """Writes a stranger's text into a folder's ``config.json``, and code that leaves a trace when it is imported."""
    trace = f"open({str(home / 'ran')!r}, 'w').close()\n"
    (home / "evil.py").write_text(trace + NET + "def data(split): raise RuntimeError\n")
    document = config(folder)
    for place, value in changes.items():
        part, _, key = place.partition("__")
        document[part][key] = value
    (folder / "config.json").write_text(json.dumps(document))


FORMS = ["evil.py:net", "{home}/evil.py:net", "python:evil:net", "python:{home}/evil.py:net"]


@pytest.mark.parametrize("form", FORMS)
def test_no_command_runs_the_code_that_a_teachers_folder_names(
    home: Path, said: Any, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    teacher = taught(home)
    assert command("-q", "dump", "--teacher", "teacher", "--out", "cache", "--views", "1") == 0
    spec = form.format(home=home)
    plant(teacher, home, model__spec=spec)
    data = ("--dataset", "arrays:data")
    for arguments in (
        ["eval", "teacher", *data],
        ["layers", "--teacher", "teacher", *data],
        ["dump", "--teacher", "teacher", *data, "--out", "other"],
        ["verify", "cache", "--teacher", "teacher"],
        ["train", "--online", "--teacher", "teacher", "--student", "net.py:net", *data, *QUICK],
        ["train", "--init", "teacher", "--teacher", "teacher", "--cache", "cache", "--student", "net.py:wide"],
        ["train", "--student", "teacher", "--cache", "cache"],
        ["train", "--init", "teacher", "--cache", "cache", "--student", "net.py:wide"],
    ):
        message = said(*arguments)
        assert "For safety, softcache does not open a path or run code that is named only in a folder" in message
        assert f"softcache --allow {spec}" in message
        assert not (home / "ran").exists(), arguments
    assert not (home / "other").exists()
    assert not (home / "runs").exists()


@pytest.mark.parametrize("spec", ["evil.py:data", "python:evil:data", "folder:/etc", "arrays:data", "../x"])
def test_no_command_opens_the_data_that_a_folder_names(home: Path, said: Any, spec: str) -> None:
    teacher = taught(home)
    plant(teacher, home, options__dataset=spec, model__spec="cifar:resnet8")
    for arguments in (
        ["eval", "teacher"],
        ["layers", "--teacher", "teacher"],
        ["dump", "--teacher", "teacher"],
        ["train", "--online", "--teacher", "teacher", *QUICK],
    ):
        assert f"pass --dataset {spec}" in said(*arguments)
    assert not (home / "ran").exists()


def test_a_strangers_run_is_not_resumed_with_what_it_names(home: Path, said: Any) -> None:
    options = ("--dataset", "arrays:data", "--student", "net.py:net", "--alpha", "0")
    assert command("-q", "train", *options, *QUICK, "--out", "run") == 0
    (home / "run" / "student.safetensors").unlink()
    plant(home / "run", home, options__student=f"{home}/evil.py:net", options__weights="/etc/passwd")
    message = said("train", "--resume", "run")
    assert f"--allow {home}/evil.py:net" in message
    assert "--allow /etc/passwd" in message
    assert not (home / "ran").exists()


def test_parameters_are_read_from_the_folder_alone(home: Path, said: Any) -> None:
    teacher = taught(home)
    shutil.copy(teacher / "teacher.safetensors", home / "elsewhere.safetensors")
    for name in ("../elsewhere.safetensors", str(home / "elsewhere.safetensors"), ".."):
        plant(teacher, home, model__weights=name)
        assert f"{name!r} as its file of weights, which is not a file of this folder" in said(
            "eval", "teacher", "--dataset", "digits"
        )


def test_what_was_made_here_is_never_asked_for_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every path is given once, and relative; later commands run in another folder and name none of them."""
    taught(home)
    assert command("-q", "dump", "--teacher", "teacher", "--out", "cache", "--views", "1") == 0
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert command("-q", "eval", home / "teacher") == 0
    assert command("-q", "dump", "--teacher", home / "teacher", "--out", home / "cache", "--views", "2") == 0
    run = ("--student", "../net.py:net", "--out", "run", "--init", "teacher", "--epochs", "1", "--workers", "0")
    assert command("-q", "train", "--cache", home / "cache", *run) == 0
    assert command("-q", "verify", home / "cache", "--teacher", home / "teacher") == 0
    monkeypatch.chdir(home)
    assert command("-q", "eval", "elsewhere/run") == 0
    assert command("-q", "train", "--resume", "elsewhere/run") == 0


def test_changed_code_asks_again_until_it_is_allowed(home: Path, said: Any) -> None:
    taught(home)
    (home / "net.py").write_text(NET + "\n# another line\n")
    for _ in range(2):
        message = said("eval", "teacher")
        assert f"{home / 'net.py'} has changed since you gave it" in message
        assert f"begin the command with `softcache --allow {home / 'net.py'}:net`" in message
    assert command("--allow", f"{home / 'net.py'}:net", "-q", "eval", "teacher") == 0
    assert command("-q", "eval", "teacher") == 0


def test_a_moved_folder_asks_and_takes_the_same_code_at_another_place(home: Path, said: Any) -> None:
    taught(home).rename(home / "moved")
    (home / "lib").mkdir()
    (home / "net.py").rename(home / "lib" / "net.py")
    assert "pass --dataset" in said("eval", "moved")
    assert "softcache --allow" in said("eval", "moved", "--dataset", "arrays:data")
    assert command("--allow", "lib/net.py:net", "-q", "eval", "moved", "--dataset", "arrays:data") == 0
    assert command("-q", "eval", "moved") == 0, "both are remembered"


def test_another_description_in_the_same_folder_asks(home: Path, said: Any) -> None:
    teacher = taught(home)
    plant(teacher, home, options__epochs=7)
    assert "pass --dataset" in said("eval", "teacher")
    assert "--allow" in said("eval", "teacher", "--dataset", "arrays:data")


def test_only_the_remembered_value_is_followed(home: Path, said: Any) -> None:
    """The manifest's state may change without another cache id, as it must; what it names then is never opened."""
    assert command("-q", "dump", "--teacher", taught(home), "--out", "cache", "--views", "1") == 0
    plant(home / "teacher", home)
    manifest = Manifest.load(home / "cache")
    manifest.state.made["dataset"] = "python:evil:data"
    manifest.save(home / "cache")
    assert recorded_dataset(Cache(home / "cache")) == f"arrays:{home / 'data'}"
    shutil.copytree(home / "cache", home / "copy")
    with pytest.raises(NotNamedError, match="named only in a cache: pass --dataset python:evil:data"):
        recorded_dataset(Cache(home / "copy"))
    train = ("train", "--cache", "copy", "--student", "net.py:net", "--epochs", "1", "--workers", "0")
    said(*train)
    assert command("-q", *train, "--dataset", "arrays:data", "--out", "a") == 0
    assert command("-q", *train, "--out", "b") == 0, "it was given once"
    assert not (home / "ran").exists()


def test_a_recipe_of_ones_own_is_given_once(home: Path, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recorded by its file's name, so the same file at another place makes the same cache."""
    (home / "mine.py").write_text("def make():\n    return lambda image: image.rotate(90)\n")
    taught(home)
    for augment, out in (("mine.py:make", "a"), (f"python:{home}/mine.py:make", "b")):
        arguments = ("dump", "--teacher", "teacher", "--views", "1", "--augment", augment, "--out", out)
        assert command("-q", *arguments) == 0
    a, b = Cache(home / "a"), Cache(home / "b")
    assert a.manifest.identity.recipe["spec"] == "python:mine.py:make"
    assert a.manifest.cache_id == b.manifest.cache_id
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert command("-q", "dump", "--teacher", home / "teacher", "--views", "2", "--out", home / "a") == 0
    student = ("--student", home / "teacher", "--epochs", "1", "--workers", "0")
    assert command("-q", "train", "--cache", home / "a", *student) == 0
    shutil.copytree(home / "a", home / "copy")
    train = ("train", "--cache", home / "copy", "--dataset", f"arrays:{home}/data", *student)
    assert "pass --augment python:mine.py:make" in said(*train)
    assert command("-q", *train, "--augment", "../mine.py:make") == 0
    assert command("-q", *train) == 0


def test_a_codec_of_ones_own_is_given_once(home: Path, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Same:\n"
        "    def arrays(self, shape): return {'values': ('<f4', shape)}\n"
        "    def encode(self, logits): return {'values': logits.float()}\n"
        "    def decode(self, arrays): return arrays['values']\n"
    )
    dump = ("dump", "--teacher", taught(home), "--views", "1", "--out", "cache", "--codec", "mine.py:Same")
    assert command("-q", *dump) == 0
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert command("-q", "verify", home / "cache") == 0
    student = ("--student", home / "teacher", "--epochs", "1", "--workers", "0")
    assert command("-q", "train", "--cache", home / "cache", *student) == 0
    shutil.copytree(home / "cache", home / "copy")
    assert "pass --codec mine.py:Same" in said("train", "--cache", home / "copy", *student)
    with open(home / "mine.py", "a") as file:
        file.write("# another line\n")
    assert "pass --codec mine.py:Same" in said("train", "--cache", home / "cache", *student)


def test_data_that_do_not_agree_are_not_remembered(home: Path, said: Any) -> None:
    assert command("-q", "dump", "--teacher", taught(home), "--out", "cache", "--views", "1") == 0
    shutil.copytree(home / "cache", home / "copy")
    shutil.copytree(home / "data", home / "other" / "data")
    images = np.load(home / "data" / "train_images.npy")
    np.save(home / "other" / "data" / "train_images.npy", 255 - images)
    train = ("train", "--cache", "copy", "--student", "net.py:net", "--epochs", "1", "--workers", "0")
    assert "has other pixels than the teacher saw" in said(*train, "--dataset", "arrays:other/data")
    assert "pass --dataset" in said(*train)


def test_what_is_remembered_is_the_users_alone(home: Path, state: Path) -> None:
    teacher = taught(home)
    assert stat.S_IMODE((state / "given").stat().st_mode) == 0o700
    records = {record["role"]: record for record in map(read, (state / "given").iterdir())}
    assert set(records) == {"dataset", "model"}
    assert {record["folder"] for record in records.values()} == {str(teacher)}
    assert records["dataset"]["specs"] == [f"arrays:{home / 'data'}"]
    assert records["model"]["specs"] == [f"{home / 'net.py'}:net"]
    hashed = subprocess.run(["sha256sum", home / "net.py"], capture_output=True, text=True, check=True)
    assert records["model"]["code"] == {str(home / "net.py"): hashed.stdout.split()[0]}
    (state / "given").chmod(0o770)  # somebody else may have written there
    assert remembered.recall(teacher, "model", records["model"]["identity"]) is None


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("broken", ["{half", "[]", "null", '{"specs": 1}', '{"folder": 3}'])
def test_a_damaged_record_is_none(home: Path, state: Path, said: Any, broken: str) -> None:
    taught(home)
    for path in (state / "given").iterdir():
        path.write_text(broken)
    assert "For safety" in said("eval", "teacher", "--dataset", "arrays:data")


def test_no_remember_writes_nothing(home: Path, state: Path, said: Any) -> None:
    arguments = ("teach", "--model", "net.py:net", "--dataset", "arrays:data", *QUICK, "--out", "teacher")
    assert command("--no-remember", "-q", *arguments) == 0
    assert not state.exists()
    assert "pass --dataset" in said("eval", "teacher")
    evaluate = ("eval", "teacher", "--dataset", "arrays:data")
    assert command("--no-remember", "--allow", "net.py:net", "-q", *evaluate) == 0
    assert not state.exists()
    assert "--allow" in said(*evaluate)


def test_a_state_folder_that_can_not_be_written_to_is_passed_over(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("SOFTCACHE_STATE", str(home / "file" / "state"))
    monkeypatch.setenv("SOFTCACHE_CACHE", str(home / "file" / "cache"))
    taught(home)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(logging.getLogger("softcache"), "propagate", True)
    with caplog.at_level(logging.DEBUG, "softcache"):
        remembered.remember(home / "teacher", "model", "net.py:net", "id")
    assert {(r.levelname, "is not remembered" in r.getMessage()) for r in caplog.records} == {("DEBUG", True)}
    assert command("--allow", "net.py:net", "-q", "eval", "teacher", "--dataset", "arrays:data") == 0


def test_where_the_state_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from softcache.localfiles import cache_folder, state_folder

    for name in ("SOFTCACHE_STATE", "SOFTCACHE_CACHE", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local" / "state" / "softcache"
    assert cache_folder() == tmp_path / ".cache" / "softcache"
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg/state")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert state_folder() == Path("/xdg/state/softcache")
    assert cache_folder() == tmp_path / ".cache" / "softcache"
    monkeypatch.setenv("SOFTCACHE_STATE", str(tmp_path / "s"))
    assert state_folder() == tmp_path / "s"


def test_the_file_of_a_module_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    inner = tmp_path / "pack" / "age"
    inner.mkdir(parents=True)
    for folder in (tmp_path / "pack", inner):
        (folder / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (inner / "nets.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert remembered.code_files("python:pack.age.nets:net") == [str(inner / "nets.py")]
    assert remembered.code_files("crop:pad=4+python:pack:f+x/a.py:f") == [
        str(tmp_path / "pack" / "__init__.py"),
        os.path.abspath("x/a.py"),
    ]
    folder = tmp_path / "run"
    remembered.remember(folder, "model", "python:pack.age.nets:net", "id")
    known = remembered.recall(folder, "model", "id")
    assert known == remembered.Recalled(("python:pack.age.nets:net",))
    # A module of the same name, found first, is other code.
    (tmp_path / "first" / "pack").mkdir(parents=True)
    (tmp_path / "first" / "pack" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    changed = remembered.recall(folder, "model", "id")
    assert changed is not None
    assert changed.changed is not None
    assert not (tmp_path / "ran").exists()


def test_a_path_may_have_a_plus_or_a_comma(here: Path) -> None:
    for name in ("c++", "a,b=c"):
        (here / name).mkdir()
        (here / name / "net.py").touch()
        assert remembered.absolute(f"{name}/net.py:net") == f"{here}/{name}/net.py:net"
        assert remembered.code_files(f"{name}/net.py:net") == [f"{here}/{name}/net.py"]


@pytest.mark.parametrize(
    ("spec", "whole"),
    [
        ("digits", "digits"),
        ("cifar:resnet8", "cifar:resnet8"),
        ("python:pets:load", "python:pets:load"),
        ("folder:pets", "folder:{here}/pets"),
        ("arrays:~/x.npz", "arrays:{home}/x.npz"),
        ("net.py:net", "{here}/net.py:net"),
        ("python:../net.py:net", "python:{above}/net.py:net"),
        ("mine.py:Loss:weight=2", "{here}/mine.py:Loss:weight=2"),
        ("crop:pad=4+python:mine.py:f", "crop:pad=4+python:{here}/mine.py:f"),
        ("teachers/mine", "{here}/teachers/mine"),
        ("timm:hf_hub:timm/a", "timm:hf_hub:timm/a"),
        ("hf:org/name,revision=main", "hf:org/name,revision=main"),
        ("csv:a.csv,test_fraction=0.2", "csv:{here}/a.csv,test_fraction=0.2"),
    ],
)
def test_specs_are_made_absolute(spec: str, whole: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert remembered.absolute(spec) == whole.format(here=here, home="/home/me", above=here.parent)
