"""Datasets: digits, fingerprints, a user's own function, and what is said of bad input."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from softcache.datasets._open import open_samples
from softcache.datasets._pixels import measure
from softcache.datasets._samples import Samples
from softcache.errors import DatasetError, UsageError

DATA = Path(__file__).resolve().parents[1] / "data"


def splitmix64_of_an_integer(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


# -- digits


def test_digits_are_the_uci_set_split_as_the_readme_says():
    with np.load(DATA / "digits.npz", allow_pickle=False) as arrays:
        images, labels, test = arrays["images"], arrays["labels"], arrays["test"]
    assert images.shape == (1797, 8, 8)
    assert images.dtype == labels.dtype == np.uint8
    # class counts as scikit-learn documents them ("~180 a class") and UCI's optdigits.names lists for the test part
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # the first image, from scikit-learn's documentation of load_digits
    assert images[0, :3].tolist() == [
        [0, 0, 5, 13, 9, 1, 0, 0],
        [0, 0, 13, 15, 10, 15, 5, 0],
        [0, 3, 15, 2, 0, 11, 8, 0],
    ]
    for digit in range(10):
        rows = sorted(np.flatnonzero(labels == digit).tolist(), key=splitmix64_of_an_integer)
        assert set(np.flatnonzero(test & (labels == digit))) == set(rows[: round(len(rows) / 5)])


def test_digits_file_is_dated_and_hashed_as_the_readme_says():
    content = (DATA / "digits.npz").read_bytes()
    assert hashlib.sha256(content).hexdigest() in (DATA / "README.md").read_text(encoding="utf-8")
    with zipfile.ZipFile(DATA / "digits.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_digits_opened():
    train, test = open_samples("digits", "train"), open_samples("digits", "test")
    assert (len(train), len(test)) == (1438, 359)
    assert (train.size, train.resize, train.recipe, train.channels) == (32, 32, "crop", 1)
    assert train.classes == tuple("0123456789")
    assert train.image(0).shape == (8, 8, 1)
    values = np.unique(train.images)
    assert values.tolist() == [int(v * 255 / 16 + 0.5) for v in range(17)]
    pixels = train.images.astype(np.float64) / 255
    assert train.statistics == test.statistics
    np.testing.assert_allclose([train.statistics[0][0], train.statistics[1][0]], [pixels.mean(), pixels.std()])


def test_the_size_can_be_chosen():
    assert (open_samples("digits", "test", size=16).size, open_samples("digits", "test", size=16).resize) == (
        16,
        16,
    )


# -- fingerprints


def changed(samples: Samples, **fields) -> str:
    return Samples(**{**samples.__dict__, **fields}).fingerprint()


def test_a_fingerprint_depends_on_content_alone():
    samples = open_samples("digits", "test")
    labels = samples.labels.copy()
    labels[7] = (labels[7] + 1) % 10
    same = changed(samples, spec="other", size=64, recipe="none", labels=labels, classes=samples.classes[::-1])
    assert same == samples.fingerprint() == open_samples("digits", "test").fingerprint()
    images = samples.images.copy()
    images[300, 3, 3, 0] ^= 1
    others = {changed(samples, images=images), open_samples("digits", "train").fingerprint()}
    assert len(others | {same}) == 3


def test_measure_equals_numpy_in_float64():
    images = np.random.default_rng(0).integers(0, 256, (50, 7, 5, 3), dtype=np.uint8)
    images[..., 2] = 9  # constant: a deviation of zero can't be divided by
    mean, deviation = measure(images)
    scaled = images / 255.0
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation[:2], scaled.std(axis=(0, 1, 2))[:2], rtol=1e-12)
    assert deviation[2] == 1.0


# -- a user's own function

FACTORIES = """
import numpy as np
from PIL import Image

PIXELS = np.arange(5 * 6 * 7 * 3, dtype=np.uint8).reshape(5, 6, 7, 3)

def arrays(split):
    return PIXELS, [0, 1, 2, 1, 0], ("a", "b", "c")

