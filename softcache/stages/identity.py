"""What a dump's numbers depend on, settled before anything runs: the options, the identity, and how it was made."""

from __future__ import annotations

import dataclasses
import platform
import re
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

import softcache
from softcache import registry
from softcache.cache.reader import Cache
from softcache.cache.schema import MAX_SHARD_BYTES, VERSION, Dataset, Identity, Manifest, Numerics, Teacher
from softcache.datasets._index import keep_fingerprint
from softcache.datasets._index import known_fingerprint as known_data_fingerprint
from softcache.datasets._samples import Samples
from softcache.errors import UsageError, nearest
from softcache.models._hooks import classifier_path
from softcache.models._network import Network
from softcache.models._open import open_network, weights_file
from softcache.models._weights import fingerprint, fingerprint_file_cached, known_fingerprint
from softcache.stages.places import teacher_source
from softcache.stages.trust import recorded_recipe
from softcache.views._viewed import ViewedDataset

DTYPES = {"float32": torch.float32, "float64": torch.float64}
DEFAULTS: dict[str, Any] = {
    "codec": "fp16",
    "dtype": "float32",
    "amp": "off",
    "tf32": False,
    "channels_last": False,
    "compile": False,
    "view_seed": 0,
    "fingerprint": "quick",
}


@dataclass(frozen=True)
class DumpConfig:
    """What ``dump`` was asked for. ``None``: as the cache has it, or a default where there is no cache yet.

    ``batch_size`` and the numerics are part of what the numbers are (another batch gives other last bits), so they
    are recorded, and a resumed dump takes the recorded ones. ``teacher_size``: the side of the teacher's input, where
    it isn't that of the views. ``dataset``: by default the one that the teacher was trained on, if its folder says so.
    ``part``: (k, n) does the k-th of n shares of the work.
    """

    teacher: str = "resnet50"
    dataset: str | None = None
    split: str = "train"
    data_dir: str | None = None
    download: bool = False
    teacher_weights: str | None = None
    normalize: str | None = None
    teacher_size: int | None = None
    augment: str | None = None
    views: int | None = None
    view_seed: int | None = None
    size: int | None = None
    hints: tuple[str, ...] = ()
    hint_dtype: str | None = None
    codec: str | None = None
    batch_size: int | None = None
    shard_rows: int | None = None
    dtype: str | None = None
    amp: str | None = None
    tf32: bool | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    device: str = "auto"
    workers: int = -1
    part: tuple[int, int] | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.views is not None and self.views < 1:
            raise UsageError(f"--views must be at least 1, is {self.views}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, is {self.batch_size}")
        if self.shard_rows is not None and (self.shard_rows < 1 or self.shard_rows & (self.shard_rows - 1)):
            raise UsageError(f"--shard-rows must be a power of two, is {self.shard_rows}")
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise UsageError(f"--part {self.part[0]}/{self.part[1]}: the first number must be 1 … {self.part[1]}")
        for name, known in (
            ("dtype", tuple(DTYPES)),
            ("amp", ("off", "bf16", "fp16")),
            ("hint_dtype", ("float16", "float32")),
            ("fingerprint", ("quick", "full")),
        ):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise UsageError(f"--{name.replace('_', '-')} {value!r} is unknown{nearest(value, known)}")

    def settled(self, cache: Cache | None) -> DumpConfig:
        """With every choice made that needs neither data nor teacher: as asked, else as recorded, else the default.

        Errors: ``UsageError`` for hints of a compiled teacher.
        """
        recorded = dict(DEFAULTS) if cache is None else _recorded(cache, self.augment)
        chosen = {key: value for key, value in recorded.items() if getattr(self, key) is None}
        settled = dataclasses.replace(self, **chosen)
        if settled.compile and (settled.hints or (cache and cache.manifest.state.hints)):
            raise UsageError(
                "--compile can't be used with --hint: layers of a compiled network can't be listened to, and "
                "uncompiled its last bits would be others; leave one of the two out"
            )
        return settled


def _recorded(cache: Cache, augment: str | None) -> dict[str, Any]:
    identity = cache.manifest.identity
    numerics, made = identity.teacher.numerics, cache.manifest.state.made
    return {
        "codec": identity.codec,
        "teacher_size": identity.teacher.preprocess.get("size"),
        "dtype": numerics.dtype,
        "amp": numerics.amp,
        "tf32": numerics.tf32,
        "channels_last": numerics.memory_format == "channels_last",
        "compile": numerics.compile,
        "batch_size": numerics.batch,
        "shard_rows": identity.shard_rows,
        "augment": augment or recorded_recipe(cache),
        "view_seed": identity.recipe["seed"],
        "size": identity.recipe["size"],
        "fingerprint": "full" if made.get("fingerprint") == "full" else "quick",
    }


