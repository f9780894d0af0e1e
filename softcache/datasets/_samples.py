"""One split of one dataset in its fixed order: what every source of samples gives."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from softcache.datasets._labels import Labels, label_kind
from softcache.datasets._pixels import (
    CHUNK_BYTES,
    Pixels,
    Statistics,
    map_images,
    open_regular,
    read_image,
    row_chunks,
)
from softcache.datasets._values import Values, measure_inputs
from softcache.errors import DatasetError
from softcache.inputs import MAX_CHANNELS, PIXELS, WHITE

SPLITS = ("train", "test")
PROBED = 64  # rows whose pixels stand for a dataset that has neither an array nor files


@dataclass
class Samples:
    """One split of one dataset.

    spec: canonical spec (``"digits"``, ``"folder:/data/pets"``). split: ``"train"`` or ``"test"``. classes: names in
    label order, empty where there are no labels. labels: (N,) int32, -1 unlabelled; or of another kind, see
    ``datasets._labels``: then ``classes`` are the names of the outputs. channels: of pixels. dtype: of pixels,
    ``"uint8"`` or ``"uint16"``. size: default side of a recorded view in pixels. resize: the shorter side before a
    centre crop of ``size``. recipe: default view recipe. statistics: per-channel mean and deviation of the train split,
    of pixels in 0..1. Pixels are in ``images`` (N, H, W, C), or in the files ``root / names[i]``, or come from
    ``decode(i)``. ``mapped`` is the .npy file behind ``images``: then pickling keeps the path, not the pixels.
    ``advice``: what to say where nobody chose a recipe. ``values``: of samples that are no pictures, input → what it is
    in all rows; ``channels`` is then 0, ``size`` and ``resize`` 1, and statistics are of the one input of floating
    numbers, one for each of the last axis or one for all.
    max_image_pixels: files of more pixels are refused; Pillow's limit, which goes along to other processes.
    """

    spec: str
    split: str
    classes: tuple[str, ...]
    labels: Labels
    channels: int
    size: int
    resize: int
    recipe: str
    statistics: Statistics
    images: Pixels | None = None
    names: list[str] | None = None
    root: Path | None = None
    decode: Callable[[int], Pixels] | None = None
    mapped: Path | None = None
    dtype: str = "uint8"
    advice: str = ""
    values: dict[str, Values] = field(default_factory=dict)
    max_image_pixels: int | None = field(default_factory=lambda: Image.MAX_IMAGE_PIXELS)

    def __post_init__(self) -> None:
        assert self.split in SPLITS, self.split
        assert (0 < self.channels <= MAX_CHANNELS) if self.pictures else self.channels == 0, self.channels
        assert self.dtype in WHITE, self.dtype
        assert label_kind(self.labels), (self.labels.dtype, self.labels.shape)
        assert len(self.statistics[0]) == len(self.statistics[1]), self.statistics
        if not self.pictures:
            assert all(len(held) == len(self.labels) for held in self.values.values())
            return
        assert len(self.statistics[0]) == self.channels, self.statistics
        if self.images is not None:
            assert self.images.dtype == self.dtype, (self.images.dtype, self.dtype)
            assert self.images.shape[3:] == (self.channels,), self.images.shape
            assert len(self.images) == len(self.labels)
        elif self.names is not None:
            assert self.root is not None, "names are relative to a root"
            assert len(self.names) == len(self.labels)
        else:
            assert self.decode is not None, "no source of pixels"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def label_kind(self) -> str:
        """``classes``, ``binary`` or ``values``."""
        return label_kind(self.labels)

    @property
    def pictures(self) -> bool:
        """Whether the input is pixels."""
        return not self.values

    @property
    def in_memory(self) -> bool:
        """Whether rows are in arrays, in memory or mapped, rather than in files that have to be decoded."""
        return self.images is not None or bool(self.values)

    @property
    def input_names(self) -> str:
        """For messages: ``pixels``, or the names of other inputs."""
        return ", ".join(self.values) or PIXELS

    def resize_for(self, size: int) -> int:
        """The shorter side before a centre crop to ``size``, in the proportion of the defaults."""
        return round(size * self.resize / self.size)

    def image(self, index: int) -> Pixels:
        """Pixels of a row as decoded: (H, W, C), C-contiguous, writable.

        Errors: ``DatasetError`` that names the file where one can't be decoded.
        """
        if self.images is not None:
            return np.array(self.images[index], order="C", subok=False)
        if self.names is not None:
            assert self.root is not None
            return read_image(self.root / self.names[index], self.channels, self.dtype)
        assert self.decode is not None
        return self.decode(index)

    def subset(self, rows: npt.NDArray[np.int64]) -> Samples:
        """These rows alone, (M,) int64, in this order. Only images in memory are copied; a mapped file stays mapped."""
        parts: dict[str, Any] = {"labels": self.labels[rows], "mapped": None}
        if self.names is not None:
            parts["names"] = [self.names[row] for row in rows]
        if not self.pictures:
            parts["values"] = {name: held.subset(rows) for name, held in self.values.items()}
        elif self.mapped is not None or self.decode is not None:
            parts |= {"images": None, "names": None, "decode": _Rows(self, rows)}
        elif self.images is not None:
            parts["images"] = self.images[rows]
        return dataclasses.replace(self, **parts)

    def fingerprint(self, full: bool = False) -> str:
        """sha256 (hex) of the content that views are made from, in row order; labels and class names are no part of it.

        Content is the bytes of an array; the relative path and size of every file (``full``: and its bytes); or,
        for a source that only decodes, the pixels of 64 evenly spaced rows (``full``: of all). The same samples
        at another place have the same fingerprint.
        """
        kind = "array" if self.in_memory else "files" if self.names is not None else "decoded"
        header = {
            "rows": len(self),
            "channels": self.channels,
            "content": kind,
        }
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for part in self._content(full):
            digest.update(part)
        return digest.hexdigest()

    def _content(self, full: bool) -> Iterator[bytes | memoryview]:
        for name, held in sorted(self.values.items()):
            yield from held.content(name)
        if self.values:
            return
        if self.images is not None:
            yield json.dumps(self.images.shape).encode()
            for chunk in row_chunks(self.images):
                yield np.ascontiguousarray(chunk).data
        elif self.names is not None:
            assert self.root is not None
            for name in self.names:
                path = self.root / name
                try:
                    yield f"{name}\0{os.stat(path).st_size}\0".encode("utf-8", "surrogateescape")
                    if full:
                        with open_regular(path) as file:
                            while piece := file.read(CHUNK_BYTES):
                                yield piece
                except OSError as error:
                    raise DatasetError(f"{path} can't be read: {error.strerror or error}") from None
        else:
            rows = range(len(self)) if full else np.unique(np.linspace(0, len(self) - 1, PROBED).astype(int))
            for row in rows:
                pixels = self.image(int(row))
                yield json.dumps(pixels.shape).encode()
                yield np.ascontiguousarray(pixels).data

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.mapped is not None:
            state["images"] = None  # each worker maps the file again: the pages are shared, nothing is copied
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        Image.MAX_IMAGE_PIXELS = self.max_image_pixels
        if self.mapped is not None:
            self.images = map_images(self.mapped)


@dataclass(frozen=True)
class _Rows:
    """Decodes row ``i`` of a subset: row ``rows[i]`` of the samples."""

    samples: Samples
    rows: npt.NDArray[np.int64]

    def __call__(self, index: int) -> Pixels:
        return self.samples.image(int(self.rows[index]))


def samples_of_values(
    values: dict[str, Values],
    train: dict[str, Values],
    *,
    spec: str,
    split: str,
    labels: Callable[[int], tuple[Labels, tuple[str, ...]]],
) -> Samples:
    """Samples that are no pictures.

    ``train``: the inputs of the train split, by which floats are standardized and whose dtypes and shapes this split
    must have. ``labels``: from a number of rows to their labels and the names of classes.

    Errors: ``DatasetError`` for inputs of different numbers of rows, and for others than those of the train split.
    """
    counts = {name: len(held) for name, held in values.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DatasetError(f"{spec}: the inputs of {split} have different numbers of rows: {told}")
    if set(values) != set(train):
        raise DatasetError(f"{spec}: train has {', '.join(train)}, {split} has {', '.join(values)}")
    for name, held in values.items():
        if held.field != train[name].field:
            raise DatasetError(f"{spec}: train_{name} is {train[name].field}, {split}_{name} {held.field}")
    numbers, classes = labels(next(iter(counts.values())))
    return Samples(
        spec=spec,
        split=split,
        classes=classes,
        labels=numbers,
        channels=0,
        size=1,
        resize=1,
        recipe="none",
        statistics=measure_inputs(train),
        values=values,
    )
