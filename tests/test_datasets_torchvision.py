"""Torchvision's datasets by name: small ones are written here, and must be what torchvision itself reads."""

from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torchvision
from harness_torchvision import RNG, greys, idx, photo, write_cifar10, write_mnist

from softcache.datasets._open import open_samples
from softcache.datasets._subset import rows_for_test
from softcache.datasets._torchvision_sets import REFUSED, SETS
from softcache.errors import DatasetError, MissingExtraError, UsageError


def write_fashionmnist(root: Path) -> None:
    write_mnist(root, "FashionMNIST")


def write_qmnist(root: Path) -> None:
    for name, count in (("train", 12), ("test", 5)):
        idx(root / f"QMNIST/raw/qmnist-{name}-images-idx3-ubyte", greys(count))
        table = RNG.integers(0, 1000, (count, 8)).astype(np.int32)
        table[:, 0] = np.arange(count) % 10
        idx(root / f"QMNIST/raw/qmnist-{name}-labels-idx2-int", table)


def write_emnist_letters(root: Path) -> None:
    for name, count in (("train", 30), ("test", 26)):
        idx(root / f"EMNIST/raw/emnist-letters-{name}-images-idx3-ubyte", greys(count))
        idx(
            root / f"EMNIST/raw/emnist-letters-{name}-labels-idx1-ubyte",
            np.arange(count, dtype=np.uint8) % 26 + 1,
        )


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for name, count in (("train", 4), ("test", 3)):
        (folder / f"{name}_X.bin").write_bytes(RNG.integers(0, 256, count * 96 * 96 * 3, dtype=np.uint8).tobytes())
        (folder / f"{name}_y.bin").write_bytes((np.arange(count, dtype=np.uint8) + 1).tobytes())
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("\n".join(f"class{number}" for number in range(10)) + "\n")


def write_eurosat(root: Path) -> None:
    for name in ("Forest", "River"):
        for number in range(10):
            photo(root / f"eurosat/2750/{name}/{name}_{number}.jpg")


def write_caltech101(root: Path) -> None:
    for name, count in (("BACKGROUND_Google", 1), ("ant", 5), ("bass", 10)):
        for number in range(1, count + 1):
            photo(
                root / f"caltech101/101_ObjectCategories/{name}/image_{number:04d}.jpg",
                "L" if number == 2 else "RGB",
            )
    (root / "caltech101/Annotations").mkdir()


def write_caltech256(root: Path) -> None:
    for label, name in enumerate(("001.ak47", "002.flag"), 1):
        for number in range(1, 6):
            photo(root / f"caltech256/256_ObjectCategories/{name}/{label:03d}_{number:04d}.jpg")


def write_gtsrb(root: Path) -> None:
    for label in (0, 42):
        photo(root / f"gtsrb/GTSRB/Training/{label:05d}/00000_00000.ppm")
    rows = ["Filename;Width;ClassId"]
    for number in range(3):
        photo(root / f"gtsrb/GTSRB/Final_Test/Images/{number:05d}.ppm")
        rows.append(f"{number:05d}.ppm;11;{number * 21}")
    (root / "gtsrb/GT-final_test.csv").write_text("\n".join(rows))


def write_country211(root: Path) -> None:
    for split in ("train", "test"):
        for name in ("AD", "CH"):
            photo(root / f"country211/{split}/{name}/x.jpg")


def write_imagenette(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("n01440764", "n02979186"):
            photo(root / f"imagenette2/{split}/{name}/x.JPEG")


def write_food101(root: Path) -> None:
    for split in ("train", "test"):
        lists = {name: [f"{name}/{split}{number}" for number in range(2)] for name in ("waffles", "apple_pie")}
        for path in [path for paths in lists.values() for path in paths]:
            photo(root / f"food-101/images/{path}.jpg")
        (root / "food-101/meta").mkdir(exist_ok=True)
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(lists))


def write_sun397(root: Path) -> None:
    names = ["/a/abbey", "/b/bus_interior/front"]
    for name in names:
        for number in range(5):
            photo(root / f"SUN397{name}/sun_{number}.jpg")
    (root / "SUN397/ClassName.txt").write_text("\n".join(names) + "\n")


def write_inaturalist(root: Path) -> None:
    for version in ("2021_train", "2021_valid"):
        for label in range(2):
            photo(root / f"inaturalist/{version}/{label:05d}_K_P_C_O_F_G_S{label}/x.jpg")


