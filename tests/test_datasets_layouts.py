"""Where folders of images have their splits: names of the test split, a share that is held out, and odd files."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from harness_train import command, config
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from softcache.cache.reader import Cache
from softcache.config.folders import slug
from softcache.datasets._fraction import same_fraction, split_fraction, with_fraction
from softcache.datasets._open import open_samples
from softcache.datasets._subset import held_out_files
from softcache.errors import DatasetError, UsageError

CLASSES = ("cat", "dog", "owl")


def photo(path: Path, colour: tuple[int, int, int] = (9, 9, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def class_folders(root: Path, count: int = 40) -> Path:
    """Photographs of three classes, told apart by their colour, right under ``root``."""
    for number, name in enumerate(CLASSES):
        for index in range(count):
            photo(root / name / f"{index:03}.png", tuple(60 * number + index % 60 for _ in range(3)))
    return root


def share(name: str) -> float:
    """Where a path lies in [0, 1), by the rule that docs/data.md gives."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_the_test_split_goes_by_four_names(tmp_path, capsys, name):
    photo(tmp_path / "train/cat/a.png")
    photo(tmp_path / f"{name}/cat/b.png")
    assert open_samples(f"folder:{tmp_path}", "test").names == [f"{name}/cat/b.png"]
    said = capsys.readouterr().err
    assert said == ("" if name == "test" else f"the test split of {tmp_path} is {name}\n")


def test_of_several_test_splits_the_one_that_is_taken_is_named(tmp_path, capsys):
    for name in ("train", "validation", "valid", "test"):
        photo(tmp_path / name / "cat/b.png")
    assert open_samples(f"folder:{tmp_path}", "test").names == ["test/cat/b.png"]
    assert capsys.readouterr().err == f"the test split of {tmp_path} is test; valid, validation are not used\n"


def test_a_test_split_alone_can_be_evaluated_on(tmp_path):
    photo(tmp_path / "test/dog/a.png")
    photo(tmp_path / "test/cat/b.png")
    samples = open_samples(f"folder:{tmp_path}", "test")
    assert (samples.classes, samples.labels.tolist()) == (("cat", "dog"), [0, 1])
    with pytest.raises(DatasetError, match="has test/ and no train/, so there is nothing to train on"):
        open_samples(f"folder:{tmp_path}", "train")
    photo(tmp_path / "owl/c.png")
    for split in ("train", "test"):
        with pytest.raises(DatasetError, match=r"class folders \(owl\) beside test/ and no train/: put them"):
            open_samples(f"folder:{tmp_path}", split)


@pytest.mark.parametrize("place", ["", "train/"])
def test_a_fraction_divides_class_folders_by_the_hash_of_each_path(tmp_path, place):
    class_folders(tmp_path / place)
    spec = f"folder:{tmp_path},test_fraction=0.25"
    train, test = open_samples(spec, "train"), open_samples(spec, "test")
    every = [f"{place}{name}/{index:03}.png" for name in CLASSES for index in range(40)]
    assert test.names == [name for name in every if share(name) < 0.25]
    assert train.names == [name for name in every if share(name) >= 0.25]
    assert train.classes == test.classes == CLASSES
    assert {train.spec, test.spec} == {spec}
    for samples in (train, test):
        assert [CLASSES[label] for label in samples.labels] == [name.split("/")[-2] for name in samples.names]
        # binomial: 40 draws a class, five standard deviations of 2.7
        expected = 40 * (0.25 if samples is test else 0.75)
        assert (abs(np.bincount(samples.labels) - expected) < 14).all()


