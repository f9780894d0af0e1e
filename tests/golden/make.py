"""Makes the golden caches of the current format: ``python tests/golden/make.py tests/golden/format-2``.

They are made once for a format and then only read. What has to be found in them is written beside them, from the
teacher's own output, in ``expected.json``: arrays as their bytes in hexadecimal.

- ``fp16``: 20 grey images given as arrays, 2 views, a hint, one shard a column.
- ``fp32``: 20 colour images in a folder (so rows have names), 1 view, two shards.
- ``table``: 20 rows of 5 numbers, asked of a function; outputs of every kind, in every codec, two shards. One codec has
  constants.
- ``words``: 20 rows of 0 to 5 whole numbers, and 2 floating ones each; the function answers with their sums, with two
  numbers for each of the whole ones, in two codecs, and with one for every two; two shards.
- ``basis``: 20 rows of 5 numbers, asked of a function; logits and an embedding, both in ``basis``, two shards.
- ``converted``: view 0 of ``fp16``, converted to ``int8`` and from there to ``int:bits=5``, in two shards.
- ``vectors``: 20 whole numbers, asked of a function; logits and maps that three numbers make, in ``factored`` and
  ``basis``, the maps by their channels; two shards. The test has the function too.
- ``small``: the rows of ``words``; the function answers with what ``int`` and ``topk`` keep, of rows and of places; two
  shards.
- ``compressed``: the same rows; the function answers with few different numbers, which are compressed in one chunk a
  shard and in several, of rows and of places; two shards.
- ``shares``: the images of ``fp16``, 2 views; the logits, and activations of shares of the rows, some of them pooled;
  two shards.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from softcache.config.record import TEACHER_FILE, Record
from softcache.config.teach import TeachConfig
from softcache.models._folder import describe, save_network
from softcache.models._hooks import Taps
from softcache.models._network import Network
from softcache.models._open import open_network
from softcache.stages.convert import convert
from softcache.stages.dump import dump
from softcache.views._open import open_viewed
from softcache.views._viewed import ViewedDataset

ROWS, CLASSES, BATCH = 20, 3, 8
RECIPE = "crop:pad=2+flip"


def grey(row: int, y: int, x: int) -> int:
    """The images of ``fp16``, for anybody to compute."""
    return (37 * row + 11 * y + 5 * x + row * y * x) % 256


def main(target: str) -> None:
    torch.set_num_threads(1)
    folder = Path(target).absolute()
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "golden"  # datasets are named by their folder, which is part of the identity
        data.mkdir()
        os.chdir(data)
        expected = {
            "fp16": _fp16(folder / "fp16", data),
            "fp32": _fp32(folder / "fp32", data),
            "table": _table(folder / "table", data / "table"),
            "words": _words(folder / "words", data / "words"),
            "basis": _basis(folder / "basis", data / "basis"),
            "small": _small(folder / "small", data / "small"),
            "compressed": _compressed(folder / "compressed", data / "compressed"),
            "shares": _shares(folder / "shares", data),
        }
        _vectors(folder / "vectors", data / "vectors")
        _converted(folder)
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def _fp16(out: Path, data: Path) -> dict[str, Any]:
    pixels = np.fromfunction(np.vectorize(grey), (ROWS, 8, 8), dtype=int).astype(np.uint8)
    for split in ("train", "test"):
        np.save(data / f"{split}_images.npy", pixels[..., None])
        np.save(data / f"{split}_labels.npy", np.arange(ROWS) % CLASSES)
    dataset = f"arrays:{data}"
    viewed = open_viewed(dataset, "train", augment=RECIPE, view_seed=5, size=8)
    teacher, network = _teacher(Path("golden-grey"), viewed)
    options = {"views": 2, "view_seed": 5, "size": 8, "hint": ("fc:in",), "shard_rows": 32, "codec": "fp16"}
    dump(teacher, dataset=dataset, out=out, augment=RECIPE, batch_size=BATCH, device="cpu", **options)
    return _expected(network, viewed, 2, "<f2", "fc:in")


SHARES = {"fc:in:rows=0.4": "<f2", "layer1:pool=2:rows=0.25": "<f4", "layer1:pool=1:rows=0.000001": "<f2"}


def _shares(out: Path, data: Path) -> dict[str, Any]:
    """Uses what ``_fp16`` has made."""
    dataset = f"arrays:{data}"
    viewed = open_viewed(dataset, "train", augment=RECIPE, view_seed=5, size=8)
    teacher, network = _teacher(Path("golden-shares"), viewed)
    hints = tuple(f"{layer}:codec={'fp32' if dtype == '<f4' else 'fp16'}" for layer, dtype in SHARES.items())
    dump(
        teacher, dataset=dataset, out=out, augment=RECIPE, view_seed=5, size=8, views=2, hint=hints, shard_rows=16,
        batch_size=BATCH, device="cpu", codec="fp16",
    )  # fmt: skip
    drawn = [_splitmix(_splitmix(0x726F7773) ^ row) >> 32 for row in range(ROWS)]
    found = _expected(network, viewed, 2, "<f2", None)
    for view, held in enumerate(found["views"]):
        for layer, dtype in SHARES.items():
            module, whole = layer.partition(":pool")[0].partition(":rows")[0], []
            for first in range(0, ROWS, BATCH):
                with Taps(network.model, [module]) as taps, torch.inference_mode():
                    network(viewed.batch(np.arange(first, min(first + BATCH, ROWS)), view))
                    whole.append(taps[module])
            values, side = torch.cat(whole), int(layer.partition("pool=")[2][:1] or 0)
            if side:
                values = torch.nn.functional.avg_pool2d(values, values.shape[2] // side)
            share = float(layer.partition("rows=")[2])
            rows = [row for row in range(ROWS) if drawn[row] < share * 2**32 or drawn[row] == min(drawn)]
            held[layer] = values.numpy()[rows].astype(dtype).tobytes().hex()
    return found


def _splitmix(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & (2**64 - 1)
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    z = (z ^ z >> 27) * 0x94D049BB133111EB & (2**64 - 1)
    return z ^ z >> 31


def _converted(folder: Path) -> None:
    """What is in it follows from ``fp16`` and from the codecs' definitions."""
    with tempfile.TemporaryDirectory() as between:
        convert(folder / "fp16", Path(between) / "cache", codec="int8", views=1, device="cpu")
        convert(Path(between) / "cache", folder / "converted", codec="int:bits=5", shard_rows=16, device="cpu")


