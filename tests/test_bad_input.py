"""A user's mistakes: one line that names what was found and what to do, the right exit status, and no traceback."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softcache.cache.locks import writing
from softcache.cli._main import run
from softcache.dumping.finish import near_chance
from softcache.errors import UsageError
from softcache.models._open import open_network
from softcache.stages.dump import dump
from softcache.stages.teach import teach
from softcache.stages.train import train

Fails = Callable[..., str]


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must fail; returns its message."""

    def check(*arguments: str, status: int) -> str:
        capfd.readouterr()
        assert run(list(arguments)) == status
        lines = [line for line in capfd.readouterr().err.splitlines() if line]
        assert "Traceback" not in "\n".join(lines)
        # click puts a usage line and a hint above its own; ours is one line.
        message = lines[-1]
        assert message.startswith(("softcache: ", "Error: ")), lines
        return message

    return check


@pytest.fixture
def photos(here: Path) -> Path:
    """Two class folders of two images each, in train/ and val/."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (here / "photos" / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = np.full((40, 50, 3), 60 * number, np.uint8)
                Image.fromarray(pixels).save(here / "photos" / split / name / f"{number}.png")
    return here / "photos"


TINY = ("--size", "8", "--epochs", "1")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["teach", "--model", "resnet5"], 2, "did you mean"),
        (["teach", "--model", "cifar:resnet21"], 2, "resnet20"),
        (["dump", "--teacher", "resnet50", "--dataset", "digit"], 2, "digits"),
        (["teach", "--dataset", "folder:nowhere"], 1, "nowhere"),
        (["teach", "--dataset", "cifar10"], 1, "--download"),
        (["teach", "--augment", "corp"], 2, "crop"),
        (["teach", "--augment", "crop:pat=4"], 2, "pad"),
        (["teach", "--augment", "crop:pad=much"], 2, "whole number"),
        (["teach", "--batch-size", "0"], 2, "--batch-size must be above 0, is 0"),
        (["teach", "--optimizer", "adamv"], 2, "adam"),
        (["teach", "--normalize", "imagnet"], 2, "imagenet"),
        (["teach", "--freeze"], 2, "--weights"),
        (["teach", "--lr", "nan"], 2, "--lr must be above 0, is nan"),
        (["teach", "--device", "cuda:77"], 2, "--device"),
        (["teach", "--seed", "-1"], 2, "--seed must be from 0 to 2**63 - 1, is -1"),
        (["teach", "--seed", str(2**63)], 2, "--seed must be from 0 to 2**63 - 1"),
        (["train", "--seed", "-1"], 2, "--seed must be from 0 to 2**63 - 1, is -1"),
        (["verify", "--seed", "-1"], 2, "--seed must be from 0 to 2**63 - 1, is -1"),
        (["dump", "--view-seed", "-1"], 2, "--view-seed must be from 0 to 2**64 - 1, is -1"),
        (["train", "--view-seed", str(2**64)], 2, "--view-seed must be from 0 to 2**64 - 1"),
        (["dump", "--size", "8193"], 2, "--size must be at most 8192, is 8193"),
        (["train", "--loss", "kll"], 2, "kl"),
        (["train", "--loss", "kl:temperature=3"], 2, "T"),
        (["train", "--T", "hot"], 2, "hot"),
        (["train", "--T", "0"], 2, "above 0"),
        (["train", "--alpha", "-1"], 2, "negative"),
        (["train", "--online"], 2, "--teacher"),
        (["train", "--label-fraction", "1.5"], 2, "at most 1"),
        (["train", "--dtype", "float64"], 2, "--online"),
        (["train", "--teacher-weights", "some.pt"], 2, "--online"),
        (["train", "--device", "cuda:77", "--alpha", "0"], 2, "--device"),
        (["train", "--resume", "runs/1", "--T", "9", "--student", "resnet50"], 2, "leave out --T, --student"),
        (["train"], 1, "softcache dump --teacher resnet50"),
        (["train", "--cache", "nowhere"], 1, "nowhere is no cache"),
        (["eval", "runs/none"], 1, "runs/none"),
        (["eval", "cifar:resnet8"], 1, "softcache teach --model cifar:resnet8"),
        (["eval", "--weights", "none.pt", "cifar:resnet8"], 1, "none.pt"),
        (["info", "nowhere"], 1, "nowhere is no cache"),
        (["dump", "--part", "3"], 2, "1/4"),
        (["dmp"], 2, "did you mean dump?"),
        (["train", "--stduent", "resnet18"], 2, "--student"),
    ],
)
def test_one_line(here: Path, fails: Fails, arguments: list[str], status: int, said: str) -> None:
    assert said in fails(*arguments, status=status)
    assert not list(here.iterdir()), "a failed command left something behind"


def test_a_teacher_without_weights_says_how_to_get_one(here: Path, fails: Fails) -> None:
    message = fails("dump", "--teacher", "resnet50", status=1)
    assert "softcache teach --model resnet50" in message
    assert "--teacher-weights" in message


def test_checkpoint_of_another_architecture(here: Path, fails: Fails) -> None:
    other = open_network("cifar:resnet8", classes=10, statistics=((0.5,), (0.5,)))
    torch.save(other.model.state_dict(), here / "other.pt")
    message = fails("dump", "--teacher", "cifar:resnet14", "--teacher-weights", "other.pt", status=1)
    assert "missing" in message
    assert "layer1" in message


def test_wrong_number_of_classes(here: Path, fails: Fails) -> None:
    other = open_network("cifar:resnet8", classes=7, statistics=((0.5,), (0.5,)))
    torch.save(other.model.state_dict(), here / "other.pt")
    message = fails("dump", "--teacher", "cifar:resnet8", "--teacher-weights", "other.pt", status=1)
    assert "7 classes" in message
    assert "10" in message


def test_unknown_codec_and_layer(here: Path, fails: Fails, small_teacher: Callable[..., str]) -> None:
    teacher = small_teacher(here / "teacher")
    assert "fp16" in fails("dump", "--teacher", teacher, "--size", "8", "--codec", "fp17", status=2)
    message = fails("dump", "--teacher", teacher, "--size", "8", "--hint", "layr3", "--out", "cache", status=1)
    assert "layer3" in message
    assert not (here / "cache").exists()


def test_unwritable_output(here: Path, fails: Fails) -> None:
    (here / "file").write_text("in the way")
    message = fails("teach", "--model", "cifar:resnet8", *TINY, "--out", "file/teacher", status=1)
    assert "file/teacher" in message


def test_a_teacher_is_trained_in_one_process_and_ranks_need_torchrun(
    here: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "without torchrun" in fails("teach", *TINY, status=2)
    assert "use torchrun, or unset it" in fails("train", *TINY, status=2)
    assert not list(here.iterdir())


def test_views_of_a_cache_are_as_they_were_recorded(
    here: Path, fails: Fails, small_teacher: Callable[..., str]
) -> None:
    dump(small_teacher(here / "teacher"), views=1, view_seed=3, size=8, out="cache")
    asked = ("train", "--student", "cifar:resnet8", "--cache", "cache", "--epochs", "1", "--out", "run")
    assert "made with 3" in fails(*asked, "--view-seed", "9", status=2)
    assert "made with 8" in fails(*asked, "--size", "16", status=2)
    assert "recorded views" in fails(*asked, "--views-per-image", "2", status=2)
    assert not (here / "run").exists()
    assert run([*asked, "--view-seed", "3"]) == 0
    assert json.loads((here / "run" / "config.json").read_text())["options"]["view_seed"] == 3


def test_options_from_python_are_named_too() -> None:
    with pytest.raises(UsageError, match="TrainConfig has no option 'temperature'"):
        train("cifar:resnet8", temperature=4)
    with pytest.raises(UsageError, match="TeachConfig has no option 'epoch': did you mean epochs"):
        teach("cifar:resnet8", epoch=4)


def test_corrupt_image_is_named(photos: Path, fails: Fails) -> None:
    (photos / "train" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    message = fails(
        "teach", "--model", "cifar:resnet8", "--dataset", f"folder:{photos}", *TINY, "--workers", "0", status=1
    )
    assert "dog/1.png" in message


def test_corrupt_image_is_named_by_a_worker_too(photos: Path, fails: Fails) -> None:
    (photos / "train" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    message = fails(
        "teach", "--model", "cifar:resnet8", "--dataset", f"folder:{photos}", *TINY, "--workers", "1", status=1
    )
    assert "dog/1.png" in message


def test_empty_folder(here: Path, fails: Fails) -> None:
    (here / "empty").mkdir()
    assert "empty" in fails("teach", "--dataset", "folder:empty", status=1)


def test_several_caches_and_none_named(here: Path, fails: Fails, small_teacher: Callable[..., str]) -> None:
    teacher = small_teacher(here / "teacher")
    for out in ("caches/a", "caches/b"):
        assert run(["-q", "dump", "--teacher", teacher, "--size", "8", "--views", "1", "--out", out]) == 0
    message = fails("train", status=1)
    assert "caches/a" in message
    assert "caches/b" in message
    assert "--cache" in message


def test_teach_over_another_configuration(here: Path, fails: Fails) -> None:
    common = ["-q", "teach", "--model", "cifar:resnet8", "--size", "8"]
    assert run([*common, "--epochs", "1"]) == 0
    before = (here / "teachers" / "cifar-resnet8-digits" / "teacher.safetensors").read_bytes()
    message = fails(*common, "--epochs", "2", status=1)
    assert "epochs: 1 there, 2 now" in message
    assert (here / "teachers" / "cifar-resnet8-digits" / "teacher.safetensors").read_bytes() == before
    assert run([*common, "--epochs", "1"]) == 0, "the same configuration keeps it"


def test_two_processes_on_one_folder(here: Path, fails: Fails, small_teacher: Callable[..., str]) -> None:
    teacher = small_teacher(here / "teacher")
    (here / "cache").mkdir()
    pid = os.fork()
    if pid == 0:  # the other process: takes the lock and waits to be killed
        with writing(here / "cache"):
            (here / "held").touch()
            time.sleep(60)
        os._exit(1)
    try:
        while not (here / "held").exists():
            time.sleep(0.02)
        message = fails("dump", "--teacher", teacher, "--size", "8", "--out", "cache", status=1)
        assert f"process {pid} " in message
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_cache_of_something_else_is_kept(here: Path, fails: Fails, small_teacher: Callable[..., str]) -> None:
    teacher, other = small_teacher(here / "teacher"), small_teacher(here / "other", seed=8)
    assert run(["-q", "dump", "--teacher", teacher, "--size", "8", "--views", "1", "--out", "cache"]) == 0
    message = fails("dump", "--teacher", other, "--size", "8", "--views", "1", "--out", "cache", status=1)
    assert "teacher.weights" in message
    message = fails("dump", "--teacher", teacher, "--size", "8", "--view-seed", "3", "--out", "cache", status=1)
    assert "recipe.seed: 0 there, 3 now" in message
    message = fails("train", "--cache", "cache", "--dataset", "digits", "--size", "16", status=2)
    assert "made with 8" in message


@pytest.mark.parametrize("batch", [[], ["--batch-size", "4096"]])  # in the second all is computed before it is written
def test_overflowing_logits_name_the_key(
    batch: list[str], here: Path, fails: Fails, small_teacher: Callable[..., str]
) -> None:
    teacher = small_teacher(here / "teacher")
    from safetensors.torch import load_file, save_file

    path = Path(teacher) / "teacher.safetensors"
    state = load_file(path)
    state["fc.bias"] = torch.full_like(state["fc.bias"], 1e6)
    save_file(state, path)
    asked = ("dump", "--teacher", teacher, "--size", "8", "--views", "1", *batch)
    message = fails(*asked, "--out", "cache", status=1)
    assert "row 0 in view 0" in message
    assert "--codec fp32" in message
    assert not list((here / "cache").rglob("*.part")), "nothing half-written stays"
    assert run(["-q", *asked, "--codec", "fp32", "--out", "c2"]) == 0


def test_a_teacher_near_chance_is_warned_of(
    here: Path, small_teacher: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Random weights: a wrong class order or normalization looks like this, and is found before any training."""
    assert run(["dump", "--teacher", small_teacher(here / "teacher"), "--size", "8", "--views", "1"]) == 0
    assert "chance is 10.00 %" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("top1", "classes", "near"),
    [(0.5, 2, True), (0.6, 2, False), (0.44, 3, False), (0.1, 10, True), (0.2, 10, False), (0.002, 1000, True)],
)
def test_what_is_near_chance(top1: float, classes: int, near: bool) -> None:
    assert near_chance(top1, classes) is near


