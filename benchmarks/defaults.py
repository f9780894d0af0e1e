"""How far the defaults are from the best choices beside them, on sets of several kinds.

    python -m benchmarks.defaults --place DIR --data-dir DATA_DIR --flowers folder:PATH

For each set a teacher is taught with the defaults and asked; then students are trained in ten ways by hand
(``RECIPES``), in float32 where the default is bfloat16, and with losses (``LOSSES``) and targets varied. All of it is
judged on training rows that are held out: no test split is looked at. Runs are kept in ``benchmarks/results`` one by
one, and the same command goes on with what is missing; ``--cases``, ``--rows`` and ``--seeds`` do a part.
``benchmarks.defaults_page`` writes docs/defaults.md. CIFAR-100 has a script of its own, ``benchmarks.cifar100``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cifar100 import divide, softcache
from benchmarks.cifar100_rows import optimized
from benchmarks.rows import RESULTS, Trial, add_running, chosen, run, trials
from softcache.config.presets import as_given, open_preset

FILE = RESULTS / "defaults.jsonl"
SEEDS = (0, 1, 2)


NETWORKS = f"{Path(__file__).resolve().parent / 'networks.py'}:"


@dataclass(frozen=True)
class Data:
    """``rows``: of the training split, the first ones in a random order, for training; the ``held_out`` next ones are
    tested on. ``teacher`` is taught for ``epochs``."""

    source: str
    rows: int
    held_out: int
    augment: str
    size: int
    teacher: str
    epochs: int


@dataclass(frozen=True)
class Case:
    """What is trained on which data, and by which preset. ``epochs``: the same in all ways; ``batch``: of the ways by
    hand. ``labels``: the share of the rows whose labels students see; the teacher has seen all of them."""

    data: str
    student: str
    preset: str
    batch: int
    epochs: int
    labels: float = 1.0


# One for each size of set that the preset tells apart, but for large ones, for which there is CIFAR-100. The digits are
# as they come, 8 pixels wide: every student is right about 98 % of them or more, unless it has few labels.
DATA = {
    "digits": Data("digits", 1_038, 400, "crop:pad=1", 8, "cifar:resnet20", 40),
    "flowers": Data("flowers", 540, 180, "rrc+flip", 64, "resnet34", 30),
    "fashionmnist": Data("fashionmnist", 12_000, 10_000, "crop:pad=4+flip", 32, "cifar:resnet20", 20),
}
CASES = {
    "digits": Case("digits", "cifar:resnet8", "convnet", 32, 8),
    "digits, 5 % of the labels": Case("digits", "cifar:resnet8", "convnet", 32, 8, 0.05),
    "flowers": Case("flowers", "resnet18", "convnet", 32, 10),
    "fashionmnist": Case("fashionmnist", "cifar:resnet8", "convnet", 64, 12),
    "fashionmnist, perceptron": Case("fashionmnist", "{networks}perceptron", "perceptron", 64, 12),
    "fashionmnist, transformer": Case("fashionmnist", "{networks}transformer", "transformer", 64, 12),
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
LOSSES = {
    "kl, T 1": "--loss kl --alpha 0.9 --T 1",
    "kl, T 2": "--loss kl --alpha 0.9 --T 2",
    "kl, T 4": "--loss kl --alpha 0.9 --T 4",
    "kl, alpha 0.5, T 4": "--loss kl --alpha 0.5 --T 4",
    "kl standardized": "--loss kl:standardize=true,T=2,weight=9 --alpha 1 --beta 0.1",
    "nkd": "--loss nkd --alpha 1 --beta 1",
    "wsld": "--loss wsld:weight=2.5 --alpha 1 --beta 1",
    "dist": "--loss dist:weight=2 --alpha 1 --beta 1",
    "dist, T 1": "--loss dist:weight=2 --alpha 1 --beta 1 --T 1",
}
TARGETS = {kind: f"--targets {kind} {LOSSES['dist']}" for kind in ("mean", "both")}


def rows(name: str) -> list[Trial]:
    """All trainings of a case. What the defaults are is spelled out, so that a row is run again when they change."""
    case = CASES[name]
    data = DATA[case.data]
    preset = {**open_preset(case.preset).at(data.rows), "epochs": None}
    where = f"--dataset {{{case.data}}} --size {data.size} --augment {data.augment}"
    alone = f"train --student {case.student} {where} --alpha 0"
    cached = f"train --student {case.student} --cache {{{case.data}_cache}}"
    if case.labels < 1:
        alone, cached = (f"{command} --label-fraction {case.labels}" for command in (alone, cached))
    ways = {"default": as_given(preset)}
    for recipe, (optimizer, lr, decay, schedule) in RECIPES.items():
        ways[recipe] = optimized(optimizer, lr, decay, batch=case.batch, schedule=schedule)
    table = {f"alone, {way}": f"{alone} --epochs {case.epochs} {options}" for way, options in ways.items()}
    table["alone, default, float32"] = f"{table['alone, default']} --amp off --no-channels-last"
    for what, options in (LOSSES | TARGETS).items():
        table[f"distilled, {what}"] = f"{cached} --epochs {case.epochs} {ways['default']} {options}"
    return trials(name, table, SEEDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default="", help="only those whose names match this regular expression")
    parser.add_argument("--flowers", help="a folder of photographs of one size as a dataset of softcache")
    add_running(parser, FILE)
    options = parser.parse_args()
    place = Path(options.place).resolve()
    place.mkdir(parents=True, exist_ok=True)
    names = [name for name in CASES if re.search(options.cases, name)]
    paths = {"networks": NETWORKS}
    for name in {CASES[name].data: None for name in names}:
        paths |= prepare(name, place, options)
    run(chosen([trial for name in names for trial in rows(name)], options), place, paths, options)


def prepare(name: str, place: Path, options: argparse.Namespace) -> Mapping[str, str]:
    """A set, its teacher and its cache; what stands for them in commands."""
    data = DATA[name]
    source = options.flowers if name == "flowers" else data.source
    if source is None:
        raise SystemExit("--flowers says where that set is; --cases leaves it out")
    divide(place / name, source, data.held_out, options, rows=data.rows)
    dataset, cache, teacher = f"arrays:{place / name}", place / f"{name}-cache", f"{place / name}-teacher"
    how = f"--dataset {dataset} --size {data.size} --augment {data.augment}"
    softcache(f"teach --model {data.teacher} {how} --epochs {data.epochs} --out {teacher}", place, options)
    softcache(f"dump --teacher {teacher} {how} --out {cache}", place, options)
    return {name: dataset, f"{name}_cache": str(cache)}


if __name__ == "__main__":
    main()
