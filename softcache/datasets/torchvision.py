"""Samples from torchvision's classification datasets, by the lower-case names of their classes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from softcache.datasets._pixels import IMAGENET_STATISTICS, Statistics, measure
from softcache.datasets._samples import Samples
from softcache.datasets._subset import rows_for_test
from softcache.datasets._torchvision_contents import Contents, contents
from softcache.datasets._torchvision_sets import REFUSED, SETS, TorchvisionSet
from softcache.datasets.folder import class_folders, class_names
from softcache.errors import DatasetError, MissingExtraError, SoftcacheError, UsageError, nearest

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Torchvision:
    """A bare name: ``cifar10``, ``fashionmnist``, ``food101``, ``imagenet``, …

    Files are looked for in the data folder and in the folder of the dataset's name inside it, laid out as torchvision
    does; ``imagenet`` is class folders under ``train/`` and ``val/``, named by WordNet ids. Sets without a test split
    (caltech101, caltech256, eurosat, omniglot, semeion, sun397) get a fixed one: a fifth of each class, chosen by a
    hash of the row number.
    """

    name: str = field(metadata={"rest": True})

    def open(self, split: str, *, data_dir: Path | None = None, download: bool = False) -> Samples:
        """A split; what is missing is fetched into ``data_dir`` where ``download`` says so.

        Errors: ``UsageError`` for an unknown name, ``DatasetError`` for files that are missing, damaged or could not
        be fetched, ``MissingExtraError`` for a set whose files need SciPy.
        """
        name, folder = self.name.lower(), data_dir or Path("datasets")
        if name == "imagenet":
            return _imagenet(folder, split)
        if name in REFUSED:
            raise UsageError(f"torchvision's {name} can't be used: {REFUSED[name]}")
        if name not in SETS:
            raise UsageError(f"no dataset is called {self.name!r}{nearest(name, (*SETS, 'digits', 'imagenet'))}")
        entry = SETS[name]
        found = _contents(name, entry, split, folder, download)
        train = None
        if entry.statistics is None and found.images is not None:
            train = found if split == "train" else _contents(name, entry, "train", folder, download)
        return Samples(
            spec=name,
            split=split,
            classes=found.classes,
            labels=found.labels,
            channels=entry.channels,
            size=entry.size,
            resize=entry.resize,
            recipe=entry.recipe,
            statistics=entry.statistics or _statistics(train, entry.channels),
            images=found.images,
            names=found.names,
            root=found.root,
            decode=found.decode,
        )


def _statistics(train: Contents | None, channels: int) -> Statistics:
    if train is not None and train.images is not None:
        return measure(train.images)
    mean, deviation = IMAGENET_STATISTICS
    if channels == 1:  # of the mean of three channels, a grey image having the same in each
        return (float(np.mean(mean)),), (float(np.mean(deviation)),)
    return mean, deviation


def _contents(name: str, entry: TorchvisionSet, split: str, folder: Path, download: bool) -> Contents:
    arguments = entry.train if split == "train" or entry.test is None else entry.test
    dataset = _dataset(name, entry, arguments, folder, download)
    try:
        found = contents(entry, dataset)
    except SoftcacheError:
        raise
    except Exception as error:  # torchvision's private lists may change: say which version it was
        import torchvision

        raise DatasetError(
            f"{name} can't be read by torchvision {torchvision.__version__}: {_one_line(error)}"
        ) from error
    if entry.test is None:
        test = rows_for_test(found.labels)
        found = found.take(test if split == "test" else ~test)
    return found


def _dataset(name: str, entry: TorchvisionSet, arguments: dict[str, Any], folder: Path, download: bool) -> Any:
    """The torchvision object, from the first of the two folders that holds it, else downloaded."""
    if entry.needs and importlib.util.find_spec(entry.needs) is None:
        raise MissingExtraError(f"{name} needs {entry.needs} to read its files: pip install {entry.needs}")
    places = [folder, folder / name]
    damage: Exception | None = None
    for place in filter(Path.is_dir, places):
        before = set(place.iterdir())
        try:
            return _construct(entry, place, arguments)
        except (RuntimeError, OSError):
            _remove_empty(set(place.iterdir()) - before)
            continue  # torchvision's way to say that it is not there: the next place, or the error below
        except Exception as error:  # files that are there and broken raise anything
            damage = error
    if damage is not None and not download:
        raise DatasetError(f"{name} in {folder} is damaged: {_one_line(damage)}") from damage
    looked = f"{folder} or {folder / name}"
    if not entry.download:
        raise DatasetError(f"no complete {name} in {looked}, and torchvision can't fetch it: see its documentation")
    if not download:
        raise DatasetError(f"no complete {name} in {looked}: --download fetches it, --data-dir says where it is")
    place = folder / name if entry.loose else folder
    try:
        place.mkdir(parents=True, exist_ok=True)
        return _construct(entry, place, {**arguments, "download": True})
    except Exception as error:  # network, disk and archive libraries all have kinds of their own
        raise DatasetError(f"{name} could not be downloaded to {place}: {_one_line(error)}") from error


def _remove_empty(paths: set[Path]) -> None:
    """Some of torchvision's datasets make their folder before they look into it."""
    for path in paths:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _construct(entry: TorchvisionSet, root: Path, arguments: dict[str, Any]) -> Any:
    import torchvision.datasets

    # standard output is for results; torchvision prints its progress there
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")  # CIFAR's old pickles
        return getattr(torchvision.datasets, entry.cls)(str(root), **arguments)


def _imagenet(folder: Path, split: str) -> Samples:
    """ImageNet from its class folders, which needs neither the development kit nor SciPy; labels are the same."""
    for root in (folder / "imagenet", folder):
        inside = [root / name for name in ("train", "val") if (root / name).is_dir()]
        if inside and (split == "train") <= (inside[0].name == "train"):
            break
    else:
        wanted = "train" if split == "train" else "val"
        raise DatasetError(
            f"no imagenet in {folder / 'imagenet'} or {folder}: expected 1000 class folders under {wanted}/; "
            "it can't be downloaded without an account at image-net.org"
        )
    ids = class_names(inside[0])
    if len(ids) != IMAGENET_CLASSES:
        raise DatasetError(
            f"{inside[0]} is not ImageNet: expected 1000 class folders, found {len(ids)}; "
            f"for another set of images write folder:{root}"
        )
    from torchvision.models import ResNet18_Weights

    samples = class_folders(root.resolve(), split, spec="imagenet", classes=ids)
    return dataclasses.replace(samples, classes=tuple(ResNet18_Weights.DEFAULT.meta["categories"]))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
