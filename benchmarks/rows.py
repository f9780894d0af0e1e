"""Trainings that make up a table, run one after the other or side by side, each remembered as soon as it is done.

A row is a command of softcache and a seed. What it came to, also where it failed, is one line of a JSON file that is
kept with the code (``benchmarks/results/``), so that a table can be made in many sittings, on several machines, and
nobody has to believe a figure that no run stands behind. A row that is in the file isn't run again. One that was
interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import machine

RESULTS = Path(__file__).resolve().parent / "results"
ROOT = Path(__file__).resolve().parents[1]
BEGAN = time.monotonic()


@dataclass(frozen=True)
class Trial:
    """``softcache COMMAND --seed SEED``, in a table's row of this name. In the command ``{cache}`` and the like stand
    for paths of the place where it runs, so that the text is the same everywhere."""

    table: str
    name: str
    command: str
    seed: int

    @property
    def key(self) -> str:
        """The command alone: a training that two tables show is run once."""
        return f"{self.command} --seed {self.seed}"

    @property
    def folder(self) -> str:
        """Another one for each command, so that a run of an earlier version of a row isn't taken for one of this."""
        readable = re.sub(r"[^\w.=-]+", "-", f"{self.table}-{self.name}-{self.seed}")
        return f"{readable}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"


def trials(table: str, rows: Mapping[str, str], seeds: Iterable[int]) -> list[Trial]:
    """All rows of a table, seed by seed, so that a table that isn't finished has few seeds and not few rows."""
    return [Trial(table, name, command, seed) for seed in seeds for name, command in rows.items()]


