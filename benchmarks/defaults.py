"""How far the defaults are from the best choices beside them, on sets of several kinds.

    python -m benchmarks.defaults --place DIR --data-dir DATA_DIR --flowers folder:PATH --pretrained FILE.py:FACTORY \
        --pretrained-weights FILE

For each set a teacher is taught with the defaults and asked; then students are trained in ten ways by hand
(``RECIPES``), in float32 where the default is bfloat16, and with losses (``LOSSES``) and targets varied. All of it is
judged on training rows that are held out: no test split is looked at. Runs are kept in ``benchmarks/results`` one by
one, and the same command goes on with what is missing; ``--cases``, ``--rows`` and ``--seeds`` do a part.
``benchmarks.defaults_page`` writes docs/defaults.md. All of CIFAR-100 has a script of its own, ``benchmarks.cifar100``.

The last sets say how far the defaults hold elsewhere. ``--pretrained`` is a network of CIFAR-100's classes, which is
the teacher of 5,000 and of 10,000 of its rows, and which is fine-tuned to other sets.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.cifar100 import divide, softcache
from benchmarks.cifar100_rows import VIEWS, optimized, row
from benchmarks.rows import RESULTS, Trial, add_running, chosen, recorded, run, trials
from softcache.config.presets import as_given, open_preset

FILE = RESULTS / "defaults.jsonl"
SEEDS = (0, 1, 2)
MORE_SEEDS = (3, 4, 5, 6, 7)  # of those who say nothing, where few pictures are judged

NETWORKS = f"{Path(__file__).resolve().parent / 'networks.py'}:"


@dataclass(frozen=True)
class Data:
    """``rows``: of the training split, the first ones in a random order, for training; the ``held_out`` next ones are
    tested on. ``teacher`` is taught for ``epochs``; with 0 it is a network that was trained elsewhere, or
    there is none, and only students without one are trained. ``views``: so many are recorded; None: as by default.
    ``classes``: rows of the first ones alone; None: of all."""

    source: str
    rows: int
    held_out: int
    augment: str
    size: int
    teacher: str
    epochs: int
    views: int | None = None
    classes: int | None = None


@dataclass(frozen=True)
class Case:
    """What is trained on which data, and by which preset. ``epochs``: the same in all ways; ``batch``: of the ways by
    hand. ``labels``: the share of the rows whose labels students see; the teacher has seen all of them.
    ``distilled_chosen_on``: whether defaults of distilled students were chosen by it."""

    data: str
    student: str
    preset: str
    batch: int
    epochs: int
    labels: float = 1.0
    distilled_chosen_on: bool = True

    @property
    def small(self) -> bool:
        """Whether it is one of the small convolutional networks that ``convnet`` has rates of their own for."""
        return self.student.startswith("cifar:")


PRETRAINED = "{pretrained} --weights {weights}"
VIEWED = ("cifar5000", "fashionmnist2500", "taught_flowers32")
# One for each size of set that the preset tells apart, but for large ones, for which there is CIFAR-100. The digits are
# as they come, 8 pixels wide: every student is right about 98 % of them or more, unless it has few labels.
DATA = {
    "digits": Data("digits", 1_038, 400, "crop:pad=1", 8, "cifar:resnet20", 40),
    "flowers": Data("flowers", 540, 180, "rrc+flip", 64, "resnet34", 30),
    "fashionmnist": Data("fashionmnist", 12_000, 10_000, "crop:pad=4+flip", 32, "cifar:resnet20", 20),
    "fashionmnist2500": Data("fashionmnist", 2_500, 10_000, "crop:pad=4+flip", 32, "cifar:resnet20", 40),
    "cifar10000": Data("cifar100", 10_000, 5_000, "crop:pad=4+flip", 32, PRETRAINED, 0),
    "cifar5000": Data("cifar100", 5_000, 5_000, "crop:pad=4+flip", 32, PRETRAINED, 0),
    "flowers32": Data("flowers", 540, 180, "rrc+flip", 32, "", 0),
    "taught_flowers32": Data("flowers", 540, 180, "rrc+flip", 32, PRETRAINED, 12),
    "ten_classes": Data("cifar100", 3_200, 1_800, "rrc+flip", 48, PRETRAINED, 6, classes=10),
}
# Of which targets and numbers of views are compared: each with a cache of all of those views.
DATA |= {f"{name}_views": replace(DATA[name], views=max(VIEWS)) for name in VIEWED}
FEWER, DEEPER = "cifar100, 5,000 rows", "cifar100, 10,000 rows, a deeper student"
FINE_TUNED = "flowers, a fine-tuned teacher"
WIDE, MOBILE = (f"cifar100, 3,200 rows of ten classes, {network}" for network in ("a ResNet-18", "a MobileNetV3"))
CASES = {
    "digits": Case("digits", "cifar:resnet8", "convnet", 32, 8),
    "digits, 5 % of the labels": Case("digits", "cifar:resnet8", "convnet", 32, 8, 0.05),
    "flowers": Case("flowers", "resnet18", "convnet", 32, 10),
    "fashionmnist": Case("fashionmnist", "cifar:resnet8", "convnet", 64, 12),
    "fashionmnist, perceptron": Case("fashionmnist", "{networks}perceptron", "perceptron", 64, 12),
    "fashionmnist, transformer": Case("fashionmnist", "{networks}transformer", "transformer", 64, 12),
    "flowers of 32 pixels, fine-tuned": Case("flowers32", PRETRAINED, "fine-tuning", 32, 12),
    "fashionmnist, 2,500 rows": Case("fashionmnist2500", "cifar:resnet8", "convnet", 32, 8),
    FEWER: Case("cifar5000", "cifar:resnet8", "convnet", 64, 12, distilled_chosen_on=False),
    DEEPER: Case("cifar10000", "cifar:resnet20", "convnet", 64, 12, distilled_chosen_on=False),
    WIDE: Case("ten_classes", "resnet18", "convnet", 64, 8),
    MOBILE: Case("ten_classes", "mobilenet_v3_small", "convnet", 64, 8),
    FINE_TUNED: Case("taught_flowers32", "cifar:resnet8", "convnet", 32, 24, distilled_chosen_on=False),
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
FINE_TUNING = {
    "sgd 0.0025": ("sgd", 0.0025, 1e-4, "cosine"),
    "sgd 0.005": ("sgd", 0.005, 1e-4, "cosine"),
    "sgd 0.01, decay 5e-4": ("sgd", 0.01, 5e-4, "cosine"),
    "sgd 0.02": ("sgd", 0.02, 1e-4, "cosine"),
    "sgd 0.05": ("sgd", 0.05, 1e-4, "cosine"),
    "sgd 0.1": ("sgd", 0.1, 1e-4, "cosine"),
    "sgd 0.02, steps": ("sgd", 0.02, 1e-4, "step"),
    "adamw 0.0003": ("adamw", 0.0003, 0.01, "cosine"),
    "adamw 0.001": ("adamw", 0.001, 0.01, "cosine"),
    "adamw 0.003": ("adamw", 0.003, 0.01, "cosine"),
}
LOSSES = {
    "kl, T 1": "--loss kl --alpha 0.9 --T 1",
    "kl, T 1, weight 4": "--loss kl:T=1,weight=4 --alpha 1 --beta 1",
    "kl, T 2": "--loss kl --alpha 0.9 --T 2",
    "kl, T 4": "--loss kl --alpha 0.9 --T 4",
    "kl, alpha 0.5, T 4": "--loss kl --alpha 0.5 --T 4",
    "kl standardized": "--loss kl:standardize=true,T=2,weight=9 --alpha 1 --beta 0.1",
    "nkd": "--loss nkd --alpha 1 --beta 1",
    "wsld": "--loss wsld:weight=2.5 --alpha 1 --beta 1",
    "dist": "--loss dist:weight=2 --alpha 1 --beta 1",
    "dist, T 1": "--loss dist:weight=2 --alpha 1 --beta 1 --T 1",
}
DEFAULT, DISTILLED = "alone, default", "distilled, dist"  # the rows of those who say nothing
FLOAT32 = f"{DEFAULT}, float32"
KINDS = ("matched", "mean", "both")
TARGETS = {kind: f"--targets {kind} {LOSSES['dist']}" for kind in KINDS[1:]}


def rows(name: str) -> list[Trial]:
    """All trainings of a case. What the defaults are is spelled out, so that a row is run again when they change."""
    case = CASES[name]
    data = DATA[case.data]
    by_default, distilled = (
        {**open_preset(case.preset).at(data.rows, distilled=d, small=case.small), "epochs": None} for d in (False, True)
    )
    where = f"--dataset {{{case.data}}} --size {data.size} --augment {data.augment}"
    alone = f"train --student {case.student} {where} --alpha 0"
    cached = f"train --student {case.student} --cache {{{case.data}_cache}}"
    if case.labels < 1:
        alone, cached = (f"{command} --label-fraction {case.labels}" for command in (alone, cached))
    ways = {"default": as_given(by_default)}
    by_hand = FINE_TUNING if case.preset == "fine-tuning" else RECIPES
    for recipe, (optimizer, lr, decay, schedule) in by_hand.items():
        ways[recipe] = optimized(optimizer, lr, decay, batch=case.batch, schedule=schedule)
    table = {f"alone, {way}": f"{alone} --epochs {case.epochs} {options}" for way, options in ways.items()}
    table[FLOAT32] = f"{table[DEFAULT]} --amp off --no-channels-last"
    if case.batch == 64 and case.small:  # what it is like at the rate of distilled students
        table["alone, sgd 0.2, float32"] = f"{table['alone, sgd 0.2']} --amp off --no-channels-last"
    for what, options in (LOSSES | TARGETS if data.teacher else {}).items():
        table[f"distilled, {what}"] = f"{cached} --epochs {case.epochs} {as_given(distilled)} {options}"
    rates = {0.5: "half the rate", 2: "twice the rate"}
    if case.data == "ten_classes":  # with the rates of small networks too
        table["alone, sgd 0.3"] = table["alone, sgd 0.2"].replace("--lr 0.2", "--lr 0.3")
        rates[0.2 / distilled["lr"]] = "the rate of small networks"
    for factor, rate in rates.items() if data.teacher else ():
        ours = as_given({**distilled, "lr": factor * distilled["lr"]})
        table[f"{DISTILLED}, {rate}"] = f"{cached} --epochs {case.epochs} {ours} {LOSSES['dist']}"
    found = trials(name, table, SEEDS)
    if data.held_out < 1_000 and data.teacher:
        found += trials(name, {row: table[row] for row in (DEFAULT, DISTILLED)}, MORE_SEEDS)
    return found


def viewed(name: str) -> list[Trial]:
    """The same student from 1 to 8 recorded views with each kind of targets, optimized by default."""
    case = CASES[name]
    said = open_preset(case.preset).at(DATA[case.data].rows, distilled=True, small=case.small)
    distilled = {**said, "epochs": None}
    cached = f"train --student {case.student} --cache {{{case.data}_views_cache}} --epochs {case.epochs}"
    how = f"{as_given(distilled)} {LOSSES['dist']}"
    table = {row(kind, v): f"{cached} --targets {kind} --views {v} {how}" for v in VIEWS for kind in KINDS}
    return trials(f"{name}, views", table, SEEDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default="", help="only those whose names match this regular expression")
    parser.add_argument("--flowers", help="a folder of photographs of one size as a dataset of softcache")
    parser.add_argument("--cifar100", default="cifar100", help="CIFAR-100 as a dataset of softcache")
    parser.add_argument("--pretrained", help="file.py:factory of a network that was trained on CIFAR-100")
    parser.add_argument("--pretrained-weights", help="a file of its weights")
    add_running(parser, FILE)
    options = parser.parse_args()
    place = Path(options.place).resolve()
    place.mkdir(parents=True, exist_ok=True)
    names = [name for name in CASES if re.search(options.cases, name)]
    paths = {"networks": NETWORKS, **pretrained(options)}
    if "weights" not in paths and any("{weights}" in CASES[n].student + DATA[CASES[n].data].teacher for n in names):
        raise SystemExit("--pretrained and --pretrained-weights are missing; --cases leaves out what needs them")
    wanted = [trial for name in names for trial in rows(name)]
    wanted += [trial for name in names if CASES[name].data in VIEWED for trial in viewed(name)]
    wanted, done = chosen(wanted, options), recorded(options.results)
    missing = " ".join(trial.command for trial in wanted if trial.key not in done)
    for name in DATA:
        if re.search(rf"{{{name}(_cache)?}}", missing):
            paths |= prepare(name, place, options, asked=f"{{{name}_cache}}" in missing)
    run(wanted, place, paths, options)


def pretrained(options: argparse.Namespace) -> dict[str, str]:
    """What stands for the network of ``--pretrained`` and its weights; nothing where they aren't given."""
    if not options.pretrained or not options.pretrained_weights:
        return {}
    file, _, factory = options.pretrained.rpartition(":")
    return {
        "pretrained": f"{Path(file).resolve()}:{factory}",
        "weights": str(Path(options.pretrained_weights).resolve()),
    }


