"""The rows of ``benchmarks.cifar100``: which trainings each of its tables is made of.

A row's command says all that it depends on, so that it stays the same when softcache's defaults change. In it
``{held}`` and ``{whole}`` stand for the training rows less those that are held out and for all of them with the test
split, ``{cache}`` and ``{whole_cache}`` for the teacher's caches of them, ``{teacher}`` and ``{weights}`` for the
teacher itself, and ``{resnet56_cache}`` and the like for caches of teachers that the ``published`` table teaches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.rows import Trial, trials

AUGMENT = "crop:pad=4+flip"
VIEWS = (1, 2, 4, 8)
PUBLISHED_VIEWS = 40
CHOOSING = (0, 1, 2)  # seeds of the tables that look at rows that are held out
TESTING = (10, 11, 12, 13, 14)  # seeds of those that look at the test split
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
# Plain kl beside the whole loss of the labels. Its gradient carries T², so that a low T needs a larger weight.
WEIGHTED = {
    f"kl, T {T:g}, weight {weight:g}": f"--loss kl:T={T:g},weight={weight:g} --alpha 1 --beta 1"
    for T, weight in ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (0.5, 4), (0.5, 8), (0.5, 16), (2, 0.25), (2, 1))
}
KL = WEIGHTED["kl, T 1, weight 4"]  # of plain kl on held-out rows, good at both rates that were tried
# Student → epochs and seeds of the tables on the test split.
TESTED = {"resnet8": (12, 5), "resnet20": (20, 5), "resnet8x4": (15, 3)}
# How students are optimized there, alone and distilled, as held-out rows say: in `deeper` 0.4 is better than 0.2 for a
# ResNet-20 alone, and worse with either loss.
ALONE, DISTILLED = "sgd 0.4", {"resnet8": "sgd 0.4", "resnet20": "sgd 0.2", "resnet8x4": "sgd 0.4"}
# Pairs of the papers: teacher → student, which `softcache teach` and `train` know as cifar:NAME.
PAIRS = {"resnet56": "resnet20", "resnet32x4": "resnet8x4"}
# kl as in CRD's tables; the others with the weights of their papers.
PUBLISHED = {"kl": "--loss kl --alpha 0.9 --T 4", **{name: LOSSES[name] for name in ("dkd", "dist", "kl standardized")}}


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
    for name in ("kl, T 1, weight 4", "kl, T 1, weight 8"):  # at the rate of the table on the test split
        rows[f"{name}, sgd 0.4"] = cached("cifar:resnet8", f"{WEIGHTED[name]} --epochs 12 {RECIPES['sgd 0.4']} {FAST}")
    return trials("recipes", rows, CHOOSING)


def deeper() -> list[Trial]:
    """Whether the rates that suit a ResNet-8 suit one that is deeper, in half as many epochs: alone and distilled."""
    rows: dict[str, str] = {}
    for name in ("sgd 0.1", "sgd 0.2", "sgd 0.4"):
        how = f"--epochs 6 {RECIPES[name]} {FAST}"
        rows[f"alone, {name}"] = alone("cifar:resnet20", how)
        rows[f"dist, {name}"] = cached("cifar:resnet20", f"{SOFT} {how}")
        rows[f"kl, T 1, weight 4, {name}"] = cached("cifar:resnet20", f"{KL} {how}")
    return trials("deeper", rows, CHOOSING)


def screen() -> list[Trial]:
    """Losses in a first look, at a rate at which none of them diverges."""
    rows = {"alone": alone("cifar:resnet8", SCREENED)}
    rows |= {name: cached("cifar:resnet8", f"{options} {SCREENED}") for name, options in LOSSES.items()}
    return trials("screen", rows, CHOOSING)


def targets() -> list[Trial]:
    """Targets and numbers of views, and the losses that the screening left, optimized as suits the student alone."""
    student = "cifar:resnet8"
    rows = {"alone": alone(student, TUNED), "live": live(student, f"{SOFT} {TUNED}")}
    for views in reversed(VIEWS):
        for kind in ("matched", "mean", "both"):
            # Matched targets of all views are the default and a row of `recipes`: the same command runs once.
            said = "" if (kind, views) == ("matched", max(VIEWS)) else f"--targets {kind} --views {views} "
            rows[row(kind, views)] = cached(student, f"{said}{SOFT} {TUNED}")
    for share in ("0:1:alternate", "0:1:linear", "1:0:linear"):
        both = f"--targets both --fresh-share {share}"
        rows[f"both {share}, 4 views"] = cached(student, f"{both} --views 4 {SOFT} {TUNED}")
    for name in ("kl, T 1", "kl standardized", "nkd", "wsld"):
        rows[name] = cached(student, f"{LOSSES[name]} {TUNED}")
    rows["kl, T 0.5"] = cached(student, f"--loss kl --alpha 0.9 --T 0.5 {TUNED}")
    for name, options in WEIGHTED.items():
        rows[name] = cached(student, f"{options} {TUNED}")
    rows["kl, T 1, mean, 8 views"] = cached(student, f"--targets mean {LOSSES['kl, T 1']} {TUNED}")
    for name, options in COMBINED.items():
        rows[name] = cached(student, f"{options} {TUNED}")
    return trials("targets", rows, CHOOSING)


def row(kind: str, views: int) -> str:
    """The name of a row of ``targets``."""
    return f"{kind}, {views} view{'s' if views > 1 else ''}"


def tested(name: str) -> list[Trial]:
    """A student on all training rows, judged on the test split."""
    epochs, seeds = TESTED[name]
    student, how = f"cifar:{name}", f"--epochs {epochs} {RECIPES[DISTILLED[name]]} {FAST}"
    rows = {
        "alone": alone(student, f"--epochs {epochs} {RECIPES[ALONE]} {FAST}", "{whole}"),
        "live": live(student, f"{SOFT} {how}", "{whole}"),
    }
    rows["kl, matched, 8 views"] = cached(student, f"{KL} {how}", "{whole_cache}")
    if name == "resnet8":  # the first choice, before weights were varied on the held-out rows; run with two seeds
        rows["kl, alpha 0.9, matched, 8 views"] = cached(student, f"{LOSSES['kl, T 1']} {how}", "{whole_cache}")
    for kind, views in (("matched", 8), ("mean", 8), ("mean", 4), ("mean", 1)):
        if name == "resnet8" or (kind, views) == ("mean", 8):
            options = f"--targets {kind} --views {views} {SOFT} {how}"
            rows[f"dist, {row(kind, views)}"] = cached(student, options, "{whole_cache}")
    if name == "resnet20":  # the first choice, before rates were varied for distilled students; run with two seeds
        before = f"--epochs {epochs} {RECIPES[ALONE]} {FAST}"
        rows["kl, matched, 8 views, sgd 0.4"] = cached(student, f"{KL} {before}", "{whole_cache}")
        options = f"--targets mean --views 8 {SOFT} {before}"
        rows["dist, mean, 8 views, sgd 0.4"] = cached(student, options, "{whole_cache}")
    return trials(name, rows, TESTING[:seeds])


def published() -> list[Trial]:
    """The pairs and the recipe of the papers, for a GPU: a training is hours on one, and days on two cores."""
    rows: dict[str, str] = {}
    for teacher, student in PAIRS.items():
        how, pair = "--preset crd-cifar --amp off", f"{teacher} → {student}"
        rows[f"{pair}, alone"] = alone(f"cifar:{student}", how, "{whole}")
        for name, options in PUBLISHED.items():
            rows[f"{pair}, {name}"] = cached(f"cifar:{student}", f"{options} {how}", f"{{{teacher}_cache}}")
    return trials("published", rows, TESTING)


TABLES: dict[str, Callable[[], list[Trial]]] = {
    "recipes": recipes,
    "deeper": deeper,
    "screen": screen,
    "targets": targets,
    **{name: partial(tested, name) for name in TESTED},
    "published": published,
}
