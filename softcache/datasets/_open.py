"""From a dataset's spec to its samples."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from softcache import registry
from softcache.datasets._files import check_text
from softcache.datasets._samples import SPLITS, Samples
from softcache.errors import DatasetError, UsageError
from softcache.localfiles import local_path

DATA_VARIABLE = "SOFTCACHE_DATA"
DEFAULT_FOLDER = "datasets"


def open_samples(
    spec: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    size: int | None = None,
) -> Samples:
    """One split of a dataset.

    spec: ``digits``, a torchvision dataset's name (``cifar100``), ``folder:PATH``, ``csv:FILE``, ``parquet:FILE``,
    ``arrays:PATH``, ``hf:NAME_OR_PATH``, ``python:package.module:factory`` or ``path/to/file.py:factory``; those of
    files may end in ``,test_fraction=0.2``. split: ``train`` or ``test``. data_dir: where torchvision's files are, by
    default ``$SOFTCACHE_DATA`` or else ``datasets`` in the current folder. download: fetch what is missing there. size:
    side of a recorded view in pixels; the side before the centre crop changes in proportion.
    Errors: ``UsageError`` for a spec, split or size that can't be, ``DatasetError`` for data that is missing or can't
    be read.
    """
    if split not in SPLITS:
        raise UsageError(f"no split is called {split!r}: there are {' and '.join(SPLITS)}")
    if size is not None and size < 1:
        raise UsageError(f"the size of a view must be at least 1 pixel, found {size}")
    if not spec.strip():
        raise UsageError("the name of a dataset is empty: digits, cifar100, folder:PATH, csv:FILE, arrays:PATH")
    folder = local_path(data_dir or os.environ.get(DATA_VARIABLE) or DEFAULT_FOLDER, "--data-dir")
    samples: Samples = _source(spec).open(split, data_dir=folder, download=download)
    check_text(samples.spec, "the dataset's path", "rename it, since it is written into files of text")
    if not len(samples):
        raise DatasetError(f"{samples.spec} has no samples in its {split} split")
    if size is not None and size != samples.size:
        samples = dataclasses.replace(samples, size=size, resize=samples.resize_for(size))
    return samples


def _source(spec: str) -> Any:
    name, rest = registry.split_spec(spec)
    if ":" in spec and spec.rpartition(":")[0].endswith(".py"):  # path/to/file.py:factory
        return registry.build("datasets", "python", spec.removeprefix("python:"), spec)
    if name in registry.names("datasets"):
        return registry.build("datasets", name, rest, spec)
    if os.sep in spec or spec.startswith("."):
        raise UsageError(f"{spec!r} is no dataset's name: for a folder of images write folder:{spec}")
    return registry.build("datasets", "torchvision", spec, spec)
