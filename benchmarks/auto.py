"""How ``softcache sweep --auto`` compares with settings that were picked by hand.

    python -m benchmarks.auto --place DIR --data-dir DATA_DIR --letters letter-recognition.csv

For each set a teacher is taught and asked as docs/defaults.md and docs/tutorials/tables.md say, and students are
trained three times: by the defaults, as the best row of these pages says (what hands picked), and as the search says.
All of them hold out the same tenth of the rows and have the same seeds, which the search didn't see; they are compared
on the test split. The search is given a budget; its seconds are those of the whole command. Optuna (``--trials``) is
given as many students as the search had, and a range around the defaults that holds all settings that ``--auto`` tries
first; the setting that it likes best is trained with the same seeds as the others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cifar100 import divide
from benchmarks.defaults import DATA
from benchmarks.measure import machine
from softcache.sweeping.statistics import paired

ROOT = Path(__file__).resolve().parents[1]
LETTERS = ROOT / "examples" / "letters.py"
SEEDS = 3
WAYS = ("defaults", "picked", "auto", "drawn")
KL_1 = "--loss kl --T 1"
SPACE = "--loss kl --loss kl:standardize=true --loss dist --T 1..8 --alpha 0.5..4 --beta 0.1..1"  # of Optuna
SETTINGS = ("loss", "T", "alpha", "beta", "lr")


@dataclass(frozen=True)
class Case:
    """``data``: of benchmarks.defaults, or the letters; ``options``: of all students; ``picked``: by hand, nothing
    where the best row of the pages is that of the defaults; ``rates``: Optuna's, a quarter to eight times the default
    rate."""

    data: str
    student: str
    options: str
    picked: str
    budget: str
    rates: str


CASES = {
    "digits, 5 % of the labels": Case(
        "digits", "cifar:resnet8", "--epochs 8 --label-fraction 0.05", "", "5m", "0.0125..0.4"
    ),
    "letters, 10 % of the labels": Case(
        "letters", f"{LETTERS}:perceptron", "--epochs 20 --label-fraction 0.1", KL_1, "5m", "0.0005..0.016"
    ),
    "fashionmnist, 2,500 rows": Case("fashionmnist2500", "cifar:resnet8", "--epochs 8", "", "10m", "0.0125..0.4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--place", type=Path, required=True, help="where data, teachers, caches and sweeps are kept")
    parser.add_argument("--data-dir", help="where data sets are, or are downloaded to")
    parser.add_argument("--download", action="store_true", default=None, help="download what is missing")
    parser.add_argument("--letters", type=Path, help="UCI's letter-recognition.csv")
    parser.add_argument("--only", default="", help="names of sets, with semicolons")
    options = parser.parse_args()
    place = options.place.resolve()
    place.mkdir(parents=True, exist_ok=True)
    print("auto against hand-picked settings\n")
    heads = "set | defaults, % | by hand, % | found, % | Optuna, % | found − by hand | found − Optuna | found | Optuna"
    print(f"| {heads} | students | time | Optuna |")
    print("| --- " * 12 + "|")
    rows = {}
    for name, case in CASES.items():
        if name in (options.only.split(";") if options.only else CASES):
            rows[name] = measured(name, case, place, options)
            print(in_row(name, rows[name]), flush=True)
    print(json.dumps({"benchmark": "auto", "rows": rows, **machine()}))


def measured(name: str, case: Case, place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The test scores of each, what was found, how many students and how long it took."""
    cache = prepared(case.data, place, options)
    common = ["--student", case.student, "--cache", cache, *case.options.split()]
    seeds = ["--seeds", str(SEEDS), "--seed", "1"]
    found: dict[str, Any] = {}
    slug = "".join(letter if letter.isalnum() else "-" for letter in name)
    found["defaults"] = tests(softcache(place, "sweep", *common, *seeds, "--out", f"{slug}-defaults"))
    by_hand = [*seeds, *case.picked.split(), "--out", f"{slug}-picked"]
    found["picked"] = tests(softcache(place, "sweep", *common, *by_hand)) if case.picked else found["defaults"]
    searching = ["--seeds", str(SEEDS), "--auto", "--budget", case.budget, "--out", f"{slug}-auto"]
    done = softcache(place, "sweep", *common, *searching)
    students = sum(len(row["runs"]) for row in [*done["searched"], *done["rows"]])
    seconds = json.loads((place / f"{slug}-auto" / "spent.json").read_text())["seconds"]  # of all commands
    drawing = ["--trials", str(students - SEEDS), *SPACE.split(), "--lr", case.rates, "--out", f"{slug}-trials"]
    drawn = softcache(place, "sweep", *common, *drawing)
    best = [part for option, value in chosen(drawn).items() for part in (f"--{option}", value)]
    again = softcache(place, "sweep", *common, *seeds, *best, "--out", f"{slug}-drawn")
    return {
        **found,
        "auto": tests(done),
        "drawn": tests(again),
        "setting": spelled(chosen(done)),
        "drawn_setting": spelled(chosen(drawn)),
        "students": students,
        "seconds": seconds,
        "drawn_seconds": drawn["seconds"] + again["seconds"],
    }


