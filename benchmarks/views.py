"""Accuracy over the number of recorded views: matched targets, targets averaged over views, and a live teacher.

    python -m benchmarks.views                                 # digits; writes docs/views.png and docs/views.md
    python -m benchmarks.views --dataset fashionmnist --rows 4000 --repetitions 3          # the first 4,000 of another
    python -m benchmarks.views --dataset arrays:PATH --size 32 --epochs 48                 # larger and longer

A student on few labels learns mostly from the teacher, so that it matters of how many views the teacher was asked.
With *matched* targets the student sees the recorded views and what the teacher said of each; with *mean* targets it
sees fresh pixels in each epoch, and the mean of what the teacher said of the recorded ones; the live teacher is asked
of a fresh view in each epoch, as often as there are epochs.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import arguments, in_words, machine
from softcache.console import show_messages
from softcache.datasets._open import open_samples
from softcache.stages.dump import dump
from softcache.stages.teach import teach
from softcache.stages.train import train

DOCS = Path(__file__).resolve().parents[1] / "docs"
VIEWS = (1, 2, 4, 8)


def main() -> None:
    options = arguments(__doc__, repetitions=5, size=16, epochs=16, rows=0)
    show_messages(quiet=True)
    dataset = options.dataset or "digits"
    epochs = 1 if options.tiny else 3 * options.epochs if options.full else options.epochs
    folder, start = Path(tempfile.mkdtemp(prefix="softcache-views-")), Path.cwd()
    try:
        recipe = open_samples(dataset, "train").recipe
        if options.rows:
            dataset = _first_rows(dataset, options.rows, folder)
        os.chdir(folder)
        common: dict[str, Any] = {
            "dataset": dataset,
            "size": options.size,
            "augment": "crop+flip" if recipe == "none" else recipe,  # views that are all the same show nothing
        }
        taught = teach("cifar:resnet8" if options.tiny else "cifar:resnet20", epochs=epochs, **common)
        teacher = str(taught.folder)
        dump(teacher, views=max(VIEWS), out="cache", **common)
        learn = {"student": "cifar:resnet8", "epochs": epochs, "label_fraction": 0.05, "dataset": dataset, "loss": "kl"}
        found: dict[str, list[list[float]]] = {"matched": [], "mean": []}
        for targets, reached in found.items():
            for views in VIEWS:
                asked = {**learn, "cache": ("cache",), "views": views, "targets": targets}
                reached.append(_accuracies(asked, options.repetitions))
                print(f"{targets}, {views} views: {_shown(reached[-1])}", flush=True)
        live = {**learn, **common, "online": True, "teacher": teacher, "views": epochs}
        online = _accuracies(live, options.repetitions)
        alone = _accuracies({**learn, **common, "alpha": "0"}, options.repetitions)
    finally:
        os.chdir(start)
        shutil.rmtree(folder)
    assert taught.test is not None
    lines = {"live teacher": online, "labels alone": alone}
    record = {
        "benchmark": "views",
        "dataset": dataset,
        "epochs": epochs,
        "views": VIEWS,
        "size": options.size,
        **found,
        **lines,
        **machine(),
    }
    print(json.dumps({**record, "teacher": taught.test.top1}))
    table = _table(found, lines)
    print(table)
    if not options.tiny:
        draw(found, lines, DOCS / "views.png", dataset)
        (DOCS / "views.md").write_text(_page(table, record, taught.test.top1, options.repetitions), encoding="utf-8")


def _first_rows(dataset: str, rows: int, folder: Path) -> str:
    """An ``arrays:`` dataset of the first rows of both splits of another that is in memory."""
    place = folder / f"{dataset}-{rows}"
    place.mkdir()
    for split in ("train", "test"):
        samples = open_samples(dataset, split)
        assert samples.images is not None, f"{dataset} is not in memory"
        np.save(place / f"{split}_images.npy", np.asarray(samples.images[:rows]))
        np.save(place / f"{split}_labels.npy", samples.labels[:rows])
        (place / "classes.txt").write_text("\n".join(samples.classes) + "\n", encoding="utf-8")
    return f"arrays:{place}"


def _accuracies(options: dict[str, Any], seeds: int) -> list[float]:
    reached = []
    for seed in range(seeds):
        done = train(**options, seed=seed, out="run")
        shutil.rmtree("run")
        assert done.test is not None
        reached.append(done.test.top1)
    return reached


def draw(found: dict[str, list[list[float]]], lines: dict[str, list[float]], path: Path, dataset: str) -> None:
    """The curves with the spread of their seeds, and the two lines that don't depend on the number of views."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), dpi=150)
    for (name, reached), colour in zip(found.items(), ("#0b6e99", "#c8641b"), strict=True):
        percent = [[100 * value for value in values] for values in reached]
        axes.plot(VIEWS, [statistics.mean(values) for values in percent], "o-", color=colour, label=f"{name} targets")
        low, high = [min(values) for values in percent], [max(values) for values in percent]
        axes.fill_between(VIEWS, low, high, color=colour, alpha=0.15, linewidth=0)
    for (name, values), style in zip(lines.items(), ("--", ":"), strict=True):
        axes.axhline(100 * statistics.mean(values), color="#555555", linestyle=style, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(VIEWS, [str(views) for views in VIEWS])
    axes.set_xlabel("recorded views of each image")
    axes.set_ylabel(f"test top-1 on {_name(dataset)} (%)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _name(dataset: str) -> str:
    return dataset if ":" not in dataset else Path(dataset.partition(":")[2]).name


def _shown(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.2f} % ({100 * min(values):.2f} – {100 * max(values):.2f})"


def _table(found: dict[str, list[list[float]]], lines: dict[str, list[float]]) -> str:
    rows = [f"| {name} | " + " | ".join(_shown(values) for values in reached) + " |" for name, reached in found.items()]
    rows += [f"| {name} | {_shown(values)} | | | |" for name, values in lines.items()]
    head = "| targets | " + " | ".join(f"{views} views" for views in VIEWS) + " |"
    return "\n".join([head, "| --- " * (len(VIEWS) + 1) + "|", *rows])


def _page(table: str, record: dict[str, Any], teacher: float, seeds: int) -> str:
    return f"""# How many views to record

![test accuracy over the number of recorded views](views.png)

Test top-1 of a `cifar:resnet8` student on {_name(record["dataset"])}, {record["size"]}×{
        record["size"]
    }, with 5 % of the labels, {record["epochs"]} epochs, mean of {
        seeds
    } seeds (lowest – highest); its teacher, a `cifar:resnet20`, has {100 * teacher:.2f} %.

{table}

*Matched*: the student sees the recorded views, and what the teacher said of each. *Mean* (`--targets mean`): fresh
pixels in each epoch, and the mean of what the teacher said of the recorded views. *Live teacher*: asked of a fresh
view in every epoch (`--online`).

Measured by `{" ".join(["python -m benchmarks.views", *sys.argv[1:]])}` on {in_words(record)}.
"""


if __name__ == "__main__":
    main()
