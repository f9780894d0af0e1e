"""Trainings of one seed in one process: what ``benchmarks.rows --together`` runs.

    python -m benchmarks.rows_together PLACE THREADS < what rows tells it

Reads a JSON list of arguments of ``softcache train``, seeds and names of runs, trains them as ``train_cohort`` does,
and prints a list of what each came to. A student of a cohort has the bits that it has alone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    place, threads = Path(sys.argv[1]), sys.argv[2]
    os.environ["OMP_NUM_THREADS"] = threads  # before torch is imported
    os.chdir(place)
    from softcache.cli.train import command
    from softcache.config.train import TrainConfig
    from softcache.console import show_messages
    from softcache.stages._cohort import train_cohort

    show_messages(quiet=True)
    configs = []
    for trial in json.load(sys.stdin):
        params = command.make_context("train", list(trial["arguments"])).params
        given = {name: value for name, value in params.items() if value is not None and value != ()}
        given |= {"seed": trial["seed"], "out": str(place / "runs" / trial["out"])}
        configs.append(TrainConfig.of(**{name: value for name, value in given.items() if name != "config"}))
    print(json.dumps([_said(one) for one in train_cohort(configs)]))


def _said(outcome: Any) -> dict[str, Any]:
    from softcache.stages._running import Trained

    if not isinstance(outcome, Trained):
        return {"failed": str(outcome)}
    result = outcome.to_json()
    return {"top1": result["test_top1"], "training_s": result["seconds"], "teacher_s": result["teacher_s"]}


if __name__ == "__main__":
    main()
