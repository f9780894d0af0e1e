"""The end of a dump, once nothing is missing: the teacher's accuracy, and one file over all shards."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.cache.virtual import is_current, write_virtual
from softcache.cache.writer import update_state
from softcache.datasets._labels import label_kind, labelled

log = logging.getLogger(__name__)


def finish(folder: Path, codec: str | None = None) -> None:
    """If nothing is missing, records the teacher's accuracy on the labels and writes the one file over all shards.

    ``codec``: as ``Cache`` takes it.
    """
    cache = Cache(folder, codec=codec)
    if cache.missing(cache.manifest.columns, cache.views):
        return
    if cache.manifest.state.teacher_top1 is None:
        top1 = teacher_accuracy(cache)
        if top1 is not None:
            update_state(folder, lambda state: dataclasses.replace(state, teacher_top1=top1))
            classes = cache.layout(LOGITS).width
            if near_chance(top1, classes):
                log.warning(
                    f"the teacher's top-1 on the labels is {100 * top1:.2f} %, chance is {100 / classes:.2f} %: "
                    "check the order of the classes, the channels, the normalization, and whether weights were loaded"
                )
    if not is_current(cache):
        write_virtual(cache)


def teacher_accuracy(cache: Cache) -> float | None:
    """The share of labelled rows whose largest logit in view 0 is that of the label; ``None`` without labels of kind
    classes, and without one vector of their logits."""
    record, rows = cache.manifest.state.columns.get(LOGITS), np.flatnonzero(labelled(cache.labels))
    if not len(rows) or label_kind(cache.labels) != "classes":
        return None
    if record is None or record.kind != "classes" or len(record.shape) != 1:
        return None
    reader, hits = cache.column(LOGITS), 0
    for first in range(0, len(rows), 4096):
        some = rows[first : first + 4096]
        hits += int((reader.decode(reader.gather(0, some)).argmax(1).numpy() == cache.labels[some]).sum())
    return hits / len(rows)


def near_chance(top1: float, classes: int) -> bool:
    """Whether an accuracy is less than a twentieth of the way from chance to perfect."""
    return classes > 1 and top1 < (1 + 0.05 * (classes - 1)) / classes