def chosen(swept: dict[str, Any]) -> dict[str, str]:
    """The options of the setting that a sweep chose."""
    return {option: swept["chosen"][option] for option in SETTINGS if option in swept["chosen"]}


def spelled(settings: dict[str, str]) -> str:
    return " ".join(f"{option} {value}" for option, value in settings.items())


def tests(swept: dict[str, Any]) -> dict[int, float]:
    """Seed → score on the test split, of the students that were chosen."""
    return dict(zip(swept["chosen"]["seeds"], swept["chosen"]["test"], strict=True))


def in_row(name: str, found: dict[str, Any]) -> str:
    """As a row of the table."""
    seeds = found["auto"].keys()  # fewer, where the time was up
    means = [f"{100 * statistics.mean(found[what][seed] for seed in seeds):.2f}" for what in WAYS]
    beside = " | ".join(
        difference(*([found[what][seed] for seed in seeds] for what in ("auto", way))) for way in WAYS[1::2]
    )
    settings = f"{found['setting']} | {found['drawn_setting']}"
    times = " | ".join(f"{found[which] / 60:.1f} min" for which in ("seconds", "drawn_seconds"))
    return f"| {name} | {' | '.join(means)} | {beside} | {settings} | {found['students']} | {times} |"


def difference(ours: list[float], theirs: list[float]) -> str:
    """In points, paired by seed, with its 95 % interval."""
    own = paired(ours, theirs)
    around = f" ± {100 * own.half_width:.2f}" if own.half_width is not None else ""
    return f"{100 * own.mean:+.2f}{around}"


def prepared(name: str, place: Path, options: argparse.Namespace) -> str:
    """The cache of a set's teacher."""
    cache = place / f"{name}-cache"
    if name == "letters":
        if options.letters is None:
            raise SystemExit("--letters says where letter-recognition.csv is; --only leaves it out")
        code = "import letters, sys; print(letters.convert(sys.argv[1], 16000))"
        if not (place / "letters").exists():
            python(place, "-c", code, str(options.letters.resolve()))
        softcache(place, "dump", "--teacher", f"{LETTERS}:boosted", "--dataset", "arrays:letters", "--out", str(cache))
        return str(cache)
    data = DATA[name]
    divide(place / name, data.source, data.held_out, options, rows=data.rows)
    how = ["--dataset", f"arrays:{place / name}", "--size", str(data.size), "--augment", data.augment]
    teacher = place / f"{name}-teacher"
    record = teacher / "config.json"
    if not record.exists() or json.loads(record.read_text())["result"] is None:
        softcache(place, "teach", "--model", data.teacher, *how, "--epochs", str(data.epochs), "--out", str(teacher))
    softcache(place, "dump", "--teacher", str(teacher), *how, "--out", str(cache))
    return str(cache)


def softcache(place: Path, *arguments: str) -> dict[str, Any]:
    """What a command says in JSON; the script ends where it fails."""
    found: dict[str, Any] = json.loads(python(place, "-m", "softcache", *arguments, "--json"))
    return found


def python(place: Path, *arguments: str) -> str:
    """What a Python process prints; the script ends where it fails."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments[:3])} … failed")
    return done.stdout


if __name__ == "__main__":
    main()
