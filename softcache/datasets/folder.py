"""Samples from image files in class folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from softcache.datasets._files import (
    EXTENSIONS,
    TEST_NAMES,
    check_text,
    file_samples,
    images_under,
    say_test_split,
    several,
    warn_of_skipped,
)
from softcache.datasets._fraction import check_fraction, fraction_option
from softcache.datasets._labels import Labels
from softcache.datasets._samples import Samples
from softcache.datasets._subset import held_out_files
from softcache.errors import DatasetError, UsageError


@dataclass(frozen=True)
class Folder:
    """``folder:PATH``: class folders under ``train/``, and under ``test/``, ``val/``, ``valid/`` or ``validation/``.

    Classes are the folders of ``train/`` in sorted order, rows are sorted by class and then by path; files count by
    their extension, at any depth. The test split is the first of the four folders that has class folders; its classes
    must be among those of ``train/``, and where there is no ``train/`` they are its own. Images directly in PATH or in
    ``train/``, without class folders, are an unlabelled train split, for soft targets alone. Views are 224 pixels
    (from 256), ``rrc+flip``.

    ``test_fraction``: without a test folder, the share of the files in ``train/``, or in class folders right under
    PATH, that are the test split: those whose path has a hash below it, so a file's split doesn't depend on others.

    ``bits``: 8, colour, or 16, grey: PNG, PGM and TIFF of 16 bits keep them, and grey of 8 bits is widened.
    """

    path: str = field(metadata={"rest": True})
    bits: int = 8
    test_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise UsageError(f"folder: bits={self.bits} of a grey value must be 8 or 16")
        if self.test_fraction is not None:
            check_fraction(self.test_fraction)

    def open(self, split: str, *, data_dir: Path | None = None, download: bool = False) -> Samples:
        """A split.

        Errors: ``DatasetError`` for a folder that is missing, empty, or whose test classes are not in train.
        """
        root = Path(self.path).expanduser().resolve()
        if not root.is_dir():
            raise DatasetError(f"no folder at {root}")
        try:
            spec = f"folder:{root}" + (",bits=16" if self.bits == 16 else "")
            if self.test_fraction is None:
                return class_folders(root, split, spec=spec, bits=self.bits)
            return _divided(root, split, self.test_fraction, spec + fraction_option(self.test_fraction), self.bits)
        except OSError as error:
            raise DatasetError(f"{error.filename} can't be read: {error.strerror}") from None


def class_folders(root: Path, split: str, *, spec: str, classes: tuple[str, ...] = (), bits: int = 8) -> Samples:
    """Lists a folder laid out as ``Folder`` says, as the samples of ``spec``; ``classes`` instead of train's."""
    train = root / "train"
    in_train = class_names(train) if train.is_dir() else ()
    if split == "train" and not in_train:
        place = train if train.is_dir() else root
        names = sorted(_images_directly_in(place, root))
        if not names:
            raise DatasetError(_no_train(root, place))
        return file_samples(spec, split, root, names, np.full(len(names), -1, dtype=np.int32), (), bits)
    place = train if split == "train" else _test_folder(root)
    own = class_names(place)
    known = classes or in_train or own
    if unknown := sorted(set(own) - set(known)):
        raise DatasetError(f"{place} has classes that {train} lacks: {several(unknown)}")
    names, labels = _labelled(place, root, own, known)
    return file_samples(spec, split, root, names, labels, known, bits)


def _divided(root: Path, split: str, fraction: float, spec: str, bits: int) -> Samples:
    """One of the two parts of the class folders in train/, or right under the root."""
    if there := [name for name in TEST_NAMES if (root / name).is_dir()]:
        raise DatasetError(f"{root} has a test split, {there[0]}/: leave out --test-fraction, or move the folder away")
    place = root / "train" if (root / "train").is_dir() else root
    classes = class_names(place)
    if not classes:
        raise DatasetError(f"{place} has no class folders: without labels no test split can be held out of it")
    names, labels = _labelled(place, root, classes, classes)
    held = held_out_files(names, labels, fraction)
    rows = np.flatnonzero(held if split == "test" else ~held)
    if not len(rows):
        share = f"--test-fraction {fraction:g} leaves it none of {len(names)} files"
        raise DatasetError(f"{root} has no {split} split: {share}")
    return file_samples(spec, split, root, [names[row] for row in rows], labels[rows], classes, bits)


def _test_folder(root: Path) -> Path:
    there = [name for name in TEST_NAMES if (root / name).is_dir()]
    labelled = [name for name in there if class_names(root / name)]
    beside = [name for name in class_names(root) if name not in TEST_NAMES]
    if not there:
        choices = ", ".join(f"{name}/" for name in TEST_NAMES)
        advice = "; --test-fraction 0.2 holds out a fifth of its files" if beside else ""
        raise DatasetError(f"{root} has no test split: none of the folders {choices}{advice}")
    if not labelled:
        raise DatasetError(f"{root / there[0]} has no class folders, nothing can be evaluated on it")
    if not (root / "train").is_dir() and beside:
        raise DatasetError(_beside_test(root, labelled[0], beside))
    say_test_split(root, labelled)
    return root / labelled[0]


def _labelled(place: Path, root: Path, own: tuple[str, ...], classes: tuple[str, ...]) -> tuple[list[str], Labels]:
    """Names relative to root and (N,) int32 labels of the class folders ``own`` in ``place``."""
    number = {name: label for label, name in enumerate(classes)}
    names: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    skipped: list[str] = []
    for name in own:
        found = sorted(images_under(place / name, root, skipped))
        if not found:
            empty.append(name)
        names += found
        labels += [number[name]] * len(found)
    warn_of_skipped(root, skipped)
    if not names:
        raise DatasetError(f"{place} has {len(own)} class folders and no image in any; extensions: {_extensions()}")
    if empty:
        raise DatasetError(f"{place}: no image in the class folder {several(empty)}; fill or remove it")
    return names, np.array(labels, dtype=np.int32)


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, sorted, hidden ones left out.

    Errors: ``DatasetError`` for a name that is not UTF-8: class names are kept in files of text.
    """
    with os.scandir(folder) as entries:
        found = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    for name in found:
        check_text(name, f"{folder}: the name of the class folder", "rename the folder")
    return tuple(found)


def _images_directly_in(folder: Path, root: Path) -> Iterator[str]:
    skipped: list[str] = []
    yield from images_under(folder, root, skipped, deep=False)
    warn_of_skipped(root, skipped)


def _no_train(root: Path, place: Path) -> str:
    inside = class_names(root)
    tests = [name for name in TEST_NAMES if name in inside]
    beside = [name for name in inside if name not in TEST_NAMES]
    if place == root and any(any(images_under(root / name, root, [])) for name in beside):
        if tests:
            return _beside_test(root, tests[0], beside)
        return (
            f"{root} has class folders ({several(beside)}) and no train/: --test-fraction 0.2 holds out a fifth of "
            "the files as the test split (0 trains on all); or put the class folders into train/"
        )
    if place == root and tests:
        return f"{root} has {tests[0]}/ and no train/, so there is nothing to train on: put training images into train/"
    return f"{place} is empty: no class folders and no images in it; extensions: {_extensions()}"


def _beside_test(root: Path, test: str, beside: list[str]) -> str:
    return f"{root} has class folders ({several(beside)}) beside {test}/ and no train/: put them into train/"


def _extensions() -> str:
    return " ".join(EXTENSIONS)
