"""Run the teacher once per key: ``softcache dump``."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

import softcache
from softcache import registry
from softcache.cache.atomic import remove_dead_parts
from softcache.cache.locks import writing
from softcache.cache.reader import Cache
from softcache.cache.schema import (
    KEPT_SAMPLES,
    LOGITS,
    MANIFEST,
    MAX_SHARD_BYTES,
    VERSION,
    Dataset,
    HintColumn,
    Identity,
    Manifest,
    Numerics,
    Teacher,
    hint_column,
)
from softcache.cache.virtual import write_virtual
from softcache.cache.writer import create_or_extend, plan, refuse_other, update_state
from softcache.console import say, warn
from softcache.distributed import rank, world
from softcache.errors import UsageError
from softcache.models._hooks import Taps, classifier_path
from softcache.models._network import Network
from softcache.models._weights import fingerprint, fingerprint_file_cached
from softcache.stages.estimate import Estimate, estimate, refuse_too_large
from softcache.stages.places import cache_folder, find_teacher, make_folder, open_viewed
from softcache.training.config import pick_device
from softcache.training.dumping import Forward, run_blocks
from softcache.views._viewed import ViewedDataset

DEFAULT_VIEWS = 4
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class DumpConfig:
    """What ``dump`` was asked for.

    ``batch_size`` is part of what the numbers are (another batch gives other last bits), so it is recorded and a
    resumed dump takes the recorded one. ``part``: (k, n) does the k-th of n shares of the work.
    """

    teacher: str = "resnet50"
    dataset: str = "digits"
    split: str = "train"
    data_dir: str | None = None
    download: bool = False
    teacher_weights: str | None = None
    normalize: str | None = None
    augment: str | None = None
    views: int | None = None
    view_seed: int = 0
    size: int | None = None
    hints: tuple[str, ...] = ()
    hint_dtype: str = "float16"
    codec: str = "fp16"
    batch_size: int | None = None
    shard_rows: int | None = None
    dtype: str = "float32"
    amp: str = "off"
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    device: str = "auto"
    workers: int = -1
    part: tuple[int, int] | None = None
    fingerprint: str = "quick"

    def __post_init__(self) -> None:
        if self.views is not None and self.views < 1:
            raise UsageError(f"--views must be at least 1, is {self.views}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, is {self.batch_size}")
        if self.shard_rows is not None and (self.shard_rows < 1 or self.shard_rows & (self.shard_rows - 1)):
            raise UsageError(f"--shard-rows must be a power of two, is {self.shard_rows}")
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise UsageError(f"--part {self.part[0]}/{self.part[1]}: the first number must be 1 … {self.part[1]}")
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype!r} is unknown: float32, float64")


@dataclass
class Dumped:
    """The cache's folder, keys computed now, seconds spent in this call, and the teacher's top-1 on the labels."""

    folder: Path
    keys: int
    seconds: float
    teacher_top1: float | None = None
    info: dict[str, Any] = field(default_factory=dict)
    estimate: Estimate | None = None


def dump(teacher: str = "resnet50", *, out: str | Path | None = None, dry_run: bool = False, **options: Any) -> Dumped:
    """Computes what is missing of a cache and says what it then is.

    ``options``: the fields of ``DumpConfig``. Errors: ``CacheError`` where ``out`` holds a cache of another
    identity or the disk is too small, ``LockedError`` where another process writes the same part,
    ``NumericsError`` with the key for logits that are not finite or don't fit the codec.
    """
    config = DumpConfig(teacher=teacher, **options)
    began = time.perf_counter()
    viewed = open_viewed(
        config.dataset,
        config.split,
        data_dir=config.data_dir,
        download=config.download,
        augment=config.augment,
        view_seed=config.view_seed,
        size=config.size,
    )
    folder = Path(out) if out is not None else cache_folder(config.teacher, viewed.samples.spec, config.split)
    existing = Manifest.load(folder) if (folder / MANIFEST).exists() else None
    views = config.views or (existing.state.views if existing else DEFAULT_VIEWS)
    network = find_teacher(config.teacher, viewed.samples, weights=config.teacher_weights, normalize=config.normalize)
    device = pick_device(config.device)
    identity = identify(network, viewed, config, device, existing.identity if existing else None)
    if existing:
        refuse_other(existing.identity, identity, folder)
        absent = Cache(folder).missing(existing.columns, views)
        if (
            not absent
            and all(layer in existing.state.hints for layer in config.hints)
            and views <= existing.state.views
        ):
            return Dumped(folder, 0, time.perf_counter() - began, existing.state.teacher_top1, Cache(folder).describe())
    network = network.to(device, DTYPES[config.dtype]).eval()
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    set_tf32(config.tf32)
    layers = sorted({*config.hints, *(existing.state.hints if existing else ())})
    forward = Forward(network, layers, device, amp=config.amp, compiled=config.compile, hint_dtype=config.hint_dtype)
    hints = hint_shapes(forward, viewed, config, existing)
    guess = estimate(forward, viewed, identity, hints, views, folder)
    if dry_run:
        return Dumped(folder, 0, time.perf_counter() - began, estimate=guess)
    refuse_too_large(guess, folder)
    make_folder(folder)
    part = config.part or (rank() + 1, world())
    with writing(folder, part):
        for leftover in remove_dead_parts(folder):
            say(f"removed {leftover.name}: its writer is gone")
        cache = create_or_extend(
            folder,
            identity,
            views=views,
            hints=hints,
            made=provenance(config, viewed),
            labels=viewed.samples.labels,
            names=viewed.samples.names,
            samples=kept_samples(viewed),
        )
        blocks = plan(cache, views, cache.manifest.columns, part)
        keys = sum(block.rows for block in blocks)
        say(
            f"dump {network.spec} on {config.dataset}/{config.split}: {cache.rows:,} rows × {views} views, "
            f"recipe {viewed.recipe}, codec {identity.codec}, hints {', '.join(layers) or 'none'}, on {device}; "
            f"{keys:,} of {cache.rows * views:,} keys to compute"
        )
        measured = run_blocks(cache, viewed, forward, blocks, workers=config.workers)
        if measured and not cache.manifest.state.codec_error:
            update_state(folder, codec_error=measured)
        finish(folder)
    cache = Cache(folder)
    return Dumped(folder, keys, time.perf_counter() - began, cache.manifest.state.teacher_top1, cache.describe())


def identify(
    network: Network,
    viewed: ViewedDataset,
    config: DumpConfig,
    device: torch.device,
    recorded: Identity | None,
) -> Identity:
    """All that the numbers depend on. Batch and shard sizes that weren't asked for are those recorded."""
    samples = viewed.samples
    weights = (
        fingerprint_file_cached(network.weights_path, lambda: fingerprint(network.model.state_dict()))
        if network.weights_path is not None
        else fingerprint(network.model.state_dict())
    )
    codec = registry.canonical(registry.split_spec(config.codec)[0], registry.create("codecs", config.codec))
    batch = config.batch_size or (recorded.teacher.numerics.batch if recorded else default_batch(viewed, device))
    rows = config.shard_rows or (
        recorded.shard_rows if recorded else default_shard_rows(viewed, network.classes, device)
    )
    numerics = Numerics(
        dtype=config.dtype,
        amp=config.amp,
        tf32=config.tf32,
        memory_format="channels_last" if config.channels_last else "contiguous",
        compile=config.compile,
        device=device.type,
        batch=batch,
    )
    teacher = Teacher(
        portable(network.spec),
        weights,
        network.preprocess.to_dict(),
        classifier_path(network.model, network.classes),
        numerics,
    )
    dataset = Dataset(
        portable(samples.spec),
        samples.split,
        len(samples),
        list(samples.classes),
        samples.fingerprint(full=config.fingerprint == "full"),
    )
    return Identity(VERSION, teacher, dataset, viewed.identity(), network.classes, codec, rows)


