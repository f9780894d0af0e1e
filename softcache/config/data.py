"""Opens what a training learns from: the data, the caches of targets, a live teacher."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from softcache.cache.agreement.data import check_dataset, check_together
from softcache.cache.agreement.digests import CloseRows
from softcache.cache.agreement.labels import agreed_labels
from softcache.cache.agreement.samples import check_pixels, close_rows
from softcache.cache.manifest import Manifest, find_caches
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, hint_column, is_hint, layer_of, share_of
from softcache.cache.shares import places_in
from softcache.config.caches import check_outputs, complete_views, find_hints, refuse_twice
from softcache.config.dump import default_views
from softcache.config.given import recorded_dataset, recorded_recipe, remember_cache
from softcache.config.opening import Opening, bytes_of
from softcache.config.parsed import Parsed
from softcache.config.strong import Strong, open_strong
from softcache.config.teachers import default_data, find_teacher
from softcache.config.train import TrainConfig
from softcache.device import DTYPES
from softcache.dumping.forward import Forward
from softcache.dumping.identity import weights_fingerprint
from softcache.dumping.shapes import Shapes, SignalShape
from softcache.dumping.signals import Signal
from softcache.errors import CacheError, UsageError
from softcache.losses.hints._shapes import Shape
from softcache.models._arithmetic import Arithmetic
from softcache.models._network import Network
from softcache.models._takes import refuse_other_inputs
from softcache.ragged import Int64, places_of
from softcache.remembered import portable
from softcache.stream.batches import TargetSource
from softcache.stream.both import BothTargets
from softcache.stream.mean import MeanTargets
from softcache.stream.memory import memory_budget
from softcache.stream.paired import PairedTargets
from softcache.stream.targets import CachedTargets, LiveTargets
from softcache.stream.windows import Windows
from softcache.views._open import Viewed, open_viewed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What is trained on: inputs, and where their targets come from.

    ``outputs``: name of an output that is learnt → the caches that it is read from, in the order given, the network of
    ``--online`` instead where there are none; ``hints``: teacher's layer → the cache that has it; ``live``: the
    network of ``--online``, and ``live_weights`` the fingerprint of its parameters; ``named``, ``lent``: the caches of
    ``--cache`` and ``--hint-cache``; ``views``: the
    recorded views that are visited, None for a fresh one every epoch; ``averaged``: those whose mean is the target of a
    fresh view; with ``views`` beside it, for a share of each batch. ``close``: by a cache's folder, the rows whose
    pixels may differ from what its teacher saw; None where none may. ``strong``: what each row is seen in beside a view
    of ``viewed``, in a view of the same number.
    """

    viewed: Viewed
    dataset: str
    views: tuple[int, ...] | None
    outputs: dict[str, list[Cache]] = field(default_factory=dict)
    hints: dict[str, Cache] = field(default_factory=dict)
    live: Network | None = None
    live_weights: str = ""
    named: list[Cache] = field(default_factory=list)
    lent: list[Cache] = field(default_factory=list)
    averaged: tuple[int, ...] = ()
    close: dict[Path, CloseRows] | None = None
    strong: Strong | None = None
    _shapes: dict[str, SignalShape] = field(default_factory=dict)

    @property
    def recorded_views(self) -> list[int] | None:
        """The recorded views that the training depends on, if on any."""
        return list(self.averaged or self.views or ()) or None

    @property
    def every_cache(self) -> list[Cache]:
        """Those that were named or are read, each once."""
        strong = [self.strong.cache] if self.strong is not None else []
        return list({cache.folder: cache for cache in [*self.named, *self.lent, *self.all_caches, *strong]}.values())

    @property
    def teachers(self) -> list[dict[str, str]]:
        """Those that targets are of, as a record has them: their specs, and the fingerprints of their parameters."""
        if self.live is not None:
            return [{"teacher": portable(self.live.spec), "weights": self.live_weights}]
        found: dict[str, dict[str, str]] = {}
        for cache in self.every_cache:
            teacher = cache.manifest.identity.teacher
            found.setdefault(teacher.weights, {"teacher": teacher.spec, "weights": teacher.weights})
        return list(found.values())

    @property
    def all_caches(self) -> list[Cache]:
        """Those that targets are read from, each once, but for the strong one."""
        caches = [cache for caches in self.outputs.values() for cache in caches]
        return list({cache.folder: cache for cache in [*caches, *self.hints.values()]}.values())

    def narrowed(self, outputs: Sequence[str], layers: Sequence[str]) -> TrainingData:
        """The same, of which only these outputs and layers of the teacher are read."""
        return dataclasses.replace(
            self,
            outputs={name: caches for name, caches in self.outputs.items() if name in outputs},
            hints={layer: cache for layer, cache in self.hints.items() if layer in layers},
        )

    def quick_fingerprint(self) -> str | None:
        """That of the samples, where a cache of them has recorded it."""
        for cache in self.every_cache:
            if cache.manifest.state.made.get("fingerprint") == "quick":
                return cache.manifest.identity.dataset.fingerprint
        return None

    def classes(self) -> int:
        """How many logits a sample has: those of the teachers, else as many as the dataset has classes or outputs."""
        widths = [cache.layout(LOGITS).width for cache in self.every_cache if LOGITS in cache.manifest.columns]
        return widths[0] if widths else len(self.viewed.samples.classes)

    def kind_of(self, output: str) -> str | None:
        """The kind of an output of the teacher. Of a live teacher logits are of the kind of the dataset's labels, and
        nobody knows that of others: None."""
        for cache in self.outputs.get(output, ()):
            return cache.layout(output).kind
        return self.viewed.samples.label_kind if output == LOGITS else None

    def output_shape(self, output: str) -> Shape:
        """That of one key's output of the teacher; of one place where rows have lengths of their own."""
        return self._shape(output).tail

    def hint_shapes(self, layers: Sequence[str]) -> list[Shape]:
        """Shapes of the teacher's activations, without the batch; of one place where rows have lengths of their own."""
        return [self._shape(hint_column(layer)).tail for layer in layers]

    def ragged(self, column: str) -> bool:
        """Whether an output or hint of the teacher has rows that have lengths of their own."""
        return self._shape(column).lengths is not None

    def places(self, columns: Sequence[str]) -> dict[str, Int64]:
        """(N,) how many places each row has, of those of these columns in which rows have different numbers of them:
        as many as an input is long, or one in those of a share of the rows."""
        found = {}
        for column in columns:
            shape, share = self._shape(column), share_of(column)
            if share is not None:
                found[column] = places_in(share, len(self.viewed))
            elif shape.lengths is not None:
                found[column] = places_of(self.viewed.lengths()[shape.lengths], shape.stride)
        return found

    def _shape(self, column: str) -> SignalShape:
        """As a cache has it or, of a live teacher, as a dump would find it."""
        if column not in self._shapes:
            self._shapes[column] = self._find_shape(column)
        return self._shapes[column]

    def _find_shape(self, column: str) -> SignalShape:
        if self.live is not None:
            live = self.live.eval()
            forward = Forward(live, [column], torch.device("cpu"))
            return Shapes(forward, self.viewed, [Signal(column, "values")]).find(Signal(column, "values"))
        cache = self.hints[layer_of(column)] if is_hint(column) else self.outputs[column][0]
        layout = cache.layout(column)
        return SignalShape([*([] if layout.lengths is None else [None]), *layout.shape], layout.lengths, layout.stride)

    def columns(self) -> list[tuple[Cache, str]]:
        """What is read batch by batch; nothing where targets come live or don't go with a view."""
        if self.live is not None or self.views is None:
            return []
        return self.recorded

    def room(self, local_size: str) -> int | None:
        """Bytes of this machine for files that come from stores; None where none do."""
        rooms = [cache.remote.room for cache in self.every_cache if cache.remote is not None]
        return min([*rooms, bytes_of(local_size, "--local-size")]) if rooms else None

    @property
    def recorded(self) -> list[tuple[Cache, str]]:
        """The columns that targets are made of."""
        hinted = [(cache, hint_column(layer)) for layer, cache in self.hints.items()]
        strong = [(self.strong.cache, name) for name in self.outputs] if self.strong is not None else []
        return [*((cache, name) for name, caches in self.outputs.items() for cache in caches), *strong, *hinted]

    def targets(
        self,
        device: torch.device,
        *,
        outputs: Sequence[str],
        layers: Sequence[str],
        arithmetic: Arithmetic | None,
        views_per_image: int,
        resident: bool,
        hold_all: bool,
        windows: Windows | None,
    ) -> TargetSource | None:
        """Where the targets of a stage come from, which needs these outputs or layers of the teacher; None where it
        needs none.

        ``arithmetic``: that of a live teacher. ``resident``: whether inputs lie on the device; targets then
        lie there too where they fit, or in any case with ``hold_all``. ``windows``: the order in which they are read.
        """
        if not (outputs or layers):
            return None
        if self.live is not None:
            assert arithmetic is not None
            places = self.places([*outputs, *map(hint_column, layers)])
            return LiveTargets(arithmetic.apply(self.live), outputs, layers, device, arithmetic.amp, places=places)
        columns = {layer: self.hints[layer] for layer in layers}
        caches = {name: self.outputs[name] for name in outputs}
        means = MeanTargets(caches, self.averaged, device) if self.averaged else None
        if self.views is None:
            return means
        strong = {name: [self.strong.cache] for name in outputs} if self.strong is not None else {}
        per_view = CachedTargets.bytes_per_view(caches, columns) + CachedTargets.bytes_per_view(strong, {})
        room = memory_budget(device)  # of what the inputs and means left
        keep = max(1, min(len(self.views), room // max(per_view, 1)))
        fits = hold_all or views_per_image * per_view <= room
        hold = resident and windows is None and fits
        recorded = CachedTargets(caches, columns, device, hold=hold, keep_views=keep, blocks=windows)
        if strong:
            return PairedTargets(
                recorded, CachedTargets(strong, {}, device, hold=hold, keep_views=keep, blocks=windows)
            )
        return recorded if means is None else BothTargets(recorded, means)


def open_data(
    parsed: Parsed, view_numbers: Sequence[int] | None = None, *, columns: Sequence[str] | None = None
) -> TrainingData:
    """Opens and checks everything that inputs, soft targets and hints come from, and writes nothing.

    ``view_numbers``: the recorded views that a run began with, if it is resumed. ``columns``: what is read of the named
    caches, where it isn't what losses and hint losses need. Errors: ``CacheError`` where caches
    don't fit the data, each other, or lack a hint or a view; ``PixelsError`` where the pixels are not those that the
    teacher saw.
    """
    options = parsed.options
    if options.online or (parsed.labels_alone and not options.cache):
        return _open_without_cache(parsed)
    others = [_open_cache(name, options, "--hint-cache") for name in options.hint_cache]
    names: tuple[str | None, ...] = options.cache
    if not names and (parsed.losses or not others):
        names = (None,)
    caches = [_open_cache(name, options, "--cache") for name in names]
    refuse_twice(caches)
    leading = [*caches, *others][0]
    viewed, dataset = _open_recorded(leading, options)
    check_dataset(leading, viewed)
    for cache in [*caches, *others]:
        check_dataset(cache, viewed, recipe=False)
    viewed.samples = agreed_labels([*caches, *others], viewed.samples, options.labels)
    # Where alpha is 0 the logits aren't read, so that only what the hints need has to be there.
    read = {name: caches for name in parsed.outputs if columns is None}
    check_outputs(read)
    data = TrainingData(
        viewed, dataset, None, read, find_hints(parsed.teacher_layers, [*others, *caches]), named=caches, lent=others
    )
    if options.strong_cache is not None:
        beside = _open_cache(options.strong_cache, options, "--strong-cache")
        data = dataclasses.replace(data, strong=open_strong(beside, leading, viewed, read, options.labels))
    if parsed.labels_alone:  # the baseline beside a cache: its data and recipe, in fresh views
        return dataclasses.replace(data, views=_first(options.views))
    needed = data.recorded if columns is None else [(cache, name) for cache in caches for name in columns]
    for cache, name in needed:
        if cache.layout(name).keeps_leaders and options.targets != "matched":  # layout refuses one that isn't there
            raise UsageError(
                f"--targets {options.targets} takes means of whole vectors over views, and {cache.where} keeps the "
                f"largest of {name} in each view: use --targets matched, or a cache in int:bits=5"
            )
    visited = complete_views(needed, options.views, view_numbers)
    # the strong cache is of other pixels by intent, and compared with the data when it is opened
    weak = [cache for cache, _ in needed if data.strong is None or cache is not data.strong.cache]
    used = list({cache.folder: cache for cache in weak}.values())
    check_together([leading, *used], visited)
    if options.pixels == "close":
        trained = visited[0] if options.targets != "mean" else None  # a mean's pixels are others by intent
        close = {cache.folder: close_rows(cache, viewed, trained) for cache in used}
        data = dataclasses.replace(data, close=close)
    else:
        for cache in used:
            check_pixels(cache, viewed)
    remember_cache(leading, dataset=dataset, augment=options.augment)
    recorded, averaged = options.targets != "mean", options.targets != "matched"
    return dataclasses.replace(data, views=visited if recorded else None, averaged=visited if averaged else ())


def _open_without_cache(parsed: Parsed) -> TrainingData:
    """The data of a training on labels alone, or with a live teacher."""
    options = parsed.options
    dataset, size = default_data(options.teacher if options.online else None, options.dataset, options.size)
    viewed = open_viewed(
        dataset,
        "train",
        augment=options.augment,
        view_seed=options.view_seed or 0,
        size=size,
        data_dir=options.data_dir,
        download=options.download,
    )
    if not options.online:
        _tell_of_caches(dataset, options)
        # It sees a fresh view every epoch, so that the baseline isn't handicapped.
        return TrainingData(viewed, dataset, _first(options.views))
    assert options.teacher is not None
    live = find_teacher(options.teacher, viewed.samples, weights=options.teacher_weights, size=options.teacher_size)
    if options.dtype == "float32":  # parameters in another dtype may be too many for float32
        some = viewed.clean(np.arange(2) % len(viewed))
        refuse_other_inputs(live, some, viewed.inputs, viewed.samples.spec, "--dataset", tf32=options.tf32)
    weights = weights_fingerprint(live)  # before its dtype changes
    live = live.to(DTYPES[options.dtype])
    views = _first(options.views or default_views(viewed.recipe))
    return TrainingData(viewed, dataset, views, live=live, live_weights=weights)


def _open_cache(name: str | None, options: TrainConfig, option: str) -> Cache:
    """Errors: ``CacheError`` also where its codec is code that wasn't named."""
    where = Opening(options.expect, options.local_cache, options.local_size)
    cache = where.open(name, option=option, verify_reads=options.verify_reads, codec=options.codec)
    cache.check_codecs()
    remember_cache(cache, codec=options.codec)
    return cache


def _tell_of_caches(dataset: str, options: TrainConfig) -> None:
    """Warns a baseline that nobody gave a dataset to, where all caches that are there are of other data."""
    found = {}
    for folder in find_caches() if options.dataset is None else ():
        with contextlib.suppress(CacheError):  # a damaged one is no reason not to train without it
            found[folder] = Manifest.load(folder).identity.dataset.spec
    if found and dataset not in found.values():
        log.warning(
            f"labels alone on {dataset}, while {', '.join(map(str, found))} is of other data: for a baseline beside a "
            "cache pass --cache"
        )


def _open_recorded(cache: Cache, options: TrainConfig) -> tuple[Viewed, str]:
    """The data of a cache in its views, and the dataset's spec.

    Errors: ``UsageError`` where other views are asked for.
    """
    identity = cache.manifest.identity
    recipe = identity.recipe
    dataset, augment = recorded_dataset(cache, options.dataset), recorded_recipe(cache, options.augment)
    for name, asked, recorded in (
        ("size", options.size, recipe.get("size")),
        ("view-seed", options.view_seed, recipe["seed"]),
    ):
        if asked is not None and asked != recorded:
            raise UsageError(f"--{name} {asked}: the cache was made with {recorded}; its views can't be changed now")
    viewed = open_viewed(
        dataset,
        identity.dataset.split,
        augment=augment,
        view_seed=recipe["seed"],
        size=recipe.get("size"),
        data_dir=options.data_dir,
        download=options.download,
    )
    if options.targets != "matched" and viewed.recipe.mix is not None:
        raise UsageError(
            f"--targets {options.targets}: {viewed.recipe} mixes a row with another in each view, so its mean says "
            "nothing of the row: use --targets matched"
        )
    return viewed, dataset


def _first(views: int | None) -> tuple[int, ...] | None:
    return None if views is None else tuple(range(views))