def _fp32(out: Path, data: Path) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    pets = data / "pets"
    for split in ("train", "test"):
        for row in range(ROWS):
            place = pets / split / ("ant", "bee", "cät")[row % CLASSES]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (12, 9 + row, 3), dtype=np.uint8)).save(place / f"{row}.png")
    dataset = f"folder:{pets}"
    viewed = open_viewed(dataset, "train", augment="rrc+flip", size=8)
    teacher, network = _teacher(Path("golden-colour"), viewed)
    options = {"views": 1, "shard_rows": 16, "codec": "fp32", "size": 8, "augment": "rrc+flip"}
    dump(teacher, dataset=dataset, out=out, batch_size=BATCH, device="cpu", **options)
    return _expected(network, viewed, 1, "<f4", None) | {"names": viewed.samples.names}


FUNCTION = """
import numpy as np


def make(num_classes=3):
    def answer(features):
        numbers = features[:, :3] * np.float32(7.3)
        return {"logits": numbers, "vector": features * np.float32(0.1), "tags": -numbers, "whole": numbers.sum(1),
                "steps": features - np.float32(1)}

    return answer
"""


def _table(out: Path, data: Path) -> dict[str, Any]:
    data.mkdir()
    features = np.random.default_rng(4).standard_normal((ROWS, 5)).astype(np.float32)
    for split in ("train", "test"):
        np.save(data / f"{split}_features.npy", features)
        np.save(data / f"{split}_labels.npy", np.arange(ROWS) % CLASSES - (np.arange(ROWS) == 7))
    (data / "answer.py").write_text(FUNCTION)
    outputs = ("logits", "vector:codec=bf16", "tags:kind=binary:codec=fp32", "whole", "steps:codec=int8")
    dump(
        f"{data / 'answer.py'}:make", dataset=f"arrays:{data}", out=out, output=outputs, batch_size=BATCH,
        shard_rows=16, codec="fp16", device="cpu",
    )  # fmt: skip
    space: dict[str, Any] = {}
    exec(FUNCTION, space)
    said = {name: torch.from_numpy(values) for name, values in space["make"]()(features).items()}
    low, step = _steps(said["steps"].double())
    stored = {
        "steps": ((said["steps"] - low) / step).round().byte(),
        "logits": said["logits"].half(),
        "vector": said["vector"].bfloat16().view(torch.int16),
        "tags": said["tags"],
        "whole": said["whole"].half(),
    }
    held = {name: values.numpy().tobytes().hex() for name, values in stored.items()}
    return {"labels": (np.arange(ROWS) % CLASSES - (np.arange(ROWS) == 7)).tolist(), "views": [held],
            "features": features.tobytes().hex(),
            "constants": {"low": low.numpy().tobytes().hex(), "step": step.numpy().tobytes().hex()}}  # fmt: skip


