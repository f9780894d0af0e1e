"""What the readers of pages have before they begin: data, networks, weights. Nothing here is a test."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness_pages import ROOT, steps
from PIL import Image

import softcache
from benchmarks.made import make_downloads


def pets(there: Path, folder: str = "pets", train: int = 12, test: int = 4) -> None:
    """Class folders of pictures, which are digits in three kinds."""
    for split, count in (("train", train), ("test", test)):
        samples = softcache.open_samples("digits", split)
        for label, name in enumerate(("bird", "cat", "dog")):
            for row in np.flatnonzero(samples.labels == label)[:count]:
                file = there / folder / split / name / f"{row}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(samples.image(int(row))[..., 0])
                picture.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(file)


NETS = """
import torch
from torch import nn


class Outputs(nn.Module):  # pixels (B, 1, H, W) -> several outputs
    def __init__(self, width):
        super().__init__()
        self.read = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.embed = nn.Linear(4 * width, 16)
        self.logits, self.tags = nn.Linear(16, 10), nn.Linear(16, 5)

    def forward(self, pixels):
        found = self.embed(self.read(pixels))
        return {"logits": self.logits(found), "embedding": found, "tags": self.tags(found)}


def make(num_classes=10):
    return Outputs(8)


class Tagger(nn.Module):  # words (B, L) -> states (B, L, 8), tags (B, L, 3), and logits of whole rows
    def __init__(self, classes):
        super().__init__()
        self.vectors, self.encoder, self.tags = nn.Embedding(100, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.answer = nn.Linear(8, classes)

    def forward(self, words):
        states = self.encoder(self.vectors(words))
        return {"logits": self.answer(states.mean(1)), "states": states, "tags": self.tags(states)}


def tagger(num_classes=2):
    return Tagger(num_classes)


small = tagger


def large(num_classes=2):
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, num_classes))
"""


def nets(there: Path) -> None:
    """``my.py`` with its parameters, and sentences."""
    (there / "my.py").write_text(NETS)
    space: dict[str, Any] = {}
    exec(NETS, space)
    torch.manual_seed(0)
    torch.save(space["make"]().state_dict(), there / "my.pt")
    torch.save(space["tagger"]().state_dict(), there / "tagger.pt")
    sentences(there, "text", "words")


def sentences(there: Path, folder: str, name: str) -> None:
    """Rows of 1 to 6 numbers below 100, with a label each."""
    rng = np.random.default_rng(0)
    (there / folder).mkdir()
    for split, rows in (("train", 64), ("test", 32)):
        lengths = rng.integers(1, 7, rows)
        np.save(there / folder / f"{split}_{name}.npy", rng.integers(1, 100, lengths.sum()))
        np.save(there / folder / f"{split}_{name}_offsets.npy", np.cumsum([0, *lengths]))
        np.save(there / folder / f"{split}_labels.npy", rng.integers(0, 2, rows))


def any_data(there: Path) -> None:
    """What docs/data.md speaks of: a table, a forest and an ONNX file that know it, sentences, pictures."""
    import joblib
    import onnx
    from sklearn.ensemble import RandomForestClassifier

    (there / "my.py").write_text(NETS.replace("small = tagger", "small = lambda num_classes=2: large(num_classes)"))
    sentences(there, "reviews", "input_ids")
    rng = np.random.default_rng(0)
    (there / "letters").mkdir()
    for split, rows in (("train", 128), ("test", 32)):
        features = rng.normal(size=(rows, 16)).astype(np.float32)
        np.save(there / f"letters/{split}_features.npy", features)
        np.save(there / f"letters/{split}_labels.npy", (features[:, 0] > 0).astype(int))
        images = rng.integers(0, 256, (rows, 8, 8), dtype=np.uint8)
        np.savez(there / f"{split}.npz", images=images, labels=(images.mean((1, 2)) > 127).astype(int))
    features, labels = np.load(there / "letters/train_features.npy"), np.load(there / "letters/train_labels.npy")
    joblib.dump(RandomForestClassifier(5, random_state=0).fit(features, labels), there / "forest.joblib")
    kind, helper = onnx.TensorProto.FLOAT, onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weight"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("features", kind, ["rows", 16])],
        [helper.make_tensor_value_info("logits", kind, ["rows", 2])],
        [onnx.numpy_helper.from_array(rng.normal(size=(16, 2)).astype(np.float32), "weight")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), there / "teacher.onnx")


def pictures(there: Path) -> None:
    """The folder that docs/tutorials/pictures.md makes, by its own lines."""
    block = next(step for step in steps("docs/tutorials/pictures.md") if step.kind == "python")
    subprocess.run([sys.executable, "-c", block.text], cwd=there, check=True)


def newcomer(there: Path) -> None:
    """A folder of pictures, and weights of ImageNet as if they had been downloaded."""
    make_downloads(there.parent / "home")
    pets(there, train=30, test=10)
    for split in ("train", "test"):  # class folders directly in the folder
        for name in ("bird", "cat", "dog"):
            for file in (there / "pets" / split / name).iterdir():
                (there / "pets" / name).mkdir(exist_ok=True)
                file.rename(there / "pets" / name / f"{split}-{file.name}")
        shutil.rmtree(there / "pets" / split)


def preset(there: Path) -> None:
    """``mine.json``, as the page shows it."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    found = re.search(r"```json\n(.*?)```", text, re.S)
    assert found is not None
    (there / "mine.json").write_text(found[1])
