"""What each default costs and reaches on the digits that come with softcache, beside other choices.

    python -m benchmarks.defaults            # all of it, half an hour on 2 cores; writes docs/defaults.md
    python -m benchmarks.defaults --tiny     # a look at the script: small networks, one epoch, nothing written

A row's command is what runs: its text is parsed by softcache's own command line. Runs that differ in nothing but
``--seed`` differ in accuracy: those with several show their mean and extremes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import softcache.stages.train  # noqa: F401  the commands import torch when they run, which no row is to count
from benchmarks.measure import arguments, in_words, machine
from softcache.cli._main import main as command_line

PAGE = Path(__file__).resolve().parents[1] / "docs" / "defaults.md"
# The first of each list is the default. Of teachers the others run once: each is a ResNet-50.
TEACH = (
    "",
    "--epochs 3",
    "--epochs 12",
    "--lr 0.0005",
    "--batch-size 64",
    "--optimizer sgd --lr 0.05",
    "--schedule constant",
    "--warmup 0",
    "--augment none",
)
DUMP = ("", "--codec fp32", "--hint layer3", "--views 8", "--augment none")
SCARCE = "--label-fraction 0.05"
TRAIN = {
    "All labels": ("", "--alpha 0", "--T 1", "--epochs 3", "--epochs 12"),
    "5 % of the labels, every soft target": (
        "",
        "--alpha 0",
        "--T 1",
        "--T 2",
        "--T 8",
        "--alpha 0.5",
        "--alpha 1",
        "--loss mse",
        "--views 1",
        "--views 2",
        "--cache caches/dump--views-8",
        "--cache caches/dump--augment-none",
        "--cache caches/dump--codec-fp32",
        "--epochs 3",
        "--epochs 12",
        "--lr 0.0005",
        "--batch-size 32",
        "--batch-size 128",
        "--optimizer sgd --lr 0.05",
        "--schedule constant",
        "--warmup 0",
        "--weight-decay 0.0001",
    ),
}


def main() -> None:
    options = arguments(__doc__, repetitions=3)
    folder, start = Path(tempfile.mkdtemp(prefix="softcache-defaults-")), Path.cwd()
    try:
        os.chdir(folder)
        tables = _measured(options.repetitions, tiny=options.tiny)
    finally:
        os.chdir(start)
        shutil.rmtree(folder)
    record = {"benchmark": "defaults", "tables": tables, **machine()}
    print(json.dumps(record))
    if not options.tiny:
        PAGE.write_text(_page(tables, record), encoding="utf-8")


def _measured(seeds: int, *, tiny: bool) -> dict[str, list[dict[str, Any]]]:
    """Rows by table. The teacher of seed 0 with the defaults is the one that is dumped."""
    small = " --epochs 1 --{} cifar:resnet8" if tiny else ""
    tables: dict[str, list[dict[str, Any]]] = {"Teachers": [], "Caches": []}
    for change in TEACH:
        tables["Teachers"].append(
            _trained("teach", change, small.format("model"), seeds if not change else 1, "teachers")
        )
    for change in DUMP:
        began = time.perf_counter()
        name = f"caches/dump{change.replace(' ', '-')}"
        done = _softcache(f"dump --teacher teachers/0 {change} --out {name}")
        tables["Caches"].append(
            {"command": _command("dump", change), "seconds": [time.perf_counter() - began], "bytes": done["bytes"]}
        )
        _say(tables["Caches"][-1])
    for title, changes in TRAIN.items():
        few = SCARCE if title != "All labels" else ""
        tables[title] = []
        for change in changes:
            cache = "" if "--cache" in change or change == "--alpha 0" else "--cache caches/dump"
            row = _trained("train", f"{few} {change}".strip(), f"{cache} {small.format('student')}", seeds, "runs")
            tables[title].append(row)
    return tables


def _trained(command: str, change: str, unsaid: str, seeds: int, folder: str) -> dict[str, Any]:
    """A row: seconds and test top-1 of each seed. ``unsaid``: options that the row's text leaves out. Later runs of
    the command don't replace a folder that is there, so that the default teacher stays."""
    row: dict[str, Any] = {"command": _command(command, change), "seconds": [], "top1": []}
    for seed in range(seeds):
        out = Path(folder) / str(seed) if not change else Path(folder) / "other"
        began = time.perf_counter()
        done = _softcache(f"{command} {change} {unsaid} --seed {seed} --out {out}")
        row["seconds"].append(time.perf_counter() - began)
        row["top1"].append(done["test_top1"])
        if folder != "teachers" or change or seed:
            shutil.rmtree(out)
    _say(row)
    return row


def _softcache(text: str) -> dict[str, Any]:
    """The command's result, from its ``--json``."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command_line.main(["--quiet", *shlex.split(text), "--json"], prog_name="softcache", standalone_mode=False)
    result: dict[str, Any] = json.loads(printed.getvalue())
    return result


def _command(command: str, change: str) -> str:
    return f"softcache {command} {change}".strip()


def _say(row: dict[str, Any]) -> None:
    """The row as it comes: all of them take half an hour."""
    print("{" + ", ".join(f"{key}: {value}" for key, value in row.items()) + "}", flush=True)


def _table(rows: list[dict[str, Any]]) -> str:
    trained = "top1" in rows[0]
    lines = ["| command | seconds | " + ("test top-1 | lowest – highest | runs |" if trained else "MiB |")]
    lines.append("| --- | --- | --- |" + (" --- | --- |" if trained else ""))
    for row in rows:
        seconds = f"{statistics.median(row['seconds']):.1f}"
        if not trained:
            lines.append(f"| `{row['command']}` | {seconds} | {row['bytes'] / 2**20:.2f} |")
            continue
        percent = [100 * value for value in row["top1"]]
        extremes = f"{min(percent):.2f} – {max(percent):.2f}" if len(percent) > 1 else ""
        lines.append(
            f"| `{row['command']}` | {seconds} | {statistics.mean(percent):.2f} % | {extremes} | {len(percent)} |"
        )
    return "\n".join(lines)


def _page(tables: dict[str, list[dict[str, Any]]], record: dict[str, Any]) -> str:
    shown = "\n\n".join(f"## {title}\n\n{_table(rows)}" for title, rows in tables.items())
    return f"""# What each default costs and reaches

On the digits that come with softcache: 1,438 rows to train on, 359 to test on, so that one row is 0.28 %. The first
command of each table has the defaults, every other one changes what it says; teachers are ResNet-50, students
ResNet-18, and every cache is of the first table's first teacher. `--alpha 0` trains on labels alone. Seconds are of
the whole command without the import of torch, the median where there are several runs; runs of a row differ in
`--seed`. The caches that `train` names are those of the second table (`caches/dump--views-8` is that of
`dump --views 8`). Means that lie within each other's extremes are not told apart by so few runs and rows: what the
tables show is that no default is far from the best choice beside it, and which choices are.

{shown}

Measured by `python -m benchmarks.defaults` on {in_words(record)}.
"""


if __name__ == "__main__":
    main()
