"""The 1,797 handwritten digits that are installed with softcache."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from softcache.datasets._labels import numbered
from softcache.datasets._pixels import measure
from softcache.datasets._samples import Samples
from softcache.errors import DatasetError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # elsewhere in Python 3.10


@dataclass(frozen=True)
class Digits:
    """UCI optical recognition of handwritten digits, as scikit-learn carries it: 8 by 8, grey, ten classes.

    The values 0..16 become 0..255 by ``(255 * v + 8) // 16``, that is rounded, halves up.
    """

    def open(self, split: str, *, data_dir: Path | None = None, download: bool = False) -> Samples:
        """1,438 rows to train and 359 to test, in the file's order. Nothing is ever downloaded."""
        file = _folder() / "digits.npz"
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                values, labels, test = arrays["images"], arrays["labels"], arrays["test"]
        except (OSError, ValueError, KeyError) as error:
            raise DatasetError(f"{file} can't be read ({error}): install softcache again") from None
        images = ((values.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
        rows = test if split == "test" else ~test
        return Samples(
            spec="digits",
            split=split,
            classes=numbered(10),
            labels=labels[rows].astype(np.int32),
            channels=1,
            size=32,
            resize=32,
            recipe="crop",
            statistics=measure(images[~test]),
            images=images[rows],
        )


def _folder() -> Path | Traversable:
    """Where the package's data lies: ``softcache._data`` when installed, ``data`` beside softcache in a checkout."""
    try:
        return importlib.resources.files("softcache._data")
    except ModuleNotFoundError:
        return Path(__file__).resolve().parents[2] / "data"
