"""What the tests of training share: networks of about a thousand parameters, and caches of what they say of digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from softcache.cli._main import run
from softcache.config.given import remember_folder
from softcache.config.record import TEACHER_FILE, Record
from softcache.config.teach import TeachConfig
from softcache.console import show_messages
from softcache.models._folder import describe, save_network
from softcache.models._open import open_network
from softcache.stages.dump import dump
from softcache.stages.train import train
from softcache.views._open import open_viewed

STUDENT, TEACHER, FEATURES = (f"{Path(__file__)}:{name}" for name in ("student", "teacher", "features"))
HINTS = ("layer1", "layer2", "fc:in")
SIZE = 8


class Net(nn.Module):
    """Grey images → ``layer1`` (width, 4, 4) → ``layer2`` (2·width, 2, 2) → ``fc``, for images of 8 pixels."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.layer1 = _block(1, width)
        self.layer2 = _block(width, 2 * width)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Features(Net):
    """Gives its embedding (2·width) beside the logits."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        embedding = self.layer2(self.layer1(x)).mean((2, 3))
        return {"logits": self.fc(embedding), "embedding": embedding}


class Pair(nn.Module):
    """Two networks as one: 0.7 and 0.3 of their logits or, in the form of logits, of their probabilities at ``T``."""

    def __init__(self, classes: int, T: float | None = None):
        super().__init__()
        self.a, self.b, self.T = Net(classes, 6), Net(classes, 6), T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x), self.b(x)
        if self.T is None:
            return 0.7 * a + 0.3 * b
        return self.T * (0.7 * (a / self.T).softmax(1) + 0.3 * (b / self.T).softmax(1)).log()


def _block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


def student(num_classes: int) -> nn.Module:
    return Net(num_classes, 4)


def teacher(num_classes: int) -> nn.Module:
    return Net(num_classes, 6)


def features(num_classes: int) -> nn.Module:
    return Features(num_classes, 4)


def pair(num_classes: int) -> nn.Module:
    return Pair(num_classes)


def pair_at_4(num_classes: int) -> nn.Module:
    return Pair(num_classes, T=4)


def make_teacher(folder: Path, *, seed: int = 1, spec: str = TEACHER) -> Any:
    """A teacher's folder with random parameters, whose logits are spread like a trained one's."""
    samples = open_viewed("digits", "train").samples
    network = open_network(spec, classes=10, statistics=samples.statistics, seed=seed)
    with torch.no_grad():
        for name, parameter in network.model.named_parameters():
            if name.split(".")[-2] == "fc":
                parameter.mul_(10)
    return write_teacher(network, folder)


def write_teacher(network: Any, folder: Path) -> Any:
    folder.mkdir(parents=True)
    save_network(network, folder, TEACHER_FILE)
    options = TeachConfig(network.spec)
    Record("teach", options, {**describe(network), "weights": TEACHER_FILE}).save(folder)
    remember_folder(folder, options, network.spec)
    return network


def binary_digits(folder: Path) -> str:
    """Digits with several yes or no questions in place of classes: is it 0, is it 1, …; some answers are unknown."""
    folder.mkdir()
    for split in ("train", "test"):
        samples = open_viewed("digits", split).samples
        assert samples.images is not None
        labels = np.eye(10, dtype=np.uint8)[samples.labels]
        labels[::7, 3] = 255
        np.save(folder / f"{split}_images.npy", samples.images)
        np.save(folder / f"{split}_labels.npy", labels)
    return f"arrays:{folder}"


def make_cache(folder: Path, teacher_folder: Path, **options: Any) -> Path:
    settings: dict[str, Any] = {
        "views": 2,
        "size": SIZE,
        "codec": "fp32",
        "amp": "off",
        **options,
    }
    assert dump(str(teacher_folder), out=folder, **settings).info["complete"]
    return folder


def fit(out: Path, **options: Any) -> Any:
    """A quick training of the small student."""
    settings = {"epochs": 2, "batch_size": 128, "seed": 3, "workers": 0, **options}
    return train(STUDENT, out=out, **settings)


def command(*arguments: str | Path | int) -> int:
    """``softcache ARGUMENTS`` in this process, which is as talkative afterwards as before."""
    try:
        return run([str(argument) for argument in arguments])
    finally:
        show_messages()


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def weights(folder: Path, name: str = "student.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
