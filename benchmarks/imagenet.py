"""ImageNet: ResNet-34 → ResNet-18 and ResNet-50 → MobileNetV1 from a cache, beside the figures of live teachers.

    python -m benchmarks.imagenet --data-dir /data/imagenet    # train/ and val/, 1,000 class folders each; all GPUs
    python -m benchmarks.imagenet --tiny                       # a look at the script: small made pictures, on a CPU

This has not been run in full: nobody of this project had the data and the GPUs, and there is no page of its results
until somebody does. Run to the end with ``--tiny`` it has been. A full run is six trainings of 100 epochs, and takes
2.6 GB of disk for each of the ``--views`` of each of the two teachers.

The teachers are torchvision's (IMAGENET1K_V1). Each is asked once, under torchrun on all GPUs where there are several,
and then every student is one process on one GPU: on labels alone, with kl and with dist, by the recipe that the
published figures share (100 epochs of SGD with momentum 0.9, 0.1 × 0.1 at epochs 30, 60 and 90, batches of 256, weight
decay 1e-4, random resized crops and flips, the last epoch counts). One thing differs: recorded views are visited in
turn where a live teacher sees a fresh crop in every epoch.

Everything lies in ``--place``. The same command again goes on: what is done is skipped, an interrupted student is
resumed. The page is written when no row is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.made import make_imagenet
from benchmarks.measure import in_words, machine
from softcache.atomic import replace_file

PAGE = Path(__file__).resolve().parents[1] / "docs" / "imagenet.md"


@dataclass(frozen=True)
class Pair:
    """``published``: top-1 in % by the row's name, as text because some are ranges."""

    teacher: str
    student: str
    published: dict[str, str]


PAIRS = {
    "resnet34-resnet18": Pair(
        "resnet34", "resnet18", {"teacher": "73.31", "alone": "69.76", "kl": "70.66 – 71.37", "dist": "72.07"}
    ),
    "resnet50-mobilenetv1": Pair(
        "resnet50", "timm:mobilenetv1_100", {"teacher": "76.13", "kl": "70.50", "dist": "73.24"}
    ),
}
SOURCES = """Published: the teachers and ResNet-18 alone are torchvision's weights. kl of ResNet-18 is 70.66 in CRD
(arXiv 1910.10699) and 71.37 in torchdistill (2011.12913), kl of MobileNetV1 is from DKD's (2203.08679),
dist from its own (2205.10536). No figure of these pairs from a cache has been published."""

# Weights and temperatures on ImageNet: kl as in MDistiller's configurations, dist as in its paper's code (its weight of
# 2 is softcache's default).
LOSSES = {
    "alone": ["--alpha", "0"],
    "kl": ["--loss", "kl:T=1", "--alpha", "0.5", "--beta", "0.5"],
    "dist": ["--loss", "dist:T=1", "--alpha", "1", "--beta", "1"],
}
FULL = {"size": 224, "epochs": 100, "batch_size": 256, "views": 10, "teacher_epochs": 0}
TINY = {"size": 32, "epochs": 2, "batch_size": 32, "views": 2, "teacher_epochs": 1}


class Failed(Exception):
    """A command ended with another status than 0; its log says why."""


