"""What a tracker costs: the time of an epoch with and without it, and that of the whole training.

    python -m benchmarks.tracking

Trainings of cifar:resnet8 on the digits, from a cache, without a tracker and with each of those that are installed,
take turns, each in a process of its own; everything stays on this machine (W&B offline, MLflow in SQLite). An epoch's
time is the median of a training's epochs but the first; shown are the medians over the rounds, and of the differences
to the training without a tracker of the same round also the lowest and the highest. Writes docs/tracking.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tracking.md"
MARKS = "<!-- written by benchmarks/tracking.py -->\n", "<!-- to here -->"
SPECS = {
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb:mode=offline",
    "mlflow": "mlflow:uri=sqlite:///{place}/runs.db",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    asked = parser.parse_args()
    ways = {"none": None, **{name: spec for name, spec in SPECS.items() if importlib.util.find_spec(name)}}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        _run(place, "teach", "--model", "cifar:resnet8", "--epochs", "1", "--out", "teacher")
        _run(place, "dump", "--teacher", "teacher", "--views", "2", "--out", "cache")
        epochs: dict[str, list[float]] = {name: [] for name in ways}
        wholes: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(asked.rounds + 1):
            for name, spec in ways.items():
                out = f"runs/{name}-{number}"
                log = [] if spec is None else ["--log", spec.format(place=place), "--log-every", "10"]
                every = ["--log-every", "10"] if spec is None else []
                options = ["--cache", "cache", "--epochs", str(asked.epochs), "--out", out, *log, *every]
                began = time.perf_counter()
                _run(place, "train", "--student", "cifar:resnet8", *options)
                whole = time.perf_counter() - began
                lines = [json.loads(line) for line in (place / out / "metrics.jsonl").read_text().splitlines()]
                if number:  # the first round warms the disk up
                    epochs[name].append(statistics.median(line["epoch_s"] for line in lines[1:]))
                    wholes[name].append(whole)
                print(f"round {number}  {name:<12} epoch {lines[-1]['epoch_s']:.3f} s  whole {whole:.1f} s", flush=True)
    text = _table(epochs, wholes, asked.rounds, asked.epochs)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    PAGE.write_text(before + MARKS[0] + text + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8")
    print(text)


def _run(place: Path, *arguments: str) -> None:
    variables = {**os.environ, "TRACKIO_DIR": str(place / "trackio"), "HOME": str(place)}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PAGE.parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "softcache", *arguments], cwd=place, env=variables, capture_output=True, text=True
    )
    if done.returncode or re.search(r"^warning: ", done.stderr, re.MULTILINE):
        sys.exit(f"softcache {' '.join(arguments)}: {done.stderr}")


def _table(epochs: dict[str, list[float]], wholes: dict[str, list[float]], rounds: int, count: int) -> str:
    lines = [
        f"`python -m benchmarks.tracking`: trainings of `cifar:resnet8` on the digits, {count} epochs with a step in "
        f"ten logged, {rounds} rounds in turns, each training a process of its own. Medians; in brackets the lowest "
        "and the highest difference of a round. The whole is that of the command, with the import of the tracker's "
        "library and the wait for it at the end.",
        "",
        "| tracker | an epoch | more than without | the whole command | more than without |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in epochs:
        cells = [f"{statistics.median(epochs[name]):.3f} s", f"{statistics.median(wholes[name]):.1f} s"]
        if name == "none":
            lines.append(f"| none | {cells[0]} | | {cells[1]} | |")
            continue
        ratios = [100 * (a / b - 1) for a, b in zip(epochs[name], epochs["none"], strict=True)]
        more = [a - b for a, b in zip(wholes[name], wholes["none"], strict=True)]
        epoch = f"{statistics.median(ratios):+.1f} % ({min(ratios):+.1f} – {max(ratios):+.1f})"
        whole = f"{statistics.median(more):+.1f} s ({min(more):+.1f} – {max(more):+.1f})"
        lines.append(f"| `{name}` | {cells[0]} | {epoch} | {cells[1]} | {whole} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