def prepare(name: str, place: Path, options: argparse.Namespace, *, asked: bool) -> Mapping[str, str]:
    """A set and, where its teacher is ``asked``, that and its cache; what stands for them in commands."""
    data, taught = DATA[name], name.removesuffix("_views")
    source = {"flowers": options.flowers, "cifar100": options.cifar100}.get(data.source, data.source)
    if source is None:
        raise SystemExit("--flowers says where that set is; --cases leaves it out")
    divide(place / taught, source, data.held_out, options, rows=data.rows, classes=data.classes)
    dataset, cache, teacher = f"arrays:{place / taught}", place / f"{name}-cache", f"{place / taught}-teacher"
    how = f"--dataset {dataset} --size {data.size} --augment {data.augment}"
    network = data.teacher.format(**pretrained(options))
    if not asked:
        return {name: dataset}
    if data.epochs:
        softcache(f"teach --model {network} {how} --epochs {data.epochs} --out {teacher}", place, options)
    else:
        teacher = network.replace("--weights", "--teacher-weights")
    views = "" if data.views is None else f" --views {data.views}"
    softcache(f"dump --teacher {teacher} {how}{views} --out {cache}", place, options)
    return {name: dataset, f"{name}_cache": str(cache)}


if __name__ == "__main__":
    main()
