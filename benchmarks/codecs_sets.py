"""What codecs are measured on: real logits and embeddings, some to fit on and others to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.codecs_schemes import Scheme, for_classes, for_values
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, hint_column
from softcache.models._hooks import Taps
from softcache.models._open import open_network
from softcache.stages.keys import Keys

ROWS = 4_096  # that codecs are fitted on, and as many others that they are measured on
LOGITS_SET, EMBEDDING = "CIFAR-100", "CIFAR-100, embedding"
PENULTIMATE = "fc:in"  # of the student


@dataclass(frozen=True)
class Set:
    """Real values (N, …) float32 of one kind: those that codecs are fitted on, and others that they are measured on."""

    name: str
    kind: str
    fitted_on: torch.Tensor
    measured: torch.Tensor

    @classmethod
    def of(cls, name: str, kind: str, values: torch.Tensor) -> Set:
        """Of values in random order: at most 4,096 of each, the first half of few."""
        fitted = min(ROWS, len(values) // 2)
        return cls(name, kind, values[:fitted], values[fitted : fitted + ROWS])

    @property
    def schemes(self) -> list[Scheme]:
        numbers = self.fitted_on.shape[1]
        return for_classes(numbers) if self.kind == "classes" else for_values(numbers)


def of_cache(folder: Path, embedding: str) -> list[Set]:
    """Logits and embeddings of the same random rows of a cache, in the first view."""
    cache, found = Cache(folder), []
    rows = drawn(cache.rows)
    for name, kind, column in ((LOGITS_SET, "classes", LOGITS), (EMBEDDING, "values", hint_column(embedding))):
        reader = cache.column(column)
        found.append(Set.of(name, kind, reader.decode(reader.gather(0, rows))))
    return found


def seen_by(student: Path, cache: Path, embedding: str) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """By kind, what the student in a run's folder and the teacher say of the rows that ``of_cache`` takes, (N, …)
    float32 each, and their labels (N,) int64."""
    network = open_network(str(student), classes=None).eval()
    keys = Keys(cache, view=0, hints=[embedding])
    parts: dict[str, list[torch.Tensor]] = {}
    for rows in np.split(drawn(len(keys)), range(256, min(len(keys), 2 * ROWS), 256)):
        batch = keys.__getitems__(rows.tolist())
        with torch.inference_mode(), Taps(network.model, [PENULTIMATE]) as taps:
            logits = network(batch.inputs["pixels"])
            said = {"logits": logits.clone(), "vectors": taps[PENULTIMATE].clone(), "labels": batch.labels}
        for name, values in {**said, "teacher": batch.targets[LOGITS], "embedding": batch.targets[embedding]}.items():
            parts.setdefault(name, []).append(values)
    found = {name: torch.cat(values) for name, values in parts.items()}
    return {
        "classes": (found["logits"].float(), found["teacher"], found["labels"]),
        "values": (found["vectors"].float(), found["embedding"], found["labels"]),
    }


def drawn(count: int) -> np.ndarray:
    """Rows of so many, in random order: as many as are fitted on and measured on."""
    return np.random.default_rng(0).permutation(count)[: 2 * ROWS]


def in_random_order(values: np.ndarray) -> torch.Tensor:
    """Rows (N, C) as float32, in an order that doesn't depend on how they lie: files may be sorted by class."""
    if values.ndim != 2 or values.dtype.kind != "f":
        raise SystemExit(f"error: logits must be floating-point numbers (N, C), found {values.dtype} {values.shape}")
    return torch.from_numpy(values[np.random.default_rng(0).permutation(len(values))].astype(np.float32))
