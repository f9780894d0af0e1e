"""Folders of images: labelled, unlabelled, and wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softcache.datasets._open import open_samples
from softcache.errors import DatasetError


def photo(path: Path, seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def pets(tmp_path):
    for number, name in enumerate(["train/dog/b.png", "train/dog/a.PNG", "train/cat/deep/c.png", "val/dog/z.png"]):
        photo(tmp_path / name, number)
    (tmp_path / "train/dog/notes.txt").write_text("no image")
    (tmp_path / "train/.hidden").mkdir()
    return tmp_path


def test_folder(pets):
    train, test = open_samples(f"folder:{pets}", "train"), open_samples(f"folder:{pets}", "test")
    assert train.classes == test.classes == ("cat", "dog")
    assert train.names == ["train/cat/deep/c.png", "train/dog/a.PNG", "train/dog/b.png"]
    assert train.labels.tolist() == [0, 1, 1]
    assert (test.names, test.labels.tolist()) == (["val/dog/z.png"], [1])
    assert (train.size, train.resize, train.recipe, train.channels) == (224, 256, "rrc+flip", 3)
    assert np.array_equal(train.image(2), photo(pets / "train/dog/b.png", 0))
    resized = open_samples(f"folder:{pets}", "train", size=112)
    assert (resized.size, resized.resize) == (112, 128)


def test_folder_prefers_test_with_class_folders_over_val(pets):
    photo(pets / "test/loose.png")
    assert open_samples(f"folder:{pets}", "test").names == ["val/dog/z.png"]
    photo(pets / "test/cat/c.png")
    assert open_samples(f"folder:{pets}", "test").names == ["test/cat/c.png"]


def test_grey_and_palette_files_become_three_channels(tmp_path):
    grey = photo(tmp_path / "train/a/grey.png", mode="L")
    Image.new("P", (4, 4)).save(tmp_path / "train/a/palette.png")
    samples = open_samples(f"folder:{tmp_path}", "train")
    assert np.array_equal(samples.image(0), np.repeat(grey[..., None], 3, axis=2))
    assert samples.image(1).shape == (4, 4, 3)


@pytest.mark.parametrize("place", ["", "train/"])
def test_unlabelled_folder(tmp_path, place):
    for number in range(3):
        photo(tmp_path / f"{place}{number}.png", number)
    samples = open_samples(f"folder:{tmp_path}", "train")
    assert samples.names == [f"{place}{number}.png" for number in range(3)]
    assert samples.classes == ()
    assert samples.labels.tolist() == [-1, -1, -1]
    with pytest.raises(DatasetError, match="no test split"):
        open_samples(f"folder:{tmp_path}", "test")


def test_folder_fingerprints(pets, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for name in ("train/dog/b.png", "train/dog/a.PNG", "train/cat/deep/c.png"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((pets / name).read_bytes())
    there, here = open_samples(f"folder:{pets}", "train"), open_samples(f"folder:{copy}", "train")
    assert there.fingerprint() == here.fingerprint()
    assert there.fingerprint(full=True) == here.fingerprint(full=True) != here.fingerprint()
    file = copy / "train/dog/b.png"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert there.fingerprint() == here.fingerprint()  # sizes alone don't show it
    assert there.fingerprint(full=True) != here.fingerprint(full=True)
    file.write_bytes(content + b"!")
    assert there.fingerprint() != here.fingerprint()
    file.unlink()
    with pytest.raises(DatasetError, match=r"b\.png can't be read"):
        here.fingerprint()


@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "gone"])
def test_a_corrupt_image_is_named(tmp_path, damage):
    photo(tmp_path / "train/a/x.jpg", size=(64, 64))
    file = tmp_path / "train/a/x.jpg"
    samples = open_samples(f"folder:{tmp_path}", "train")
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"text": b"hello", "truncated": content[: len(content) // 2], "empty": b""}[damage])
    with pytest.raises(DatasetError, match=r"train/a/x\.jpg can't be decoded") as caught:
        samples.image(0)
    assert "\n" not in str(caught.value)


def build_nothing(root):
    return None


def build_empty_class(root):
    photo(root / "train/a/x.png")
    (root / "train/b").mkdir()


def build_empty_classes(root):
    (root / "train/a").mkdir(parents=True)


def build_no_train(root):
    photo(root / "cat/x.png")


def build_other_classes(root):
    photo(root / "train/a/x.png")
    photo(root / "test/b/x.png")


def build_unlabelled_test(root):
    photo(root / "train/a/x.png")
    photo(root / "test/x.png")


@pytest.mark.parametrize(
    ("build", "split", "says"),
    [
        (build_nothing, "train", "is empty: no class folders and no images"),
        (build_nothing, "test", "has no test split: none of the folders test/, val/, valid/, validation/"),
        (build_empty_class, "train", "no image in the class folder b"),
        (build_empty_classes, "train", "1 class folders and no image in any"),
        (build_no_train, "train", r"has class folders \(cat\) and no train/: --test-fraction 0.2 holds out"),
        (build_other_classes, "test", "test has classes that .*train lacks: b"),
        (build_unlabelled_test, "test", "no class folders, nothing can be evaluated"),
    ],
)
def test_bad_folders(tmp_path, build, split, says):
    build(tmp_path)
    with pytest.raises(DatasetError, match=says) as caught:
        open_samples(f"folder:{tmp_path}", split)
    assert "\n" not in str(caught.value)