def write_pcam(root: Path) -> None:
    (root / "pcam").mkdir()
    for split, count in (("train", 4), ("test", 2)):
        with h5py.File(root / f"pcam/camelyonpatch_level_2_split_{split}_x.h5", "w") as file:
            file["x"] = RNG.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        with h5py.File(root / f"pcam/camelyonpatch_level_2_split_{split}_y.h5", "w") as file:
            file["y"] = (np.arange(count, dtype=np.uint8) % 2).reshape(-1, 1, 1, 1)


def write_oxfordiiitpet(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for split, prefix in (("trainval", "a"), ("test", "b")):
        rows = []
        for name, label in (("Abyssinian", 1), ("great_dane", 2)):
            photo(folder / f"images/{name}_{prefix}.jpg")
            rows.append(f"{name}_{prefix} {label} 1 1")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / f"annotations/{split}.txt").write_text("\n".join(rows))


WRITERS = {
    "mnist": write_mnist,
    "fashionmnist": write_fashionmnist,
    "qmnist": write_qmnist,
    "emnist-letters": write_emnist_letters,
    "cifar10": write_cifar10,
    "stl10": write_stl10,
    "eurosat": write_eurosat,
    "caltech256": write_caltech256,
    "gtsrb": write_gtsrb,
    "country211": write_country211,
    "imagenette": write_imagenette,
    "food101": write_food101,
    "sun397": write_sun397,
    "inaturalist": write_inaturalist,
    "pcam": write_pcam,
    "oxfordiiitpet": write_oxfordiiitpet,
}


