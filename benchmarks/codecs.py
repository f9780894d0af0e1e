"""What codecs cost: bytes a key, error, rates, the losses that they harm, and what students make of it.

    python -m benchmarks.codecs --place DIR --data arrays:PATH --teacher FILE.py:FACTORY --teacher-weights FILE \\
        --logits 'ImageNet, 1,000 classes=FILE.npy'
    python -m benchmarks.codecs losses --place DIR --data … --teacher … --teacher-weights …
    python -m benchmarks.codecs students --place DIR --data … --teacher … --teacher-weights …

``errors``, the default, measures softcache's codecs and the schemes of others on the same rows of real logits, none of
which anything was fitted to: those of a teacher of CIFAR-100, with the vectors that its last layer is given, and those
of files (N, C). ``losses`` compares each loss and its gradient with those of the teacher's own numbers. ``students``
trains them from caches that differ in their codec alone. The teacher runs once, into a cache in float32. What was
measured is kept in ``benchmarks/results`` and isn't measured again but with ``--again``; ``benchmarks.codecs_page``
writes docs/codecs.md of it.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cifar100 import HELD_OUT, divide, dump, given_teacher, softcache
from benchmarks.cifar100_rows import AUGMENT
from benchmarks.codecs_caches import recoded
from benchmarks.codecs_losses import Seen, harm, losses_of, through
from benchmarks.codecs_measure import Kept, coded, described, error_of_classes, error_of_values, nbytes, rates
from benchmarks.codecs_rows import FIXED, NEEDED, VIEWS, students
from benchmarks.codecs_schemes import SAMPLED, Scheme
from benchmarks.codecs_sets import EMBEDDING, LOGITS_SET, Set, in_random_order, of_cache, seen_by
from benchmarks.rows import RESULTS, add_running, append, chosen, made_by, recorded, run, say
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.config.record import STUDENT_FILE
from softcache.losses._terms import parse_term

FILE = RESULTS / "codecs.jsonl"


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    place = Path(options.place).resolve()
    place.mkdir(parents=True, exist_ok=True)
    {"errors": errors, "losses": losses, "students": trained}[options.table](place, options)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", nargs="?", default="errors", choices=("errors", "losses", "students"))
    parser.add_argument("--data", default="cifar100", help="CIFAR-100 as a dataset of softcache")
    parser.add_argument("--teacher", help="file.py:factory, or a folder; errors leaves CIFAR-100 out without it")
    parser.add_argument("--teacher-weights", help="a file of its weights")
    parser.add_argument(
        "--embedding", default="linear:in", metavar="LAYER", help="of the teacher, as of softcache dump"
    )
    parser.add_argument(
        "--logits", action="append", default=[], metavar="NAME=FILE", help="more logits, a .npy file (N, C)"
    )
    parser.add_argument("--repetitions", type=int, default=9, help="of what is timed")
    parser.add_argument("--again", action="store_true", help="measure what was measured, too; trainings stay")
    add_running(parser, FILE)
    options = parser.parse_args(arguments)
    if options.table != "errors" and options.teacher is None:
        parser.error(f"{options.table} needs --teacher")
    if wrong := [given for given in options.logits if "=" not in given]:
        parser.error(f"--logits {wrong[0]}: give a name and a file, NAME=FILE")
    return options


def errors(place: Path, options: argparse.Namespace) -> None:
    """Bytes, errors and rates of each codec on each set."""
    sets = of_cache(prepared(place, options)[1], options.embedding) if options.teacher else []
    for given in options.logits:
        name, _, file = given.rpartition("=")
        sets.append(Set.of(name, "classes", in_random_order(np.load(file, allow_pickle=False))))
    for some in sets:
        keep(f"set {some.name}", "sets", functools.partial(about, some), some.name, options)
        each("errors", some, some.schemes, functools.partial(measured, some, options.repetitions), options)


def about(some: Set) -> dict[str, Any]:
    """What a set is."""
    shape = {"fitted": len(some.fitted_on), "rows": len(some.measured), "numbers": some.fitted_on.shape[1]}
    return {"kind": some.kind, **shape, **(described(some.measured) if some.kind == "classes" else {})}


def measured(some: Set, repetitions: int, kept: Kept) -> dict[str, Any]:
    """Bytes a key, the error, and the rates of a codec on a set."""
    pieces = coded(kept, some.measured)
    size = {"bytes": nbytes(kept, pieces), "constant_bytes": kept.constant_bytes}
    error = (error_of_classes if some.kind == "classes" else error_of_values)(kept, pieces)
    return {"set": some.name, **size, "error": error, **rates(kept, some.measured, repetitions)}


def losses(place: Path, options: argparse.Namespace) -> None:
    """What each codec does to each loss, between one student and the teacher."""
    held, cache = prepared(place, options)
    student = place / "student"
    if not (student / STUDENT_FILE).exists():
        shutil.rmtree(student, ignore_errors=True)  # of a call that was interrupted
        softcache(f"{FIXED} --dataset {held} --augment {AUGMENT} --out {student}", place, options)
    seen = seen_by(student, cache, options.embedding)
    for kind, name in (("classes", LOGITS_SET), ("values", EMBEDDING)):
        said, teacher, labels = seen[kind]
        some = Set.of(name, kind, teacher)
        behind = slice(len(some.fitted_on), None)
        given = {}
        for spec in losses_of(kind):
            # Of vectors that are as long as the teacher's, where a loss compares them number by number.
            mapped = kind == "values" and "vectors" not in parse_term(spec).needs
            student_said = through(said, teacher, len(some.fitted_on)) if mapped else said
            given[spec] = Seen(student_said[behind], teacher[behind], labels[behind])
        schemes = [scheme for scheme in some.schemes if scheme.family != SAMPLED]
        each("losses", some, schemes, functools.partial(harms, name, given), options)


def harms(name: str, given: dict[str, Seen], kept: Kept) -> dict[str, Any]:
    """What a codec does to each loss."""
    return {"set": name, "losses": harm(kept, given)}


def trained(place: Path, options: argparse.Namespace) -> None:
    """Students from caches that differ in their codec."""
    wanted = chosen(students(), options)
    held, cache = prepared(place, options)
    paths = {"held": held, "fp32": str(cache)}
    needed = {name for trial in wanted for name in re.findall(r"{(\w+)}", trial.command)}
    for name in sorted(needed - paths.keys()):
        scheme = NEEDED[name]
        paths[name] = str(place / name)
        say(f"{name}: the cache of {scheme.name}")
        if isinstance(scheme.codec, str):
            recoded(cache, place / name, scheme.codec)
        else:
            kept = scheme.kept("classes", torch.empty(0, Cache(cache).layout(LOGITS).width))
            recoded(cache, place / name, "fp32", lambda logits, kept=kept: kept.target(kept.encode(logits)))
    run(wanted, place, paths, options)


def prepared(place: Path, options: argparse.Namespace) -> tuple[str, Path]:
    """The dataset whose held-out training rows are its test split, and the teacher's cache of it in float32."""
    divide(place / "held", options.data, HELD_OUT, options)
    held, given = f"arrays:{place / 'held'}", given_teacher(place, options)
    how = f"--views {VIEWS} --amp off --codec fp32 --hint {options.embedding}"
    dump(place / "fp32", f"{given['teacher']} {given['weights']}", held, how, options)
    return held, place / "fp32"


def each(
    table: str,
    some: Set,
    schemes: list[Scheme],
    measured: Callable[[Kept], dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    """Measures each scheme of a set that hasn't been measured."""
    for scheme in schemes:
        if not options.rows or re.search(options.rows, scheme.name):

            def made(scheme: Scheme = scheme) -> dict[str, Any]:
                return {"family": scheme.family, **measured(scheme.kept(some.kind, some.fitted_on))}

            keep(f"{table} {some.name}: {scheme.name}", table, made, scheme.name, options)


def keep(key: str, table: str, made: Callable[[], dict[str, Any]], name: str, options: argparse.Namespace) -> None:
    """Appends a record, unless it is there."""
    if key in recorded(options.results) and not options.again:
        return
    record = {"key": key, "table": table, "name": name, **json_ready(made()), "threads": options.threads, **_made_by()}
    append(options.results, record)
    say(key)


def json_ready(value: Any) -> Any:
    """JSON has no infinity: it becomes null."""
    if isinstance(value, dict):
        return {name: json_ready(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@functools.cache
def _made_by() -> dict[str, Any]:
    return made_by()


if __name__ == "__main__":
    main()