@pytest.fixture
def one_class(here: Path) -> str:
    """Twelve grey images of 8 pixels, all of one class."""
    (here / "one").mkdir()
    rng = np.random.default_rng(0)
    for split, rows in (("train", 12), ("test", 4)):
        np.save(here / "one" / f"{split}_images.npy", rng.integers(0, 256, (rows, 8, 8), np.uint8))
        np.save(here / "one" / f"{split}_labels.npy", np.zeros(rows, np.int64))
    return f"arrays:{here / 'one'}"


def test_one_class_is_refused_where_nothing_can_be_learned_from_it(
    here: Path, fails: Fails, one_class: str, small_teacher: Callable[..., str]
) -> None:
    """The softmax over one class is 1, so that every loss through it is 0, or 0/0, for all networks alike."""
    data = ("--dataset", one_class, *TINY)
    assert "have 1 class" in fails("teach", "--model", "cifar:resnet8", *data, status=2)
    assert not (here / "teachers").exists()
    teacher = small_teacher(here / "teacher", dataset=one_class)
    assert run(["-q", "dump", "--teacher", teacher, "--dataset", one_class, "--size", "8", "--out", "cache"]) == 0
    student = ("train", "--student", "cifar:resnet8", "--epochs", "1", "--workers", "0", "--out", "run")
    for loss in (
        "kl",
        "ce",
        "hard",
        "dkd",
        "nkd",
        "wsld",
        "dist",
        "ttm",
        "wttm",
        "rld",
        "ctkd",
        "mlkd",
        "mse:standardize=true",
    ):
        message = fails(*student, "--cache", "cache", "--dataset", one_class, "--loss", loss, status=2)
        assert f"loss '{loss.partition(':')[0]}" in message
        assert "needs at least 2 classes, the data have 1 class" in message
    assert "have 1 class" in fails(*student, "--dataset", one_class, "--size", "8", "--alpha", "0", status=2)
    assert not (here / "run").exists()
    assert run(["-q", *student, "--cache", "cache", "--dataset", one_class, "--loss", "mse", "--alpha", "1"]) == 0
    lines = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
