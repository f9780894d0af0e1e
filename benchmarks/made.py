"""Caches, images and networks that are made for measuring: random numbers, written as ``dump`` would write them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from softcache.cache.reader import Cache
from softcache.cache.schema import (
    LOGITS,
    VERSION,
    ColumnRecord,
    DatasetIdentity,
    Grid,
    Identity,
    Numerics,
    TeacherIdentity,
)
from softcache.cache.shard import ShardWriter
from softcache.cache.writer import KeptSamples, create_or_extend
from softcache.inputs import InputField
from softcache.models._preprocess import Preprocess
from softcache.ragged import offsets_of
from softcache.views._digest import digest
from softcache.views._viewed import ViewedDataset

STATES = "states"  # the column of caches whose rows have lengths of their own


def made_identity(
    viewed: ViewedDataset | None,
    rows: int,
    block_rows: int,
    *,
    batch: int = 64,
    device: str = "cpu",
    preprocess: Preprocess | None = None,
) -> Identity:
    """Of a cache whose teacher is nobody. ``viewed``: its data; by default grey pictures of 32 pixels."""
    recipe = {"spec": "none", "revisions": {"none": 1}, "size": 32, "resize": 32, "seed": 0}
    inputs = {"pixels": InputField("uint8", [32, 32, 1])} if viewed is None else viewed.inputs
    numerics = Numerics("float32", "off", False, "contiguous", False, device)
    return Identity(
        VERSION,
        TeacherIdentity("made", "0" * 64, (preprocess or Preprocess((0.0,), (1.0,))).to_dict(), numerics),
        DatasetIdentity("made", "train", rows, inputs, "0" * 64),
        recipe if viewed is None else viewed.identity(),
        Grid(block_rows, batch),
    )


def black_row(inputs: dict[str, InputField]) -> KeptSamples:
    """Kept pixels of one row, all 0."""
    shape = inputs["pixels"].tail
    return KeptSamples(np.zeros(1, np.int64), inputs, lambda some: {"pixels": np.zeros((len(some), *shape), np.uint8)})


def make_cache(
    folder: Path,
    *,
    rows: int,
    classes: int,
    shard_rows: int,
    views: int = 1,
    codec: str = "fp16",
    viewed: ViewedDataset | None = None,
) -> Cache:
    """A complete cache of random logits (fp16); digests are those of ``viewed``, or 0."""
    block = np.random.default_rng(0).standard_normal((min(shard_rows, 8192), classes), dtype=np.float32)
    record = ColumnRecord("classes", [classes], codec, shard_rows)
    return make_cache_of(folder, block.astype(np.float16), record, rows=rows, views=views, viewed=viewed)


def make_cache_of(
    folder: Path,
    block: np.ndarray,
    record: ColumnRecord,
    *,
    rows: int,
    views: int = 1,
    viewed: ViewedDataset | None = None,
) -> Cache:
    """A complete cache whose logits are kept as ``record`` says, in a codec that stores them as they are: ``block``
    (n, …), again and again. Digests are those of ``viewed``, or 0."""
    shard_rows = record.shard_rows
    identity = made_identity(viewed, rows, shard_rows)
    create_or_extend(
        folder,
        identity,
        views=views,
        columns={LOGITS: record},
        made={},
        class_names=[] if viewed is None else viewed.samples.classes,
        labels=viewed.samples.labels if viewed is not None else np.zeros(rows, np.int32),
        names=None,
        samples=black_row(identity.dataset.inputs),
    )
    cache = Cache(folder)
    for view in range(views):
        for number in range(cache.manifest.shards(LOGITS)):
            first, count = cache.shard_range(LOGITS, number)
            path = cache.shard_path(view, LOGITS, number)
            path.parent.mkdir(exist_ok=True)
            arrays, chunking = cache.arrays(LOGITS, count), cache.layout(LOGITS).chunking
            writer = ShardWriter(path, cache.shard_attributes(view, LOGITS, number), arrays, chunking)
            for at in range(0, count, len(block)):
                part = block[: count - at]
                seen = np.zeros(len(part), np.uint32)
                if viewed is not None:
                    seen = digest(viewed.batch(np.arange(first + at, first + at + len(part)), view).numpy())
                writer.write(at, {"digest": seen, "values": part})
            writer.commit()
    return cache


def make_ragged(folder: Path, *, places: np.ndarray, numbers: int, shard_rows: int) -> Cache:
    """A complete cache of one view of a ragged column ``states`` (fp16): each row has so many ``places`` (N,) of
    ``numbers`` random numbers. The rows' inputs, ``ids``, are as long; their digests are 0."""
    lengths, fields = {"ids": places}, {"ids": InputField("int64", [None])}
    plain = made_identity(None, len(places), shard_rows)
    identity = dataclasses.replace(
        plain,
        dataset=dataclasses.replace(plain.dataset, inputs=fields),
        recipe={"spec": "none", "revisions": {"none": 1}, "seed": 0},
    )
    cache = create_or_extend(
        folder,
        identity,
        views=1,
        columns={STATES: ColumnRecord("values", [None, numbers], "fp16", shard_rows, "ids")},
        made={},
        class_names=[],
        labels=np.full(len(places), -1, np.int32),
        names=None,
        samples=KeptSamples(
            np.zeros(1, np.int64), fields, lambda some: {"ids": [np.zeros(places[0], np.int64)]}, lengths
        ),
    )
    rng = np.random.default_rng(0)
    for number in range(cache.manifest.shards(STATES)):
        first, count = cache.shard_range(STATES, number)
        path = cache.shard_path(0, STATES, number)
        path.parent.mkdir(exist_ok=True)
        offset = offsets_of(cache.places(STATES, first, count))
        values = rng.standard_normal((int(offset[-1]), numbers), dtype=np.float32).astype(np.float16)
        writer = ShardWriter(path, cache.shard_attributes(0, STATES, number), cache.shard_arrays(STATES, number))
        writer.write(0, {"digest": np.zeros(count, np.uint32), "offset": offset, "values": values})
        writer.commit()
    return cache