def recorded(file: Path) -> dict[str, dict[str, Any]]:
    """What has been run, by key. A line that an interruption cut off counts as not run."""
    found: dict[str, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
            found[record["key"]] = record
        except (ValueError, KeyError):
            continue
    return found


def add_running(parser: argparse.ArgumentParser, file: Path) -> None:
    """The options of every script that runs trials. ``file``: where they are recorded by default."""
    parser.add_argument("--place", required=True, help="where data, teachers, caches and runs are kept")
    parser.add_argument("--results", type=Path, default=file, help="the file of what was run")
    parser.add_argument("--data-dir", help="where torchvision's datasets are, or go")
    parser.add_argument("--download", action="store_true", help="download the dataset if it is missing")
    parser.add_argument("--rows", help="only those whose names match this regular expression")
    parser.add_argument("--seeds", help="only these, as 0,1")
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side")
    parser.add_argument(
        "--together", action="store_true", help="those of one seed in one process, from one stream where they can"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--minutes", type=float, default=math.inf, help="interrupt what runs after so many minutes")


def chosen(wanted: Sequence[Trial], options: argparse.Namespace) -> list[Trial]:
    """Those of ``--rows`` and ``--seeds``."""
    seeds = options.seeds and options.seeds.split(",")
    return [
        trial
        for trial in wanted
        if (not options.rows or re.search(options.rows, trial.name)) and (not seeds or str(trial.seed) in seeds)
    ]


def run(
    wanted: Sequence[Trial], place: Path, paths: Mapping[str, str], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Runs those that ``options.results`` doesn't have and gives the records of all.

    ``place``: where runs are kept; ``paths``: what stands for them in commands; ``options``: of ``add_running``. After
    ``minutes`` none begins, and those that run are interrupted and go on the next time.
    """
    file = options.results
    done, lock = recorded(file), threading.Lock()
    missing = [trial for trial in wanted if trial.key not in done]
    say(f"{len(wanted) - len(missing)} of {len(wanted)} trainings are done")

    def one(trial: Trial) -> None:
        record = _run(trial, place, paths, options) if seconds_left(options) > 0 else None
        if record is None:
            return
        with lock:
            done[trial.key] = record
            append(file, record)
        reached = f"{100 * record['top1']:.2f} %" if "top1" in record else record["failed"]
        say(f"{trial.table}, {trial.name}, seed {trial.seed}: {reached} in {record['seconds']:.0f} s")

    def cohort(some: list[Trial]) -> None:
        records = _run_together(some, place, paths, options) if seconds_left(options) > 0 else []
        with lock:
            for trial, record in zip(some, records, strict=False):
                done[trial.key] = record
                append(file, record)

    with ThreadPoolExecutor(options.processes) as pool:
        if options.together:
            list(pool.map(cohort, [[t for t in missing if t.seed == seed] for seed in {t.seed: 0 for t in missing}]))
        else:
            list(pool.map(one, missing))
    return {trial.key: done[trial.key] for trial in wanted if trial.key in done}


def _run_together(
    some: list[Trial], place: Path, paths: Mapping[str, str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The records of trainings in one process; none where the time is up, and the next call goes on with them."""
    told = [
        {"arguments": shlex.split(trial.command.format(**paths))[1:], "seed": trial.seed, "out": trial.folder}
        for trial in some
    ]
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.rows_together", str(place), str(options.threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        left = seconds_left(options)
        try:
            output, _ = process.communicate(json.dumps(told), timeout=left if math.isfinite(left) else None)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.communicate()
            return []
    if process.returncode:
        raise SystemExit(f"benchmarks.rows_together ended with {process.returncode}")
    records = []
    for trial, result in zip(some, json.loads(output.splitlines()[-1]), strict=True):
        command_line = f"softcache {trial.command} --seed {trial.seed}"
        record = {"key": trial.key, "table": trial.table, "name": trial.name, "command": command_line}
        seconds = {"seed": trial.seed, "seconds": (time.monotonic() - began) / len(some), "together": len(some)}
        records.append({**record, **seconds, **result, "threads": options.threads, **made_by()})
        say(f"{trial.table}, {trial.name}, seed {trial.seed}: {result}")
    return records


def seconds_left(options: argparse.Namespace) -> float:
    """Of ``--minutes``, counted from the start of the script."""
    return 60 * options.minutes - (time.monotonic() - BEGAN)


def ended(command: Sequence[str], place: Path, options: argparse.Namespace) -> subprocess.CompletedProcess[str] | None:
    """Runs ``softcache COMMAND`` in ``place`` and keeps what it prints. None: it was told to end when the time was up,
    so it has kept its state and the same command goes on with it."""
    with subprocess.Popen(
        [sys.executable, "-m", "softcache", "--quiet", "--threads", str(options.threads), *command],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        left = seconds_left(options)
        try:
            output, errors = process.communicate(timeout=left if math.isfinite(left) else None)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.communicate()
            return None
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def append(file: Path, record: Mapping[str, Any]) -> None:
    """Adds a line of JSON, on a line of its own also behind one that was cut off."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(("" if whole else "\n") + json.dumps(record) + "\n")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def made_by() -> dict[str, Any]:
    """The code and the machine that a record is of, with its GPU where it has one."""
    import torch  # noqa: F401  # machine() asks it for the GPU; scripts that only look a table up do without it

    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    found = subprocess.run(asked, capture_output=True, text=True)
    return {"commit": found.stdout.strip() or "unknown", **machine()}


def _run(trial: Trial, place: Path, paths: Mapping[str, str], options: argparse.Namespace) -> dict[str, Any] | None:
    """The record of a training, in a process of its own; None where the time is up."""
    out = place / "runs" / trial.folder
    given = shlex.split(trial.command.format(**paths))
    command = [*given, "--seed", str(trial.seed), "--out", str(out), "--json"]
    if (out / "config.json").exists():  # it was interrupted
        command = [given[0], "--resume", str(out), "--json"]
    began = time.monotonic()
    process = ended(command, place, options)
    if process is None:
        return None
    record: dict[str, Any] = {
        "key": trial.key,
        "table": trial.table,
        "name": trial.name,
        "command": f"softcache {trial.command} --seed {trial.seed}",
        "seed": trial.seed,
        "seconds": time.monotonic() - began,
    }
    if process.returncode:
        record["failed"] = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    else:
        result = json.loads(process.stdout)
        record |= {"top1": result["test_top1"], "training_s": result["seconds"], "teacher_s": result.get("teacher_s")}
    return {**record, "threads": options.threads, **made_by()}