def test_the_fraction_0_trains_on_all_and_has_no_test_split(tmp_path):
    class_folders(tmp_path, 3)
    assert len(open_samples(f"folder:{tmp_path},test_fraction=0", "train")) == 9
    with pytest.raises(DatasetError, match="has no test split: --test-fraction 0 leaves it none of 9 files"):
        open_samples(f"folder:{tmp_path},test_fraction=0", "test")


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(CLASSES), st.integers(0, 10**6)), min_size=1, max_size=60, unique=True),
    st.floats(0, 0.99),
    st.randoms(use_true_random=False),
)
def test_a_files_split_does_not_depend_on_other_files(files, fraction, random):
    """Unless it is the last one of its class to train on."""

    def held(chosen):
        names = [f"{name}/{number}.png" for name, number in chosen]
        return dict(zip(chosen, held_out_files(names, [CLASSES.index(c) for c, _ in chosen], fraction).tolist()))

    whole, part = held(files), held(random.sample(files, random.randint(1, len(files))))
    for name in {name for name, _ in part}:
        own = [file for file in part if file[0] == name]
        assert not all(part[file] for file in own)  # a class without a file to train on can't be learnt
        spared = [file for file in own if share(f"{file[0]}/{file[1]}.png") < fraction and not part[file]]
        assert len(spared) <= 1
        assert not spared or len(own) == 1 + sum(part[file] for file in own)
    agreeing = [file for file in part if share(f"{file[0]}/{file[1]}.png") >= fraction or part[file]]
    assert all(whole[file] == part[file] for file in agreeing)


@pytest.mark.parametrize(
    ("names", "fraction", "split", "says"),
    [
        (["train/cat/a.png", "val/cat/b.png"], "0.2", "train", "has a test split, val/: leave out --test-fraction"),
        (["a.png", "b.png"], "0.2", "train", "has no class folders: without labels no test split"),
        (["cat/a.png"], "1", "train", "must be at least 0 and below 1, found 1"),
        (["cat/a.png"], "nan", "train", "must be at least 0 and below 1, found nan"),
        (["cat/a.png"], "few", "train", "test_fraction='few' is not a number"),
        (["cat/a.png"], "0.2,test_fraction=0.3", "train", "gives 'test_fraction' twice"),
    ],
)
def test_fractions_that_can_not_be(tmp_path, names, fraction, split, says):
    for name in names:
        photo(tmp_path / name)
    with pytest.raises((DatasetError, UsageError), match=says) as caught:
        open_samples(f"folder:{tmp_path},test_fraction={fraction}", split)
    assert "\n" not in str(caught.value)


def test_a_comma_in_a_path_is_part_of_the_path(tmp_path):
    photo(tmp_path / "cats, dogs,a=1/train/cat/a.png")
    assert len(open_samples(f"folder:{tmp_path}/cats, dogs,a=1", "train")) == 1


def test_the_option_is_the_same_as_the_spec(here, capsys):
    assert with_fraction("csv:pets.csv,test_fraction=0.2", 0.2) == "csv:pets.csv,test_fraction=0.2"
    assert same_fraction("arrays:x", "folder:pets,test_fraction=0.2", "a cache") == "arrays:x"
    assert split_fraction("folder:/data/pets,test_fraction=0.2") == ("folder:/data/pets", 0.2)
    assert slug("folder:/data/pets,test_fraction=0.2") == "pets-test0.2"
    class_folders(here / "pets", 1)
    layers = ("layers", "--teacher", "cifar:resnet8", "--size", "8")
    assert command(*layers, "--dataset", "folder:pets,test_fraction=0.2") == 0
    wanted = capsys.readouterr().out
    assert command(*layers, "--dataset", "folder:pets", "--test-fraction", "0.2") == 0
    assert capsys.readouterr().out == wanted
    for arguments, says in (
        (("--dataset", "folder:pets,test_fraction=0.3", "--test-fraction", "0.2"), "says 0.3; give one of the two"),
        (("--dataset", "digits", "--test-fraction", "0.2"), "'digits' is none of these"),
        (("--dataset", "folder:pets", "--test-fraction", "1"), "must be at least 0 and below 1"),
        (("--test-fraction", "0.2"), "name it with --dataset"),
    ):
        assert command(*layers, *arguments) == 2
        assert says in capsys.readouterr().err