def portable(spec: str) -> str:
    """A spec without where things lie on this machine: a cache may be copied to another."""
    source, colon, rest = spec.partition(":")
    if colon and "/" in rest:
        return f"{source}:{Path(rest).name}"
    return Path(spec).name if "/" in spec else spec


def default_batch(viewed: ViewedDataset, device: torch.device) -> int:
    """Rows that a forward pass takes at once: enough to keep a device busy, few enough to fit."""
    if device.type == "cpu":
        return 64 if viewed.size <= 64 else 16
    return 512 if viewed.size <= 64 else 128


def default_shard_rows(viewed: ViewedDataset, classes: int, device: torch.device) -> int:
    """Rows of a shard: at most 512 MiB of float32 logits, and no more than some minutes of a teacher's work."""
    rows = 32768 if device.type != "cpu" else 16384 if viewed.size <= 64 else 4096
    while rows > 1 and rows * classes * 4 > MAX_SHARD_BYTES:
        rows //= 2
    return rows


def hint_shapes(
    forward: Forward, viewed: ViewedDataset, config: DumpConfig, existing: Manifest | None
) -> dict[str, HintColumn]:
    """Shape, dtype and shard size of each layer asked for, from one run of the teacher on one row."""
    found = dict(existing.state.hints) if existing else {}
    new = [layer for layer in config.hints if layer not in found]
    for layer in new:
        hint_column(layer)  # refuses what can't be a path
    if not new:
        return found
    with torch.inference_mode(), Taps(forward.network.model, new) as taps:
        forward.network(viewed.batch(np.arange(1), 0).to(forward.device))
        shapes = {layer: list(taps[layer].shape[1:]) for layer in new}
    item = 2 if config.hint_dtype == "float16" else 4
    for layer, shape in shapes.items():
        rows = default_shard_rows(viewed, forward.network.classes, forward.device)
        rows = min(rows, config.shard_rows or (existing.identity.shard_rows if existing else rows))
        while rows > 1 and rows * int(np.prod(shape)) * item > MAX_SHARD_BYTES:
            rows //= 2
        found[layer] = HintColumn(shape, config.hint_dtype, rows)
    return dict(sorted(found.items()))


