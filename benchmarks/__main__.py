"""Runs every benchmark of speed and writes ``docs/benchmarks.md``: ``python -m benchmarks`` or ``make bench``.

``--only reads,cold`` runs some and keeps the page's other sections, ``--full`` larger sizes, ``--tiny`` sizes that say
nothing and write nothing. Those of accuracy take longer and are scripts of their own: ``benchmarks.defaults``,
``benchmarks.views``, ``benchmarks.cifar100``, ``benchmarks.codecs``, and ``benchmarks.imagenet`` for somebody with
ImageNet and GPUs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import in_words, machine

SCRIPTS = (
    "training",
    "dumping",
    "precision",
    "reads",
    "cold",
    "bounds",
    "first_batch",
    "decoding",
    "cohort",
    "sharing",
    "losses",
)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


def main() -> int:
    given, only = sys.argv[1:], list(SCRIPTS)
    if "--only" in given:
        at = given.index("--only")
        only = given[at + 1].split(",")
        del given[at : at + 2]
    sections: dict[str, str] = {}
    began = time.perf_counter()
    for name in only:
        command = [sys.executable, "-m", f"benchmarks.{name}", *given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        if done.returncode:
            print(f"benchmarks.{name} failed", file=sys.stderr)
            return 1
        sections[name] = _section(name, given, done.stdout)
    print(f"{time.perf_counter() - began:.0f} s")
    if "--tiny" not in given:
        there = _there() if PAGE.exists() else {}
        known = [sections.get(name) or there.get(name) for name in SCRIPTS]
        PAGE.write_text(_page([section for section in known if section]), encoding="utf-8")
    return 0


def _there() -> dict[str, str]:
    """The sections of the page as it is, by the script that wrote them: those that don't run now are kept."""
    parts = PAGE.read_text(encoding="utf-8").split("\n## ")[1:-1]
    return {name: f"## {part}".strip() for part in parts for name in SCRIPTS if f"`python -m benchmarks.{name}" in part}


def _section(name: str, given: list[str], output: str) -> str:
    lines = [line for line in output.strip().splitlines() if not line.startswith("warning:")]
    record: dict[str, Any] = json.loads(lines[-1])
    text = "\n".join(line for line in lines[1:-1]).strip()
    command = " ".join(["python -m", f"benchmarks.{name}", *given])
    return f"## {lines[0]}\n\n{text}\n\n`{command}` on {in_words(record)}."


def _page(sections: list[str]) -> str:
    import torch  # only so that the machine's device is named

    assert torch
    body = "\n\n".join(sections)
    return f"""# Measurements

Written by `make bench`. Each row is the median of paired repetitions: in each repetition all sides run once, in turns
that change their order, and the ratio is taken within the repetition. Lowest and highest are those of the
repetitions. Nothing here is asserted by a test, because machines differ; rows that miss their target are kept. What
each default costs and reaches is in [defaults.md](defaults.md), how many views are worth recording in
[views.md](views.md), what losses reach on a real set in [real.md](real.md), what codecs cost in
[codecs.md](codecs.md).

{body}

## The schemes of others

None of them is softcache's code run in another way: *LMDB* and *webdataset* are the packages (extra `[bench]`),
*h5py* is its own fancy indexing. *File a sample* is torchdistill's former cache (one file a sample, `torch.save`),
which its present version no longer has; *record file* is TinyViT's (records of fixed size in one file, a seek and a
read for each). Both are rebuilt from their documentation in [benchmarks/reads.py](../benchmarks/reads.py).

Measured on {in_words(machine())}.
"""


if __name__ == "__main__":
    sys.exit(main())
