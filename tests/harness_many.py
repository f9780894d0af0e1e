"""What the tests of many students share: students and data of tests' own, and what a sweep's folder came to."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from harness_train import make_cache, make_teacher
from torch import nn

from softcache.datasets._samples import Samples
from softcache.views._open import open_viewed

OPENED = "SOFTCACHE_TEST_OPENED"  # names the file in which ``digits`` says which splits were opened
DATASET = f"{Path(__file__)}:digits"
BRITTLE = f"{Path(__file__)}:brittle"
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 128, "device": "cpu", "workers": 0}


def digits(split: str) -> Samples:
    """The digits, and a line in a file that says that they were opened."""
    if OPENED in os.environ:
        with open(os.environ[OPENED], "a") as file:
            file.write(f"{split} {os.getpid()}\n")
    return open_viewed("digits", split).samples


class Brittle(nn.Module):
    """A student that fails in its third step."""

    def __init__(self, classes: int):
        super().__init__()
        self.fc, self.steps = nn.Linear(64, classes), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        if self.steps == 3:
            raise RuntimeError("this one is brittle")
        return self.fc(x.mean(1).flatten(1))


def brittle(num_classes: int) -> nn.Module:
    return Brittle(num_classes)


def small_cache(folder: Path, **options: Any) -> str:
    """A cache of the digits at 8 pixels."""
    make_teacher(folder / "teacher")
    return str(make_cache(folder / "cache", folder / "teacher", views=2, augment="crop:pad=1", **options))


def digests(folder: Path) -> dict[str, str]:
    """Name of a run → the hash of its student's file."""
    found = sorted(folder.glob("runs/*/student.safetensors"))
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def scores(folder: Path) -> list[Any]:
    """What a sweep's table says, without the time that it took."""
    document = json.loads((folder / "table.json").read_text())
    return [document["rows"], {**document["chosen"], "command": None}]
