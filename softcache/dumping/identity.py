"""The identity of a cache: all that its numbers depend on, collected before anything runs; and its provenance."""

from __future__ import annotations

import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import h5py
import torch

import softcache
from softcache.addresses import printable
from softcache.cache.agreement.versions import pixel_versions
from softcache.cache.manifest import Manifest
from softcache.cache.schema import (
    VERSION,
    DatasetIdentity,
    Grid,
    Identity,
    Numerics,
    TeacherIdentity,
)
from softcache.datasets._index import keep_fingerprint
from softcache.datasets._index import known_fingerprint as known_data_fingerprint
from softcache.datasets._samples import Samples
from softcache.errors import UsageError
from softcache.inputs import bucket_input
from softcache.models._network import Network
from softcache.models._open import open_network, weights_file
from softcache.models._weights import fingerprint, fingerprint_file_cached, known_fingerprint
from softcache.remembered import portable, portable_recipe
from softcache.views._open import Viewed


def identify(
    network: Network,
    weights: str,
    data: str,
    viewed: Viewed,
    numerics: Numerics,
    *,
    batch: int,
    block_rows: int | None,
    bucket: bool = False,
) -> Identity:
    """All that the numbers depend on.

    ``weights`` and ``data``: fingerprints of the parameters and the samples. ``batch``: rows of a forward pass.
    ``block_rows``: None for ``default_block_rows``. ``bucket``: whether rows of like length come together.

    Errors: ``UsageError`` for ``bucket`` where no rows have lengths of their own.
    """
    samples = viewed.samples
    teacher = TeacherIdentity(portable(network.spec), weights, network.preprocess.to_dict(), numerics)
    dataset = DatasetIdentity(portable(samples.spec), samples.split, len(samples), viewed.inputs, data)
    by = bucket_input(viewed.inputs, samples.spec) if bucket else None
    grid = Grid(block_rows or default_block_rows(viewed, numerics.device), batch, by)
    recipe = {**viewed.identity(), "spec": portable_recipe(viewed.recipe.spec)}
    return Identity(VERSION, teacher, dataset, recipe, grid)


def data_fingerprint(samples: Samples, *, full: bool, keep: bool = True) -> str:
    """The samples' fingerprint. With ``keep`` the quick one of files of images is kept in the user's cache folder."""
    if full:
        return samples.fingerprint(full=True)
    sha256 = samples.fingerprint()
    if keep:
        keep_fingerprint(samples, sha256)
    return sha256


def weights_fingerprint(network: Network, *, keep: bool = True) -> str:
    """The parameters' fingerprint. With ``keep`` that of a file is kept in the user's cache folder."""
    if network.weights_path is None or not keep:
        known = None if network.weights_path is None else known_fingerprint(network.weights_path)
        return known or fingerprint(network.model.state_dict())
    return fingerprint_file_cached(network.weights_path, lambda: fingerprint(network.model.state_dict()))


def known_identity(
    viewed: Viewed,
    spec: str,
    weights: str | None,
    numerics: Numerics,
    *,
    normalize: str | None,
    size: int | None,
    full: bool,
    batch: int,
    block_rows: int | None,
    bucket: bool,
) -> Identity | None:
    """The identity without the teacher's parameters being read or hashed: from the fingerprints that are kept of
    their file and the samples, and an architecture that has shapes but no memory. ``None`` where that can't be.

    ``spec``, ``weights``: as ``teacher_source`` finds them; ``size``: of the teacher's input; ``full``: whether the
    data's fingerprint is over contents. It is good enough to know whether anything is left to do; whoever computes
    something calls ``identify``.
    """
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
                class_names=samples.classes,
                statistics=samples.statistics,
                weights=weights,
                normalize=normalize,
                size=size,
                pictures=samples.pictures,
                skeleton=True,
            )
            data = known_data_fingerprint(samples) if not full else None
            data = data or data_fingerprint(samples, full=full, keep=False)
            return identify(network, sha256, data, viewed, numerics, batch=batch, block_rows=block_rows, bucket=bucket)
    except Exception:  # a network that can't be built without memory: it is built in earnest, which says what is wrong
        return None


def default_batch(viewed: Viewed, device: str) -> int:
    """Rows that a forward pass takes at once: enough to keep a device busy, few enough to fit."""
    if device == "cpu":
        return 64 if viewed.size <= 64 else 16
    return 512 if viewed.size <= 64 else 128


def default_block_rows(viewed: Viewed, device: str) -> int:
    """Rows of a block, and so of a shard if it isn't too large: no more than some minutes of a teacher's work."""
    return 32768 if device != "cpu" else 16384 if viewed.size <= 64 else 4096


def provenance(
    viewed: Viewed, device: torch.device, *, teacher: str, teacher_weights: str | None, fingerprint: str
) -> dict[str, Any]:
    """How the cache was made and from what. It is recorded, but is no part of the identity."""
    return {
        "softcache": softcache.__version__,
        "torch": str(torch.__version__),
        **pixel_versions(),
        "h5py": h5py.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "command": " ".join(Path(sys.argv[0]).name if i == 0 else printable(a) for i, a in enumerate(sys.argv)),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "teacher": teacher,
        "teacher_weights": teacher_weights,
        "dataset": viewed.samples.spec,
        "fingerprint": fingerprint,
    }


def same_kind(existing: Manifest | None, device: str) -> None:
    """Errors: ``UsageError`` where a cache was computed on another kind of device, with how to choose that one."""
    recorded = existing.identity.teacher.numerics.device if existing else device
    if recorded != device:
        raise UsageError(
            f"the cache was computed on {recorded}, this would be on {device}, whose last bits differ: "
            f"pass --device {recorded}, or another --out"
        )
