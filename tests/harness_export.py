"""What the tests of exports share: networks without softcache, folders of trained ones, processes without softcache."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softcache.config.given import remember_folder
from softcache.config.record import TEACHER_FILE, Record
from softcache.config.teach import TeachConfig
from softcache.datasets._index import describe_data
from softcache.models._folder import describe, save_network
from softcache.models._open import open_network
from softcache.views._open import Viewed, open_viewed

NETWORKS = """
import torch
from torch import nn


class Small(nn.Module):
    '''Convolution, batch norm, ReLU twice, and a sum of both; for pictures of any size.'''

    def __init__(self, classes, channels=3):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = self.first(x)
        return self.fc((x + self.second(x)).mean((2, 3)))


class Sizes(Small):
    '''What it answers depends on how many samples there are, which a trace takes for a constant.'''

    def forward(self, x):
        return super().forward(x) * float(len(x))


class Chooses(Small):
    '''Looks at numbers to choose what to compute.'''

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Pair(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.hidden, self.fc = nn.Linear(5, 16), nn.Linear(16, classes)

    def forward(self, features):
        embedding = self.hidden(features).relu()
        return {"logits": self.fc(embedding), "embedding": embedding}


class Words(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.words, self.mixed, self.fc = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, classes)

    def forward(self, ids, attention_mask):
        own = attention_mask[..., None]
        x = self.mixed(self.words(ids)).tanh() * own
        return self.fc(x.sum(1) / own.sum(1).clamp_min(1))


class Sound(nn.Module):
    '''Takes waves as they are filled up, without a mask.'''

    def __init__(self, classes):
        super().__init__()
        self.filters, self.fc = nn.Conv1d(1, 6, 9, 4), nn.Linear(6, classes)

    def forward(self, waveform):
        return self.fc(self.filters(waveform[:, None]).relu().amax(2))


def coarse(num_classes=3):
    layer = nn.Linear(5, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([torch.eye(3), torch.zeros(3, 1), torch.full((3, 1), 1e4)], 1))
    return layer


def small(num_classes=10):
    return Small(num_classes)


def sizes(num_classes=10):
    return Sizes(num_classes)


def chooses(num_classes=10):
    return Chooses(num_classes)


def pair(num_classes=3):
    return Pair(num_classes)


def words(num_classes=3):
    return Words(num_classes)


def sound(num_classes=3):
    return Sound(num_classes)


def forest(num_classes=3):
    return lambda features: features @ torch.ones(5, 3).numpy()
"""


def write_networks(folder: Path) -> Path:
    (folder / "networks.py").write_text(NETWORKS)
    return folder / "networks.py"


def make_trained(
    folder: Path, spec: str, dataset: str = "digits", *, size: int | None = None, seed: int = 1, scale: float = 4
) -> Path:
    """The folder of a network with random parameters and batch norms that have seen something, whose logits are spread
    like those of a trained one."""
    viewed = open_viewed(dataset, "train", augment="none")
    samples = viewed.samples
    network = open_network(
        spec, classes=len(samples.classes), class_names=samples.classes, statistics=samples.statistics, seed=seed,
        size=size, pictures=samples.pictures,
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(20 if any(parameter.requires_grad for parameter in network.parameters()) else 0):
            network.train()
            network.outputs(viewed.clean(np.arange(0, len(viewed), max(1, len(viewed) // 48))), ["logits"])
        network.eval()
        for parameter in list(network.parameters())[-2:]:
            parameter.mul_(scale)
    folder.mkdir(parents=True)
    save_network(network, folder, TEACHER_FILE)
    options = TeachConfig(network.spec, dataset=samples.spec, size=viewed.size if samples.pictures else None)
    record = Record("teach", options, {**describe(network), "weights": TEACHER_FILE}, describe_data(samples))
    record.save(folder)
    remember_folder(folder, options, network.spec)
    return folder


def answers(folder: Path, viewed: Viewed, rows: np.ndarray, output: str = "logits") -> np.ndarray:
    """What the network in a folder says of some rows, as ``softcache eval`` asks it."""
    samples = viewed.samples
    network = open_network(str(folder), classes=None, pictures=samples.pictures).eval()
    with torch.no_grad():
        return network.outputs(viewed.clean(rows), [output])[output].numpy()


def code_blocks(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)


def without_softcache(code: str, folder: Path, *paths: Path) -> Any:
    """The JSON that ``code`` has as ``found`` when it has run in ``folder``, in a process that can't import softcache:
    isolated from this one's environment, and with warnings as errors."""
    begin = "import sys, json\nsys.modules['softcache'] = None\n"
    begin += f"sys.path += {[str(path) for path in paths]!r}\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{begin}{code}\nprint(json.dumps(found))"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def loaded(out: Path, arrays: dict[str, np.ndarray], folder: Path, output: str = "logits") -> list[np.ndarray]:
    """What the code of a card gives for arrays in the place of those that it makes up."""
    np.savez(folder / "arrays.npz", **arrays)
    code = "found = []\n"
    for block in code_blocks(out / "README.md"):
        lines = [
            f"{name} = np.load({str(folder / 'arrays.npz')!r})[{name!r}]" if name in arrays else line
            for line in block.splitlines()
            for name in [line.partition(" = np.")[0]]
        ]
        code += "\n".join(lines) + f"\nfound.append(np.asarray({output}).tolist())\n"
    return [np.array(one) for one in without_softcache(code, out, folder)]
