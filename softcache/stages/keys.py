"""A cache in a loop of one's own: a map-style dataset of keys, a sampler of them, and batches with names."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from softcache.cache.agreement.digests import PixelCheck
from softcache.cache.column import OFFSET
from softcache.cache.column_reader import ColumnReader
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, hint_column
from softcache.cache.shares import filled, own_mask
from softcache.config.data import open_data
from softcache.config.opening import LOCAL_SIZE
from softcache.config.parsed import parse
from softcache.config.train import TrainConfig
from softcache.errors import CacheError, UsageError
from softcache.fields import Fields, stacked
from softcache.inputs import PIXELS, bucket_input
from softcache.losses._target import Target, changed, joined_targets
from softcache.stream.batches import trained_labels
from softcache.stream.plan import Plan
from softcache.stream.transfer import host_tensor, unsigned

Key = tuple[int, int]  # row, view


@dataclass(frozen=True)
class KeyBatch:
    """Keys with all that a loss needs. Every key's pixels have been compared with what the teacher saw.

    ``rows``, ``views`` (B,) int64. ``inputs``: ``pixels`` (B, H, W, C) uint8 or uint16, or what the dataset has
    instead, by name (B, ...); of rows that have lengths of their own (B, L, ...), filled up to the longest, with
    ``attention_mask`` (B, L) int64, 1 for a row's own places. ``targets``: outputs of the teacher by their names,
    ``logits`` (B, C) raw, and hints by their layers' names, all (B, ...) float32; of columns whose rows have lengths of
    their own (B, L, ...), filled up to the longest with 0; of outputs in ``topk`` ``Leaders`` of such tensors, which
    the losses of ``softcache.functional`` take, and whose ``at(T)`` are logits. ``masks``: of each of these targets, by
    its name, (B, L) int64, 1 for a row's own places; of a hint that is kept for a share of the rows,
    ``layer3:rows=0.25``, (B,) int64, 1 for the rows that have it, and the target is 0 for the others. ``labels`` (B,)
    int64, -1 for none; or of another kind (B, K) uint8 or (B,) or (B, K) float32, as the dataset has them. ``mixed``:
    of samples that their recipe mixed with a partner, the partners' labels (B,) int64 and the weight of the own label
    (B,) float32; None for recipes that don't mix. ``pads``: of inputs whose rows have lengths of their own, what they
    are filled up with.
    """

    rows: torch.Tensor
    views: torch.Tensor
    inputs: Mapping[str, torch.Tensor]
    targets: Mapping[str, Target]
    labels: torch.Tensor
    mixed: tuple[torch.Tensor, torch.Tensor] | None = None
    pads: Mapping[str, int] = dataclasses.field(default_factory=dict)
    masks: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> KeyBatch:
        """The same batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> KeyBatch:
        """What ``DataLoader(pin_memory=True)`` calls."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Any) -> KeyBatch:
        def each(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: changed(target, change) for name, target in value.items()}
            return value if value is None else tuple(map(change, value)) if isinstance(value, tuple) else change(value)

        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return KeyBatch(**{name: part if name == "pads" else each(part) for name, part in parts.items()})


class Keys(Dataset[KeyBatch]):
    """The keys of a cache as a map-style dataset, for loops other than ``softcache train``.

    An item is a key ``(row, view)``, or with ``view`` a row; ``sampler`` gives batches of keys. A ``DataLoader`` gets
    ``collate_fn=keys.collate`` and may have workers of any kind. Everything is checked as in a training: data, labels
    and kept samples when this is made, and each key's digest when it is read.

    ``cache``: its folder, its name in ``caches/`` or the address of one in a store, by default the only one in
    ``caches/``. ``dataset``, ``augment``, ``data_dir``, ``download``, ``labels``, ``pixels``, ``codec``, ``expect``,
    ``local_cache``, ``local_size``: as in ``TrainConfig``. ``views``: how many of the
    recorded views, by default all. ``view``: one of them alone. ``outputs``: the teacher's outputs that are read.
    ``hints``: layers of the teacher.

    Errors: as ``softcache.train`` for a cache that doesn't fit the data; ``CacheError`` for an output, a hint or a view
    that it doesn't have; from reading, ``PixelsError`` for a key whose pixels aren't those that the teacher saw.
    """

    def __init__(
        self,
        cache: str | Path | None = None,
        dataset: str | None = None,
        *,
        view: int | None = None,
        views: int | None = None,
        outputs: Sequence[str] = (LOGITS,),
        hints: Sequence[str] = (),
        augment: str | None = None,
        data_dir: str | None = None,
        download: bool = False,
        labels: str | None = None,
        pixels: str = "exact",
        codec: str | None = None,
        expect: Sequence[str] | str = (),
        local_cache: str | None = None,
        local_size: str = LOCAL_SIZE,
    ):
        for what, names in (("outputs", outputs), ("hints", hints)):
            if isinstance(names, str):
                raise UsageError(f"{what} are several names, such as [{names!r}]")
        if view is not None and views is not None:
            raise UsageError(f"view={view} is one view, and views={views} the number of several: give one of them")
        if not (outputs or hints):
            raise UsageError("neither outputs nor hints are asked for, so there is nothing to read")
        asked = TrainConfig(
            cache=() if cache is None else (str(cache),),
            dataset=dataset,
            views=views,
            augment=augment,
            data_dir=data_dir,
            download=download,
            labels=labels,
            pixels=pixels,
            codec=codec,
            expect=(expect,) if isinstance(expect, str) else tuple(expect),
            local_cache=local_cache,
            local_size=local_size,
        )
        columns = {name: name for name in outputs} | {name: hint_column(name) for name in hints}
        if len(columns) < len(outputs) + len(hints):
            raise UsageError("an output and a hint have the same name, or one is asked for twice")
        data = open_data(parse(asked), columns=list(columns.values()))
        (opened,) = data.named
        complete = data.views or ()
        if view is not None and view not in complete:
            raise CacheError(f"{opened.where} has no complete view {view}: it has {', '.join(map(str, complete))}")
        self.viewed = data.viewed
        self.views = complete if view is None else (view,)
        self.fixed = view is not None
        self.labels = trained_labels(data.viewed.samples.labels)
        self._close = [] if data.close is None else [data.close[opened.folder]]
        self._columns = columns
        self._folder, self._id, self._codec = opened.folder.absolute(), opened.manifest.cache_id, codec
        self._remote, self._pinned = opened.remote, opened.pinned
        self._opened: dict[str, ColumnReader] | None = None

    @property
    def classes(self) -> Sequence[str]:
        """The names of the dataset's classes."""
        return self.viewed.samples.classes

    def __len__(self) -> int:
        """Number of keys."""
        return len(self.viewed) * len(self.views)

    def __getitem__(self, item: Key | int) -> KeyBatch:
        """A batch of one key."""
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[Key | int]) -> KeyBatch:
        """A batch of keys in this order. Those of one view are decoded and read together."""
        rows, views = self._keys(items)
        numbers = np.unique(views)
        if len(numbers) == 1:
            return self._in_view(rows, int(numbers[0]))
        places = [np.flatnonzero(views == view) for view in numbers]
        parts = [self._in_view(rows[place], int(view)) for place, view in zip(places, numbers, strict=True)]
        back = torch.from_numpy(np.argsort(np.concatenate(places)))
        return joined(parts)._each(lambda tensor: tensor[back])

    @staticmethod
    def collate(made: KeyBatch | Sequence[KeyBatch]) -> KeyBatch:
        """The ``collate_fn`` of a ``DataLoader``: the batch that ``__getitems__`` made, or one of several."""
        return made if isinstance(made, KeyBatch) else joined(made)

    def sampler(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        rows: Sequence[int] | None = None,
        bucket: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> KeySampler:
        """Batches of keys in the order of ``softcache train``: each row once an epoch, in the epoch's view.

        ``rows``: those that are drawn from, by default all. ``bucket``: whether rows of like length share a batch, as
        with ``softcache train --bucket``. ``ranks``: how many processes train together, this being
        the one of number ``rank``: each has its share of the keys, none has one of another, and all have as many
        batches of ``batch_size``.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, is {batch_size}")
        if not 0 <= rank < ranks:
            raise UsageError(f"rank {rank} of {ranks} ranks: they count from 0")
        drawn = np.arange(len(self.viewed)) if rows is None else np.asarray(rows, np.int64)
        lengths = self.viewed.lengths()[bucket_input(self.viewed.inputs, self.viewed.samples.spec)] if bucket else None
        return KeySampler(Plan(drawn, batch_size * ranks, seed, self.views, lengths=lengths), rank, ranks)

    def _keys(self, items: Sequence[Key | int]) -> tuple[np.ndarray, np.ndarray]:
        """Rows and views, (B,) int64 each."""
        rows, views = [], []
        for item in items:
            if isinstance(item, tuple):
                row, view = map(operator.index, item)
                if view not in self.views:
                    raise UsageError(f"key {(row, view)}: the views are {', '.join(map(str, self.views))}")
            elif not self.fixed:
                raise UsageError(
                    f"{item!r} is a row and no key (row, view): give DataLoader batch_sampler=keys.sampler(…), or fix "
                    "the view, Keys(…, view=0)"
                )
            else:
                row, view = operator.index(item), self.views[0]
            rows.append(row)
            views.append(view)
        return np.asarray(rows, np.int64), np.asarray(views, np.int64)

    def _in_view(self, rows: np.ndarray, view: int) -> KeyBatch:
        readers = self._readers()
        arrays = {name: reader.gather(view, rows) for name, reader in readers.items()}
        inputs = self.viewed.batch(rows, view)
        check = PixelCheck(self.viewed.digest, at_once=True, accepted=self._close * len(arrays))
        check.add(rows, (view,), inputs, [unsigned(host_tensor(found["digest"])) for found in arrays.values()])
        targets: dict[str, Target] = {}
        masks = {}
        for name, found in arrays.items():
            targets[name] = readers[name].target(found)
            if readers[name].layout.ragged:
                column, offset = self._columns[name], found[OFFSET]
                targets[name] = changed(targets[name], functools.partial(filled, column, offset=offset))
                masks[name] = own_mask(column, offset)
        labels, mixing = self.labels, self.viewed.mixing(rows, view)
        mixed = None if mixing is None else (labels[torch.from_numpy(mixing[0])], torch.from_numpy(mixing[1]))
        place = torch.from_numpy(rows)
        return KeyBatch(
            place,
            torch.full_like(place, view),
            inputs.named() if isinstance(inputs, Fields) else {PIXELS: inputs},
            targets,
            labels[place],
            mixed,
            {name: inputs.pads[name] for name in inputs.lengths} if isinstance(inputs, Fields) else {},
            masks,
        )

    def _readers(self) -> dict[str, ColumnReader]:
        """Opened when a process first reads, so that workers inherit no map of a file."""
        if self._opened is None:
            cache = Cache(self._folder, codec=self._codec, remote=self._remote, pinned=self._pinned)
            if cache.manifest.cache_id != self._id:
                raise CacheError(f"{self._folder} is another cache than the one that was opened")
            self._opened = {name: cache.column(column) for name, column in self._columns.items()}
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class KeySampler(Sampler[list[Key]]):
    """The ``batch_sampler`` of a ``DataLoader`` over ``Keys``. Which keys an epoch has depends on the seed and its
    number alone, so a training goes on after ``set_epoch`` as if it had never stopped."""

    def __init__(self, plan: Plan, rank: int, ranks: int):
        self._plan, self._rank, self._ranks = plan, rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is iterated over next; without it the same one comes again."""
        self.epoch = epoch

    def __len__(self) -> int:
        last = self._plan.keys - (self._plan.steps - 1) * self._plan.batch_size
        return self._plan.steps - (last < self._ranks)

    def __iter__(self) -> Iterator[list[Key]]:
        for (part,) in self._plan.batches(self.epoch):
            share = len(part.rows) // self._ranks
            if share:
                own = part.rows[self._rank * share : (self._rank + 1) * share]
                yield [(row, part.views[0]) for row in own.tolist()]


def joined(batches: Sequence[KeyBatch]) -> KeyBatch:
    """One batch of several."""
    first = batches[0]
    mixed = [batch.mixed for batch in batches if batch.mixed is not None]
    return KeyBatch(
        torch.cat([batch.rows for batch in batches]),
        torch.cat([batch.views for batch in batches]),
        {name: stacked([batch.inputs[name] for batch in batches], first.pads.get(name, 0)) for name in first.inputs},
        {
            name: joined_targets(
                [batch.targets[name] for batch in batches],
                _filled if name in first.masks and first.masks[name].ndim > 1 else torch.cat,
            )
            for name in first.targets
        },
        torch.cat([batch.labels for batch in batches]),
        (torch.cat([own for own, _ in mixed]), torch.cat([weight for _, weight in mixed])) if mixed else None,
        first.pads,
        {
            name: (_filled if mask.ndim > 1 else torch.cat)([batch.masks[name] for batch in batches])
            for name, mask in first.masks.items()
        },
    )


def _filled(parts: list[torch.Tensor]) -> torch.Tensor:
    return stacked(parts, 0)
