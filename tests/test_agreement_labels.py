"""Labels that changed since the dump are found before anything is trained, dumped or trusted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness_train import command, config, same, weights
from PIL import Image

from softcache.cache.reader import Cache

STUDENT = ("--student", "cifar:resnet8", "--epochs", "1", "--workers", "0", "--seed", "3", "--device", "cpu")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Colours:
    """An ``arrays:`` dataset whose labels can be written anew, and caches of it."""

    def __init__(self, spec: str, teacher: str):
        self.spec, self.teacher = spec, teacher
        self.path = Path(spec.partition(":")[2]) / "train_labels.npy"
        self.labels = np.load(self.path)

    def relabel(self, labels: np.ndarray) -> None:
        np.save(self.path, labels)

    def dump(self, out: str, *more: str) -> int:
        return command(
            "dump", "--teacher", self.teacher, "--dataset", self.spec, "--out", out, "--views", "2",
            "--device", "cpu", *more,
        )  # fmt: skip

    def train(self, out: str, *caches: str, more: tuple[str, ...] = ()) -> int:
        named = [part for cache in caches for part in ("--cache", cache)]
        return command("train", *STUDENT, *named, "--dataset", self.spec, "--out", out, *more)


@pytest.fixture
def colours(here: Path, small_teacher: Callable[..., str], colour_arrays: str) -> Colours:
    made = Colours(colour_arrays, small_teacher("teacher", dataset=colour_arrays))
    assert made.dump("cache") == 0
    return made


def test_a_shuffled_labels_file_stops_the_training(colours: Colours, capsys: pytest.CaptureFixture) -> None:
    shuffled = np.random.default_rng(0).permutation(colours.labels)
    colours.relabel(shuffled)
    differing = np.flatnonzero(shuffled != colours.labels)
    capsys.readouterr()
    assert colours.train("run", "cache") == 1
    said = capsys.readouterr().err
    row = differing[0]
    assert f"the labels of {len(differing)} of 150 rows differ" in said
    assert f"first row {row}: '{colours.labels[row]}' in the cache, '{shuffled[row]}' in the dataset now" in said
    assert "--labels dataset" in said
    assert not Path("run").exists()


def test_the_labels_of_the_cache_train_as_if_nothing_had_changed(colours: Colours) -> None:
    assert colours.train("before", "cache") == 0
    colours.relabel((colours.labels + 1) % 5)
    assert colours.train("after", "cache", more=("--labels", "cache")) == 0
    assert same(weights(Path("before")), weights(Path("after")))
    assert config(Path("after"))["options"]["labels"] == "cache"


def test_the_labels_of_the_dataset_train_as_from_a_cache_that_was_made_with_them(colours: Colours) -> None:
    assert colours.train("old", "cache") == 0
    colours.relabel((colours.labels + 1) % 5)
    assert colours.dump("fresh") == 0
    assert colours.train("relabelled", "cache", more=("--labels", "dataset")) == 0
    assert colours.train("fresh-run", "fresh") == 0
    assert same(weights(Path("relabelled")), weights(Path("fresh-run")))
    assert not same(weights(Path("relabelled")), weights(Path("old")))


def test_a_baseline_beside_a_cache_is_held_to_the_same_labels(colours: Colours, capsys: pytest.CaptureFixture) -> None:
    colours.relabel((colours.labels + 1) % 5)
    assert colours.train("run", "cache", more=("--alpha", "0")) == 1
    assert "the labels of 150 of 150 rows differ" in capsys.readouterr().err


@pytest.mark.parametrize("order", [("cache", "second"), ("second", "cache")])
def test_every_cache_of_an_ensemble_is_compared(
    colours: Colours, small_teacher: Callable[..., str], order: tuple[str, str], capsys: pytest.CaptureFixture
) -> None:
    changed = colours.labels.copy()
    changed[[7, 20]] = (changed[[7, 20]] + 1) % 5
    colours.relabel(changed)
    colours.teacher = small_teacher("other", dataset=colours.spec, seed=8)
    assert colours.dump("second") == 0
    capsys.readouterr()
    assert colours.train("run", *order) == 1
    assert "cache was made from other labels" in (said := capsys.readouterr().err)
    assert "2 of 150 rows" in said
    assert colours.train("run", *order, more=("--labels", "cache")) == 1
    assert "different labels for 2 of 150 rows" in capsys.readouterr().err
    assert colours.train("run", *order, more=("--labels", "dataset")) == 0


def test_a_dump_into_a_cache_with_other_labels_is_refused_and_writes_nothing(
    colours: Colours, capsys: pytest.CaptureFixture
) -> None:
    before = files(Path("cache"))
    colours.relabel(np.roll(colours.labels, 1))
    capsys.readouterr()
    for more in ((), ("--views", "3"), ("--hint", "layer1")):
        assert colours.dump("cache", *more) == 1
        assert "the labels of 150 of 150 rows differ (first row 0: '0' in the cache, '4'" in capsys.readouterr().err
    assert files(Path("cache")) == before


def test_verify_with_a_teacher_says_that_labels_differ(colours: Colours, capsys: pytest.CaptureFixture) -> None:
    asked = ("verify", "cache", "--teacher", colours.teacher, "--dataset", colours.spec, "--sample", "20")
    assert command(*asked) == 0
    colours.relabel(np.where(np.arange(150) == 9, 0, colours.labels))
    assert command(*asked) == 1
    assert "the labels of 1 of 150 rows differ (first row 9: '4' in the cache, '0'" in capsys.readouterr().out
    assert command(*asked, "--json") == 1
    assert json.loads(capsys.readouterr().out)["teacher"]["labels"]["rows"] == 1


def test_labels_without_a_cache_are_a_usage_error(colours: Colours, capsys: pytest.CaptureFixture) -> None:
    assert command("train", *STUDENT, "--dataset", colours.spec, "--alpha", "0", "--labels", "cache") == 2
    assert "needs a cache" in capsys.readouterr().err


def test_a_file_that_moved_to_the_next_class_is_named(
    here: Path, small_teacher: Callable[..., str], capsys: pytest.CaptureFixture
) -> None:
    """The last file of a class that becomes the first of the next keeps its row and its pixels."""
    rng = np.random.default_rng(1)
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog", "emu"):
            folder = here / "pets" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    spec = f"folder:{here / 'pets'}"
    teacher = small_teacher("teacher", dataset=spec)
    arguments = ("--dataset", spec, "--workers", "0", "--device", "cpu")
    dump = ("dump", "--teacher", teacher, "--size", "32", "--views", "1", "--out", "cache", *arguments)
    assert command(*dump) == 0
    shutil.move(here / "pets/train/cat/5.png", here / "pets/train/dog/!5.png")
    capsys.readouterr()
    assert command("train", *STUDENT, "--cache", "cache", "--dataset", spec, "--out", "run") == 1
    said = capsys.readouterr().err
    assert "the labels of 1 of 18 rows differ" in said
    assert "row 5: 'cat' as train/cat/5.png in the cache, 'dog' as train/dog/!5.png in the dataset now" in said
    assert command(*dump) == 1
    assert "'dog' as train/dog/!5.png" in capsys.readouterr().err
    assert Cache("cache").names == [f"train/{name}/{k}.png" for name in ("cat", "dog", "emu") for k in range(6)]


def test_labels_of_another_cache_of_the_same_inputs_are_not_taken(
    colours: Colours, capsys: pytest.CaptureFixture
) -> None:
    """Labels are no part of a cache's identity, so that the caches of two labellings have the same id."""
    colours.relabel((colours.labels + 1) % 5)
    assert colours.dump("other") == 0
    assert Cache("other").manifest.cache_id == Cache("cache").manifest.cache_id
    shutil.copy("other/rows.h5", "cache/rows.h5")
    assert command("verify", "cache") == 1
    assert "rows.h5 has labels_sha256" in capsys.readouterr().out
    assert command("verify", "cache", "--repair") == 1
    assert colours.dump("cache") == 1, "the rows are written from the labels that were recorded, or not at all"
    assert "was made from other labels or classes" in capsys.readouterr().err
    colours.relabel(colours.labels)
    assert colours.dump("cache") == 0
    assert command("verify", "cache") == 0


def test_other_names_of_classes_are_refused(colours: Colours, capsys: pytest.CaptureFixture) -> None:
    (colours.path.parent / "classes.txt").write_text("red\ngreen\nblue\ncyan\ngrey\n")
    assert colours.dump("cache") == 1
    assert "was made from other classes than" in capsys.readouterr().err
    assert colours.train("run", "cache") == 1
    assert "with classes ['0', '1', '2', '3', '4']" in capsys.readouterr().err
