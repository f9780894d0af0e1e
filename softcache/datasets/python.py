"""Samples from a user's own Python function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from softcache.datasets._labels import checked_labels, label_width, numbered
from softcache.datasets._pixels import ItemDecoder, checked_images, geometry, measure
from softcache.datasets._samples import Samples, samples_of_values
from softcache.datasets._values import Values, values_of
from softcache.errors import DatasetError, SoftcacheError, UsageError
from softcache.inputs import MAX_CHANNELS, PIXELS, WHITE, is_input_name
from softcache.userfile import named_object

LABELS = ("labels", "label")  # names that are no inputs
MEASURED_ROWS = 256  # rows of a map-style dataset that are decoded to measure its statistics


@dataclass(frozen=True)
class Python:
    """``python:package.module:factory`` or ``path/to/file.py:factory``: ``factory(split)`` gives the samples.

    It returns ``Samples``; or a tuple (images (N, H, W) or (N, H, W, C) uint8 or uint16, labels as ``arrays:`` has them
    or None, names of the classes or outputs or None); or a map-style dataset whose items are (Pillow image or array of
    pixels, label or None).

    For inputs that are no pictures it returns a dictionary of arrays (N, …) and of lists of N rows that have lengths of
    their own, with ``labels`` and ``classes`` among them if there are any; or a map-style dataset whose items are
    dictionaries of one row each, which are read once and kept in memory: lists in them have lengths of their own, and
    ``label`` or ``labels`` is the row's label.
    """

    target: str = field(metadata={"rest": True})

    def open(self, split: str, *, data_dir: Path | None = None, download: bool = False) -> Samples:
        """A split.

        Errors: ``UsageError`` for a module or function that is not there, ``DatasetError`` for a result that is none
        of the three kinds. What the function itself raises is passed on with its name in front.
        """
        factory, spec = named_function(self.target)
        result = _asked(factory, split, spec)
        if isinstance(result, Samples):
            return result
        if isinstance(result, tuple) and len(result) == 3:
            return _from_arrays(*result, split=split, spec=spec)
        if (fields := _fields(result, spec)) is not None:
            train = fields if split == "train" else _fields(_asked(factory, "train", spec), spec)
            return samples_of_fields(fields, fields if train is None else train, split=split, spec=spec)
        if hasattr(result, "__len__") and hasattr(result, "__getitem__") and not isinstance(result, (tuple, str)):
            return samples_of_items(result, split=split, spec=spec)
        raise DatasetError(
            f"{spec} returned {type(result).__name__}: it must be Samples, (images, labels, classes), a dictionary of "
            "arrays, or a dataset with len() and [index]"
        )


def _asked(factory: Callable[[str], Any], split: str, spec: str) -> Any:
    try:
        return factory(split)
    except SoftcacheError:
        raise
    except Exception as error:  # foreign code may raise anything; the cause stays attached for --debug
        raise DatasetError(f"{spec} failed for the {split} split: {type(error).__name__}: {error}") from error


def _fields(result: Any, spec: str) -> Mapping[str, Any] | None:
    """Inputs and labels by name, each in all rows; None where these are no such samples."""
    if isinstance(result, Mapping):
        return result
    if isinstance(result, (tuple, str)) or not (hasattr(result, "__len__") and hasattr(result, "__getitem__")):
        return None
    if not len(result) or not isinstance(first := _row(result, 0, spec), Mapping):
        return None
    rows = [first, *(_row(result, row, spec) for row in range(1, len(result)))]
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or set(row) != set(first):
            raise DatasetError(f"{spec}, row {number}: expected a dictionary of {', '.join(map(str, first))}")
    return {name: _stacked([row[name] for row in rows]) for name in first} | _class_names(result)


def _stacked(rows: list[Any]) -> Any:
    """An array of arrays, of tensors or of numbers; a list stays where rows are lists, or of different lengths."""
    if isinstance(rows[0], (list, tuple)):
        return rows
    arrays = [np.asarray(row) for row in rows]
    return np.stack(arrays) if len({(array.shape, array.dtype) for array in arrays}) == 1 else arrays


def _class_names(dataset: Any) -> dict[str, Any]:
    classes = getattr(dataset, "classes", None)
    return {} if classes is None else {"classes": classes}


def _values(fields: Mapping[str, Any], spec: str) -> dict[str, Values]:
    names = [name for name in fields if name not in (*LABELS, "classes")]
    for name in names:
        if not isinstance(name, str) or not is_input_name(name) or name == PIXELS:
            raise DatasetError(f"{spec}: {name!r} can't be the name of an input: letters, digits and _, not {PIXELS}")
    if not names:
        raise DatasetError(f"{spec} gives no inputs: found {', '.join(map(str, fields)) or 'nothing'}")
    return {name: _held(fields[name], f"{spec}: {name}") for name in sorted(names)}


def _held(rows: Any, where: str) -> Values:
    return rows if isinstance(rows, Values) else values_of(rows, where)


def samples_of_fields(fields: Mapping[str, Any], train: Mapping[str, Any], *, split: str, spec: str) -> Samples:
    """Samples that are no pictures, from inputs by name, each ``Values`` or what ``values_of`` makes such of, beside
    ``labels`` (N,) and ``classes``, their names. ``train``: those of the train split, by which floats are standardized
    and whose dtypes and shapes this split must have.

    Errors: ``DatasetError`` for inputs and labels that can't be.
    """
    values = _values(fields, spec)
    labels = next((fields[name] for name in LABELS if name in fields), None)
    return samples_of_values(
        values,
        values if train is fields else _values(train, spec),
        spec=spec,
        split=split,
        labels=lambda rows: _labels(labels, rows, fields.get("classes"), spec),
    )


def _from_arrays(images: Any, labels: Any, classes: Any, *, split: str, spec: str) -> Samples:
    given = np.asarray(images)
    pixels = checked_images(given.astype(given.dtype.newbyteorder("="), copy=False), f"{spec}: images")
    numbers, names = _labels(labels, len(pixels), classes, spec)
    return Samples(
        spec=spec,
        split=split,
        classes=names,
        labels=numbers,
        channels=pixels.shape[3],
        dtype=pixels.dtype.name,
        **geometry(pixels),
        statistics=measure(pixels),
        images=pixels,
    )


def samples_of_items(dataset: Any, *, split: str, spec: str) -> Samples:
    """Pictures, from a map-style dataset of (Pillow image or array of pixels, label or None). Where it has them, its
    ``targets`` are the labels and its ``classes`` their names. An image is decoded each time that it is needed.

    Errors: ``DatasetError`` for items that are no such pairs.
    """
    if not len(dataset):
        raise DatasetError(f"{spec} has no samples in its {split} split")
    first = _item(dataset, 0, spec)[0]
    channels, dtype = _pixels_like(first)
    labels = getattr(dataset, "targets", None)
    if labels is None or len(labels) != len(dataset):
        labels = [_item(dataset, row, spec)[1] for row in range(len(dataset))]
    labels = [-1 if label is None else label for label in labels]
    numbers, names = _labels(labels, len(dataset), getattr(dataset, "classes", None), spec)
    items = ItemDecoder(dataset, channels, spec, dtype)
    pixels = items(0)
    rows = np.unique(np.linspace(0, len(dataset) - 1, MEASURED_ROWS).astype(int))
    probe = np.concatenate([items(int(row)).reshape(-1, 1, 1, channels) for row in rows])
    return Samples(
        spec=spec,
        split=split,
        classes=names,
        labels=numbers,
        channels=channels,
        dtype=dtype,
        **geometry(pixels),
        statistics=measure(probe),
        decode=items,
    )


def _pixels_like(image: Any) -> tuple[int, str]:
    """Channels and dtype of a dataset whose first image this is; what it is not, the decoder says."""
    if hasattr(image, "mode"):
        grey = image.mode in ("1", "L", "F") or image.mode.startswith("I")
        return 1 if grey else 3, "uint8"
    array = np.asarray(image)
    channels = array.shape[2] if array.ndim == 3 else 1
    return min(channels, MAX_CHANNELS), array.dtype.name if array.dtype.name in WHITE else "uint8"


def _item(dataset: Any, row: int, spec: str) -> tuple[Any, Any]:
    item = _row(dataset, row, spec)
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DatasetError(f"{spec}, row {row}: expected (image, label), found {type(item).__name__}")
    return item[0], item[1]


def _row(dataset: Any, row: int, spec: str) -> Any:
    try:
        return dataset[row]
    except SoftcacheError:
        raise
    except Exception as error:  # foreign code may raise anything; the cause stays attached for --debug
        raise DatasetError(f"{spec}, row {row} failed: {type(error).__name__}: {error}") from error


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
