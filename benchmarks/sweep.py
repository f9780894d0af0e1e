"""What a sweep costs beside the bare steps of its students, and beside single commands.

A grid on the digits: 2 students × 4 T × 2 alpha × 2 seeds. Three times, one after the other: forward, backward and
optimizer of all students alone, in each of two layouts (one process with a thread a core, one process a core with one
thread), of which the better counts; ``softcache sweep``; and the same students by 32 commands of ``softcache train``.
Beside the seconds are those of all processors together, which change less where others use the machine too, and the
load of the machine.

    python -m benchmarks.sweep --place sweeps-of-digits
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import in_words, machine

ROOT = Path(__file__).resolve().parents[1]
PERCEPTRON = f"{ROOT / 'benchmarks' / 'networks.py'}:perceptron"
TEMPERATURES, ALPHAS, SEEDS = ("1", "2", "4", "8"), ("0.5", "0.9"), 2
BATCH, EPOCH_STEPS = 32, 41  # the preset's batch of 1,294 or so rows that aren't held out

busy: dict[str, float] = {}  # what → seconds of processors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, help="where teacher, cache and runs are kept")
    parser.add_argument("--students", default=f"cifar:resnet8,{PERCEPTRON}", help="two, with a comma")
    parser.add_argument("--epochs", type=int, default=8, help="of each student; 8 are the preset's")
    parser.add_argument("--only", default="bare,sweep,single", help="parts to run")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(bare(json.loads(options.bare)))
        return
    students = options.students.split(",")
    place = options.place.resolve()
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "caches").exists():
        softcache(place, "teach", "--model", "cifar:resnet8")
        softcache(place, "dump", "--teacher", "cifar:resnet8")
    found: dict[str, float] = {}
    for name, part in (("bare", bare_layouts), ("sweep", swept), ("single", singles)):
        if name in options.only.split(","):
            seconds = part(place, students, options.epochs)
            found |= seconds
            for what, value in seconds.items():
                load = f"load {os.getloadavg()[0]:.1f}"
                print(f"{what}: {value:.1f} s, {busy[what]:.1f} s of processors, {load}", flush=True)
    best = min((value for what, value in found.items() if what.startswith("bare")), default=None)
    if best is not None and "sweep" in found:
        print(f"sweep: {found['sweep'] / best:.2f} × bare steps; 1.15 × and 15 s would be {1.15 * best + 15:.1f} s")
    if "single" in found and "sweep" in found:
        share, of_processors = found["sweep"] / found["single"], busy["sweep"] / busy["single"]
        print(f"sweep: {share:.2f} of the time of single commands, {of_processors:.2f} of the processors' time")
    print(in_words(machine()))


@contextlib.contextmanager
def measured(what: str, found: dict[str, float]) -> Iterator[None]:
    """Writes down seconds into ``found``, and those of the processors of all processes that were waited for."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    yield
    found[what] = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy[what] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def swept(place: Path, students: Sequence[str], epochs: int) -> dict[str, float]:
    grid = ["--T", ",".join(TEMPERATURES), "--alpha", ",".join(ALPHAS), "--loss", "kl", "--seeds", str(SEEDS)]
    out = place / f"sweep-{time.time():.0f}"
    found: dict[str, float] = {}
    with measured("sweep", found):
        softcache(place, "sweep", "--student", ",".join(students), *grid, "--epochs", str(epochs), "--out", str(out))
    return found


def singles(place: Path, students: Sequence[str], epochs: int) -> dict[str, float]:
    out = place / f"single-{time.time():.0f}"
    found: dict[str, float] = {}
    product = itertools.product(students, TEMPERATURES, ALPHAS, range(SEEDS))
    with measured("single", found):
        for number, (student, T, alpha, seed) in enumerate(product):
            chosen = ["--T", T, "--alpha", alpha, "--loss", "kl", "--seed", str(seed), "--epochs", str(epochs)]
            held = ["--val-fraction", "0.1", "--order-seed", "0"]
            softcache(place, "train", "--student", student, *chosen, *held, "--out", str(out / str(number)))
    return found


def bare_layouts(place: Path, students: Sequence[str], epochs: int) -> dict[str, float]:
    from softcache.threads import usable_cores

    cores = usable_cores()
    each = [student for student in students for _ in range(len(TEMPERATURES) * len(ALPHAS) * SEEDS)]
    found: dict[str, float] = {}
    for processes, threads in {(1, cores), (cores, 1)}:
        jobs = [{"students": each[k::processes], "steps": epochs * EPOCH_STEPS} for k in range(processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        what = f"bare, processes × threads {processes} × {threads}"
        with measured(what, found):  # with imports, which are taken off below
            started = [
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.sweep", "--bare", json.dumps(job)],
                    cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
                )
                for job in jobs
            ]  # fmt: skip
            seconds = [float(process.communicate()[0]) for process in started]
        found[what] = max(seconds)
    return found


def bare(job: dict[str, Any]) -> float:
    """Seconds of the steps alone, of one student after the other, on made pictures, in the precision and memory format
    that ``softcache train`` chooses."""
    import torch
    import torch.nn.functional as F

    from softcache.device import autocast
    from softcache.models._arithmetic import pick_arithmetic
    from softcache.models._open import open_network

    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, 32, 32, 1), dtype=torch.uint8)
    labels, teacher = torch.randint(0, 10, (BATCH,)), torch.randn(BATCH, 10)
    total = 0.0
    for spec in job["students"]:
        network = open_network(spec, classes=10, statistics=((0.5,), (0.25,)))
        cpu = torch.device("cpu")
        arithmetic = pick_arithmetic(network, pixels[:2], BATCH, cpu, amp="auto", channels_last=None)
        network = arithmetic.apply(network)
        optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        network.train()
        began = time.perf_counter()
        for _ in range(job["steps"]):
            with autocast(cpu, arithmetic.amp):
                logits = network(pixels)
            logits = logits.float()
            soft = F.kl_div((logits / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="batchmean")
            (0.9 * 16 * soft + 0.1 * F.cross_entropy(logits, labels)).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        total += time.perf_counter() - began
    return total


def softcache(place: Path, *arguments: str) -> None:
    """A command in a process of its own, as a user starts it."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run(
        [sys.executable, "-m", "softcache", "-q", *arguments],
        cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


if __name__ == "__main__":
    main()