def unlabelled(split):
    return PIXELS[..., 0], None, None

class Items:
    def __len__(self):
        return 5
    def __getitem__(self, index):
        return Image.fromarray(PIXELS[index]), index % 3

def items(split):
    return Items()

def samples(split):
    from softcache.datasets._open import open_samples
    return open_samples("digits", split)

def fails(split):
    raise KeyError("no such thing")

def number(split):
    return 3

def floats(split):
    return PIXELS / 255.0, [0] * 5, None

value = 4
"""


@pytest.fixture
def factories(tmp_path):
    file = tmp_path / "factories_of_this_test.py"
    file.write_text(FACTORIES)
    return file


@pytest.mark.parametrize("prefix", ["", "python:"])
def test_python_factories(factories, prefix):
    arrays = open_samples(f"{prefix}{factories}:arrays", "train")
    items = open_samples(f"{prefix}{factories}:items", "train")
    expected = np.arange(5 * 6 * 7 * 3, dtype=np.uint8).reshape(5, 6, 7, 3)
    for samples in (arrays, items):
        assert samples.labels.tolist() == ([0, 1, 2, 1, 0] if samples is arrays else [0, 1, 2, 0, 1])
        assert np.array_equal(np.stack([samples.image(row) for row in range(5)]), expected)
        np.testing.assert_allclose(samples.statistics[0], (expected / 255.0).mean(axis=(0, 1, 2)), rtol=1e-12)
    assert arrays.classes == ("a", "b", "c")
    assert items.classes == ("0", "1", "2")
    assert len(pickle.loads(pickle.dumps(items))) == 5
    unlabelled = open_samples(f"{prefix}{factories}:unlabelled", "train")
    assert (unlabelled.channels, unlabelled.classes, unlabelled.labels.tolist()) == (1, (), [-1] * 5)
    assert open_samples(f"{prefix}{factories}:samples", "test").spec == "digits"


def test_python_module(factories, monkeypatch):
    monkeypatch.syspath_prepend(str(factories.parent))
    samples = open_samples("python:factories_of_this_test:arrays", "train")
    assert samples.spec == "python:factories_of_this_test:arrays"


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("arrys", UsageError, "has no 'arrys': did you mean arrays"),
        ("value", UsageError, "value is no function but int"),
        ("fails", DatasetError, "failed for the train split: KeyError: 'no such thing'"),
        ("number", DatasetError, "returned int: it must be Samples"),
        ("floats", DatasetError, "must be uint8"),
    ],
)
def test_bad_factories(factories, name, kind, says):
    with pytest.raises(kind, match=says):
        open_samples(f"python:{factories}:{name}", "train")


# -- specs


@pytest.mark.parametrize(
    ("spec", "kind", "says"),
    [
        ("digitz", UsageError, "no dataset is called 'digitz': did you mean digits"),
        ("cifr100", UsageError, "did you mean cifar100"),
        ("", UsageError, "is empty"),
        ("./photos", UsageError, "for a folder of images write folder:./photos"),
        ("folder", UsageError, "folder:PATH"),
        ("folder:/no/such/place", DatasetError, "no folder at /no/such/place"),
        ("arrays:/no/such/place", DatasetError, "no folder and no .npz file at /no/such/place"),
        ("python:no_such_module:f", UsageError, "no module is called 'no_such_module'"),
        ("python:os", UsageError, "is not package.module:NAME"),
        ("no/such/file.py:f", UsageError, "no file at .*no/such/file.py"),
        ("digits:size=3", UsageError, "no option 'size'"),
        ("celeba", UsageError, "40 attributes"),
    ],
)
def test_bad_specs(spec, kind, says):
    with pytest.raises(kind, match=says):
        open_samples(spec, "train")


def test_bad_split_and_size():
    with pytest.raises(UsageError, match="no split is called 'val': there are train and test"):
        open_samples("digits", "val")
    with pytest.raises(UsageError, match="at least 1 pixel, found 0"):
        open_samples("digits", "train", size=0)