def test_a_cache_of_the_train_part_knows_the_fraction(here, capsys):
    """The split is the same without being told again, and another one is refused."""
    class_folders(here / "pets")
    data = ("--dataset", f"folder:{here / 'pets'}")
    divided = (*data, "--test-fraction", "0.25")
    small = ("--epochs", "1", "--workers", "0")
    assert command("teach", "--model", "cifar:resnet8", *divided, "--size", "8", *small) == 0
    assert command("dump", "--teacher", "cifar:resnet8", *divided, "--views", "1", "--size", "8", "--workers", "0") == 0
    (folder,) = (here / "caches").iterdir()
    assert folder.name == "cifar-resnet8-pets-test0.25-train"
    rows = sum(share(f"{name}/{index:03}.png") >= 0.25 for name in CLASSES for index in range(40))
    cache = Cache(folder)
    assert (cache.rows, cache.manifest.identity.dataset.spec) == (rows, "folder:pets,test_fraction=0.25")
    student = ("--student", "cifar:resnet8", "--cache", folder)
    assert command("train", *student, *data, *small, "--out", "run") == 0
    assert config(here / "run")["options"]["dataset"] == f"folder:{here / 'pets'},test_fraction=0.25"
    capsys.readouterr()
    assert command("eval", "run", "--workers", "0") == 0
    assert f"/test, {120 - rows} samples" in capsys.readouterr().out
    assert command("verify", folder, "--teacher", "teachers/cifar-resnet8-pets-test0.25", *data) == 0
    capsys.readouterr()
    assert command("train", *student, *data, "--test-fraction", "0.3", "--out", "other") == 2
    said = capsys.readouterr().err
    assert "--test-fraction 0.3" in said
    assert "was made with 0.25" in said
    assert not (here / "other").exists()
    # Nor is a network measured on files that it was trained on because another share is named, or none.
    for model in ("run", "teachers/cifar-resnet8-pets-test0.25"):
        assert command("eval", model, *data, "--workers", "0") == 0
        assert f"/test, {120 - rows} samples" in capsys.readouterr().out
        assert command("eval", model, *data, "--test-fraction", "0.4", "--workers", "0") == 2
        assert "was made with 0.25" in capsys.readouterr().err


def test_other_data_than_was_meant_is_told(here, capsys):
    """Where nobody names the data: a baseline beside no cache, and a teacher by its architecture."""
    class_folders(here / "pets")
    data = ("--dataset", f"folder:{here / 'pets'}", "--test-fraction", "0.25", "--size", "8", "--workers", "0")
    assert command("teach", "--model", "cifar:resnet8", *data, "--epochs", "1") == 0
    assert command("dump", "--teacher", "cifar:resnet8", *data, "--views", "1") == 0
    capsys.readouterr()
    small = ("--size", "8", "--epochs", "1", "--workers", "0")
    assert command("-q", "train", "--student", "cifar:resnet8", "--alpha", "0", *small) == 0
    cache = "caches/cifar-resnet8-pets-test0.25-train"
    assert f"labels alone on digits, while {cache} is of other data" in capsys.readouterr().err
    assert command("-q", "dump", "--teacher", "cifar:resnet8") == 1
    assert "for the data of teachers/cifar-resnet8-pets-test0.25 name that folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("teach", "--model"), ("train", "--alpha", "0", "--student")])
def test_a_missing_test_split_is_said_before_the_training(here, capsys, arguments):
    """Before even the network is built, which may take a while."""
    class_folders(here / "pets/train", 2)
    data = ("--dataset", f"folder:{here / 'pets'}", "--size", "8", "--epochs", "1", "--workers", "0")
    assert command(*arguments, "cifar:resnet9", *data, "--out", "out") == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: no test split to evaluate on")
    assert "resnet9" in last
    assert command(*arguments, "cifar:resnet8", *data, "--out", "out") == 0
    lines = capsys.readouterr().err.splitlines()
    (warning,) = [place for place, line in enumerate(lines) if "no test split to evaluate on" in line]
    assert "--test-fraction 0.2 holds out" in lines[warning]
    assert warning < min(place for place, line in enumerate(lines) if "epoch" in line or "6 rows" in line)


