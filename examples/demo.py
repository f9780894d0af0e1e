"""The main job from end to end on the digits that come with softcache: `make demo`.

A ResNet-50 teacher, its logits and one hint layer for four views of every image, and ResNet-18 students with and
without it, on all labels and on 5 % of them. Everything goes into ``demo-output/``; what is there is reused.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import softcache
from softcache.console import duration, show_messages, size

TEACHER, STUDENT = "resnet50", "resnet18"
OUT = Path("demo-output")
FEW = 0.05

log = logging.getLogger("softcache.demo")


def main(**options: Any) -> None:
    """``options``: of both trainings, such as ``epochs``."""
    show_messages()
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    os.chdir(OUT)
    teacher = softcache.teach(TEACHER, **options)
    if teacher.kept:
        log.info(f"reusing {OUT / teacher.folder}")
    cache = softcache.dump(TEACHER, hint="layer3")
    if not cache.keys:
        log.info(f"reusing {OUT / cache.folder}")
    record_dump(cache)
    distilled, alone = {"cache": cache.folder, **options}, {"alpha": 0, **options}
    students = {
        "student distilled": run("distilled", distilled),
        "student alone": run("alone", alone),
        "student distilled, 5 % of the labels": run("distilled-few", {**distilled, "label_fraction": FEW}),
        "student alone, 5 % of the labels": run("alone-few", {**alone, "label_fraction": FEW}),
    }
    show(teacher, cache, students, time.perf_counter() - began)


def run(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A finished run's result, trained now or found."""
    folder = Path("runs") / name
    config = folder / "config.json"
    if config.exists() and json.loads(config.read_text())["result"] is not None:
        log.info(f"reusing {OUT / folder}")
    elif config.exists():
        softcache.train(resume=folder)
    else:
        softcache.train(STUDENT, out=folder, **options)
    return json.loads(config.read_text())


def record_dump(cache: Any) -> None:
    """Keeps what the teacher's pass took, for when the demo is run again."""
    if cache.keys:
        Path("dump-seconds.json").write_text(json.dumps({"keys": cache.keys, "seconds": cache.seconds}))


def show(teacher: Any, cache: Any, students: dict[str, Any], seconds: float) -> None:
    taught = json.loads((teacher.folder / "config.json").read_text())["result"]
    asked = json.loads(Path("dump-seconds.json").read_text())
    lines = [("teacher ResNet-50", taught["test"]["top1"], taught["seconds"])]
    lines += [(name, run["result"]["test_top1"], run["result"]["seconds"]) for name, run in students.items()]
    print(f"\n{'':38}  test top-1  training")
    for name, top1, took in lines:
        print(f"{name:38}  {100 * top1:8.2f} %  {took:6.1f} s")
    per_key = asked["seconds"] / asked["keys"]
    wanted = [run["options"]["epochs"] * cache.info["rows"] for run in students.values() if run["options"]["cache"]]
    rows = [
        ("in the teacher, once", f"{asked['seconds']:.1f} s for {asked['keys']:,} keys"),
        ("the cache", f"{size(cache.info['bytes'])}: {cache.info['views']} views, logits and layer3"),
        (
            "with the teacher in the loop",
            f"{per_key * sum(wanted):.1f} s for the {sum(wanted):,} keys of these {len(wanted)} distilled trainings, "
            "and as much again for every further student (keys × the measured time per key)",
        ),
        ("this call", duration(seconds)),
    ]
    print()
    for name, value in rows:
        print(f"{name:30}  {value}")


if __name__ == "__main__":
    main()
