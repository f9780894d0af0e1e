"""Samples from a user's own Python function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from softcache.datasets._labels import checked_labels, label_width, numbered
from softcache.datasets._pixels import ItemDecoder, checked_images, geometry, measure
from softcache.datasets._samples import Samples
from softcache.errors import DatasetError, SoftcacheError, UsageError
from softcache.userfile import named_object

MEASURED_ROWS = 256  # rows of a map-style dataset that are decoded to measure its statistics


@dataclass(frozen=True)
class Python:
    """``python:package.module:factory`` or ``path/to/file.py:factory``: ``factory(split)`` gives the samples.

    It returns ``Samples``; or a tuple (images (N, H, W) or (N, H, W, C) uint8, labels as ``arrays:`` has them or None,
    names of the classes or outputs or None); or a map-style dataset whose items are (Pillow image or uint8 array, label
    or None).
    """

    target: str = field(metadata={"rest": True})

    def open(self, split: str, *, data_dir: Path | None = None, download: bool = False) -> Samples:
        """A split.

        Errors: ``UsageError`` for a module or function that is not there, ``DatasetError`` for a result that is none
        of the three kinds. What the function itself raises is passed on with its name in front.
        """
        factory, spec = named_function(self.target)
        try:
            result = factory(split)
        except SoftcacheError:
            raise
        except Exception as error:  # foreign code may raise anything; the cause stays attached for --debug
            raise DatasetError(f"{spec} failed for the {split} split: {type(error).__name__}: {error}") from error
        if isinstance(result, Samples):
            return result
        if isinstance(result, tuple) and len(result) == 3:
            return _from_arrays(*result, split=split, spec=spec)
        if hasattr(result, "__len__") and hasattr(result, "__getitem__") and not isinstance(result, (tuple, str, dict)):
            return _from_items(result, split=split, spec=spec)
        raise DatasetError(
            f"{spec} returned {type(result).__name__}: it must be Samples, (images, labels, classes), "
            "or a dataset with len() and [index]"
        )


def _from_arrays(images: Any, labels: Any, classes: Any, *, split: str, spec: str) -> Samples:
    pixels = checked_images(np.asarray(images), f"{spec}: images")
    numbers, names = _labels(labels, len(pixels), classes, spec)
    return Samples(
        spec=spec,
        split=split,
        classes=names,
        labels=numbers,
        channels=pixels.shape[3],
        **geometry(pixels),
        statistics=measure(pixels),
        images=pixels,
    )


def _from_items(dataset: Any, *, split: str, spec: str) -> Samples:
    if not len(dataset):
        raise DatasetError(f"{spec} has no samples in its {split} split")
    first = _item(dataset, 0, spec)[0]
    if hasattr(first, "mode"):
        grey = first.mode in ("1", "L", "F") or first.mode.startswith("I")
    else:
        grey = np.ndim(first) == 2 or np.shape(first)[2] == 1
    channels = 1 if grey else 3
    labels = getattr(dataset, "targets", None)
    if labels is None or len(labels) != len(dataset):
        labels = [_item(dataset, row, spec)[1] for row in range(len(dataset))]
    labels = [-1 if label is None else label for label in labels]
    numbers, names = _labels(labels, len(dataset), getattr(dataset, "classes", None), spec)
    items = ItemDecoder(dataset, channels, spec)
    pixels = items(0)
    rows = np.unique(np.linspace(0, len(dataset) - 1, MEASURED_ROWS).astype(int))
    probe = np.concatenate([items(int(row)).reshape(-1, 1, 1, channels) for row in rows])
    return Samples(
        spec=spec,
        split=split,
        classes=names,
        labels=numbers,
        channels=channels,
        **geometry(pixels),
        statistics=measure(probe),
        decode=items,
    )


def _item(dataset: Any, row: int, spec: str) -> tuple[Any, Any]:
    try:
        item = dataset[row]
    except SoftcacheError:
        raise
    except Exception as error:  # foreign code may raise anything; the cause stays attached for --debug
        raise DatasetError(f"{spec}, row {row} failed: {type(error).__name__}: {error}") from error
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DatasetError(f"{spec}, row {row}: expected (image, label), found {type(item).__name__}")
    return item[0], item[1]


def _labels(labels: Any, rows: int, classes: Any, spec: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels is None:
        labels = np.full(rows, -1, dtype=np.int32)
    count = None if classes is None else len(classes)
    numbers = checked_labels(labels, rows, count, spec)
    names = numbered(label_width(numbers)) if classes is None else tuple(str(name) for name in classes)
    return numbers, names


def named_function(target: str) -> tuple[Callable[[str], Any], str]:
    """The function that ``package.module:factory`` or ``path/to/file.py:factory`` names, and the canonical spec.

    Errors: ``UsageError`` as ``named_object``, and for what can't be called.
    """
    factory, where = named_object(target)
    if not callable(factory):
        raise UsageError(f"{where} is no function but {type(factory).__name__}")
    return factory, f"python:{where}"
