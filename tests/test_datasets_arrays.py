"""Arrays in files: mapped, packed, and wrong."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from softcache.datasets._open import open_samples
from softcache.datasets._samples import Samples
from softcache.errors import DatasetError
from softcache.stages.dump import dump
from softcache.views._open import open_viewed


def write_arrays(root: Path, shape=(20, 8, 8, 3), **replaced) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = {
        "train_images": rng.integers(0, 256, shape, dtype=np.uint8),
        "train_labels": np.arange(shape[0]) % 4,
        "test_images": rng.integers(0, 256, (6, *shape[1:]), dtype=np.uint8),
        "test_labels": np.arange(6) % 4,
        **replaced,
    }
    arrays = {name: array for name, array in arrays.items() if array is not None}
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array)
    return arrays


def test_arrays(tmp_path):
    arrays = write_arrays(tmp_path)
    train, test = open_samples(f"arrays:{tmp_path}", "train"), open_samples(f"arrays:{tmp_path}", "test")
    assert np.array_equal(train.images, arrays["train_images"])
    assert isinstance(train.images, np.memmap)
    assert (train.labels.dtype, train.labels.tolist()) == (np.int32, arrays["train_labels"].tolist())
    assert np.array_equal(test.image(5), arrays["test_images"][5])
    assert type(test.image(5)) is np.ndarray
    assert (train.classes, train.size, train.resize, train.recipe) == (
        ("0", "1", "2", "3"),
        32,
        32,
        "none",
    )
    np.testing.assert_allclose(test.statistics[0], (arrays["train_images"] / 255.0).mean(axis=(0, 1, 2)), rtol=1e-12)


def test_arrays_from_an_npz_are_the_same_samples(tmp_path):
    arrays = write_arrays(tmp_path, shape=(20, 9, 8))
    np.savez(tmp_path / "all.npz", **arrays)
    for split in ("train", "test"):
        one, other = (
            open_samples(f"arrays:{tmp_path}", split),
            open_samples(f"arrays:{tmp_path}/all.npz", split),
        )
        assert one.fingerprint() == other.fingerprint()
        assert one.channels == other.channels == 1
        assert one.image(3).shape == (9, 8, 1)


@pytest.mark.parametrize(
    ("side", "size", "resize", "suggested"),
    [
        (28, 32, 32, "--augment crop:pad=4+flip"),
        (64, 64, 64, "--augment crop:pad=4+flip"),
        (96, 96, 96, "--augment crop:pad=4+flip"),
        (97, 224, 256, "--augment rrc+flip"),
    ],
)
def test_default_sizes_of_arrays(tmp_path, side, size, resize, suggested):
    write_arrays(tmp_path, shape=(4, side, side - 3))
    samples = open_samples(f"arrays:{tmp_path}", "train")
    assert (samples.size, samples.resize, samples.recipe) == (size, resize, "none")
    assert suggested in samples.advice


def test_arrays_are_neither_mirrored_nor_shifted_unless_that_is_asked_for(tmp_path, capsys):
    """A spectrogram: its axes are time and frequency."""
    arrays = write_arrays(tmp_path, shape=(20, 32, 32, 3))
    viewed = open_viewed(f"arrays:{tmp_path}", "train")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "arrays: pictures are not augmented unless you say so: --augment crop:pad=4+flip" in said
    for view in range(4):
        assert np.array_equal(viewed.batch(np.arange(20), view).numpy(), arrays["train_images"])
    open_viewed(f"arrays:{tmp_path}", "train", augment="flip")
    assert capsys.readouterr().err == ""


def test_without_augmentation_one_view_is_all_there_is_to_record(here, small_teacher, colour_arrays):
    teacher = small_teacher(here / "teacher", dataset=colour_arrays)
    assert dump(teacher, dataset=colour_arrays, size=8, out="plain").info["views"] == 1
    assert dump(teacher, dataset=colour_arrays, size=8, out="flipped", augment="flip").info["views"] == 4


LABELS = {
    "unlabelled in disguise": (np.full(20, 2**64 - 1, np.uint64), "label 18446744073709551615 of row 0 is not in -1"),
    "above 2**63": (np.full(20, 2**63, np.uint64), "label 9223372036854775808 of row 0"),
    "above 2**31": (np.full(20, 2**31), "label 2147483648 of row 0"),
    "below -1": (np.full(20, -2, np.int8), "label -2 of row 0"),
    "fractions": (np.linspace(0, 1, 20), "labels must be whole numbers, found float64"),
    "truths": (np.ones(20, bool), "labels must be whole numbers, found bool"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_none_are_refused_in_a_line(tmp_path, kind):
    labels, says = LABELS[kind]
    write_arrays(tmp_path, train_labels=labels)
    with pytest.raises(DatasetError, match=says) as caught:
        open_samples(f"arrays:{tmp_path}", "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint64, ">i2"])
def test_labels_of_any_integer_dtype_are_the_same_labels(tmp_path, dtype):
    write_arrays(tmp_path, train_labels=(np.arange(20) % 4).astype(dtype))
    assert open_samples(f"arrays:{tmp_path}", "train").labels.tolist() == (np.arange(20) % 4).tolist()


def test_class_names_and_unlabelled_rows(tmp_path):
    write_arrays(tmp_path, train_labels=None)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\ndog\neel\n")
    samples = open_samples(f"arrays:{tmp_path}", "train")
    assert samples.classes == ("ant", "bee", "cat", "dog", "eel")
    assert samples.labels.tolist() == [-1] * 20
    assert open_samples(f"arrays:{tmp_path}", "test").labels.tolist() == [0, 1, 2, 3, 0, 1]


def hash_in_worker(samples: Samples) -> tuple[str, bool]:
    return samples.fingerprint(), isinstance(samples.images, np.memmap)


def test_mapped_arrays_travel_to_a_spawned_worker_as_a_path(tmp_path):
    write_arrays(tmp_path, shape=(2000, 32, 32))
    samples = open_samples(f"arrays:{tmp_path}", "train")
    assert samples.images.nbytes == 2000 * 32 * 32
    assert len(pickle.dumps(samples)) < 40_000  # labels are 8,000 of them
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(hash_in_worker, (samples,)) == (samples.fingerprint(), True)


def images_of(shape, dtype=np.uint8):
    return np.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("replaced", "split", "says"),
    [
        (
            {"train_images": images_of((20, 8, 8), np.float32)},
            "train",
            "must be uint8 .* found float32: as an input of another name",
        ),
        ({"train_images": images_of((20, 3, 8, 8))}, "train", r"is \(20, 3, 8, 8\): the channels come last"),
        ({"train_images": images_of((20, 64))}, "train", r"found uint8 \(20, 64\)"),
        ({"train_images": images_of((20, 0, 8))}, "train", "images without pixels"),
        (
            {"train_images": images_of((0, 8, 8, 3)), "train_labels": np.zeros(0, int)},
            "train",
            "has no samples",
        ),
        (
            {"train_images": None},
            "train",
            "no other inputs of that split: found test_images.npy, ",
        ),
        ({"train_images": images_of((20, 8, 8))}, "test", "train has uint8 and 1 channel, test has uint8 and 3"),
        (
            {"train_labels": np.zeros(19, int)},
            "train",
            r"expected labels of shape \(20,\) for 20 rows, found int64 \(19,\)",
        ),
        ({"train_labels": np.zeros((20, 1), int)}, "train", r"found int64 \(20, 1\)"),
        ({"train_labels": np.zeros(20)}, "train", "labels must be whole numbers, found float64"),
        (
            {"train_labels": np.full(20, -2)},
            "train",
            r"label -2 of row 0 is not in -1 \(unlabelled\) or more",
        ),
        (
            {"test_labels": np.array([0, 1, 7, 0, 0, 0])},
            "test",
            r"label 7 of row 2 is not in -1 \(unlabelled\) to 3",
        ),
        ({"test_labels": None}, "test", "test split has no labels"),
        (
            {"train_labels": np.array([{}] * 20)},
            "train",
            "train_labels.npy can't be read as an array: .*allow_pickle",
        ),
    ],
)
def test_bad_arrays(tmp_path, replaced, split, says):
    write_arrays(tmp_path, **replaced)
    with pytest.raises(DatasetError, match=says) as caught:
        open_samples(f"arrays:{tmp_path}", split)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", b"PK\x03\x04 no archive"])
def test_damaged_array_files(tmp_path, content):
    write_arrays(tmp_path)
    whole = (tmp_path / "train_images.npy").read_bytes()
    (tmp_path / "bad.npz").write_bytes(content)
    for damaged in (content, whole[:-5]):
        (tmp_path / "train_images.npy").write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"train_images\.npy can't be read as an array"):
            open_samples(f"arrays:{tmp_path}", "train")
    with pytest.raises(DatasetError, match=r"bad\.npz \(train_images\) can't be read as an array"):
        open_samples(f"arrays:{tmp_path}/bad.npz", "train")


@pytest.mark.parametrize("name", ["train_images.npy", "train_labels.npy", "classes.txt", "all.npz"])
def test_pipes_in_place_of_arrays_are_refused_unread(tmp_path, name):
    write_arrays(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    source = tmp_path / name if name.endswith("npz") else tmp_path
    with pytest.raises(DatasetError, match=r"can't be read.*: it is not a regular file"):
        open_samples(f"arrays:{source}", "train")


def test_class_names_that_are_no_text_are_refused_in_a_line(tmp_path):
    write_arrays(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DatasetError, match=r"classes\.txt can't be read: it is not UTF-8 text"):
        open_samples(f"arrays:{tmp_path}", "train")