def test_an_unlabelled_test_split_is_said_before_the_training_and_gives_no_accuracy(here, capsys):
    (here / "own.py").write_text(
        "import numpy as np\n"
        "def data(split):\n"
        "    labels = np.arange(8) % 2 if split == 'train' else None\n"
        "    return np.zeros((8, 8, 8, 3), np.uint8), labels, ('a', 'b')\n"
    )
    own = ("--dataset", "own.py:data", "--size", "8", "--epochs", "1", "--workers", "0")
    assert command("teach", "--model", "cifar:resnet8", *own, "--out", "teacher") == 0
    lines = capsys.readouterr().err.splitlines()
    (warning,) = [place for place, line in enumerate(lines) if "has no labels, so no accuracy" in line]
    assert warning < min(place for place, line in enumerate(lines) if "epoch" in line)
    assert config(here / "teacher")["result"]["test"] is None


# -- files that are none, and names that are no text


def test_pipes_and_sockets_are_skipped_unread(tmp_path, capsys):
    photo(tmp_path / "train/cat/a.png")
    os.mkfifo(tmp_path / "train/cat/b.png")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "train/cat/c.png"))
        samples = open_samples(f"folder:{tmp_path}", "train")
    assert samples.names == ["train/cat/a.png"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "skipped" in said
    assert "train/cat/b.png" in said
    assert "not a regular file" in said


def test_a_file_that_has_become_a_pipe_is_an_error_and_no_wait(tmp_path):
    file = photo(tmp_path / "train/cat/a.png")
    samples = open_samples(f"folder:{tmp_path}", "train")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DatasetError, match=r"a\.png can't be decoded: it is not a regular file"):
        samples.image(0)


def test_links_to_nowhere_and_in_circles_are_named(tmp_path):
    photo(tmp_path / "train/cat/a.png")
    loop = tmp_path / "train/cat/loop"
    loop.symlink_to(tmp_path / "train")
    with pytest.raises(DatasetError, match="cat/loop is a link to a folder that it lies in"):
        open_samples(f"folder:{tmp_path}", "train")
    loop.unlink()
    (tmp_path / "train/cat/gone.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DatasetError, match=r"gone\.png is a link to a file that is not there"):
        open_samples(f"folder:{tmp_path}", "train")
    (tmp_path / "train/cat/gone.png").unlink()
    (tmp_path / "train/dog").symlink_to(photo(tmp_path / "stored/d.png").parent)
    assert open_samples(f"folder:{tmp_path}", "train").names == ["train/cat/a.png", "train/dog/d.png"]


def test_a_class_folder_whose_name_is_no_text_is_named(tmp_path):
    photo(tmp_path / os.fsdecode(b"train/caf\xe9/a.png"))
    with pytest.raises(DatasetError, match=r"class folder b'caf\\xe9' is not UTF-8: rename the folder"):
        open_samples(f"folder:{tmp_path}", "train")


def test_a_dataset_at_a_path_that_is_no_text_is_named(tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    photo(root / "train/cat/a.png")
    with pytest.raises(DatasetError, match=r"the dataset's path b'folder:.*caf\\xe9' is not UTF-8: rename it"):
        open_samples(f"folder:{root}", "train")


def test_files_whose_names_are_no_text_are_dumped_and_trained_on(here, small_teacher):
    class_folders(here / "pets/train", 4)
    photo(here / os.fsdecode(b"pets/train/cat/na\xefve.png"), (200, 0, 0))
    data = f"folder:{here / 'pets'}"
    teacher = small_teacher(here / "teacher", dataset=data)
    options = ("--dataset", data, "--size", "8", "--workers", "0")
    assert command("dump", "--teacher", teacher, *options, "--views", "1", "--out", "cache") == 0
    assert command("verify", "cache") == 0
    assert command("dump", "--teacher", teacher, *options, "--views", "2", "--out", "cache") == 0
    student = ("--student", "cifar:resnet8", "--dataset", data, "--epochs", "1", "--workers", "0")
    assert command("train", "--cache", "cache", *student, "--out", "run") == 0
