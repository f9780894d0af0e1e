"""Distillation on a real set, with several seeds: labels alone, and from one cache kl, dkd, dist, FitNets' two stages,
and a combination.

    python -m benchmarks.real --dataset fashionmnist --data-dir DIR     # writes docs/real.md
    python -m benchmarks.real --tiny                                    # a look at the script, on the digits

Within a column every student sees as many keys as any other (two-stage FitNets spends some of its epochs on the hint).
Sizes are those that two CPU cores can do: views of 16 pixels of the first rows of the set. ``--place DIR`` keeps
teacher, cache and runs, and goes on with what is there.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import arguments, in_words, machine
from softcache.cache.reader import Cache
from softcache.console import show_messages
from softcache.datasets._open import open_samples
from softcache.stages.dump import dump
from softcache.stages.teach import teach

PAGE = Path(__file__).resolve().parents[1] / "docs" / "real.md"
TEACHER, STUDENT = "cifar:resnet20", "cifar:resnet8"
ROWS, SIZE, VIEWS = 8_000, 16, 4
TEACHER_EPOCHS, EPOCHS, HINT_EPOCHS = 10, 6, 2
COMMON = ["--batch-size", "64", "--lr", "0.004"]
ALL, FEW, LONGER = "all labels", "5 % of the labels", "all labels, 3 times as long"
FITNET = "fitnet:teacher=layer2,student=layer2"


def settings(epochs: int) -> dict[str, list[str]]:
    """Name → options of ``softcache train``. Weights are the losses' own."""
    kl = ["--loss", "kl", "--T", "4"]
    hint = min(HINT_EPOCHS, epochs - 1)
    return {
        "labels alone": ["--alpha", "0", "--epochs", str(epochs)],
        "kl": [*kl, "--epochs", str(epochs)],
        "dkd": ["--loss", "dkd", "--alpha", "1", "--beta", "1", "--epochs", str(epochs)],
        "dist": ["--loss", "dist", "--alpha", "1", "--beta", "1", "--epochs", str(epochs)],
        "fitnet, two stages": [*kl, "--hint", FITNET, "--hint-epochs", str(hint), "--epochs", str(epochs - hint)],
        "kl + dist + rkd": [
            *("--loss", "kl:weight=0.9", "--loss", "dist:weight=1", "--alpha", "1", "--beta", "0.1", "--T", "4"),
            *("--hint", "rkd:teacher=fc:in,student=fc:in", "--epochs", str(epochs)),
        ],
    }


def main() -> None:
    options = arguments(__doc__, repetitions=3, place="", data_dir=None, rows=ROWS)
    rows = 400 if options.tiny else options.rows
    epochs, teacher_epochs = (2, 1) if options.tiny else (EPOCHS, TEACHER_EPOCHS)
    show_messages(quiet=True)
    place = Path(options.place or tempfile.mkdtemp(prefix="softcache-real-")).resolve()
    place.mkdir(parents=True, exist_ok=True)
    source = options.dataset or "digits"
    subset(place / "data", source, options.data_dir, rows)
    os.chdir(place)
    dataset = f"arrays:{place / 'data'}"
    recipe = open_samples(source, "train", data_dir=options.data_dir).recipe
    data = {"dataset": dataset, "size": SIZE, "augment": recipe}
    taught = teach(TEACHER, epochs=teacher_epochs, batch_size=64, lr=4e-3, out="teacher", **data)
    assert taught.test is not None
    dump("teacher", views=VIEWS, hint=("layer2", "fc:in"), out="cache", **data)
    names = {ALL: list(settings(epochs)), FEW: list(settings(epochs)), LONGER: ["labels alone", "kl"]}
    jobs = [(column, name, seed) for column in names for name in names[column] for seed in range(options.repetitions)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda job: student(dataset, recipe, *job, epochs), jobs))
    found: dict[str, dict[str, list[float]]] = {}
    for (column, name, _), top1 in zip(jobs, done, strict=True):
        found.setdefault(name, {}).setdefault(column, []).append(top1)
    table = show(found, taught.test.top1)
    record = {
        "benchmark": "real",
        "seeds": options.repetitions,
        "teacher": taught.test.top1,
        "students": found,
        **machine(),
    }
    print(table)
    print(json.dumps(record))
    if not options.tiny:
        command = f"python -m benchmarks.real --dataset {source} --rows {rows}"
        PAGE.write_text(page(table, record, command, source, rows, recipe), encoding="utf-8")


