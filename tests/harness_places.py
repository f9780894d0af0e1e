"""What the reader of each page has, and what of the pages can't run in a test, with the reason. Nothing here is a test.

Where a page needs nothing it has no entry: its commands run in an empty folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from harness_follow import Place
from harness_pages import Step
from PIL import Image

import softcache

SMALL = {"resnet50": "cifar:resnet8", "resnet18": "cifar:resnet8"}
DONE = {
    "cifar:resnet8-": "cifar-resnet8-",  # in the names of folders
    "caches/cifar:": "caches/cifar-",
    "runs/cifar:": "runs/cifar-",
    "s3://bucket/cifar:": "s3://bucket/cifar-",
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


PLACES: dict[str, Place] = {
    "docs/many.md": Place(needs=("optuna",), mentions=True, after=cohort_tables),
}
