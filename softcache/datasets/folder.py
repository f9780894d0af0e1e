"""Samples from image files in class folders."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from softcache.datasets._pixels import IMAGENET_STATISTICS
from softcache.datasets._samples import Labels, Samples
from softcache.errors import DatasetError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
SHOWN = 5


@dataclass(frozen=True)
class Folder:
    """``folder:PATH``: class folders under ``train/``, and under ``test/`` or ``val/``.

    Classes are the folders of ``train/`` in sorted order, rows are sorted by class and then by path; files count by
    their extension, at any depth. The test split is ``test/``, or ``val/`` where ``test/`` has no class folders; its
    classes must be among those of ``train/``. Images directly in PATH or in ``train/``, without class folders, are
    an unlabelled train split, for soft targets alone. Views are 224 pixels (from 256), ``rrc+flip``.
    """

    path: str = field(metadata={"rest": True})

    def open(self, split: str, *, data_dir: Path | None = None, download: bool = False) -> Samples:
        """A split.

        Errors: ``DatasetError`` for a folder that is missing, empty, or whose test classes are not in train.
        """
        root = Path(self.path).expanduser().resolve()
        if not root.is_dir():
            raise DatasetError(f"no folder at {root}")
        return class_folders(root, split, spec=f"folder:{root}")


def class_folders(root: Path, split: str, *, spec: str, classes: tuple[str, ...] = ()) -> Samples:
    """Lists a folder laid out as ``Folder`` says, as the samples of ``spec``; ``classes`` instead of train's."""
    train = root / "train"
    if split == "train" and (not train.is_dir() or not class_names(train)):
        place = train if train.is_dir() else root
        names = sorted(_images_directly_in(place, root))
        if not names:
            raise DatasetError(_nothing_found(root, place))
        labels = np.full(len(names), -1, dtype=np.int32)
    else:
        place = train if split == "train" else _test_folder(root)
        own = class_names(place)
        known = classes or (class_names(train) if train.is_dir() else ())
        if unknown := sorted(set(own) - set(known)):
            shown = ", ".join(unknown[:SHOWN]) + (f", … ({len(unknown)} in all)" if len(unknown) > SHOWN else "")
            raise DatasetError(f"{place} has classes that {train} lacks: {shown}")
        classes = known
        names, labels = _labelled(place, root, own, classes)
    return Samples(
        spec=spec,
        split=split,
        classes=classes,
        labels=labels,
        channels=3,
        size=224,
        resize=256,
        recipe="rrc+flip",
        statistics=IMAGENET_STATISTICS,
        names=names,
        root=root,
    )


def _test_folder(root: Path) -> Path:
    there = [root / name for name in SPLIT_FOLDERS["test"] if (root / name).is_dir()]
    labelled = [folder for folder in there if class_names(folder)]
    if labelled:
        return labelled[0]
    if there:
        raise DatasetError(f"{there[0]} has no class folders, nothing can be evaluated on it")
    raise DatasetError(f"{root} has no test split: no folder test/ or val/ in it")


def _labelled(place: Path, root: Path, own: tuple[str, ...], classes: tuple[str, ...]) -> tuple[list[str], Labels]:
    """Names relative to root and (N,) int32 labels of the class folders ``own`` in ``place``."""
    number = {name: label for label, name in enumerate(classes)}
    names: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for name in own:
        found = sorted(_images_under(place / name, root))
        if not found:
            empty.append(name)
        names += found
        labels += [number[name]] * len(found)
    if not names:
        raise DatasetError(f"{place} has {len(own)} class folders and no image in any; extensions: {_extensions()}")
    if empty:
        shown = ", ".join(empty[:SHOWN]) + (f", … ({len(empty)} in all)" if len(empty) > SHOWN else "")
        raise DatasetError(f"{place}: no image in the class folder {shown}; fill or remove it")
    return names, np.array(labels, dtype=np.int32)


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


def _images_directly_in(folder: Path, root: Path) -> list[str]:
    prefix = folder.relative_to(root).as_posix()
    start = "" if prefix == "." else prefix + "/"
    with os.scandir(folder) as entries:
        return [start + e.name for e in entries if e.name.lower().endswith(EXTENSIONS) and e.is_file()]


def _images_under(folder: Path, root: Path) -> list[str]:
    found = []
    for place, _, files in os.walk(folder, followlinks=True):
        prefix = Path(place).relative_to(root).as_posix()
        found += [f"{prefix}/{name}" for name in files if name.lower().endswith(EXTENSIONS)]
    return found


def _nothing_found(root: Path, place: Path) -> str:
    inside = class_names(root)
    if place == root and any(_images_under(root / name, root) for name in inside):
        return f"{root} has no folder train/: put its class folders ({', '.join(inside[:SHOWN])}) into one"
    return f"{place} is empty: no class folders and no images in it; extensions: {_extensions()}"


def _extensions() -> str:
    return " ".join(EXTENSIONS)
