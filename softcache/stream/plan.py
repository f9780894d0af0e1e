"""Which keys an epoch trains on, in which order: a pure function of the seed, the epoch and the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from softcache.cache.schema import MAX_VIEWS
from softcache.errors import UsageError
from softcache.losses._schedule import Schedule
from softcache.stream.parts import Part, Parts, divided
from softcache.stream.windows import Windows

_ORDER_STREAM = 0x6F72646572  # "order": keeps this draw apart from every other that uses the same seed
_BUCKET_STREAM = 0x6275636B6574  # "bucket"
SORTED_BATCHES = 50  # whose rows are sorted by length together: few enough that batches differ in every epoch


@dataclass(frozen=True)
class FreshShare:
    """The share of each batch's rows that come in a fresh view, 0..1, over the ``epochs`` of a training."""

    share: Schedule
    epochs: int

    def count(self, epoch: int, rows: int) -> int:
        """How many of a batch's rows are fresh: the whole number that is nearest to the share."""
        return round(self.share.at(epoch, self.epochs) * rows)


@dataclass(frozen=True)
class Plan:
    """Says which keys each epoch has, and in which batches.

    ``rows``: the rows that are drawn from. ``views``: the recorded views that are visited in turn (or how many of them,
    from 0 on), or ``None`` for a fresh view every epoch. ``length``: keys an epoch, by default each row once. If it is
    larger than the number of rows, they are repeated in new orders, so that a training on few labelled rows has as many
    steps as one on all. ``windows``: how rows are shuffled where their shards don't fit into memory. ``per_image``:
    views of each image in a batch. ``fits``: (rows, view) → which of the rows may be drawn in that view, (B,) bool;
    rows that may are repeated in place of those that may not. ``fresh``: which rows of a batch come in a fresh view
    in place of a recorded one, with one view an image. ``lengths``: (N,) of all rows, where rows of like length are to
    share a batch: those of ``SORTED_BATCHES`` batches are sorted by length, and these batches then shuffled.
    ``paired``: the two views of an image are one of the weak and one of the strong recipe, with the same number.
    ``share``: the number of a rank and how many there are, which have a part of each batch each (``parts.divided``);
    ``batch_size`` and all else is that of all ranks.
    """

    rows: np.ndarray
    batch_size: int
    seed: int
    views: int | Sequence[int] | None
    length: int | None = None
    windows: Windows | None = None  # None: any row may follow any other
    per_image: int = 1
    fits: Callable[[np.ndarray, int], np.ndarray] | None = None
    fresh: FreshShare | None = None
    lengths: np.ndarray | None = None
    paired: bool = False
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise UsageError("there are no rows to train on")
        if self.paired and self.batch_size % 2:
            raise UsageError(
                f"--strong-cache has two views of each row in a batch: --batch-size {self.batch_size} is odd"
            )
        if self.per_image < 1 or self.batch_size % self.per_image:
            raise UsageError(
                f"--views-per-image {self.per_image} must be at least 1 and divide the batch of {self.batch_size}"
            )
        assert not self.paired or (self.per_image == 2 and self.views is not None and self.fresh is None)
        assert self.lengths is None or self.windows is None, "sorted rows don't stay within windows"
        if self.fresh is not None:
            assert self.views is not None, "fresh views come beside recorded ones"
            assert self.per_image == 1, "a row is either fresh or recorded"
            assert self.fits is None, "recipes that mix rows have no means"

    @property
    def images(self) -> int:
        """Number of images an epoch."""
        return -(-(self.length or len(self.rows)) // self.per_image)

    @property
    def keys(self) -> int:
        """Number of keys an epoch: images, each in ``per_image`` views."""
        return self.images * self.per_image

    @property
    def steps(self) -> int:
        return len(self._bounds())

    def view(self, epoch: int) -> int:
        if self.views is None:
            return epoch
        turn = epoch if self.fresh is None else self._recorded_before(epoch)
        return turn % self.views if isinstance(self.views, int) else self.views[turn % len(self.views)]

    def _recorded_before(self, epoch: int) -> int:
        """How many earlier epochs have rows in recorded views. Views take turns by this number and not by that of the
        epoch, so that all of them are visited where every other epoch is fresh."""
        assert self.fresh is not None
        sizes = {last - first for first, last in self._bounds()}
        return sum(any(self.fresh.count(earlier, size) < size for size in sizes) for earlier in range(epoch))

    def views_at(self, epoch: int) -> tuple[int, ...]:
        """The views that each batch of an epoch holds of its images, but for those rows that ``fresh`` takes; one that
        both recipes have where they are ``paired``."""
        if self.paired:
            return (self.view(epoch // 2),)  # two epochs share an order, and each has a half of the images
        first = epoch // self.per_image * self.per_image
        return tuple(self.view(first + k) for k in range(self.per_image))

    def batches(self, epoch: int) -> Iterator[Parts]:
        """The keys of this rank's share of each batch."""
        return (shares[self.share[0]] for shares in self.shares(epoch))

    def shares(self, epoch: int) -> Iterator[list[Parts]]:
        """The keys of each batch, those of one rank after the other."""
        return (divided(parts, self.share[1]) for parts in self._whole(epoch))

    def _whole(self, epoch: int) -> Iterator[Parts]:
        """The keys of each batch: in one part, with ``fresh`` in two, of which one without rows is left out, or where
        they are ``paired`` in a weak and a strong one.

        Fresh views that come beside recorded ones have numbers that no cache ever records, however it grows.
        """
        order, views = self.order(epoch), self.views_at(epoch)
        for first, last in self._bounds():
            rows = order[first:last]
            if self.paired:
                yield Part(rows, views), Part(rows, views, strong=True)
                continue
            if self.fresh is None:
                yield (Part(rows, views, fresh=self.views is None),)
                continue
            count = self.fresh.count(epoch, len(rows))
            split = Part(rows[:count], (MAX_VIEWS + epoch,), fresh=True), Part(rows[count:], views)
            yield tuple(part for part in split if len(part))

    def order(self, epoch: int) -> np.ndarray:
        """(images,) int64: every row once, shuffled anew in each epoch (and again where rows repeat)."""
        drawn: list[np.ndarray] = []
        turn, (shuffle, part) = 0, divmod(epoch, self.per_image)
        rows = self._fitting(epoch)
        while turn * len(rows) < self.keys:
            rng = np.random.default_rng([_ORDER_STREAM, self.seed, shuffle, turn])
            drawn.append(self.windows.permutation(rng, rows) if self.windows else rng.permutation(rows))
            turn += 1
        order = np.concatenate(drawn)[part * self.images : (part + 1) * self.images].astype(np.int64)
        return order if self.lengths is None else self._by_length(order, epoch)

    def _by_length(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """The same rows, so that those of a batch are of like length. A last batch that has fewer stays the last."""
        assert self.lengths is not None
        rng, size = np.random.default_rng([_BUCKET_STREAM, self.seed, epoch]), self.batch_size // self.per_image
        made = []
        for first in range(0, len(order), SORTED_BATCHES * size):
            some = order[first : first + SORTED_BATCHES * size]
            some = some[np.argsort(self.lengths[some], kind="stable")]
            whole = len(some) // size
            # of the rows that are too few for a batch, any may be left over, not always the longest
            at = int(rng.integers(whole + 1)) * size
            rest = len(some) - whole * size
            over, some = some[at : at + rest], np.delete(some, np.s_[at : at + rest])
            made += [*some.reshape(whole, size)[rng.permutation(whole)], over]
        return np.concatenate(made)

    def _fitting(self, epoch: int) -> np.ndarray:
        """The rows that may be drawn in all views of an epoch."""
        if self.fits is None:
            return self.rows
        # All epochs that share an order share the rows that are in it.
        first = epoch // self.per_image * self.per_image
        views = {view for k in range(self.per_image) for view in self.views_at(first + k)}
        rows = self.rows[np.logical_and.reduce([self.fits(self.rows, view) for view in sorted(views)])]
        if not len(rows):
            raise UsageError(f"no row can be trained on in views {sorted(views)}: each is mixed with a held-out row")
        return rows

    def _bounds(self) -> list[tuple[int, int]]:
        size, images = self.batch_size // self.per_image, self.images
        edges = [(k, min(k + size, images)) for k in range(0, images, size)]
        # Batch normalization can't take a batch of one sample, so a last one joins its neighbour.
        if len(edges) > 1 and (edges[-1][1] - edges[-1][0]) * self.per_image == 1:
            edges[-2:] = [(edges[-2][0], edges[-1][1])]
        return edges