def _steps(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of ``int8``: 255 steps from the smallest number of each place to the largest, a 16th of that on both sides."""
    low, high = values.amin(0), values.amax(0)
    assert not ((low == 0) | (high == 0)).any()
    low, high = low - (high - low) / 16, high + (high - low) / 16
    return low.float(), ((high - low) / 255).float()


SUMS = """
import numpy as np


def make(num_classes=3):
    def answer(rows):
        longest = max(map(len, rows["ids"]))
        each = np.zeros((len(rows["ids"]), longest + longest % 2, 2), np.float32)
        for place, ids in zip(each, rows["ids"]):
            place[: len(ids)] = np.stack([ids, ids * np.float32(0.1)], 1)
        return {
            "logits": np.array([[ids.sum(), len(ids), more[0]] for ids, more in zip(rows["ids"], rows["more"])]),
            "each": each[:, :longest], "rounded": each[:, :longest], "pairs": each[:, ::2, 0] + each[:, 1::2, 0],
        }

    return answer
"""


def _rows_of_words(data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lengths, offsets, and what rows are made of, which lies in a folder then."""
    data.mkdir()
    lengths = np.arange(ROWS) % 6
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids, more = np.arange(offsets[-1], dtype=np.int32) - 9, np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)
    for split in ("train", "test"):
        arrays = {"ids": ids, "ids_offsets": offsets, "more": more, "labels": np.arange(ROWS) % CLASSES}
        for name, array in arrays.items():
            np.save(data / f"{split}_{name}.npy", array)
    return lengths, offsets, ids, more


def _words(out: Path, data: Path) -> dict[str, Any]:
    lengths, offsets, ids, more = _rows_of_words(data)
    (data / "sums.py").write_text(SUMS)
    dump(
        f"{data / 'sums.py'}:make", dataset=f"arrays:{data}", out=out, batch_size=BATCH, shard_rows=16, codec="fp32",
        device="cpu", output=("logits", "each", "rounded:codec=bf16", "pairs:codec=fp16"),
    )  # fmt: skip
    said = [[ids[a : a + n].sum(), n, more[k, 0]] for k, (a, n) in enumerate(zip(offsets[:-1], lengths, strict=True))]
    each = np.stack([ids, ids * np.float32(0.1)], 1).astype("<f4")
    rounded = torch.from_numpy(each).bfloat16().view(torch.int16).numpy()
    rows = np.split(ids, offsets[1:-1])
    pairs = [sum(row[k : k + 2]) for row in rows for k in range(0, len(row), 2)]
    stored = {"logits": np.array(said, "<f4"), "each": each, "rounded": rounded, "pairs": np.array(pairs, "<f2")}
    return {"labels": (np.arange(ROWS) % CLASSES).tolist(), "lengths": lengths.tolist(), "ids": ids.tolist(),
            "views": [{name: array.tobytes().hex() for name, array in stored.items()}]}  # fmt: skip


