"""Of which kind the labels in ``rows.h5`` are."""

from __future__ import annotations

from pathlib import Path

from softcache.cache.hdf5 import read_structure
from softcache.cache.shard import opened
from softcache.errors import IntegrityError


def label_form(path: Path, rows: int, outputs: int) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of the labels, of which kind the file itself says; those of classes where it says nothing that
    labels of so many ``rows`` and ``outputs`` may be."""
    forms = [("<i4", (rows,)), ("|u1", (rows, outputs)), ("<f4", (rows,)), ("<f4", (rows, outputs))]
    try:
        with opened(path) as (fd, size):
            node = read_structure(fd, size).nodes.get("label")
    except (IntegrityError, OSError):  # whoever opens it says what is wrong with it
        return forms[0]
    found = (node.dtype.str, node.shape) if node is not None and node.dtype is not None else None
    return next((form for form in forms if form == found), forms[0])