def identify(
    network: Network, weights: str, data: str, viewed: ViewedDataset, config: DumpConfig, device: str
) -> Identity:
    """All that the numbers depend on; ``weights`` and ``data``: fingerprints of the parameters and the samples."""
    samples = viewed.samples
    assert config.codec is not None
    assert config.amp is not None
    assert config.dtype is not None
    numerics = Numerics(
        dtype=config.dtype,
        amp=config.amp,
        tf32=bool(config.tf32),
        memory_format="channels_last" if config.channels_last else "contiguous",
        compile=bool(config.compile),
        device=device,
        batch=config.batch_size or default_batch(viewed, device),
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
        data,
    )
    codec = registry.canonical(registry.split_spec(config.codec)[0], registry.create("codecs", config.codec))
    rows = config.shard_rows or default_shard_rows(viewed, network.classes, device)
    return Identity(VERSION, teacher, dataset, viewed.identity(), network.classes, codec, rows)


def data_fingerprint(samples: Samples, config: DumpConfig, *, keep: bool = True) -> str:
    """Of the samples; the quick one is kept beside files of images, unless nothing is to be written."""
    if config.fingerprint == "full":
        return samples.fingerprint(full=True)
    sha256 = samples.fingerprint()
    if keep:
        keep_fingerprint(samples, sha256)
    return sha256


def weights_fingerprint(network: Network, *, keep: bool = True) -> str:
    """Of the parameters; kept beside their file, where there is one, unless nothing is to be written."""
    if network.weights_path is None or not keep:
        known = None if network.weights_path is None else known_fingerprint(network.weights_path)
        return known or fingerprint(network.model.state_dict())
    return fingerprint_file_cached(network.weights_path, lambda: fingerprint(network.model.state_dict()))


def known_identity(viewed: ViewedDataset, config: DumpConfig, device: str) -> Identity | None:
    """The identity without the teacher's parameters being read or hashed: from the fingerprints that are kept beside
    their file and the samples', and an architecture that has shapes but no memory. ``None`` where that can't be.

    It is good enough to know whether anything is left to do; whoever computes something calls ``identify``.
    """
    spec, weights = teacher_source(config.teacher, viewed.samples, config.teacher_weights)
    path = weights_file(spec, weights)
    sha256 = known_fingerprint(path) if path is not None else None
    if sha256 is None:
        return None
    samples = viewed.samples
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of networks that read a file themselves: it isn't read here
            network = open_network(
                spec,
                classes=len(samples.classes) or None,
                statistics=samples.statistics,
                weights=weights,
                normalize=config.normalize,
                size=config.teacher_size,
                skeleton=True,
            )
            data = known_data_fingerprint(samples) if config.fingerprint != "full" else None
            return identify(
                network, sha256, data or data_fingerprint(samples, config, keep=False), viewed, config, device
            )
    except Exception:  # a network that can't be built without memory: it is built in earnest, which says what is wrong
        return None


def portable(spec: str) -> str:
    """A spec without where things lie on this machine: a cache may be copied to another."""
    file = re.fullmatch(r"(?:python:)?(.*\.py:.*)", spec)
    if file:
        return Path(file[1]).name
    source, colon, rest = spec.partition(":")
    if source in ("folder", "arrays") and colon:
        return f"{source}:{Path(rest).name}"
    return spec


def default_batch(viewed: ViewedDataset, device: str) -> int:
    """Rows that a forward pass takes at once: enough to keep a device busy, few enough to fit."""
    if device == "cpu":
        return 64 if viewed.size <= 64 else 16
    return 512 if viewed.size <= 64 else 128


def default_shard_rows(viewed: ViewedDataset, classes: int, device: str) -> int:
    """Rows of a shard: at most 512 MiB of float32 logits, and no more than some minutes of a teacher's work."""
    rows = 32768 if device != "cpu" else 16384 if viewed.size <= 64 else 4096
    while rows > 1 and rows * classes * 4 > MAX_SHARD_BYTES:
        rows //= 2
    return rows


def provenance(config: DumpConfig, viewed: ViewedDataset, device: torch.device) -> dict[str, Any]:
    """How the cache was made and where from: recorded, and no part of its identity."""
    return {
        "softcache": softcache.__version__,
        "torch": str(torch.__version__),
        "torchvision": _version("torchvision"),
        "pillow": _version("pillow"),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "command": " ".join(Path(sys.argv[0]).name if i == 0 else a for i, a in enumerate(sys.argv)),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "teacher": config.teacher,
        "teacher_weights": config.teacher_weights,
        "dataset": viewed.samples.spec,
        "fingerprint": config.fingerprint,
    }


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def same_kind(existing: Manifest | None, device: torch.device) -> None:
    """Errors: ``UsageError`` where a cache was computed on another kind of device, with how to choose that one."""
    recorded = existing.identity.teacher.numerics.device if existing else device.type
    if recorded != device.type:
        raise UsageError(
            f"the cache was computed on {recorded}, this would be on {device.type}, whose last bits differ: "
            f"pass --device {recorded}, or another --out"
        )