MIXED = """
import numpy as np

MIX = (np.multiply.outer(np.arange(1, 6) ** 2, np.arange(3, 23)) % 23 / 4 - 3).astype(np.float32)


def make(num_classes=20):
    def answer(features):
        mixed = features @ MIX
        return {"logits": mixed, "vector": mixed[:, :9] + features[:, :1] ** 2}

    return answer
"""


def _basis(out: Path, data: Path) -> dict[str, Any]:
    data.mkdir()
    features = np.random.default_rng(6).standard_normal((ROWS, 5)).astype(np.float32)
    for split in ("train", "test"):
        np.save(data / f"{split}_features.npy", features)
        np.save(data / f"{split}_labels.npy", np.arange(ROWS))  # of as many classes as there are logits
    (data / "mixed.py").write_text(MIXED)
    dump(
        f"{data / 'mixed.py'}:make", dataset=f"arrays:{data}", out=out, batch_size=BATCH, shard_rows=16, device="cpu",
        output=("logits:codec=basis:bytes=10,top=2", "vector:codec=basis:rank=7,bits=3"),
    )  # fmt: skip
    space: dict[str, Any] = {}
    exec(MIXED, space)
    said = space["make"]()(features)
    return {"said": {name: values.astype("<f4").tobytes().hex() for name, values in said.items()}}


VECTORS = """
import numpy as np


def numbers(keys, classes):
    k = np.arange(3)
    short = (np.asarray(keys, np.int64)[..., None] * (k + 2) ** 2 + 3 * k) % 11 - 5
    weight = (k[:, None] + 1) * (np.arange(classes) + 3) ** 2 % 13 - 6
    return (short @ weight).astype(np.float32)


def make(num_classes=20):
    def answer(features):
        keys = features[:, 0].astype(np.int64)
        places = 4 * keys[:, None, None] + np.array([[0, 1], [2, 3]])
        return {"logits": numbers(keys, 20), "maps": np.moveaxis(numbers(places, 6), -1, 1)}

    return answer
"""


def _vectors(out: Path, data: Path) -> None:
    data.mkdir()
    for split in ("train", "test"):
        np.save(data / f"{split}_features.npy", np.arange(ROWS, dtype=np.float32)[:, None])
        np.save(data / f"{split}_labels.npy", np.arange(ROWS))  # of as many classes as there are logits
    (data / "said.py").write_text(VECTORS)
    dump(
        f"{data / 'said.py'}:make", dataset=f"arrays:{data}", out=out, batch_size=BATCH, shard_rows=16, device="cpu",
        output=("logits:codec=factored", "maps:codec=basis:bytes=2"),
    )  # fmt: skip


SMALL = """
import numpy as np


def numbers(keys, *shape):
    seeds = np.asarray(keys, np.int64).reshape(-1, *[1] * len(shape))
    places = np.arange(np.prod(shape)).reshape(1, *shape)
    return (((seeds * 7919 + 12345) * (places + 3) ** 2 % 1009 - 504) / 64).astype(np.float32)


def make(num_classes=3):
    def answer(rows):
        keys, longest = [row[0] for row in rows["more"]], max(map(len, rows["ids"]))
        each, tags = np.zeros((len(keys), longest, 2), np.float32), np.zeros((len(keys), longest, 70), np.float32)
        for row, ids in enumerate(rows["ids"]):
            each[row, : len(ids)], tags[row, : len(ids)] = numbers(ids, 2) * 1000, numbers(ids, 70)
        return {
            "logits": numbers(keys, 3), "two": numbers(keys, 2, 70), "maps": numbers(keys, 2, 8, 8),
            "steps": numbers(keys, 4, 5), "bytes": numbers(keys, 66) * np.float32(1e30), "each": each, "tags": tags,
        }

    return answer
"""


