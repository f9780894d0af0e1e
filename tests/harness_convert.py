"""What the tests of conversions share: rows of numbers, and a teacher whose answer to a row depends on that row alone,
so that what it says when a codec is fitted is to the bit what is kept."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from softcache.cache.reader import Cache
from softcache.stages.dump import dump

ROWS, CLASSES, VIEWS, BLOCK, BATCH = 210, 30, 2, 64, 24
TEACHER = """
def make():
    def answer(features):
        return {
            "logits": features[:, :30] * 3, "embedding": features[:, 30:42], "tags": features[:, 42:48] * 4,
            "maps": features[:, 48:60].reshape(-1, 3, 2, 2), "number": features[:, 0],
        }

    return answer
"""
KINDS = {"logits": "classes", "embedding": "values", "tags": "binary", "maps": "values", "number": "values"}


def make_place(folder: Path) -> Path:
    rng = np.random.default_rng(7)
    for split in ("train", "test"):
        np.save(folder / f"{split}_features.npy", rng.normal(0, 2, (ROWS, 60)).astype(np.float32))
        np.save(folder / f"{split}_labels.npy", np.arange(ROWS) * CLASSES // ROWS)  # sorted by class
    (folder / "teacher.py").write_text(TEACHER)
    return folder


def dumped(place: Path, out: Path, codec: str = "fp32", outputs: tuple[str, ...] = tuple(KINDS), **more: Any) -> Path:
    """A cache of these outputs, each in ``codec`` where it doesn't name one, ``NAME=CODEC``."""
    kept = []
    for output in outputs:
        name, _, own = output.partition("=")
        kept.append(f"{name}:kind={KINDS[name]}" + (f":codec={own}" if own else ""))
    options = {"views": VIEWS, "shard_rows": BLOCK, "batch_size": BATCH, "augment": "noise:std=0.3", **more}
    dump(
        f"{place / 'teacher.py'}:make", dataset=f"arrays:{place}", out=out, codec=codec, output=tuple(kept),
        device="cpu", workers=0, **options,
    )  # fmt: skip
    return out


def files(folder: Path) -> dict[str, str]:
    """Relative path → sha256 of all that a cache is, but for the manifest and what is derived."""
    paths = [*folder.glob("view-*/[!.]*.h5"), *folder.glob("column-*.h5"), folder / "rows.h5", folder / "samples.h5"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """By column, its record without its error."""
    found = {n: dataclasses.asdict(record) for n, record in Cache(folder).manifest.state.columns.items()}
    return {name: {**record, "error": None} for name, record in found.items()}


def values_of(folder: Path, column: str = "logits", view: int = 0, codec: str | None = None) -> np.ndarray:
    reader = Cache(folder, codec=codec).column(column)
    return reader.decode(reader.gather(view, np.arange(reader.cache.rows))).numpy()
