"""CIFAR-100 from a cache: which targets, losses and views make a student better than alone.

    python -m benchmarks.cifar100 --place DIR --data arrays:PATH --teacher FILE.py:FACTORY --teacher-weights FILE screen
    python -m benchmarks.cifar100 --place DIR … recipes targets
    python -m benchmarks.cifar100 --place DIR --data cifar100 published --minutes 10

``recipes``, ``deeper``, ``screen`` and ``targets`` compare many rows on training rows that are held out, with seeds 0
to 2: how students are optimized, numbers of views, kinds of targets and losses are chosen there, and nothing looks at
the test split. ``resnet8``, ``resnet20`` and ``resnet8x4`` are the students that it is then looked at with, with other
seeds. ``published`` is for a GPU: the papers' pairs and recipe, with teachers that it teaches. Each run is kept in
``benchmarks/results`` as soon as it is done; ``--minutes M`` interrupts what runs after M minutes, and the same command
goes on with it and with what is missing. Without ``--teacher`` a ResNet-56 is taught first, in the papers' way.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cifar100_rows import AUGMENT, FAST, PAIRS, PUBLISHED_VIEWS, TABLES, VIEWS
from benchmarks.rows import RESULTS, Trial, add_running, append, chosen, ended, made_by, recorded, run, say
from softcache.datasets._open import open_samples
from softcache.errors import SoftcacheError

HELD_OUT = 5_000
FILE = RESULTS / "cifar100.jsonl"


def main() -> None:
    options = arguments()
    place = Path(options.place).resolve()
    place.mkdir(parents=True, exist_ok=True)
    wanted = chosen([trial for table in options.tables for trial in TABLES[table]()], options)
    done = recorded(options.results)
    run(wanted, place, prepare([trial for trial in wanted if trial.key not in done], place, options), options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=list(TABLES))
    parser.add_argument("--data", default="cifar100", help="CIFAR-100 as a dataset of softcache")
    parser.add_argument("--teacher", help="file.py:factory, or a folder; by default a ResNet-56 is taught")
    parser.add_argument("--teacher-weights", help="a file of its weights")
    add_running(parser, FILE)
    return parser.parse_args()


def prepare(wanted: list[Trial], place: Path, options: argparse.Namespace) -> dict[str, str]:
    """Data, teachers and caches that these trainings need, where they aren't there yet; what stands for them in
    commands."""
    needed = {name for trial in wanted for name in re.findall(r"{(\w+)}", trial.command)}
    for name in ("held", "whole"):
        divide(place / name, options.data, HELD_OUT if name == "held" else 0, options)
    paths = {name: f"arrays:{place / name}" for name in ("held", "whole")}
    if needed & {"teacher", "cache", "whole_cache"}:
        paths |= given_teacher(place, options)
    for name, rows in (("cache", "held"), ("whole_cache", "whole")):
        paths[name] = str(place / name)
        if name in needed:
            asked = f"{paths['teacher']} {paths['weights']}"
            dump(place / name, asked, paths[rows], f"{FAST} --views {max(VIEWS)}", options)
    for name in needed & {f"{network}_cache" for network in PAIRS}:
        network = name.removesuffix("_cache")
        paths[name] = str(place / name)
        teach(network, place, options)
        dump(place / name, str(place / network), paths["whole"], f"--views {PUBLISHED_VIEWS} --amp off", options)
    return paths


def given_teacher(place: Path, options: argparse.Namespace) -> dict[str, str]:
    """``{teacher}`` and ``{weights}``: the one that was given, else a ResNet-56."""
    if options.teacher is None:
        teach("resnet56", place, options)
        return {"teacher": str(place / "resnet56"), "weights": ""}
    file, colon, factory = options.teacher.rpartition(":")
    teacher = f"{Path(file).resolve()}:{factory}" if colon else str(Path(options.teacher).resolve())
    weights = options.teacher_weights and f"--teacher-weights {Path(options.teacher_weights).resolve()}"
    return {"teacher": teacher, "weights": weights or ""}


def teach(network: str, place: Path, options: argparse.Namespace) -> None:
    """A teacher by the papers' recipe."""
    data = f"--dataset arrays:{place / 'whole'} --augment {AUGMENT} --amp off"
    softcache(f"teach --model cifar:{network} --preset crd-cifar {data} --out {place / network}", place, options)


def dump(cache: Path, teacher: str, data: str, how: str, options: argparse.Namespace) -> None:
    """A cache; how long its teacher took is kept beside the runs."""
    command = f"dump --teacher {teacher} --dataset {data} --augment {AUGMENT} {how} --out {cache}"
    made = softcache(command, cache.parent, options)
    keys = made["computed_keys"]
    if keys:
        record = {"key": f"dump {cache.name}, {keys} keys", "table": "dump", "name": cache.name, "keys": keys}
        append(options.results, {**record, "seconds": made["seconds"], "threads": options.threads, **made_by()})


def divide(
    folder: Path,
    source: str,
    held_out: int,
    options: argparse.Namespace,
    *,
    rows: int | None = None,
    classes: int | None = None,
) -> None:
    """The training rows but for the last ``held_out``, which become the test split; with 0 the set as it is.

    ``rows``: train on so many of a fixed random order, so that of a set that is sorted by class all classes are there,
    and test on the ``held_out`` next ones. ``classes``: of the rows of the first ones alone. Images must be of one
    size.
    """
    if (folder / "classes.txt").exists():
        return
    try:
        train, test = (
            open_samples(source, split, data_dir=options.data_dir, download=options.download)
            for split in ("train", "train" if held_out else "test")
        )
    except SoftcacheError as error:
        raise SystemExit(f"error: {error}") from None
    order = np.arange(len(train)) if rows is None else np.random.default_rng(0).permutation(len(train))
    if classes is not None:
        order = order[train.labels[order] < classes]
    end = len(order) - held_out if rows is None else rows
    folder.mkdir(exist_ok=True)
    kept, tested = order[:end], order[end : end + held_out] if held_out else np.arange(len(test))
    for split, samples, chosen_rows in (("train", train, kept), ("test", test, tested)):
        np.save(folder / f"{split}_images.npy", np.stack([samples.image(int(row)) for row in chosen_rows]))
        np.save(folder / f"{split}_labels.npy", samples.labels[chosen_rows])
    (folder / "classes.txt").write_text("\n".join(train.classes[:classes]) + "\n")


def softcache(command: str, place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a command of a table's preparation said in JSON; the script ends where it fails or the time is up."""
    say(f"softcache {command}")
    done = ended([*shlex.split(command), "--json"], place, options)
    if done is None:
        raise SystemExit("The time is up: the same command goes on.")
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
