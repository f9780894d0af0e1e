"""Where soft targets and hints come from, and the keys that go with them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softcache.cache.agreement.data import check_dataset, check_pixels, check_together
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, hint_column
from softcache.config.dump import DEFAULT_VIEWS
from softcache.config.folders import pick_cache
from softcache.config.given import recorded_dataset, recorded_recipe
from softcache.config.teachers import default_data, find_teacher
from softcache.config.train import TrainConfig
from softcache.device import DTYPES
from softcache.errors import CacheError, UsageError
from softcache.losses.hints._shapes import Shape
from softcache.models._hooks import Taps
from softcache.models._network import Network
from softcache.stream.batches import TargetSource
from softcache.stream.mean import MeanTargets
from softcache.stream.memory import memory_budget
from softcache.stream.targets import CachedTargets, LiveTargets
from softcache.stream.windows import Windows
from softcache.views._open import open_viewed
from softcache.views._viewed import ViewedDataset


@dataclass
class TrainingData:
    """Pixels, and who says what about them.

    ``caches``: of logits, in the order given; ``hints``: teacher's layer → the cache that has it; ``live``: the
    network of ``--online``; ``named``, ``lent``: the caches of ``--cache`` and ``--hint-cache``; ``views``: the
    recorded views that are visited, None for a fresh one every epoch; ``averaged``: those whose mean is the target.
    """

    viewed: ViewedDataset
    dataset: str
    views: tuple[int, ...] | None
    caches: list[Cache] = field(default_factory=list)
    hints: dict[str, Cache] = field(default_factory=dict)
    live: Network | None = None
    named: list[Cache] = field(default_factory=list)
    lent: list[Cache] = field(default_factory=list)
    averaged: tuple[int, ...] = ()

    @property
    def recorded_views(self) -> list[int] | None:
        """The recorded views that the training depends on, if on any."""
        return list(self.averaged or self.views or ()) or None

    @property
    def all_caches(self) -> list[Cache]:
        """Each cache once."""
        return list({cache.folder: cache for cache in [*self.caches, *self.hints.values()]}.values())

    def classes(self) -> int:
        """Width of the logits."""
        every = self.all_caches
        return every[0].manifest.identity.classes if every else len(self.viewed.samples.classes)

    def hint_shapes(self, layers: Sequence[str]) -> list[Shape]:
        """Shapes of the teacher's activations, without the batch."""
        if self.live is None:
            return [tuple(self.hints[layer].manifest.hint(hint_column(layer)).shape) for layer in layers]
        with torch.inference_mode(), Taps(self.live.model, layers) as taps:
            self.live.eval()(self.viewed.clean(np.arange(1)))
            return [tuple(taps[layer].shape[1:]) for layer in layers]

    def columns(self) -> list[tuple[Cache, str]]:
        """What is read batch by batch; nothing where targets come live or don't go with a view."""
        if self.live is not None or self.views is None:
            return []
        hinted = [(cache, hint_column(layer)) for layer, cache in self.hints.items()]
        return [*((cache, LOGITS) for cache in self.caches), *hinted]

    def teacher(
        self,
        config: TrainConfig,
        device: torch.device,
        *,
        resident: bool,
        logits: bool,
        hints: bool,
        windows: Windows | None = None,
    ) -> TargetSource | None:
        """Who answers in a stage that needs these; None where labels are all."""
        layers = sorted({layer for term in config.hint_terms() for layer in term.teacher}) if hints else []
        if self.live is not None:
            return LiveTargets(self.live.to(DTYPES[config.dtype]), layers, device, config.amp)
        columns = {layer: self.hints[layer] for layer in layers}
        caches = self.caches if logits else []
        if not caches and not columns:
            return None
        if config.targets == "mean":
            return MeanTargets(caches, self.averaged, device)
        assert self.views is not None
        per_view = CachedTargets.bytes_per_view(caches, columns)
        room = memory_budget(device)  # of what the pixels left
        keep = max(1, min(len(self.views), room // max(per_view, 1)))
        fits = config.resident == "device" or config.views_per_image * per_view <= room
        hold = resident and windows is None and fits
        return CachedTargets(caches, columns, device, hold=hold, keep_views=keep, blocks=windows)


def open_source(config: TrainConfig) -> TrainingData:
    """Opens and checks everything that pixels, soft targets and hints come from, and writes nothing.

    Errors: ``CacheError`` where caches don't fit the data, each other, or lack a hint; ``PixelsError`` where the
    pixels are not those that the teacher saw.
    """
    data: dict[str, Any] = {"data_dir": config.data_dir, "download": config.download}
    if config.alone or config.online:
        dataset, size = default_data(config.teacher if config.online else None, config.dataset, config.size)
        viewed = open_viewed(
            dataset, "train", augment=config.augment, view_seed=config.view_seed or 0, size=size, **data
        )
        # A labels-only run sees a fresh view every epoch, so that the baseline isn't handicapped.
        views = config.views or (None if config.alone else DEFAULT_VIEWS)
        live = None
        if config.online:
            assert config.teacher is not None
            live = find_teacher(
                config.teacher, viewed.samples, weights=config.teacher_weights, size=config.teacher_size
            )
        return TrainingData(viewed, dataset, None if views is None else tuple(range(views)), live=live)
    others = [Cache(pick_cache(name), verify_reads=config.verify_reads) for name in config.hint_cache]
    names: tuple[str | None, ...] = config.cache
    if not names and not (others and config.alpha_is_zero()):
        names = (None,)
    caches = [Cache(pick_cache(name), verify_reads=config.verify_reads) for name in names]
    _refuse_twice(caches)
    hints = _find_hints(config, [*others, *caches])
    leading = [*caches, *others][0]
    first = leading.manifest
    recipe = first.identity.recipe
    dataset, augment = recorded_dataset(leading, config.dataset), recorded_recipe(leading, config.augment)
    for name, asked, recorded in (
        ("size", config.size, recipe["size"]),
        ("view-seed", config.view_seed, recipe["seed"]),
    ):
        if asked is not None and asked != recorded:
            raise UsageError(f"--{name} {asked}: the cache was made with {recorded}; its views can't be changed now")
    viewed = open_viewed(
        dataset,
        first.identity.dataset.split,
        augment=augment,
        view_seed=recipe["seed"],
        size=recipe["size"],
        **data,
    )
    if config.targets == "mean" and viewed.recipe.mix is not None:
        raise UsageError(
            f"--targets mean: {viewed.recipe} mixes a row with another in each view, so its mean says nothing of the "
            "row: use --targets matched"
        )
    # Where alpha is 0 the logits aren't read, so that only what the hints need has to be there.
    logits = [] if config.alpha_is_zero() else caches
    source = TrainingData(viewed, dataset, None, logits, hints, named=caches, lent=others)
    visited = complete_views(source.caches, source.hints, config.views)
    check_dataset(leading, viewed)
    for cache in source.all_caches:
        check_dataset(cache, viewed, recipe=False)
    check_together([leading, *source.all_caches], visited)
    for cache in source.all_caches:
        check_pixels(cache, viewed, accept_close=config.pixels == "close")
    if config.targets == "matched":
        source.views = visited
    else:
        source.averaged = visited
    return source


def complete_views(caches: Sequence[Cache], hints: dict[str, Cache], count: int | None) -> tuple[int, ...]:
    """The first ``count`` (or all) of the views of which every column that is needed is there.

    Errors: ``CacheError`` where there are fewer.
    """
    columns = [(cache, LOGITS) for cache in caches] + [(c, hint_column(layer)) for layer, c in hints.items()]
    complete = sorted(set.intersection(*(set(cache.complete_views(column)) for cache, column in columns)))
    if len(complete) < (count or 1):
        folders = ", ".join(dict.fromkeys(str(cache.folder) for cache, _ in columns))
        together = " that all have" if len({cache.folder for cache, _ in columns}) > 1 else ""
        raise CacheError(
            f"{folders} has {len(complete)} complete views{together}, {count or 1} are asked for: "
            "run softcache dump again to complete it"
        )
    return tuple(complete[:count])


def _refuse_twice(caches: Sequence[Cache]) -> None:
    seen: dict[str, Path] = {}
    for cache in caches:
        other = seen.setdefault(cache.manifest.cache_id, cache.folder)
        if len(seen) < len(caches) and other is not cache.folder:
            raise UsageError(f"--cache {other} and --cache {cache.folder} are one cache: leave one out")


def _find_hints(config: TrainConfig, caches: Sequence[Cache]) -> dict[str, Cache]:
    """The first cache that has each of the teacher's layers."""
    found: dict[str, Cache] = {}
    for term in config.hint_terms():
        for layer in term.teacher:
            column = hint_column(layer)
            having = [cache for cache in caches if column in cache.manifest.columns]
            if not having:
                raise CacheError(_lacking(layer, caches))
            found[layer] = having[0]
    return found


def _lacking(layer: str, caches: Sequence[Cache]) -> str:
    held = "; ".join(f"{c.folder} has {', '.join(c.manifest.state.hints) or 'none'}" for c in caches)
    cache = caches[0]
    made, dataset = cache.manifest.state.made, cache.manifest.identity.dataset
    command = [
        "softcache", "dump", "--teacher", made.get("teacher", cache.manifest.identity.teacher.spec),
        "--dataset", made.get("dataset", dataset.spec), "--split", dataset.split,
        "--hint", layer, "--out", cache.folder,
    ]  # fmt: skip
    return f"no cache has the hint {layer!r} ({held}): add it with `{shlex.join(map(str, command))}`"
