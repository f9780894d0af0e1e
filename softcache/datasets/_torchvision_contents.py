"""Labels, class names and the places of pixels inside torchvision's dataset objects, without decoding any."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softcache.datasets._labels import Labels, numbered
from softcache.datasets._pixels import Pixels
from softcache.datasets._torchvision_sets import TorchvisionSet
from softcache.errors import DatasetError


@dataclass
class Contents:
    """Labels (N,) int32 and class names, with one of: images (N, H, W, C) uint8; names under root; decode."""

    labels: Labels
    classes: tuple[str, ...]
    images: Pixels | None = None
    names: list[str] | None = None
    root: Path | None = None
    decode: Callable[[int], Pixels] | None = None

    def take(self, rows: npt.NDArray[np.bool_]) -> Contents:
        """The chosen rows, in order. rows: (N,) bool."""
        assert self.decode is None, "sets without files have their own test split"
        return Contents(
            labels=self.labels[rows],
            classes=self.classes,
            images=None if self.images is None else self.images[rows],
            names=None if self.names is None else [n for n, kept in zip(self.names, rows, strict=True) if kept],
            root=self.root,
        )


@dataclass(frozen=True)
class HDF5Rows:
    """Decodes rows of an HDF5 dataset (N, H, W, C) uint8, opening the file each time: safe in forked workers."""

    path: Path
    key: str

    def __call__(self, index: int) -> Pixels:
        import h5py

        try:
            with h5py.File(self.path, "r", locking=False) as file:
                return np.ascontiguousarray(file[self.key][index])
        except OSError as error:
            raise DatasetError(f"{self.path}, row {index} can't be read: {str(error).splitlines()[0]}") from None


def contents(entry: TorchvisionSet, dataset: Any) -> Contents:
    """What a torchvision dataset object of this entry holds."""
    special = _SPECIAL.get(entry.cls)
    found = special(dataset) if special else _general(dataset)
    if found.labels.dtype != np.int32:
        found.labels = found.labels.astype(np.int32)
    if not found.classes:
        assert entry.classes is not None, f"{entry.cls} needs its number of classes in the table"
        found.classes = numbered(entry.classes)
    if entry.unordered and found.names is not None:
        order = sorted(range(len(found.names)), key=found.names.__getitem__)
        found.names = [found.names[row] for row in order]
        found.labels = found.labels[order]
    return found


def _general(dataset: Any) -> Contents:
    classes = _class_names(getattr(dataset, "classes", ()))
    pairs = next((getattr(dataset, k) for k in ("_samples", "samples", "imgs") if hasattr(dataset, k)), None)
    if pairs is not None:
        return _files([path for path, _ in pairs], [label for _, label in pairs], classes, dataset)
    paths = next((getattr(dataset, k) for k in ("_image_files", "_images") if hasattr(dataset, k)), None)
    if paths is not None:
        return _files(paths, dataset._labels, classes, dataset)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return Contents(_integers(labels), classes, images=_in_memory(dataset.data))


def _in_memory(data: Any) -> Pixels:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) of an array or a tensor, as contiguous (N, H, W, C)."""
    images = np.asarray(data)
    if images.ndim == 3:
        images = images[..., None]
    elif images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images, dtype=np.uint8)


def _files(paths: Any, labels: Any, classes: tuple[str, ...], dataset: Any) -> Contents:
    root = Path(dataset.root).resolve()
    names = [Path(os.path.relpath(os.path.abspath(path), root)).as_posix() for path in paths]
    return Contents(_integers(labels), classes, names=names, root=root)


def _integers(labels: Any) -> Labels:
    return np.asarray([-1 if label is None else label for label in np.asarray(labels).tolist()], dtype=np.int32)


def _class_names(classes: Any) -> tuple[str, ...]:
    return tuple(str(name[0]) if isinstance(name, tuple) else str(name) for name in classes)


def _caltech101(dataset: Any) -> Contents:
    names = [
        f"101_ObjectCategories/{dataset.categories[label]}/image_{number:04d}.jpg"
        for number, label in zip(dataset.index, dataset.y, strict=True)
    ]
    return Contents(
        _integers(dataset.y), _class_names(dataset.categories), names=names, root=Path(dataset.root).resolve()
    )


def _caltech256(dataset: Any) -> Contents:
    names = [
        f"256_ObjectCategories/{dataset.categories[label]}/{label + 1:03d}_{number:04d}.jpg"
        for number, label in zip(dataset.index, dataset.y, strict=True)
    ]
    return Contents(
        _integers(dataset.y), _class_names(dataset.categories), names=names, root=Path(dataset.root).resolve()
    )


def _emnist(dataset: Any) -> Contents:
    found = _general(dataset)
    if dataset.split == "letters":  # its labels begin at 1, and torchvision fills class 0 with "N/A"
        found.labels, found.classes = found.labels - 1, found.classes[1:]
    return found


def _fer2013(dataset: Any) -> Contents:
    labels = [label for _, label in dataset._samples]
    if None in labels:
        raise DatasetError("fer2013's test.csv has no labels: put fer2013.csv or icml_face_data.csv there")
    images = np.stack([image.numpy() for image, _ in dataset._samples])
    return Contents(_integers(labels), (), images=_in_memory(images))


def _inaturalist(dataset: Any) -> Contents:
    names = [f"{dataset.all_categories[category]}/{file}" for category, file in dataset.index]
    labels = [category for category, _ in dataset.index]
    return Contents(
        _integers(labels),
        _class_names(dataset.all_categories),
        names=names,
        root=Path(dataset.root).resolve(),
    )


def _omniglot(dataset: Any) -> Contents:
    pairs = dataset._flat_character_images
    names = [f"{dataset._characters[character]}/{file}" for file, character in pairs]
    root = Path(dataset.target_folder).resolve()
    return Contents(_integers([c for _, c in pairs]), _class_names(dataset._characters), names=names, root=root)


def _pcam(dataset: Any) -> Contents:
    import h5py

    files = dataset._FILES[dataset._split]
    with h5py.File(dataset._base_folder / files["targets"][0], "r", locking=False) as file:
        labels = file["y"][:].reshape(-1)
    return Contents(_integers(labels), (), decode=HDF5Rows(dataset._base_folder / files["images"][0], "x"))


def _qmnist(dataset: Any) -> Contents:
    labels = np.asarray(dataset.targets)[:, 0]  # the other seven columns say who wrote it, and where
    return Contents(_integers(labels), _class_names(dataset.classes), images=_in_memory(dataset.data))


_SPECIAL: dict[str, Callable[[Any], Contents]] = {
    "Caltech101": _caltech101,
    "Caltech256": _caltech256,
    "EMNIST": _emnist,
    "FER2013": _fer2013,
    "INaturalist": _inaturalist,
    "Omniglot": _omniglot,
    "PCAM": _pcam,
    "QMNIST": _qmnist,
}
