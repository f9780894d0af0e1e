"""How far the defaults are from the best choices beside them, on sets of several kinds.

    python -m benchmarks.defaults --place DIR --fashionmnist DATA_DIR --flowers folder:PATH

For each set a teacher is taught with the defaults and asked; then students are trained in ten ways by hand
(``RECIPES``), and with the loss, its weight and temperature varied (``SOFT``). All of it is judged on training rows
that are held out: no test split is looked at. Runs are kept in ``benchmarks/results`` one by one, and the same command
goes on with what is missing; ``--sets``, ``--rows`` and ``--seeds`` do a part. ``benchmarks.defaults_page`` writes
docs/defaults.md. CIFAR-100 has a script of its own, ``benchmarks.cifar100``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cifar100 import divide, softcache
from benchmarks.cifar100_rows import optimized
from benchmarks.rows import RESULTS, Trial, add_running, chosen, run, trials
from softcache.config.parsed import DEFAULT_LOSS
from softcache.config.presets import as_given, open_preset

FILE = RESULTS / "defaults.jsonl"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Set:
    """``rows`` of the training split, of which ``held_out`` are tested on. ``batch``: of the ways by hand. ``epochs``:
    of the students, the same in all ways; fewer than the preset's where two cores would take hours."""

    source: str
    rows: int
    held_out: int
    augment: str
    size: int
    teacher: str
    student: str
    batch: int
    epochs: int
    teacher_epochs: int


SETS = {
    "digits": Set("digits", 1_438, 400, "crop:pad=4", 32, "cifar:resnet20", "cifar:resnet8", 32, 8, 40),
    "flowers": Set("flowers", 720, 180, "rrc+flip", 64, "resnet34", "resnet18", 32, 24, 60),
    "fashionmnist": Set(
        "fashionmnist", 60_000, 10_000, "crop:pad=4+flip", 32, "cifar:resnet20", "cifar:resnet8", 128, 6, 12
    ),
}
# optimizer, learning rate, weight decay, schedule
RECIPES = {
    "sgd 0.025": ("sgd", 0.025, 5e-4, "cosine"),
    "sgd 0.05": ("sgd", 0.05, 5e-4, "cosine"),
    "sgd 0.1": ("sgd", 0.1, 5e-4, "cosine"),
    "sgd 0.2": ("sgd", 0.2, 5e-4, "cosine"),
    "sgd 0.4": ("sgd", 0.4, 5e-4, "cosine"),
    "sgd 0.1, decay 1e-4": ("sgd", 0.1, 1e-4, "cosine"),
    "sgd 0.1, steps": ("sgd", 0.1, 5e-4, "step"),
    "adamw 0.001": ("adamw", 0.001, 0.01, "cosine"),
    "adamw 0.003": ("adamw", 0.003, 0.01, "cosine"),
    "adamw 0.01": ("adamw", 0.01, 0.01, "cosine"),
}
SOFT = {
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
    """All trainings on a set. What the defaults are is spelled out, so that a row is run again when they change."""
    one = SETS[name]
    preset = {**open_preset("convnet").at(one.rows - one.held_out), "epochs": None}
    alone = f"train --student {one.student} --dataset {{{name}}} --size {one.size} --augment {one.augment} --alpha 0"
    cached = f"train --student {one.student} --cache {{{name}_cache}}"
    ways = {"default": as_given(preset)}
    for recipe, (optimizer, lr, decay, schedule) in RECIPES.items():
        ways[recipe] = optimized(optimizer, lr, decay, batch=one.batch, schedule=schedule)
    losses = {"default": f"--loss {DEFAULT_LOSS}", **SOFT}
    table = {f"alone, {way}": f"{alone} --epochs {one.epochs} {options}" for way, options in ways.items()}
    for loss, options in losses.items():
        table[f"distilled, {loss}"] = f"{cached} --epochs {one.epochs} {ways['default']} {options}"
    return trials(name, table, SEEDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", default=",".join(SETS), help="which sets")
    parser.add_argument("--fashionmnist", help="the folder of torchvision's FashionMNIST")
    parser.add_argument("--flowers", help="a folder of photographs of one size as a dataset of softcache")
    add_running(parser, FILE)
    options = parser.parse_args()
    place = Path(options.place).resolve()
    place.mkdir(parents=True, exist_ok=True)
    wanted: list[Trial] = []
    paths: dict[str, str] = {}
    for name in options.sets.split(","):
        wanted += rows(name)
        paths |= prepare(name, place, options)
    run(chosen(wanted, options), place, paths, options)


def prepare(name: str, place: Path, options: argparse.Namespace) -> Mapping[str, str]:
    """Data, teacher and cache of a set; what stands for them in commands."""
    one = SETS[name]
    source = options.flowers if name == "flowers" else one.source
    if source is None:
        raise SystemExit("--flowers says where that set is; --sets leaves it out")
    divide(place / name, source, options.fashionmnist, one.held_out, shuffled=True)
    dataset, cache, teacher = f"arrays:{place / name}", place / f"{name}-cache", f"{place / name}-teacher"
    how = f"--dataset {dataset} --size {one.size} --augment {one.augment}"
    teach = f"teach --model {one.teacher} {how} --epochs {one.teacher_epochs} --out {teacher}"
    softcache(teach, place, options)
    softcache(f"dump --teacher {teacher} {how} --out {cache}", place, options)
    return {name: dataset, f"{name}_cache": str(cache)}


if __name__ == "__main__":
    main()
