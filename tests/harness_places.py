"""What the reader of each page has, and what of the pages can't run in a test, with the reason. Nothing here is a test.

Where a page needs nothing it has no entry: its commands run in an empty folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torchvision
from harness_follow import Place
from harness_pages import NAMES, ROOT, Step, arguments, steps
from PIL import Image

import softcache
from softcache.cli._main import main
from softcache.stages.copy import copy

# Networks of the pages, and smaller ones that stand for them: paths first, because names of folders have a dash.
SMALL = {
    "resnet50-": "cifar-resnet8-",
    "resnet34-": "cifar-resnet14-",
    "resnet18-": "cifar-resnet8-",
    "resnet50": "cifar:resnet8",
    "resnet34": "cifar:resnet14",
    "resnet18": "cifar:resnet8",
    "mobilenet_v3_small": "cifar:resnet14",
}

# What no test runs: a pattern that the whole step is searched for, and the reason. Each is still compared with the
# command line.
ELSEWHERE = {
    r"^(\.venv/bin/)?pip install": "installs packages: the tests run where they are installed",
    r"^make ": "sets up an environment of its own; continuous integration runs `make check` and `make test`",
    r"^eval ": "changes the reader's shell",
    r"--download\b|^python examples/(cifar10|mnist|last_layer)": "needs data from the network; "
    "tests/test_examples_cases.py runs the examples on small files",
    r"^python -m benchmarks\.": "a measurement of minutes to hours",
    r"\{\w+\}": "a measurement on CIFAR-100 or another set that is not shipped",
    r"(gs|az|hf)://": "needs an account of that store",
    r"hf:(distilbert|nyu-mll|google)": "needs the Hugging Face hub; tests/test_hf.py runs folders of the same form",
    r"ray start|--on ray": "needs a Ray cluster; tests/test_dump_ray.py starts one",
    r"--nnodes": "needs several machines",
    r"^#!/bin/bash\n#SBATCH": "needs Slurm; tests/test_scale_page.py runs the script with its numbers",
}

COMING, NOT_YET = ("report", "export"), "is not there yet"  # commands that pages speak of before they are there


def main_eval() -> click.Command:
    found = main.get_command(main.make_context("softcache", ["info"]), "eval")
    assert found is not None
    return found


def coming(step: Step) -> bool:
    """Whether a step needs a command that isn't there yet."""
    there = main.list_commands(main.make_context("softcache", ["info"]))
    given = arguments(step.text) if step.kind == "shell" and not step.text.startswith("#!") else None
    needed = {name for name in COMING if given and given[0] == name}
    if given and given[:2] == ["eval", "sweeps/cifar-resnet8-1"] and main_eval().params[0].nargs == 1:
        needed.add("eval of several runs")
    if "InferenceSession(" in step.text and step.page != "docs/data.md":
        needed.add("export")
    return bool(needed - set(there))


def why_not(step: Step, place: Place) -> str | None:
    """The reason for which a step isn't run, or None."""
    if coming(step):
        return NOT_YET
    if step.kind == "measured":
        return ELSEWHERE[r"\{\w+\}"]
    for pattern, reason in ELSEWHERE.items():
        if step.kind == "shell" and re.search(pattern, step.text):
            return reason
    return next((reason for begin, reason in place.skip.items() if step.text.startswith(begin)), None)


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


def cohort_tables(there: Path, variables: Mapping[str, str]) -> None:
    """Every sweep and comparison of the page has its table."""
    folders = [*there.glob("sweeps/*"), *there.glob("comparisons/*")]
    assert folders
    for folder in folders:
        assert json.loads((folder / "table.json").read_text())["version"] == 1


