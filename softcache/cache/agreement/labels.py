"""Whether a dataset still has the labels that a cache was made with; ``rows.h5`` is the only record of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softcache.cache.reader import Cache
from softcache.datasets._labels import differing_rows, told_label
from softcache.datasets._samples import Samples
from softcache.errors import CacheError

log = logging.getLogger(__name__)

LABELS = ("dataset", "cache")  # whose labels a training takes where they differ on purpose


@dataclass(frozen=True)
class LabelDifference:
    """``rows``: how many rows have another label than in the cache; ``example``: the first of them, with both labels
    by class name and, where files are known, both files."""

    rows: int
    of: int
    example: str

    def __str__(self) -> str:
        return f"the labels of {self.rows:,} of {self.of:,} rows differ ({self.example})"


def label_difference(cache: Cache, samples: Samples) -> LabelDifference | None:
    """How the labels of ``samples`` differ from those that the cache has recorded; None where they don't.

    Both have the same number of rows and the same classes.
    """
    recorded, labels = cache.labels, samples.labels
    differing = np.flatnonzero(differing_rows(recorded, labels))
    if not len(differing):
        return None
    row = int(differing[0])
    there, now = (told_label(some, row, samples.classes) for some in (recorded, labels))
    names = cache.names
    if names is not None and samples.names is not None:
        there, now = f"{there} as {names[row]}", f"{now} as {samples.names[row]}"
    return LabelDifference(
        len(differing), len(labels), f"first row {row}: {there} in the cache, {now} in the dataset now"
    )


def agreed_labels(caches: Sequence[Cache], samples: Samples, choice: str | None) -> Samples:
    """The samples with the labels that a training takes.

    ``choice``: None where the labels of the dataset and of every cache must be the same; ``"dataset"`` takes the
    dataset's labels, ``"cache"`` those that all caches have recorded. Errors: ``CacheError`` where labels differ and
    no choice was made, or where caches that are to decide differ from each other.
    """
    if choice == "cache":
        first = caches[0]
        for other in caches[1:]:
            differing = int(differing_rows(first.labels, other.labels).sum())
            if differing:
                raise CacheError(
                    f"{first.where} and {other.where} have recorded different labels for {differing:,} of "
                    f"{first.rows:,} rows, so --labels cache is ambiguous: use --labels dataset, or leave one cache out"
                )
    for cache in caches:
        found = label_difference(cache, samples)
        if found is None:
            continue
        if choice is None:
            raise CacheError(
                f"{cache.where} was made from other labels than {samples.spec} has now: {found}. Restore the labels; "
                "or, if the dataset was relabelled on purpose, train on its labels with --labels dataset, or on the "
                "recorded ones with --labels cache"
            )
        log.warning(f"{cache.where}: {found}; training on the labels of the {choice}")
    if choice == "cache":
        return dataclasses.replace(samples, labels=caches[0].labels.copy())
    return samples


def refuse_relabelled(cache: Cache, samples: Samples) -> None:
    """For a dump into a cache that is there: its labels are recorded once and must be those of the dataset.

    Nothing where rows differ: then the identity differs, which says more. Errors: ``CacheError`` where classes or
    labels differ.
    """
    if cache.rows != len(samples):
        return
    if cache.manifest.state.class_names != list(samples.classes):
        there, now = cache.manifest.state.class_names, samples.classes
        raise CacheError(
            f"{cache.where} was made from other classes than {samples.spec} has now ({_unlike(there, now)}): name the "
            "right --dataset, or use another --out"
        )
    found = label_difference(cache, samples)
    if found is not None:
        raise CacheError(
            f"{cache.where} was made from other labels than {samples.spec} has now: {found}. Restore the labels, or "
            "use another --out for the relabelled dataset; the logits of this cache can still be used with "
            "softcache train --labels dataset"
        )


def _unlike(there: Sequence[str], now: Sequence[str]) -> str:
    """Where two lists of class names first differ."""
    if len(there) != len(now):
        return f"{len(there)} of them there, {len(now)} now"
    at = next(k for k in range(len(there)) if there[k] != now[k])
    return f"[{at}] {there[at]!r} there, {now[at]!r} now"
