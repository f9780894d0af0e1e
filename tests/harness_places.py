"""What the reader of each page has, and what of the pages can't run in a test, with the reason. Nothing here is a test.

Where a page needs nothing it has no entry: its commands run in an empty folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from harness_follow import Place
from harness_pages import NAMES, ROOT, Step, steps
from harness_readers import any_data, nets, newcomer, pets, pictures, preset

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


def why_not(step: Step, place: Place) -> str | None:
    """The reason for which a step isn't run, or None."""
    if step.kind == "measured":
        return ELSEWHERE[r"\{\w+\}"]
    for pattern, reason in ELSEWHERE.items():
        if step.kind == "shell" and re.search(pattern, step.text):
            return reason
    return next((reason for begin, reason in place.skip.items() if step.text.startswith(begin)), None)


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


def three_students(there: Path, variables: Mapping[str, str]) -> None:
    """The file that runs anywhere is there, and so is the page."""
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
    "docs/export.md": Place(
        commands=(*ASKED, "softcache train --student cifar:resnet8 --epochs 1 --out runs/resnet18-1"),
        needs=("onnxruntime", "onnxscript", "torchao"),
        instead={'"model.pt2"': '"exports/resnet18-1/model.pt2"'},
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
    "docs/report.md": Place(
        commands=(
            "softcache teach --model cifar:resnet20 --epochs 1",
            "softcache dump --teacher cifar:resnet20",
            "softcache sweep --student cifar:resnet8 --T 1,4 --loss kl --epochs 1",
            "softcache train --student cifar:resnet8 --epochs 1",
        ),
        needs=("matplotlib",),
        instead={
            "--epochs 12": "--epochs 1",
            "--T 1,2,4,8 --alpha 0,0.5,0.9 --seeds 3 --epochs 10": "--T 1,4 --alpha 0,0.9 --epochs 1",
        },
    ),
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
    "docs/tracking.md": Place(needs=("tensorboard", "trackio", "wandb", "mlflow")),
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
