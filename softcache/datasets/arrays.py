"""Samples from NumPy arrays, pictures or others: a folder of .npy files, or one .npz."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from softcache.console import counted
from softcache.datasets._labels import Labels, checked_labels, label_kind, label_width, labelled, numbered
from softcache.datasets._pixels import Pixels, checked_images, geometry, measure, open_regular
from softcache.datasets._samples import Samples, samples_of_values
from softcache.datasets._values import Values, checked_offsets, checked_values
from softcache.errors import DatasetError
from softcache.inputs import PIXELS, is_input_name

OFFSETS = "_offsets"  # ends the name of the array that says where rows of lengths of their own begin


@dataclass(frozen=True)
class Arrays:
    """``arrays:PATH``: {train,test}_images and {train,test}_labels as .npy files in a folder, or inside an .npz.

    In place of images there may be arrays of other names, {train,test}_NAME: the inputs are then no pictures but what
    they have for each row, (N, …) of any dtype, such as the features of a table, a vector that another network has
    made, or a sound. Rows of lengths of their own, such as sentences of tokens, lie end to end, (M, …), and
    {train,test}_NAME_offsets (N + 1,) says where each begins and where the last ends. The floating numbers of one input
    are standardized by the train split; whole numbers, and several floating inputs, go to the network as they are.

    Images are uint8, or uint16 where 65535 is white, (N, H, W) or (N, H, W, C) with 1 to 1024 channels; the .npy files
    are memory-mapped. Labels are whole numbers (N,), -1 where unlabelled; or uint8 (N, K), 0 or 1 for each of K
    outputs, 255 where unlabelled; or float32 (N,) or (N, K), NaN where unlabelled. A train split without a labels file
    is unlabelled. Names of classes or outputs are the lines of ``classes.txt`` beside the arrays, or else numbers. The
    default size of a view is the longer side where that is 32 to 96, 32 for smaller images, 224 (from 256) for larger
    ones. The default recipe is ``none``: what may be cropped or mirrored depends on what the arrays show, and nothing
    here says that.
    """

    path: str = field(metadata={"rest": True})

    def open(self, split: str, *, data_dir: Path | None = None, download: bool = False) -> Samples:
        """A split.

        Errors: ``DatasetError`` for files that are missing or not as above.
        """
        source = Path(self.path).expanduser().resolve()
        if not source.exists():
            raise DatasetError(f"no folder and no .npz file at {source}")
        images = _images(source, split)
        if images is None and (names := _input_names(source, split)):
            return _values(source, split, names)
        if images is None:
            found = ", ".join(sorted(_names(source))) or "no arrays"
            raise DatasetError(f"{source} has no {split}_images and no other inputs of that split: found {found}")
        train = images if split == "train" else _images(source, "train")
        if train is None:
            train = images
        elif (train.dtype, train.shape[3]) != (images.dtype, images.shape[3]):
            raise DatasetError(
                f"{source}: train has {train.dtype} and {counted(train.shape[3], 'channel')}, "
                f"test has {images.dtype} and {counted(images.shape[3], 'channel')}"
            )
        labels, classes = _labels(source, split, len(images))
        return Samples(
            spec=f"arrays:{source}",
            split=split,
            classes=classes,
            labels=labels,
            channels=images.shape[3],
            dtype=images.dtype.name,
            **{**geometry(images), "recipe": "none"},
            advice=_advice(images),
            statistics=measure(train),
            images=images,
            mapped=source / f"{split}_images.npy" if source.is_dir() else None,
        )


def _input_names(source: Path, split: str) -> list[str]:
    """The names of the inputs that are no pictures.

    Errors: ``DatasetError`` for what can't be one, and for offsets of nothing.
    """
    start = f"{split}_"
    stems = {name.removesuffix(".npy") for name in _names(source) if not name.endswith(".npz")}
    found = {name.removeprefix(start) for name in stems if name.startswith(start) and name != f"{split}_labels"}
    offsets = {name for name in found if name.endswith(OFFSETS)}
    for name in sorted(offsets):
        if name.removesuffix(OFFSETS) not in found:
            raise DatasetError(f"{source} has {start}{name} and no {start}{name.removesuffix(OFFSETS)}")
    for name in sorted(found - offsets):
        if not is_input_name(name) or name == PIXELS:
            raise DatasetError(
                f"{source}: {name!r} can't be the name of an input: letters, digits and _, not {PIXELS} or index"
            )
    return sorted(found - offsets)


def _values(source: Path, split: str, names: list[str]) -> Samples:
    held = {name: _held(source, split, name) for name in names}
    train = _input_names(source, "train") if split != "train" else []
    return samples_of_values(
        held,
        {name: _held(source, "train", name) for name in train} or held,
        spec=f"arrays:{source}",
        split=split,
        labels=lambda rows: _labels(source, split, rows),
    )


def _held(source: Path, split: str, name: str) -> Values:
    """One input of a split."""
    where = f"{source}: {split}_{name}"
    values, offsets = _load(source, f"{split}_{name}"), _load(source, f"{split}_{name}{OFFSETS}")
    assert values is not None, where
    values = checked_values(values, where, ragged=offsets is not None)
    return Values(
        values,
        None if offsets is None else checked_offsets(offsets, len(values), where),
        mapped=source / f"{split}_{name}.npy" if source.is_dir() else None,
    )


def _advice(images: Pixels) -> str:
    crop = geometry(images)["recipe"].partition("+")[0].replace("crop", "crop:pad=4")
    return (
        f"arrays: pictures are not augmented unless you say so: --augment {crop}+flip suits photographs, {crop} what "
        "must not be mirrored (digits, text), flip what must not be shifted; leave it out for spectrograms and maps"
    )


def _labels(source: Path, split: str, rows: int) -> tuple[Labels, tuple[str, ...]]:
    """Labels of a split, (rows,) of -1 where it has none, and the class names.

    Errors: ``DatasetError`` also for a test split without any, on which nothing can be evaluated.
    """
    classes = _class_names(source)
    given: dict[str, Labels] = {}
    for name in ("train", "test"):
        labels = _load(source, f"{name}_labels")
        if labels is not None:
            count = rows if name == split else len(np.atleast_1d(labels))
            given[name] = checked_labels(labels, count, len(classes) or None, f"{source}: {name}_labels")
    kinds = {name: f"{label_kind(labels)} {labels.shape[1:]}" for name, labels in given.items()}
    if len(set(kinds.values())) > 1:
        raise DatasetError(f"{source}: train_labels are {kinds['train']}, test_labels {kinds['test']}")
    if not classes:
        # the train split decides how many classes there are: a test label beyond it is an error
        deciding = next((labels for labels in given.values() if labelled(labels).any()), None)
        classes = numbered(0 if deciding is None else label_width(deciding))
    found = np.full(rows, -1, dtype=np.int32)
    if split in given:
        found = checked_labels(given[split], rows, len(classes), f"{source}: {split}_labels")
    if split == "test" and not labelled(found).any():
        raise DatasetError(f"{source}: the test split has no labels, nothing can be evaluated on it")
    return found, classes


def _images(source: Path, split: str) -> Pixels | None:
    images = _load(source, f"{split}_images")
    return None if images is None else checked_images(images, f"{source}: {split}_images")


def _load(source: Path, name: str) -> npt.NDArray | None:
    """An array by name, None where there is none; .npy files are memory-mapped."""
    try:
        if source.is_dir():
            path = source / f"{name}.npy"
            if not path.exists():
                return None
            with open_regular(path) as stream:
                if not name.endswith(("_labels", OFFSETS)):
                    return np.lib.format.open_memmap(path, mode="c")
                return np.lib.format.read_array(stream, allow_pickle=False)
        # opened here, because np.load leaves a file open that is no archive
        with open_regular(source) as stream, np.load(stream, allow_pickle=False) as arrays:
            return arrays[name] if name in arrays.files else None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        where = source / f"{name}.npy" if source.is_dir() else f"{source} ({name})"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"{where} can't be read as an array: {reason}") from None


def _names(source: Path) -> Iterator[str]:
    if source.is_dir():
        return (path.name for path in source.glob("*.np[yz]"))
    with source.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return iter(list(arrays.files))


def _class_names(source: Path) -> tuple[str, ...]:
    path = (source if source.is_dir() else source.parent) / "classes.txt"
    if not path.exists():
        return ()
    try:
        with open_regular(path) as stream:
            lines = stream.read().decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise DatasetError(f"{path} can't be read: {reason}") from None
    return tuple(line.strip() for line in lines if line.strip())