class Commands:
    """Runs softcache's commands in ``place``, each with a log of its own in ``logs/``. ``gpus``: what
    ``CUDA_VISIBLE_DEVICES`` is for each of the processes that run side by side; None on a machine without any."""

    def __init__(self, place: Path, gpus: Sequence[str | None]):
        self.place, self.gpus = place, gpus
        self._running: set[subprocess.Popen[str]] = set()
        (place / "logs").mkdir(exist_ok=True)

    def run(self, name: str, arguments: list[str], *, gpu: str | None = None, everywhere: bool = False) -> str:
        """What the command printed. ``everywhere``: under torchrun, on all GPUs.

        Errors: ``Failed``, with the end of the log.
        """
        command = [sys.executable, "-m"]
        if everywhere and len(self.gpus) > 1:
            command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(len(self.gpus)), "-m"]
        environment = {**os.environ, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})}
        log = self.place / "logs" / f"{name}.log"
        print(f"{name}: began, {log}", flush=True)
        with log.open("a") as errors:
            process = subprocess.Popen(
                [*command, "softcache", *arguments],
                cwd=self.place,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            self._running.add(process)
            output = process.communicate()[0]
            self._running.discard(process)
        if process.returncode:
            last = (log.read_text().strip().splitlines() or ["no message"])[-1]
            raise Failed(f"{name} ended with status {process.returncode}: {last}")
        return output

    def side_by_side(self, jobs: dict[str, list[str]]) -> list[str]:
        """Runs all of them, one at a time on each GPU; returns what failed, in words."""
        free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for gpu in self.gpus:
            free.put(gpu)

        def one(name: str) -> str | None:
            gpu = free.get()
            try:
                self.run(name, jobs[name], gpu=gpu)
            except Failed as error:
                return str(error)
            finally:
                free.put(gpu)
            return None

        with ThreadPoolExecutor(len(self.gpus)) as pool:
            try:
                return [failure for failure in pool.map(one, jobs) if failure]
            except BaseException:  # Ctrl-C or SIGTERM: nothing else begins, and what runs is told to end
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise

    def stop(self) -> None:
        """SIGTERM to all that runs: a dump keeps its shards, a training its last epoch."""
        for process in list(self._running):
            process.terminate()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    place = Path(options.place or tempfile.mkdtemp(prefix="softcache-imagenet-")).resolve()
    place.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    commands = Commands(place, _gpus())
    try:
        data = _data(options, place)
        _refuse_other_settings(place, options)
        for pair in options.pairs:
            teach_and_dump(commands, pair, data, options)
        failures = commands.side_by_side(
            {
                f"{pair}-{name}": student(place, pair, name, data, options)
                for pair, name in missing(place, options.pairs)
            }
        )
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped: the same command with --place {place} goes on", file=sys.stderr)
        return 130
    finally:
        commands.stop()
    rows = found(place, options.pairs)
    print(f"\n{table(rows, options.pairs)}")
    print(json.dumps({"benchmark": "imagenet", "top1": rows, **machine()}))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if missing(place, options.pairs):
        return 1
    written = place / "imagenet.md" if options.tiny or options.dataset != "imagenet" else PAGE
    replace_file(written, page(rows, options).encode())
    print(f"wrote {written}", flush=True)
    return 0


def teach_and_dump(commands: Commands, name: str, data: list[str], options: argparse.Namespace) -> None:
    """The teacher's accuracy and its cache; nothing where no student is left that needs them."""
    if not missing(commands.place, [name]):
        return
    pair, workers = PAIRS[name], _workers(options, len(commands.gpus))
    teacher, weights = pair.teacher, ["--weights", "IMAGENET1K_V1"]
    if options.teacher_epochs:
        teacher, weights = f"teachers/{pair.teacher}", []
        given = ["--epochs", str(options.teacher_epochs), "--size", str(options.size), "--out", teacher]
        alone = _workers(options, 1)
        if not _result(commands.place / teacher):
            teach = ["teach", "--model", pair.teacher, *data, *given, *alone]
            commands.run(f"{name}-teach", teach, gpu=commands.gpus[0])
    # Before the dump, so that one process downloads the weights and not each of torchrun's.
    known = commands.place / f"{name}-teacher.json"
    if not known.exists():
        told = commands.run(f"{name}-eval", ["eval", teacher, *weights, *data, "--json"], gpu=commands.gpus[0])
        replace_file(known, told.encode())
    given = ["--views", str(options.views), "--size", str(options.size), "--augment", "rrc+flip"]
    given += [*(["--teacher-weights", weights[1]] if weights else []), "--out", f"caches/{name}"]
    dump = ["dump", "--teacher", teacher, *data, *given, "--amp", options.amp, *workers]
    commands.run(f"{name}-dump", dump, everywhere=True)


def student(place: Path, pair: str, name: str, data: list[str], options: argparse.Namespace) -> list[str]:
    """The command that trains a student, or goes on with it."""
    run, workers = f"runs/{pair}-{name}", _workers(options, len(_gpus()))
    if (place / run / "config.json").exists():
        return ["train", "--resume", run, *data[2:], *workers]
    milestones = ",".join(str(round(options.epochs * share)) for share in (0.3, 0.6, 0.9))
    recipe = ["--epochs", str(options.epochs), "--batch-size", str(options.batch_size), "--amp", options.amp]
    recipe += ["--optimizer", "sgd", "--lr", "0.1", "--weight-decay", "1e-4", "--warmup", "0"]
    recipe += ["--schedule", "step", "--milestones", milestones, "--gamma", "0.1"]
    recipe += ["--momentum", "0.9", "--no-nesterov", "--clip-grad", "0", "--label-smoothing", "0"]
    views = ["--size", str(options.size), "--augment", "rrc+flip"]
    where = views if name == "alone" else ["--cache", f"caches/{pair}"]
    return ["train", "--student", PAIRS[pair].student, *data, *where, *recipe, *LOSSES[name], "--out", run, *workers]


def found(place: Path, pairs: Sequence[str]) -> dict[str, dict[str, float]]:
    """Top-1 in % of all that is done: pair → row → figure."""
    rows: dict[str, dict[str, float]] = {pair: {} for pair in pairs}
    for pair in pairs:
        if (place / f"{pair}-teacher.json").exists():
            rows[pair]["teacher"] = 100 * json.loads((place / f"{pair}-teacher.json").read_text())["top1"]
        for name in LOSSES:
            result = _result(place / "runs" / f"{pair}-{name}")
            if result is not None:
                rows[pair][name] = 100 * result["test_top1"]
    return rows


def _result(folder: Path) -> dict[str, Any] | None:
    """What a run or teacher reached; None while it isn't done."""
    config = folder / "config.json"
    return json.loads(config.read_text())["result"] if config.exists() else None


def missing(place: Path, pairs: Sequence[str]) -> list[tuple[str, str]]:
    """Pair and name of the students that are not done."""
    rows = found(place, pairs)
    return [(pair, name) for pair in pairs for name in LOSSES if name not in rows[pair]]


def table(rows: dict[str, dict[str, float]], pairs: Sequence[str]) -> str:
    lines = ["| |" + "".join(f" {pair.replace('-', ' → ')} | published |" for pair in pairs)]
    lines.append("| --- |" + " --- | --- |" * len(pairs))
    for name in ("teacher", *LOSSES):
        cells = []
        for pair in pairs:
            cells += [f"{rows[pair][name]:.2f}" if name in rows[pair] else "", PAIRS[pair].published.get(name, "")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(rows: dict[str, dict[str, float]], options: argparse.Namespace) -> str:
    losses = "\n".join(f"    {name:8} {' '.join(given)}" for name, given in LOSSES.items())
    return f"""# ImageNet

Top-1 on the validation split in %, {options.dataset}, views of {options.size} pixels, {options.views} recorded views,
{options.epochs} epochs, batches of {options.batch_size}, autocast {options.amp}, last epoch, one seed.

{table(rows, options.pairs)}

{SOURCES}

{losses}

`python -m benchmarks.imagenet` on {in_words(machine())}.
"""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder that has train/ and val/")
    parser.add_argument("--place", help="where all of it goes (default: imagenet-benchmark, with --tiny a new folder)")
    parser.add_argument(
        "--dataset", help="folder:PATH for other classes; it wants --teacher-epochs (default: imagenet)"
    )
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--amp", default="off", help="off, bf16, fp16 (default: off, as the published figures)")
    parser.add_argument(
        "--workers", type=int, help="processes that decode, a student (default: its share of the cores)"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing, to see that it works")
    parser.add_argument("--rows", type=int, default=1000, help="made pictures, with --tiny (default: 1000)")
    for name, value in FULL.items():
        said = f"default: {value}, with --tiny {TINY[name]}"
        if name == "teacher_epochs":
            said = f"teach the teachers for so many epochs instead of taking torchvision's weights; {said}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=said)
    options = parser.parse_args(arguments)
    for name, value in (TINY if options.tiny else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if not options.tiny:
        options.place = options.place or "imagenet-benchmark"
        options.dataset = options.dataset or "imagenet"
        if options.dataset == "imagenet" and options.data_dir is None:
            parser.error("--data-dir is missing: the folder that has ImageNet's train/ and val/")
        if options.dataset != "imagenet" and not options.teacher_epochs:
            parser.error("torchvision's weights are for imagenet: --teacher-epochs N teaches teachers for other data")
    return options


def _data(options: argparse.Namespace, place: Path) -> list[str]:
    """The options that name the data; with ``--tiny`` they are made first."""
    if options.tiny and options.dataset is None:
        options.dataset = make_imagenet(place / "data", options.rows, classes=4)
    given = [] if options.data_dir is None else ["--data-dir", str(Path(options.data_dir).resolve())]
    return ["--dataset", options.dataset, *given]


def _refuse_other_settings(place: Path, options: argparse.Namespace) -> None:
    """Rows of one table are of one recipe: a place keeps the settings that it began with."""
    settings = {name: getattr(options, name) for name in (*FULL, "amp")} | {"dataset": options.dataset}
    path = place / "settings.json"
    began = json.loads(path.read_text()) if path.exists() else settings
    differing = [f"{name} {began.get(name)}" for name in settings if began.get(name) != settings[name]]
    if differing:
        raise Failed(f"{place} was begun with {', '.join(differing)}: give the same, or another --place")
    replace_file(path, json.dumps(settings, indent=1).encode())


def _gpus() -> list[str | None]:
    """What ``CUDA_VISIBLE_DEVICES`` is for one process on each GPU; one None where there are none."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found: list[str | None] = list(named.split(",")[:count] if named else map(str, range(count)))
    return found or [None]


def _workers(options: argparse.Namespace, processes: int) -> list[str]:
    """Cores are shared among the processes that run side by side."""
    if options.workers is not None:
        return ["--workers", str(options.workers)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ["--workers", str(max(1, cores // processes))]


if __name__ == "__main__":
    sys.exit(main())