def _small(out: Path, data: Path) -> dict[str, Any]:
    """The test has the function too, so that there is nothing to expect but labels."""
    _rows_of_words(data)
    (data / "small.py").write_text(SMALL)
    outputs = ("logits:codec=topk:k=2", "two:kind=classes:codec=topk:k=5", "maps:codec=int:bits=4",
               "steps:codec=int:bits=5", "bytes:codec=int:bits=8", "each:codec=int:bits=6",
               "tags:kind=classes:codec=topk:k=1")  # fmt: skip
    dump(
        f"{data / 'small.py'}:make", dataset=f"arrays:{data}", out=out, batch_size=BATCH, shard_rows=16, device="cpu",
        output=outputs,
    )  # fmt: skip
    return {"labels": (np.arange(ROWS) % CLASSES).tolist()}


FEW = """
import numpy as np


def few(keys, *shape):
    seeds = np.asarray(keys, np.int64).reshape(-1, *[1] * len(shape))
    places = np.arange(np.prod(shape)).reshape(1, *shape)
    return ((seeds + places // 5) % 7 - 3).astype(np.float32) / 4 * (places % 3 > 0)


def make(num_classes=3):
    def answer(rows):
        keys, longest = [row[0] for row in rows["more"]], max(map(len, rows["ids"]))
        words, tags = np.zeros((len(keys), longest, 512), np.float32), np.zeros((len(keys), longest, 70), np.float32)
        for row, ids in enumerate(rows["ids"]):
            words[row, : len(ids)], tags[row, : len(ids)] = few(ids, 512), few(ids, 70)
        return {"logits": few(keys, 3), "maps": few(keys, 32, 64), "words": words, "tags": tags, "left": few(keys, 5)}

    return answer
"""


def _compressed(out: Path, data: Path) -> dict[str, Any]:
    """As ``_small``."""
    _rows_of_words(data)
    (data / "few.py").write_text(FEW)
    dump(
        f"{data / 'few.py'}:make", dataset=f"arrays:{data}", out=out, batch_size=BATCH, shard_rows=16, device="cpu",
        output=("logits", "maps", "words:codec=fp32", "tags:kind=classes:codec=topk:k=2", "left"),
        compress=("zstd", "maps=zstd:rows=4,shuffle=none", "words=zstd:level=3,rows=8,shuffle=byte", "left=none"),
    )  # fmt: skip
    return {"labels": (np.arange(ROWS) % CLASSES).tolist()}


def _teacher(folder: Path, viewed: ViewedDataset) -> tuple[str, Network]:
    samples = viewed.samples
    network = open_network("cifar:resnet8", classes=CLASSES, statistics=samples.statistics, seed=3).eval()
    with torch.no_grad():
        for parameter in list(network.model.parameters())[-2:]:
            parameter.mul_(20)
    folder.mkdir()
    save_network(network, folder, TEACHER_FILE)
    Record("teach", TeachConfig(network.spec), {**describe(network), "weights": TEACHER_FILE}).save(folder)
    return str(folder), network


@torch.inference_mode()
def _expected(network: Network, viewed: ViewedDataset, views: int, dtype: str, layer: str | None) -> dict[str, Any]:
    """Labels, and each view's logits and hints, computed in the dump's batches without any cache."""
    found: dict[str, Any] = {"labels": viewed.samples.labels.tolist(), "views": []}
    for view in range(views):
        logits, hints = [], []
        for first in range(0, ROWS, BATCH):
            pixels = viewed.batch(np.arange(first, min(first + BATCH, ROWS)), view)
            with Taps(network.model, [layer] if layer else []) as taps:
                logits.append(network(pixels).numpy())
                if layer:
                    hints.append(taps[layer].numpy())
        held = {"logits": np.concatenate(logits).astype(dtype).tobytes().hex()}
        if layer:
            held["hint"] = np.concatenate(hints).astype("<f2").tobytes().hex()
        found["views"].append(held)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