def make_arrays(folder: Path, rows: int, size: int, classes: int) -> str:
    """An ``arrays:`` dataset of random colour images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for split, count in (("train", rows), ("test", max(rows // 10, classes))):
        np.save(folder / f"{split}_images.npy", rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(count) % classes)
    return f"arrays:{folder}"


def make_jpegs(folder: Path, count: int, classes: int = 10) -> str:
    """A ``folder:`` dataset of JPEG files of 400 × 500 pixels, as photographs compress: the digits that softcache
    carries, enlarged, tinted, and with some noise."""
    from softcache.datasets._open import open_samples

    digits = open_samples("digits", "train")
    assert digits.images is not None
    rng = np.random.default_rng(2)
    for number in range(count):
        row = number % len(digits)
        label = int(digits.labels[row]) % classes
        place = folder / "train" / f"{label}"
        place.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(digits.images[row, :, :, 0]).resize((500, 400), Image.Resampling.BICUBIC)
        tint = rng.uniform(0.3, 1.0, 3)
        pixels = np.asarray(grey, np.float32)[..., None] * tint + rng.normal(0, 8, (400, 500, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number:06d}.jpg", quality=90)
    return f"folder:{folder}"


def make_imagenet(folder: Path, rows: int, classes: int, side: int = 40) -> str:
    """A ``folder:`` dataset in ImageNet's layout, ``train/n…/*.JPEG`` and ``val/n…/*.JPEG``, which a network can learn:
    the first ``classes`` of the digits that softcache carries, tinted. ``rows`` for training, a fifth of it for
    validation. What is there is kept."""
    from softcache.datasets._open import open_samples

    rng = np.random.default_rng(3)
    for split, source, count in (("train", "train", rows), ("val", "test", max(rows // 5, classes))):
        digits = open_samples("digits", source)
        assert digits.images is not None
        kept = np.flatnonzero(digits.labels < classes)
        for number in range(count):
            row = kept[number % len(kept)]
            path = folder / split / f"n{digits.labels[row]:08d}" / f"{split}_{number:08d}.JPEG"
            grey = Image.fromarray(digits.images[row, :, :, 0]).resize((side, side), Image.Resampling.BICUBIC)
            pixels = np.asarray(grey, np.float32)[..., None] * rng.uniform(0.3, 1.0, 3)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return f"folder:{folder}"


def make_downloads(home: Path) -> None:
    """Random parameters in the files of ``home`` in which torchvision keeps the weights that it has downloaded, for the
    networks that the README names."""
    folder = home / ".cache" / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("resnet50", "resnet18", "mobilenet_v3_small", "mobilenet_v2"):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        torch.manual_seed(0)
        # residual branches begin with 0, so that a few steps of fine-tuning from random parameters don't diverge
        still = {"zero_init_residual": True} if name.startswith("resnet") else {}
        state = torchvision.models.get_model(name, **still).state_dict()
        torch.save(state, folder / weights.url.rpartition("/")[2])


def pick_device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