def smaller(page: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """``SMALL``, of it what the page has, after ``more``."""
    text = "\n".join(step.text for step in steps(page))
    return {**(more or {}), **{old: new for old, new in SMALL.items() if old in text}}


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


class Tagger(nn.Module):  # words (B, L) -> states (B, L, 8) and tags (B, L, 3)
    def __init__(self):
        super().__init__()
        self.vectors, self.encoder, self.tags = nn.Embedding(100, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, words):
        states = self.encoder(self.vectors(words))
        tags = self.tags(states)
        return {"logits": tags.mean(1), "states": states, "tags": tags}


def tagger(num_classes=3):
    return Tagger()


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


def published(there: Path) -> None:
    """Files in the places where torchvision keeps the weights that it has downloaded, with random parameters."""
    folder = there.parent / "home" / ".cache" / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("resnet50", "resnet18", "mobilenet_v3_small", "mobilenet_v2"):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        torch.manual_seed(0)
        state = torchvision.models.get_model(name).state_dict()
        torch.save(state, folder / weights.url.rpartition("/")[2])


def pictures(there: Path) -> None:
    """The folder that docs/tutorials/pictures.md makes, by its own lines."""
    block = next(step for step in steps("docs/tutorials/pictures.md") if step.kind == "python")
    subprocess.run([sys.executable, "-c", block.text], cwd=there, check=True)


def newcomer(there: Path) -> None:
    """A folder of pictures, and weights of ImageNet as if they had been downloaded."""
    published(there)
    pets(there, train=30, test=10)
    for split in ("train", "test"):  # class folders directly in the folder
        for name in ("bird", "cat", "dog"):
            for file in (there / "pets" / split / name).iterdir():
                (there / "pets" / name).mkdir(exist_ok=True)
                file.rename(there / "pets" / name / f"{split}-{file.name}")
        shutil.rmtree(there / "pets" / split)


def three_students(there: Path, variables: Mapping[str, str]) -> None:
    """The file that runs anywhere is there, and so is the page."""
    if not set(COMING) - set(main.list_commands(main.make_context("softcache", ["info"]))):
        assert (there.parent / "there" / "pets.onnx").stat().st_size > 0
        assert "<html" in (there.parent / "there" / "report.html").read_text(encoding="utf-8")


ASKED = ("softcache teach --model cifar:resnet8 --epochs 1", "softcache dump --teacher cifar:resnet8")
READ_PIN = "python -c 'import json; print(json.loads(input())[\"pin\"])'"
PIN = f"$(softcache info s3://bucket/cifar-resnet8-digits --json | tr -d '\\n' | {READ_PIN})"
SMALL_VIEWS = {"--weights DEFAULT --dataset folder:pets": "--weights DEFAULT --size 32 --dataset folder:pets"}

BEFORE_SIGNALS = """
from torch.utils.data import DataLoader

import softcache

keys = softcache.Keys("others/text", outputs=["states", "tags"])
batch = next(iter(DataLoader(keys, batch_sampler=keys.sampler(8, seed=0), collate_fn=keys.collate)))
rows = [0, 1, 2]
"""


def preset(there: Path) -> None:
    """``mine.json``, as the page shows it."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    found = re.search(r"```json\n(.*?)```", text, re.S)
    assert found is not None
    (there / "mine.json").write_text(found[1])


def one_pin(there: Path, variables: Mapping[str, str]) -> None:
    """The copy in the bucket has the pin of a copy in a folder, which is the sha256 of its listing."""
    cache = there / "caches" / "cifar-resnet8-digits-train"
    pin = copy(cache, there / "copy").pin
    assert hashlib.sha256((there / "copy" / "files.json").read_bytes()).hexdigest() == pin
    address = f"s3://{variables['BUCKET']}/cifar-resnet8-digits"
    known = {**os.environ, **variables, "HOME": str(there.parent / "home"), "PYTHONPATH": str(ROOT)}
    shown = [sys.executable, "-m", "softcache", "info", address]
    assert pin in subprocess.run(shown, env=known, capture_output=True, text=True, check=True).stdout


PLACES: dict[str, Place] = {
    "README.md": Place(
        prepare=newcomer,
        needs=("onnxruntime", "matplotlib"),
        instead={
            **SMALL_VIEWS,
            "(1, 224, 224, 3)": "(1, 32, 32, 3)",
            "cache=cache.folder)": "cache=cache.folder, epochs=1)",
        },
        short=True,
        anew="softcache teach --model resnet50",
        after=three_students,
    ),
    "docs/compression.md": Place(
        commands=("softcache teach --model cifar:resnet8 --epochs 1 --out teachers/resnet50-digits",),
        needs=("zstandard", "hdf5plugin"),
    ),
    "docs/data.md": Place(
        prepare=any_data,
        needs=("onnx", "onnxruntime", "sklearn"),
        skip={"softcache dump --teacher outside.py:service": "asks a service; tests/test_teacher_service.py has one"},
        short=True,
    ),
    "docs/features.md": Place(
        prepare=nets,
        skip={"python examples/features.py": "needs Fashion-MNIST; tests/test_examples_cases.py has small files"},
        instead={"my.py:large": "my.py:make", "my.py:small": "my.py:make"},
        short=True,
    ),
    "docs/format.md": Place(commands=ASKED, instead=smaller("docs/format.md")),
    "docs/losses.md": Place(commands=ASKED, short=True),
    "docs/many.md": Place(
        needs=("optuna",), mentions=True, instead={"--budget 4m": "--budget 30s"}, after=cohort_tables
    ),
    "docs/ranks.md": Place(commands=ASKED),
    "docs/scale.md": Place(
        commands=("softcache teach --model cifar:resnet8 --dataset folder:pets --size 32 --epochs 1",),
        prepare=pets,
        instead=smaller(
            "docs/scale.md", {"folder:/shared/pets": "folder:pets", "--nproc-per-node 8": "--nproc-per-node 2"}
        ),
    ),
    "docs/signals.md": Place(
        commands=ASKED, prepare=nets, instead=smaller("docs/signals.md"), before=BEFORE_SIGNALS, short=True
    ),
    "docs/speed.md": Place(commands=ASKED, instead=smaller("docs/speed.md"), short=True),
    "docs/stores.md": Place(
        commands=ASKED,
        instead=smaller("docs/stores.md", {"5d2f…": PIN}),
        store=True,
        short=True,
        after=one_pin,
    ),
    "docs/training.md": Place(
        commands=ASKED,
        prepare=preset,
        instead=smaller(
            "docs/training.md",
            {
                "--epochs 30": "--epochs 1",
                'T=4, loss="kl")': 'T=4, loss="kl", epochs=1)',
                'alpha="1:0.5:cosine")': 'alpha="1:0.5:cosine", epochs=1)',
            },
        ),
        short=True,
    ),
    "docs/tutorials/away.md": Place(store=True),
    "docs/tutorials/export.md": Place(prepare=pictures, needs=("onnxruntime", "matplotlib")),
    "docs/tutorials/sound.md": Place(skip={"python examples/": "needs the Free Spoken Digit Dataset"}),
    "docs/tutorials/tables.md": Place(needs=("sklearn",), skip={"python examples/": "needs the letters of UCI"}),
    "docs/tutorials/text.md": Place(skip={"python examples/": "needs the reviews of SST-2"}),
}


def set_aside() -> list[str]:
    """For the end of `make docs-commands`: the steps that it doesn't run, by their reasons, and what it replaces."""
    reasons: dict[str, list[str]] = {}
    for name in NAMES:
        for step in steps(name):
            reason = why_not(step, PLACES.get(name, Place())) if step.kind != "mention" else None
            if reason:
                reasons.setdefault(reason, []).append(step.where)
    lines = ["", "Not run:"]
    for reason, places in reasons.items():
        pages = Counter(place.rpartition(":")[0] for place in places)
        where = ", ".join(f"{page} ({count})" for page, count in pages.items())
        lines.append(f"  {reason}: {where}")
    lines.append("Run with something smaller in its place:")
    for name, place in PLACES.items():
        replaced = [f"{old} → {new}" for old, new in place.instead.items()]
        lines += [f"  {name}: {', '.join([*replaced, *(['one epoch'] if place.short else [])])}"] * bool(
            replaced or place.short
        )
    return lines
