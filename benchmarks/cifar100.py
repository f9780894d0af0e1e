"""CIFAR-100 from a cache: which targets, losses and views make a student better than alone.

    python -m benchmarks.cifar100 --place DIR --data arrays:PATH --teacher FILE.py:FACTORY --teacher-weights FILE screen
    python -m benchmarks.cifar100 --place DIR … resnet8 resnet20 resnet8x4
    python -m benchmarks.cifar100 --place DIR … published            # the papers' 240 epochs, for a GPU

``recipes`` and ``screen`` compare many rows on training rows that are held out, with seeds 0 to 2: how students are
optimized, numbers of views, kinds of targets and losses are chosen there. The other tables train on all rows, with
seeds 10 to 14, and are the only ones that see the test split. Each run is kept in ``benchmarks/results`` as soon as it
is done; ``--minutes M`` begins none after M minutes, and the same command goes on with what is missing. Without
``--teacher`` a ResNet-56 is taught first, in the papers' way.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.rows import RESULTS, ROOT, Trial, run, say, trials
from softcache.datasets._open import open_samples

HELD_OUT = 5_000
AUGMENT = "crop:pad=4+flip"
VIEWS = (1, 2, 4, 8)
SCREEN_SEEDS, TEST_SEEDS = (0, 1, 2), (10, 11, 12, 13, 14)
FILE = RESULTS / "cifar100.jsonl"
FAST = "--amp bf16 --channels-last"
# Chosen in the table ``recipes``, for labels alone and distilled.
RECIPE = f"--batch-size 128 --optimizer sgd --lr 0.1 --weight-decay 0.0005 --warmup 1 {FAST}"
RECIPES = {
    "sgd 0.1": "--batch-size 128 --optimizer sgd --lr 0.1 --weight-decay 0.0005",
    "sgd 0.2": "--batch-size 128 --optimizer sgd --lr 0.2 --weight-decay 0.0005",
    "sgd 0.4": "--batch-size 128 --optimizer sgd --lr 0.4 --weight-decay 0.0005",
    "sgd 0.1, decay 1e-4": "--batch-size 128 --optimizer sgd --lr 0.1 --weight-decay 0.0001",
    "sgd 0.1, batch 64": "--batch-size 64 --optimizer sgd --lr 0.1 --weight-decay 0.0005",
    "adamw 0.002, batch 64": "--batch-size 64 --optimizer adamw --lr 0.002 --weight-decay 0.01",
    "adamw 0.01": "--batch-size 128 --optimizer adamw --lr 0.01 --weight-decay 0.01",
    "sgd 0.2, batch 64": "--batch-size 64 --optimizer sgd --lr 0.2 --weight-decay 0.0005",
    "sgd 0.2, decay 1e-4": "--batch-size 128 --optimizer sgd --lr 0.2 --weight-decay 0.0001",
    "sgd 0.1, steps": "--batch-size 128 --optimizer sgd --lr 0.1 --weight-decay 0.0005 --schedule step",
}
KL = "--loss kl --alpha 0.9 --T 1"  # the best temperature of the screen: this teacher's logits are small
SOFT = (
    "--loss dist --alpha 1 --beta 1"  # the best loss of the screen: what recipes, views and targets are compared with
)
# The losses with the weights of their papers (docs/losses.md), on all views.
LOSSES = {
    "kl, alpha 0.5": "--loss kl --alpha 0.5 --T 4",
    "kl, alpha 1": "--loss kl --alpha 1 --T 4",
    "kl, T 1": "--loss kl --alpha 0.9 --T 1",
    "kl, T 2": "--loss kl --alpha 0.9 --T 2",
    "kl, T 8": "--loss kl --alpha 0.9 --T 8",
    "kl standardized": "--loss kl:standardize=true,T=2,weight=9 --alpha 1 --beta 0.1",
    "mse": "--loss mse --alpha 0.9",
    "dkd": "--loss dkd:beta=2 --alpha 1 --beta 1",
    "nkd": "--loss nkd --alpha 1 --beta 1",
    "dist": "--loss dist:weight=2 --alpha 1 --beta 1",
    "wsld": "--loss wsld:weight=2.5 --alpha 1 --beta 1",
    "ttm": "--loss ttm:weight=45 --alpha 1 --beta 1",
    "wttm": "--loss wttm:weight=4 --alpha 1 --beta 1",
    "rld": "--loss rld --alpha 1 --beta 1",
}


def cached(student: str, options: str, cache: str = "{cache}") -> str:
    return f"train --student {student} --cache {cache} {options}"


def alone(student: str, options: str, data: str = "{held}") -> str:
    return f"train --student {student} --dataset {data} --augment {AUGMENT} --alpha 0 {options}"


def live(student: str, options: str, data: str = "{held}") -> str:
    teacher = "--online --teacher {teacher} --views 1000"
    return f"train --student {student} --dataset {data} --augment {AUGMENT} {teacher} {{weights}} {options}"


def recipes() -> list[Trial]:
    """Ten ways to optimize, for labels alone and distilled: the same budget for both."""
    rows: dict[str, str] = {}
    for name, options in RECIPES.items():
        how = f"--epochs 12 --warmup 1 {options} {FAST}"
        rows[f"alone, {name}"] = alone("cifar:resnet8", how)
        rows[f"distilled, {name}"] = cached("cifar:resnet8", f"{SOFT} {how}")
    return trials("recipes", rows, SCREEN_SEEDS)


def screen() -> list[Trial]:
    """Targets, numbers of views and losses, a ResNet-8 of 12 epochs each."""
    how, student = f"--epochs 12 {RECIPE}", "cifar:resnet8"
    rows = {"alone": alone(student, how), "live": live(student, f"{SOFT} {how}")}
    for views in reversed(VIEWS):
        for targets in ("matched", "mean", "both"):
            rows[f"{targets}, {views} views"] = cached(student, f"--targets {targets} --views {views} {SOFT} {how}")
    rows |= {name: cached(student, f"{options} {how}") for name, options in LOSSES.items()}
    for share in ("0:1:alternate", "0:1:linear", "1:0:linear"):
        both = f"--targets both --fresh-share {share}"
        rows[f"both {share}, 4 views"] = cached(student, f"{both} --views 4 {SOFT} {how}")
    return trials("screen", rows, SCREEN_SEEDS)


TABLES: dict[str, Callable[[], list[Trial]]] = {"recipes": recipes, "screen": screen}


def main() -> None:
    options = arguments()
    place = Path(options.place).resolve()
    place.mkdir(parents=True, exist_ok=True)
    wanted = [trial for table in options.tables for trial in TABLES[table]()]
    if options.seeds:
        wanted = [trial for trial in wanted if str(trial.seed) in options.seeds.split(",")]
    if options.rows:
        wanted = [trial for trial in wanted if re.search(options.rows, trial.name)]
    paths = prepare(place, options)
    run(
        wanted,
        Path(options.results),
        place,
        paths,
        processes=options.processes,
        threads=options.threads,
        minutes=options.minutes,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=list(TABLES))
    parser.add_argument("--place", required=True, help="where data, caches and runs are kept")
    parser.add_argument("--data", default="cifar100", help="CIFAR-100 as a dataset of softcache")
    parser.add_argument("--data-dir", help="where torchvision's CIFAR-100 is")
    parser.add_argument("--teacher", help="file.py:factory, or a folder; by default a ResNet-56 is taught")
    parser.add_argument("--teacher-weights", help="a file of its weights")
    parser.add_argument("--results", default=str(FILE), help="the file of what was run")
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--rows", help="only those whose names match this regular expression")
    parser.add_argument("--seeds", help="only these, as 0,1")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no training after so many")
    return parser.parse_args()


def prepare(place: Path, options: argparse.Namespace) -> dict[str, str]:
    """Data, teacher and caches, where they aren't there yet; what stands for them in commands."""
    for name in ("held", "whole"):
        divide(place / name, options.data, options.data_dir, HELD_OUT if name == "held" else 0)
    teacher, weights = options.teacher, ""
    if teacher is None:
        teacher = str(place / "teacher")
        softcache(
            f"teach --model cifar:resnet56 --preset crd-cifar --dataset arrays:{place / 'whole'} "
            f"--augment {AUGMENT} --out {teacher}",
            place,
            options.threads,
        )
    else:
        file, colon, factory = teacher.rpartition(":")
        teacher = f"{Path(file).resolve()}:{factory}" if colon else str(Path(teacher).resolve())
    if options.teacher_weights:
        weights = f"--teacher-weights {Path(options.teacher_weights).resolve()}"
    paths = {"teacher": teacher, "weights": weights}
    for name, cache in (("held", "cache"), ("whole", "whole_cache")):
        paths[name] = f"arrays:{place / name}"
        paths[cache] = str(place / cache)
        if any("{" + cache + "}" in trial.command for table in options.tables for trial in TABLES[table]()):
            softcache(
                f"dump --teacher {teacher} {weights} --dataset {paths[name]} --augment {AUGMENT} {FAST} "
                f"--views {max(VIEWS)} --out {paths[cache]}",
                place,
                options.threads,
            )
    return paths