def kept_samples(viewed: ViewedDataset) -> tuple[np.ndarray, np.ndarray]:
    """Rows spread over the dataset and their pixels in view 0, so that a mismatch can be looked at later."""
    rows = np.unique(np.linspace(0, len(viewed) - 1, KEPT_SAMPLES).astype(np.int64))
    return rows, viewed.batch(rows, 0).numpy()


def provenance(config: DumpConfig, viewed: ViewedDataset) -> dict[str, Any]:
    """How the cache was made: recorded, and no part of its identity."""
    return {
        "softcache": softcache.__version__,
        "torch": str(torch.__version__),
        "torchvision": _version("torchvision"),
        "pillow": _version("pillow"),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "command": " ".join(Path(sys.argv[0]).name if i == 0 else a for i, a in enumerate(sys.argv)),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "teacher": config.teacher,
        "dataset": viewed.samples.spec,
    }


def finish(folder: Path) -> None:
    """Once nothing is missing: the teacher's accuracy on the labels, and the one file over all shards."""
    cache = Cache(folder)
    if cache.missing(cache.manifest.columns, cache.views):
        return
    if cache.manifest.state.teacher_top1 is None:
        top1 = teacher_accuracy(cache)
        if top1 is not None:
            update_state(folder, teacher_top1=top1)
            classes = cache.manifest.identity.classes
            if classes > 1 and top1 < 2.0 / classes:
                warn(
                    f"the teacher's top-1 on the labels is {100 * top1:.2f} %, chance is {100 / classes:.2f} %: "
                    "look for another class order, other channels or normalization, or weights that weren't loaded"
                )
    write_virtual(Cache(folder))


def teacher_accuracy(cache: Cache) -> float | None:
    """Share of labelled rows of view 0 whose largest logit is the label's; ``None`` without labels."""
    rows = np.flatnonzero(cache.labels >= 0)
    if not len(rows):
        return None
    reader, hits = cache.column(LOGITS), 0
    for first in range(0, len(rows), 4096):
        some = rows[first : first + 4096]
        arrays = reader.gather(0, some)
        arrays.pop("digest")
        coded = {name.removeprefix("logits/"): torch.from_numpy(a) for name, a in arrays.items()}
        hits += int((cache.codec.decode(coded).argmax(1).numpy() == cache.labels[some]).sum())
    return hits / len(rows)


def set_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
