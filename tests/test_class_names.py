"""What a network's outputs stand for, and which data it was trained on: kept, compared, refused by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_train import command, config
from PIL import Image
from safetensors import safe_open

from softcache.datasets._open import open_samples
from softcache.errors import ModelError
from softcache.models._open import open_network

SMALL = ("--size", "16", "--epochs", "1", "--workers", "0", "--batch-size", "8")
GREY = ((0.5,), (0.25,))


def pets(root: Path, classes: tuple[str, ...], seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 256, (20 + seed, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return f"folder:{root}"


@pytest.fixture
def teacher(here: Path, state: Path) -> Path:
    """A teacher of cats and dogs, found by its short name."""
    spec = pets(here / "a" / "pets", ("cat", "dog"))
    assert command("-q", "teach", "--model", "cifar:resnet8", "--dataset", spec, *SMALL) == 0
    return Path("teachers/cifar-resnet8-pets")


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Any:
    def check(*arguments: str | Path) -> str:
        capfd.readouterr()
        assert command(*arguments) == 1
        return capfd.readouterr().err.splitlines()[-1]

    return check


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="np") as file:
        found: dict[str, Any] = json.loads(file.metadata()["softcache.model"])
    return found


def test_teacher_and_student_keep_class_names_and_the_teacher_its_data(here: Path, teacher: Path) -> None:
    assert config(teacher)["model"]["class_names"] == ["cat", "dog"]
    assert header(teacher / "teacher.safetensors")["class_names"] == ["cat", "dog"]
    samples = open_samples(f"folder:{here}/a/pets", "train")
    labels = hashlib.sha256(b'["cat", "dog"]' + np.repeat(np.arange(2, dtype="<i4"), 3).tobytes()).hexdigest()
    assert config(teacher)["data"] == {
        "spec": f"folder:{here}/a/pets",
        "split": "train",
        "rows": 6,
        "fingerprint": samples.fingerprint(),
        "labels": labels,
    }
    assert command("-q", "dump", "--teacher", teacher, "--views", "1", "--out", "cache") == 0
    student = ("--student", "cifar:resnet8", "--epochs", "1", "--workers", "0", "--out", "run")
    assert command("-q", "train", "--cache", "cache", *student) == 0
    assert config(here / "run")["model"]["class_names"] == ["cat", "dog"]
    assert header(here / "run" / "student.safetensors")["class_names"] == ["cat", "dog"]
    weights = here / "run" / "student.safetensors"
    by_file = open_network("cifar:resnet8", classes=None, statistics=GREY, weights=weights)
    assert by_file.class_names == open_network("run/", classes=None).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        (("cat", "wolf"), "other classes than the data: its output 1 is 'dog', label 1 of the data is 'wolf'"),
        (("ant", "dog"), "other classes than the data: its output 0 is 'cat', label 0 of the data is 'ant'"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(
    here: Path, teacher: Path, said: Any, classes: tuple[str, ...], found: str
) -> None:
    other = pets(here / "other", classes)
    for arguments in (
        ("dump", "--teacher", teacher, "--dataset", other, "--out", "cache"),
        ("eval", teacher, "--dataset", other),
        ("eval", "cifar:resnet8", "--weights", teacher / "teacher.safetensors", "--dataset", other),
        ("layers", "--teacher", teacher, "--dataset", other),
        ("train", "--online", "--teacher", teacher, "--student", "cifar:resnet8", "--dataset", other, *SMALL),
    ):
        assert found in said(*arguments)
    assert not (here / "cache").exists()
    # To start from its parameters is another matter: they are trained on.
    weights = ("--weights", teacher / "teacher.safetensors")
    assert command("-q", "teach", "--model", "cifar:resnet8", "--dataset", other, *weights, *SMALL) == 0
    assert config(here / "teachers" / "cifar-resnet8-other")["model"]["class_names"] == list(classes)


def test_another_order_of_the_same_classes_is_refused(here: Path, teacher: Path) -> None:
    def again(*names: str) -> tuple[str, ...] | None:
        return open_network(str(teacher), classes=2, class_names=names).class_names

    with pytest.raises(ModelError, match=r"the classes of the data in another order: its output 0 is 'cat', .* 'dog'"):
        again("dog", "cat")
    assert again("cat", "dog") == ("cat", "dog")
    assert again("0", "1") == ("0", "1"), "data whose classes have numbers only"
    assert again() == ("cat", "dog")


def test_a_teacher_of_other_data_is_not_taken_by_its_short_name(here: Path, teacher: Path, said: Any) -> None:
    other = pets(here / "b" / "pets", ("cat", "dog"), seed=1)
    asked = ("--teacher", "cifar:resnet8", "--dataset", other)
    found = f"{teacher} was trained on folder:{here}/a/pets, which is other data than folder:{here}/b/pets"
    assert found in said("dump", *asked, "--out", "cache")
    assert found in said("layers", *asked)
    assert found in said("eval", "cifar:resnet8", "--dataset", other)
    assert command("-q", "dump", "--teacher", f"./{teacher}", "--dataset", other, "--views", "1", "--out", "c") == 0


def test_the_same_data_at_another_place_has_the_same_teacher(here: Path, teacher: Path) -> None:
    shutil.copytree(here / "a" / "pets", here / "c" / "pets")
    shutil.rmtree(here / "a")
    data = ("--dataset", f"folder:{here}/c/pets")
    assert command("-q", "dump", "--teacher", "cifar:resnet8", *data, "--views", "1", "--out", "cache") == 0
    assert command("-q", "eval", "cifar:resnet8", *data) == 0


def test_a_training_does_not_go_on_with_other_data(here: Path, teacher: Path, said: Any) -> None:
    (teacher / "teacher.safetensors").unlink()  # as if it had been interrupted
    pixels = np.zeros((20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(here / "a" / "pets" / "train" / "cat" / "new.png")
    message = said("teach", "--model", "cifar:resnet8", "--dataset", "folder:a/pets", *SMALL)
    assert "was begun on other data" in message
    assert "rows, fingerprint, labels differ" in message


def test_nothing_is_written_beside_images_and_weights(here: Path, teacher: Path, tmp_path: Path) -> None:
    def listing() -> set[Path]:
        return {path for place in (here / "a", teacher) for path in place.rglob("*")}

    before = listing()
    assert command("-q", "dump", "--teacher", teacher, "--views", "1", "--out", "cache") == 0
    assert command("-q", "dump", "--teacher", teacher, "--views", "1", "--out", "cache") == 0
    assert listing() == before