def divide(folder: Path, source: str, data_dir: str | None, held_out: int, *, shuffled: bool = False) -> None:
    """The training rows but for the last ``held_out``, which become the test split; with 0 the set as it is.

    ``shuffled``: first in a fixed random order, for sets that are sorted by class. Images must be of one size.
    """
    if (folder / "classes.txt").exists():
        return
    folder.mkdir(exist_ok=True)
    train = open_samples(source, "train", data_dir=data_dir)
    test = train if held_out else open_samples(source, "test", data_dir=data_dir)
    order = np.random.default_rng(0).permutation(len(train)) if shuffled else np.arange(len(train))
    kept, tested = order[: len(train) - held_out], order[len(train) - held_out :] if held_out else np.arange(len(test))
    for split, samples, rows in (("train", train, kept), ("test", test, tested)):
        np.save(folder / f"{split}_images.npy", np.stack([samples.image(int(row)) for row in rows]))
        np.save(folder / f"{split}_labels.npy", samples.labels[rows])
    (folder / "classes.txt").write_text("\n".join(train.classes) + "\n")


def softcache(command: str, place: Path, threads: int) -> None:
    """A command that shows its own progress."""
    say(f"softcache {command}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    own = [sys.executable, "-m", "softcache", "--threads", str(threads), *command.split()]
    subprocess.run(own, check=True, cwd=place, env=environment)


if __name__ == "__main__":
    main()