@pytest.fixture
def unchecked(monkeypatch):
    """The md5 sums of the real files are not those of files written here."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.stl10):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).exists())


@pytest.mark.parametrize("name", WRITERS)
def test_samples_are_what_torchvision_reads(name, tmp_path, unchecked):
    WRITERS[name](tmp_path)
    entry = SETS[name]
    pairs = {}  # of both splits of ours, by pixels: rows of a made test split are some of torchvision's
    for split in ("train", "test"):
        samples = open_samples(name, split, data_dir=tmp_path)
        root = tmp_path / name if entry.loose else tmp_path
        arguments = entry.train if split == "train" or entry.test is None else entry.test
        theirs = getattr(torchvision.datasets, entry.cls)(str(root), **arguments)
        shift = 1 if name == "emnist-letters" else 0
        expected = {}
        for row in range(len(theirs)):
            image, label = theirs[row]
            pixels = np.asarray(image.convert("RGB" if samples.channels == 3 else "L"))
            expected[pixels.tobytes()] = label - shift
        ours = {samples.image(row).tobytes(): int(samples.labels[row]) for row in range(len(samples))}
        assert len(ours) == len(samples) > 0
        assert samples.image(0).shape[2] == samples.channels
        assert ours.items() <= expected.items()
        assert entry.test is None or len(ours) == len(expected)
        assert max(ours.values()) < len(samples.classes)
        assert not pairs.keys() & ours.keys()
        pairs.update(ours)
        copy = pickle.loads(pickle.dumps(samples))
        assert copy.fingerprint() == samples.fingerprint()
        assert np.array_equal(copy.image(0), samples.image(0))
    if entry.test is None:
        assert pairs == expected


def test_a_missing_test_split_is_a_fifth_of_each_class(tmp_path):
    write_eurosat(tmp_path)
    train, test = (open_samples("eurosat", split, data_dir=tmp_path) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [8, 8]
    assert np.bincount(test.labels).tolist() == [2, 2]
    assert set(train.names) & set(test.names) == set()
    mask = rows_for_test(np.repeat([0, 1], 10))
    everything = sorted(train.names + test.names)
    assert test.names == [name for name, held in zip(everything, mask, strict=True) if held]


def test_caltech101_leaves_the_background_out(tmp_path):
    write_caltech101(tmp_path)
    train = open_samples("caltech101", "train", data_dir=tmp_path)
    assert train.classes == ("ant", "bass")
    assert np.bincount(train.labels).tolist() == [4, 8]
    assert {train.image(row).shape for row in range(len(train))} == {(9, 11, 3)}  # the grey one too


def test_known_statistics_and_sizes(tmp_path, unchecked):
    write_fashionmnist(tmp_path)
    write_cifar10(tmp_path)
    write_stl10(tmp_path)
    fashion, cifar, stl = (
        open_samples(name, "test", data_dir=tmp_path) for name in ("fashionmnist", "cifar10", "stl10")
    )
    assert fashion.statistics == ((0.2860,), (0.3530,))
    assert (fashion.size, fashion.recipe, fashion.channels, fashion.classes[0]) == (
        32,
        "crop+flip",
        1,
        "T-shirt/top",
    )
    assert cifar.statistics[0] == (0.4914, 0.4822, 0.4465)
    assert (cifar.recipe, cifar.classes[1]) == ("crop+flip", "car")
    train = open_samples("stl10", "train", data_dir=tmp_path)
    np.testing.assert_allclose(stl.statistics[0], (train.images / 255.0).mean(axis=(0, 1, 2)), rtol=1e-12)
    assert (stl.size, stl.resize) == (96, 96)


def test_files_in_a_folder_of_the_datasets_own(tmp_path):
    write_mnist(tmp_path / "mnist")
    assert len(open_samples("MNIST", "train", data_dir=tmp_path)) == 12


def test_the_data_folder_from_the_environment(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("SOFTCACHE_DATA", str(tmp_path))
    assert len(open_samples("mnist", "test")) == 5


def write_imagenet(root: Path, classes: int, splits: tuple[str, ...]) -> None:
    for split in splits:
        for label in range(classes):
            (root / split / f"n{label:08d}").mkdir(parents=True)
            (root / split / f"n{label:08d}" / "x.JPEG").write_bytes(b"")


def test_imagenet_from_its_class_folders(tmp_path):
    write_imagenet(tmp_path / "imagenet", 1000, ("val",))
    samples = open_samples("imagenet", "test", data_dir=tmp_path)
    assert (len(samples), samples.spec) == (1000, "imagenet")
    assert samples.labels.tolist() == list(range(1000))
    # two of the 1,000 names as every list of them has it
    assert (samples.classes[0], samples.classes[207]) == ("tench", "golden retriever")
    with pytest.raises(DatasetError, match="expected 1000 class folders under train/"):
        open_samples("imagenet", "train", data_dir=tmp_path)


def test_other_folders_are_not_imagenet(tmp_path):
    write_imagenet(tmp_path, 10, ("train", "val"))
    with pytest.raises(DatasetError, match="is not ImageNet: expected 1000 class folders, found 10"):
        open_samples("imagenet", "train", data_dir=tmp_path)


# -- the table


@pytest.mark.parametrize("name", SETS)
def test_torchvision_takes_the_arguments_of_the_table(name):
    entry = SETS[name]
    cls = getattr(torchvision.datasets, entry.cls)
    for arguments in (entry.train, entry.test or {}):
        inspect.signature(cls).bind("root", **arguments, **({"download": True} if entry.download else {}))
    assert name.partition("-")[0] == entry.cls.lower()


def test_no_dataset_of_torchvision_is_forgotten():
    """Whatever gives one class a picture is in the table, or refused with a reason."""
    # flow, stereo, captions, faces in boxes, patches, scenes: nothing with classes
    others = {
        "lsun lsunclass imagefolder datasetfolder fakedata phototour sbu flickr8k flickr30k visiondataset kittiflow",
        "sintel flyingchairs flyingthings3d hd1k kitti2012stereo kitti2015stereo carlastereo middlebury2014stereo",
        "crestereo fallingthingsstereo sceneflowstereo sintelstereo instereo2k eth3dstereo cococaptions",
        "wrap_dataset_for_transforms_v2 imagenet",
    }
    known = {*SETS, *REFUSED, *" ".join(others).split()}
    assert {name.lower() for name in torchvision.datasets.__all__} <= known


# -- what is said


@pytest.mark.parametrize("name", ["cifar10", "mnist", "usps", "caltech256", "inaturalist", "places365"])
def test_missing_files(name, tmp_path):
    with pytest.raises(DatasetError, match=f"no complete {name} in .*--download fetches it, --data-dir") as caught:
        open_samples(name, "train", data_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind


def test_missing_data_folder(tmp_path):
    with pytest.raises(DatasetError, match=f"no complete mnist in {tmp_path}/nowhere or"):
        open_samples("mnist", "train", data_dir=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_what_cannot_be_fetched(tmp_path):
    with pytest.raises(DatasetError, match=r"no complete fer2013 in .* torchvision can't fetch it"):
        open_samples("fer2013", "train", data_dir=tmp_path, download=True)


def test_a_download_that_fails(tmp_path, monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("Name or service not known\nsecond line")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(
        DatasetError, match=r"usps could not be downloaded to .*: .*Name or service not known"
    ) as caught:
        open_samples("usps", "train", data_dir=tmp_path, download=True)
    assert "\n" not in str(caught.value)


def test_damaged_files(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="mnist"):
        open_samples("mnist", "train", data_dir=tmp_path)


def test_sets_that_need_scipy_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="svhn needs scipy"):
        open_samples("svhn", "train", data_dir=tmp_path)


def test_unknown_name_with_the_nearest():
    with pytest.raises(UsageError, match="no dataset is called 'fashion-mnist': did you mean fashionmnist"):
        open_samples("fashion-mnist", "train")
