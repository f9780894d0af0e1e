"""Paired repetitions, tables, and JSON lines: what all benchmarks share."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "torchvision", "numpy", "h5py", "pillow", "lmdb", "webdataset")


@dataclass
class Row:
    """One line of a table: what was compared, the median and the extremes over the repetitions, and the target."""

    what: str
    median: float
    low: float
    high: float
    target: str = ""
    note: str = ""

    @property
    def met(self) -> str:
        """``yes``, ``no``, or nothing where there is no target."""
        if not self.target:
            return ""
        sign, limit = self.target.split()[:2]
        return "yes" if (self.median <= float(limit) if sign == "≤" else self.median >= float(limit)) else "no"


@dataclass
class Result:
    """What a script prints: a table and, as one line of JSON, the same with the machine it was measured on."""

    name: str
    title: str
    rows: list[Row]
    unit: str = "ratio"
    notes: list[str] = field(default_factory=list)

    def table(self) -> str:
        head = f"| what | {self.unit} (median) | lowest – highest | target | met |\n| --- | --- | --- | --- | --- |\n"
        lines = [
            f"| {r.what} | {_number(r.median)} | {_number(r.low)} – {_number(r.high)} | {r.target} | {r.met} |"
            + (f"\n| ↳ {r.note} | | | | |" if r.note else "")
            for r in self.rows
        ]
        return head + "\n".join(lines) + "".join(f"\n\n{note}" for note in self.notes)

    def show(self) -> None:
        """Prints both."""
        print(f"\n{self.title}\n{self.table()}")
        rows = [{**asdict(row), "met": row.met} for row in self.rows]
        print(json.dumps({"benchmark": self.name, "unit": self.unit, "rows": rows, **machine()}), flush=True)


def arguments(doc: str | None, repetitions: int = 5, **more: Any) -> argparse.Namespace:
    """``--full`` for sizes that want a GPU or more minutes, ``--tiny`` to see that a script works; ``more``: options of
    one script alone, with their defaults."""
    parser = argparse.ArgumentParser(description=(doc or "").strip().splitlines()[0])
    parser.add_argument("--full", action="store_true", help="larger sizes")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing, to see that it works")
    parser.add_argument("--repetitions", type=int, default=repetitions)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dataset", default="")
    for name, default in more.items():
        kind = str if default is None else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, type=kind)
    return parser.parse_args()


def paired(sides: dict[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each side, per repetition: all sides take turns, and the turns change their order, so that what
    changes on the machine changes for all of them. Each side measures itself; a first round is thrown away."""
    names, taken = list(sides), {name: [] for name in sides}
    for repetition in range(repetitions + 1):
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = sides[name]()
            if repetition:
                taken[name].append(seconds)
    return taken


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """The function as a side of ``paired``."""

    def run() -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    return run


def ratio(what: str, above: Sequence[float], below: Sequence[float], target: str = "", note: str = "") -> Row:
    """Row of the quotients, repetition by repetition."""
    return row(what, [a / b for a, b in zip(above, below, strict=True)], target, note)


def row(what: str, values: Sequence[float], target: str = "", note: str = "") -> Row:
    return Row(what, statistics.median(values), min(values), max(values), target, note)


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"cpu": _cpu(), "cores": cores, "system": f"{platform.system()} {platform.release()}"}
    if "torch" in sys.modules:
        import torch

        found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"machine": found, "versions": versions, "date": time.strftime("%Y-%m-%d", time.gmtime())}


def in_words(record: dict[str, Any]) -> str:
    """``machine()`` as part of a sentence."""
    found, versions = record["machine"], record["versions"]
    device = "" if found.get("device", "cpu") == "cpu" else f" and {found['device']}"
    return (
        f"{found['cpu']}, {found['cores']} cores{device}, {found['system']}, torch {versions['torch']}, numpy "
        f"{versions['numpy']}, Python {versions['python']}, on {record['date']}"
    )


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
