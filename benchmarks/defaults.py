"""How far the defaults are from the best choices beside them, on sets of several kinds.

    python -m benchmarks.defaults --place DIR --fashionmnist DATA_DIR --cifar100 arrays:PATH --flowers folder:PATH

For each set a teacher is taught with the defaults, unless one is given, and asked; then students are trained in ten
ways by hand (``RECIPES``), and with the loss, its weight and temperature varied (``SOFT``). All of it is judged on
training rows that are held out: no test split is looked at. Runs are kept in ``benchmarks/results`` one by one, and the
same command goes on with what is missing; ``--sets`` and ``--seeds`` do a part. ``benchmarks.defaults_page`` writes
docs/defaults.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cifar100 import divide, softcache
from benchmarks.rows import RESULTS, Trial, run, trials

FILE = RESULTS / "defaults.jsonl"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Set:
    """``held_out``: rows of the training split that are tested on. ``epochs``: of teacher and students; those of the
    students are fewer than the preset's where two cores would take hours."""

    source: str
    held_out: int
    augment: str
    size: int
    teacher: str
    student: str
    epochs: int
    teacher_epochs: int


SETS = {
    "digits": Set("digits", 400, "crop:pad=4", 32, "cifar:resnet20", "cifar:resnet8", 20, 40),
    "flowers": Set("flowers", 180, "rrc+flip", 64, "resnet34", "resnet18", 20, 60),
    "fashionmnist": Set("fashionmnist", 10_000, "crop:pad=4+flip", 32, "cifar:resnet20", "cifar:resnet8", 6, 12),
    "cifar100": Set("cifar100", 5_000, "crop:pad=4+flip", 32, "", "cifar:resnet8", 12, 0),
}
RECIPES = {
    "default": "",
    "sgd 0.025": "--optimizer sgd --lr 0.025 --weight-decay 0.0005",
    "sgd 0.05": "--optimizer sgd --lr 0.05 --weight-decay 0.0005",
    "sgd 0.1": "--optimizer sgd --lr 0.1 --weight-decay 0.0005",
    "sgd 0.2": "--optimizer sgd --lr 0.2 --weight-decay 0.0005",
    "sgd 0.4": "--optimizer sgd --lr 0.4 --weight-decay 0.0005",
    "sgd 0.1, decay 0.0001": "--optimizer sgd --lr 0.1 --weight-decay 0.0001",
    "sgd 0.1, steps": "--optimizer sgd --lr 0.1 --weight-decay 0.0005 --schedule step",
    "adamw 0.001": "--optimizer adamw --lr 0.001 --weight-decay 0.01",
    "adamw 0.003": "--optimizer adamw --lr 0.003 --weight-decay 0.01",
    "adamw 0.01": "--optimizer adamw --lr 0.01 --weight-decay 0.01",
}
SOFT = {
    "default": "",
    "kl, alpha 0.5, T 1": "--loss kl --alpha 0.5 --T 1",
    "kl, alpha 0.9, T 1": "--loss kl --alpha 0.9 --T 1",
    "kl, alpha 0.5, T 2": "--loss kl --alpha 0.5 --T 2",
    "kl, alpha 0.9, T 2": "--loss kl --alpha 0.9 --T 2",
    "kl, alpha 0.5, T 4": "--loss kl --alpha 0.5 --T 4",
    "kl, alpha 0.9, T 4": "--loss kl --alpha 0.9 --T 4",
    "standardized": "--loss kl:standardize=true,T=2,weight=9 --alpha 1 --beta 0.1",
    "standardized, beta 1": "--loss kl:standardize=true,T=2,weight=9 --alpha 1 --beta 1",
    "standardized, weight 3, beta 0.5": "--loss kl:standardize=true,T=2,weight=3 --alpha 1 --beta 0.5",
    "dist": "--loss dist --alpha 1 --beta 1",
    "wttm": "--loss wttm --alpha 1 --beta 1",
}


def rows(name: str) -> list[Trial]:
    """All trainings on a set, the same number for students alone and distilled."""
    one = SETS[name]
    with_all = f"--epochs {one.epochs}"
    alone = f"train --student {one.student} --dataset {{{name}}} --size {one.size} --augment {one.augment} --alpha 0"
    cached = f"train --student {one.student} --cache {{{name}_cache}}"
    by_hand = {f"alone, {recipe}": f"{alone} {with_all} {options}".strip() for recipe, options in RECIPES.items()}
    soft = {f"distilled, {loss}": f"{cached} {with_all} {options}".strip() for loss, options in SOFT.items()}
    return trials(name, by_hand | soft, SEEDS)


def main() -> None:
    options = arguments()
    place = Path(options.place).resolve()
    place.mkdir(parents=True, exist_ok=True)
    wanted: list[Trial] = []
    paths: dict[str, str] = {}
    for name in options.sets.split(","):
        wanted += [trial for trial in rows(name) if str(trial.seed) in options.seeds.split(",")]
        paths |= prepare(name, place, options)
    run(
        wanted,
        Path(options.results),
        place,
        paths,
        processes=options.processes,
        threads=options.threads,
        minutes=options.minutes,
    )


def prepare(name: str, place: Path, options: argparse.Namespace) -> Mapping[str, str]:
    """Data, teacher and cache of a set; what stands for them in commands."""
    one = SETS[name]
    source, data_dir = one.source, None
    if name == "fashionmnist":
        data_dir = options.fashionmnist
    elif name != "digits":
        source = getattr(options, name)
        if source is None:
            raise SystemExit(f"--{name} says where that set is; --sets leaves it out")
    divide(place / name, source, data_dir, one.held_out, shuffled=True)
    dataset, cache, teacher = f"arrays:{place / name}", place / f"{name}-cache", f"{place / name}-teacher"
    how = f"--dataset {dataset} --size {one.size} --augment {one.augment}"
    if one.teacher:
        softcache(
            f"teach --model {one.teacher} {how} --epochs {one.teacher_epochs} --out {teacher}", place, options.threads
        )
        softcache(f"dump --teacher {teacher} {how} --out {cache}", place, options.threads)
    else:
        weights = f"--teacher-weights {Path(options.teacher_weights).resolve()}" if options.teacher_weights else ""
        softcache(f"dump --teacher {options.teacher} {weights} {how} --out {cache}", place, options.threads)
    return {name: dataset, f"{name}_cache": str(cache)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--place", required=True, help="where data, teachers, caches and runs are kept")
    parser.add_argument("--sets", default=",".join(SETS), help="which sets")
    parser.add_argument("--seeds", default="0,1,2", help="which seeds")
    parser.add_argument("--fashionmnist", help="the folder of torchvision's FashionMNIST")
    parser.add_argument("--cifar100", help="CIFAR-100 as a dataset of softcache")
    parser.add_argument("--flowers", help="a folder of photographs as a dataset of softcache")
    parser.add_argument("--teacher", help="of CIFAR-100: file.py:factory, or a folder")
    parser.add_argument("--teacher-weights", help="a file of its weights")
    parser.add_argument("--results", default=str(FILE), help="the file of what was run")
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no training after so many")
    return parser.parse_args()


if __name__ == "__main__":
    main()