def subset(folder: Path, source: str, data_dir: str | None, rows: int) -> None:
    """The first rows of a set, and its whole test split, as arrays."""
    if (folder / "test_labels.npy").exists():
        return
    folder.mkdir(exist_ok=True)
    for split, count in (("train", rows), ("test", None)):
        samples = open_samples(source, split, data_dir=data_dir)
        assert samples.images is not None, f"{source} is not in memory"
        np.save(folder / f"{split}_images.npy", samples.images[:count])
        np.save(folder / f"{split}_labels.npy", samples.labels[:count])
    (folder / "classes.txt").write_text("\n".join(samples.classes) + "\n")


def student(dataset: str, recipe: str, column: str, name: str, seed: int, epochs: int) -> float:
    """Top-1 of one training, in a process of its own so that two run at a time."""
    given = settings(3 * epochs if column == LONGER else epochs)[name]
    if column == FEW:
        given = [*given, "--label-fraction", "0.05"]
    out = Path("runs") / re.sub(r"[ ,%+]+", "-", f"{column}-{name}-{seed}")
    config = out / "config.json"
    if not config.exists() or "result" not in json.loads(config.read_text()):
        where = ["--cache", "cache"] if name != "labels alone" else ["--size", str(SIZE), "--augment", recipe]
        command = [sys.executable, "-m", "softcache", "-q", "--threads", "1", "train", "--student", STUDENT, *where]
        command += ["--dataset", dataset, *COMMON, *given, "--seed", str(seed), "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        top1 = json.loads(config.read_text())["result"]["test_top1"]
        print(f"{column}, {name}, seed {seed}: {100 * top1:.2f} %", flush=True)
    return json.loads(config.read_text())["result"]["test_top1"]


def show(found: dict[str, dict[str, list[float]]], teacher: float) -> str:
    """Mean ± deviation over the seeds."""
    lines = [f"| student | {ALL} | {FEW} | {LONGER} |", "| --- | --- | --- | --- |"]
    for name, columns in found.items():
        cells = []
        for column in (ALL, FEW, LONGER):
            top1 = columns.get(column, [])
            spread = f" ± {100 * statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
            cells.append(f"{100 * statistics.mean(top1):.2f}{spread}" if top1 else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"| *the teacher* | {100 * teacher:.2f} | | |"])


def why(found: dict[str, dict[str, list[float]]], teacher: float) -> str:
    """What explains a kl below labels alone, where these figures do."""
    mean = {(name, column): statistics.mean(found[name][column]) for name in found for column in found[name]}
    alone, longer = mean["labels alone", ALL], mean["labels alone", LONGER]
    if mean["kl", ALL] >= alone or longer <= teacher:
        return ""
    said = {key: f"{100 * value:.1f} %" for key, value in mean.items()}
    more = 100 * (mean["kl", FEW] - mean["labels alone", FEW])
    return (
        f"With all labels kl is below labels alone, and the teacher is the reason: with {100 * teacher:.1f} % it knows "
        f"less than what the student learns from labels by itself in three times the epochs "
        f"({said['labels alone', LONGER]}), and a student that imitates it ends near it ({said['kl', LONGER]}). Where "
        f"labels are short the same teacher adds {more:.1f} points. dkd speaks only for rows whose label may be used: "
        "here for few.\n"
    )


def page(table: str, record: dict[str, Any], command: str, source: str, rows: int, recipe: str) -> str:
    options = "\n".join(f"    {name:20} {' '.join(given)}" for name, given in settings(EPOCHS).items())
    cached = Cache("cache").describe()
    return f"""# On a real set

{source}, the first {rows:,} training rows and the whole test split, views of {SIZE} pixels, recipe `{recipe}`,
{cached["views"]} recorded views. Teacher {TEACHER}, {TEACHER_EPOCHS} epochs on all labels; student {STUDENT},
{EPOCHS} epochs in all, last epoch, {" ".join(COMMON)}. One teacher and one cache for all students. Test top-1 in %,
mean ± standard deviation over {record["seeds"]} seeds.

{table}

{why(record["students"], record["teacher"])}
{options}

`{command}` on {in_words(record)}.
"""


if __name__ == "__main__":
    main()
