"""What CONTRIBUTING.md promises: a new component is one new file, and everything else finds it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import softcache

COMPONENTS = {
    "losses/squared.py": '''
"""``squared``: the squared difference of probabilities."""
from dataclasses import dataclass
from typing import ClassVar

from softcache.losses._loss import Loss


@dataclass(frozen=True)
class Squared(Loss):
    """``mean (p_s - p_t)²``."""

    formula: ClassVar[str] = "mean (p(z_s) - p(z_t))²"
    source: ClassVar[str] = "a contributor"
    through_softmax: ClassVar[bool] = True
    zero_for_perfect: ClassVar[bool] = True
    default_T: ClassVar[float | None] = 1.0
    default_alpha: ClassVar[float] = 0.9
    default_beta: ClassVar[float] = 0.1
    default_weight: ClassVar[str] = "1"
    scale: float = 1.0

    def __call__(self, student, teacher, T, labels=None):
        return self.scale * ((student / T).softmax(1) - (teacher / T).softmax(1)).square().mean()
''',
    "codecs/rounded.py": '''
"""Logits as whole steps of int16."""
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rounded:
    """An error of at most half a ``step``."""

    step: float = 0.01

    def arrays(self, shape):
        return {"steps": ("<i2", shape)}

    def encode(self, values):
        return {"steps": (values / self.step).round().clamp(-32768, 32767).to(torch.int16)}

    def decode(self, arrays):
        return arrays["steps"].float() * self.step
''',
    "datasets/stripes.py": '''
"""Vertical and horizontal stripes."""
from dataclasses import dataclass

import numpy as np

from softcache.datasets._labels import numbered
from softcache.datasets._samples import Samples


@dataclass(frozen=True)
class Stripes:
    """64 rows a split, two classes."""

    def open(self, split, *, data_dir=None, download=False):
        labels = np.arange(64, dtype=np.int32) % 2
        images = np.random.default_rng(len(split)).integers(0, 60, (64, 8, 8, 1)).astype(np.uint8)
        images[labels == 0, ::2] += 190
        images[labels == 1, :, ::2] += 190
        return Samples(
            spec="stripes", split=split, classes=numbered(2), labels=labels, channels=1, size=8, resize=8,
            recipe="none", statistics=((0.5,), (0.25,)), images=images,
        )
''',
    "exporting/numpy_arrays.py": '''
"""Parameters as NumPy's arrays."""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from softcache.exporting._format import Format


@dataclass(frozen=True)
class NumpyArrays(Format):
    """A ``.npz`` file."""

    suffix: ClassVar[str] = ".npz"
    computes: ClassVar[bool] = False

    def write(self, graph, path, document, calibration):
        np.savez(path, **{name: t.numpy() for name, t in graph.network.model.state_dict().items()})

    def load(self, path, graph):
        with np.load(path) as arrays:
            state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        graph.network.model.load_state_dict(state)
        return lambda tensors: graph.module(*tensors).detach()

    def usage(self, graph, file, *, int8):
        return f'arrays = np.load("{file}")'
''',
}


# Commands by name, as a text of JSON, and what they print.
ONE_BY_ONE = """
import contextlib, io, json, sys
from softcache.cli._main import run
said = {}
for name, command in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(command.split()) == 0, command
    said[name] = printed.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one file more for each component."""
    root = tmp_path_factory.mktemp("checkout")
    package = Path(softcache.__file__).parent
    shutil.copytree(package, root / "softcache", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(package.parent / "data", root / "data")
    for name, text in COMPONENTS.items():
        (root / "softcache" / name).write_text(text)
    return root


def test_a_loss_a_codec_a_dataset_and_a_format_are_one_file_each(checkout: Path, tmp_path: Path) -> None:
    commands = {
        "teach": "teach --model cifar:resnet8 --dataset stripes --epochs 3 --out teacher",
        "dump": "dump --teacher teacher --codec rounded:step=0.02 --views 1 --out cache",
        "train": "train --student cifar:resnet8 --cache cache --loss squared:scale=8 --epochs 3 --out run --json",
        "export": "export run --format numpy-arrays -o out.npz",
        "info": "info cache --json",
        "losses": "losses",
        "verify": "verify cache --teacher teacher",
    }
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    process = [sys.executable, "-c", ONE_BY_ONE, json.dumps(commands)]
    done = subprocess.run(process, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert json.loads(said["train"])["test_top1"] is not None
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["losses"][0]["loss"] == "squared:scale=8"
    assert recorded["options"]["dataset"] == "stripes"
    assert "out.npz" in said["export"]
    with np.load(tmp_path / "out.npz") as arrays:
        assert set(arrays.files) == set(load_file(tmp_path / "run" / "student.safetensors"))
    assert json.loads(said["info"])["columns"]["logits"]["codec"] == "rounded:step=0.02"
    assert "squared" in said["losses"]
    assert said["verify"].rstrip().endswith("every byte is as it was written")
