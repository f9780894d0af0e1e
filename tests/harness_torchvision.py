"""Files as torchvision's datasets have them, small ones of random pixels. Nothing here is a test."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def photo(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (9, 11, 3) if mode == "RGB" else (9, 11)
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(path)


def idx(path: Path, array: np.ndarray) -> None:
    """The format of the MNIST files: big-endian, 8 is uint8 and 12 is int32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {np.dtype(np.uint8): 8, np.dtype(np.int32): 12}[array.dtype]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape)
    path.write_bytes(head + array.astype(array.dtype.newbyteorder(">")).tobytes())


def greys(count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)


def write_mnist(root: Path, folder: str = "MNIST") -> None:
    for name, count in (("train", 12), ("t10k", 5)):
        idx(root / folder / f"raw/{name}-images-idx3-ubyte", greys(count))
        idx(root / folder / f"raw/{name}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data = RNG.integers(0, 256, (3, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [1, 0, 9]}))
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
