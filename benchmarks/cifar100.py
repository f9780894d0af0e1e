"""CIFAR-100 from a cache: which targets, losses and views make a student better than alone.

    python -m benchmarks.cifar100 --place DIR --data arrays:PATH --teacher FILE.py:FACTORY --teacher-weights FILE screen
    python -m benchmarks.cifar100 --place DIR … recipes

Both tables compare many rows on training rows that are held out, with seeds 0 to 2: how students are optimized, numbers
of views, kinds of targets and losses are chosen there, and nothing looks at the test split. Each run is kept in
``benchmarks/results`` as soon as it is done; ``--minutes M`` begins none after M minutes, and the same command goes on
with what is missing. Without ``--teacher`` a ResNet-56 is taught first, in the papers' way. A row's command says all
that it depends on, so that it stays the same when softcache's defaults change.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.rows import RESULTS, ROOT, Trial, add_running, chosen, run, say, trials
from softcache.datasets._open import open_samples

HELD_OUT = 5_000
AUGMENT = "crop:pad=4+flip"
VIEWS = (1, 2, 4, 8)
SEEDS = (0, 1, 2)
FILE = RESULTS / "cifar100.jsonl"
FAST = "--amp bf16 --channels-last"


def optimized(
    optimizer: str, lr: float, decay: float, *, batch: int = 128, schedule: str = "cosine", clip: float = 5
) -> str:
    """All options of a way to optimize."""
    momentum = " --momentum 0.9 --nesterov" if optimizer == "sgd" else ""
    return (
        f"--batch-size {batch} --optimizer {optimizer} --lr {lr:g} --weight-decay {decay:g}{momentum} "
        f"--schedule {schedule} --warmup 1 --clip-grad {clip:g} --label-smoothing 0"
    )


SCREENED = f"--epochs 12 {optimized('sgd', 0.1, 5e-4, clip=0)} {FAST}"
RECIPES = {
    "sgd 0.1": optimized("sgd", 0.1, 5e-4),
    "sgd 0.2": optimized("sgd", 0.2, 5e-4),
    "sgd 0.4": optimized("sgd", 0.4, 5e-4),
    "sgd 0.1, decay 1e-4": optimized("sgd", 0.1, 1e-4),
    "sgd 0.2, decay 1e-4": optimized("sgd", 0.2, 1e-4),
    "sgd 0.1, batch 64": optimized("sgd", 0.1, 5e-4, batch=64),
    "sgd 0.2, batch 64": optimized("sgd", 0.2, 5e-4, batch=64),
    "sgd 0.1, steps": optimized("sgd", 0.1, 5e-4, schedule="step"),
    "adamw 0.002, batch 64": optimized("adamw", 0.002, 0.01, batch=64),
    "adamw 0.01": optimized("adamw", 0.01, 0.01),
}
TUNED = f"--epochs 12 {RECIPES['sgd 0.2']} {FAST}"
SOFT = "--loss dist:weight=2 --alpha 1 --beta 1"  # what ways to optimize, views and targets are compared with
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
# Losses together, each with the weight that it has alone.
COMBINED = {
    "dist and nkd": "--loss dist:weight=2 --loss nkd --alpha 1 --beta 1",
    "dist and wsld": "--loss dist:weight=2 --loss wsld:weight=2.5 --alpha 1 --beta 1",
    "dist and kl, T 1": "--loss dist:weight=2 --loss kl:T=1 --alpha 1 --beta 1",
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
        how = f"--epochs 12 {options} {FAST}"
        rows[f"alone, {name}"] = alone("cifar:resnet8", how)
        rows[f"distilled, {name}"] = cached("cifar:resnet8", f"{SOFT} {how}")
    return trials("recipes", rows, SEEDS)


def screen() -> list[Trial]:
    """Losses in a first look, at a rate at which none of them diverges."""
    rows = {"alone": alone("cifar:resnet8", SCREENED)}
    rows |= {name: cached("cifar:resnet8", f"{options} {SCREENED}") for name, options in LOSSES.items()}
    return trials("screen", rows, SEEDS)


def targets() -> list[Trial]:
    """Targets and numbers of views, and the losses that the screening left, optimized as suits the student alone."""
    student = "cifar:resnet8"
    rows = {"alone": alone(student, TUNED), "live": live(student, f"{SOFT} {TUNED}")}
    for views in reversed(VIEWS):
        for kind in ("matched", "mean", "both"):
            # What is the default isn't said: matched targets of all views that there are.
            said = "" if (kind, views) == ("matched", max(VIEWS)) else f"--targets {kind} --views {views} "
            rows[f"{kind}, {views} views"] = cached(student, f"{said}{SOFT} {TUNED}")
    for share in ("0:1:alternate", "0:1:linear", "1:0:linear"):
        both = f"--targets both --fresh-share {share}"
        rows[f"both {share}, 4 views"] = cached(student, f"{both} --views 4 {SOFT} {TUNED}")
    for name in ("kl, T 1", "kl standardized", "nkd", "wsld"):
        rows[name] = cached(student, f"{LOSSES[name]} {TUNED}")
    for name, options in COMBINED.items():
        rows[name] = cached(student, f"{options} {TUNED}")
    return trials("targets", rows, SEEDS)


TABLES: dict[str, Callable[[], list[Trial]]] = {"recipes": recipes, "screen": screen, "targets": targets}


def main() -> None:
    options = arguments()
    place = Path(options.place).resolve()
    place.mkdir(parents=True, exist_ok=True)
    wanted = [trial for table in options.tables for trial in TABLES[table]()]
    run(chosen(wanted, options), place, prepare(place, options), options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=list(TABLES))
    parser.add_argument("--data", default="cifar100", help="CIFAR-100 as a dataset of softcache")
    parser.add_argument("--data-dir", help="where torchvision's CIFAR-100 is")
    parser.add_argument("--teacher", help="file.py:factory, or a folder; by default a ResNet-56 is taught")
    parser.add_argument("--teacher-weights", help="a file of its weights")
    add_running(parser, FILE)
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
