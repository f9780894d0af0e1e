"""What each command's defaults cost and reach on the digits that come with softcache, and what other choices would.

    python -m benchmarks.defaults            # all of it; writes docs/defaults.md
    python -m benchmarks.defaults --tiny     # a look at the script: small networks, one epoch, nothing written

Runs that differ in nothing but a seed differ in accuracy: those with several seeds show mean and extremes.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import arguments, in_words, machine
from softcache.console import set_quiet
from softcache.stages.dump import dump
from softcache.stages.teach import teach
from softcache.stages.train import train

PAGE = Path(__file__).resolve().parents[1] / "docs" / "defaults.md"
SCARCE = 0.05


def main() -> None:
    options = arguments(__doc__, repetitions=3)
    set_quiet(True)
    folder, start = Path(tempfile.mkdtemp(prefix="softcache-defaults-")), Path.cwd()
    try:
        os.chdir(folder)
        lines = _measured(options.repetitions, tiny=options.tiny)
    finally:
        os.chdir(start)
        shutil.rmtree(folder)
    table = "| command | seconds | test top-1 | lowest – highest | runs |\n| --- | --- | --- | --- | --- |\n"
    for line in lines:
        top1 = line["top1"]
        shown = (
            f"{100 * statistics.mean(top1):.2f} % | {100 * min(top1):.2f} – {100 * max(top1):.2f}" if top1 else " | "
        )
        table += f"| `{line['command']}` | {line['seconds']:.1f} | {shown} | {len(top1) or ''} |\n"
    print(table)
    record = {"benchmark": "defaults", "rows": lines, **machine()}
    print(json.dumps(record))
    if not options.tiny:
        PAGE.write_text(_page(table, record), encoding="utf-8")


def _measured(seeds: int, *, tiny: bool) -> list[dict[str, Any]]:
    big = {"model": "cifar:resnet8", "epochs": 1} if tiny else {}
    small = {"student": "cifar:resnet8", "epochs": 1} if tiny else {}
    lines: list[dict[str, Any]] = []
    began = time.perf_counter()
    taught = teach(**big)
    assert taught.test is not None
    lines.append({"command": "teach", "seconds": time.perf_counter() - began, "top1": [taught.test.top1]})
    teacher = str(taught.folder)
    began = time.perf_counter()
    dump(teacher, out="four")
    lines.append({"command": "dump", "seconds": time.perf_counter() - began, "top1": []})
    began = time.perf_counter()
    dump(teacher, views=8, out="eight")
    lines.append({"command": "dump --views 8", "seconds": time.perf_counter() - began, "top1": []})
    cached = {"cache": ("four",), **small}
    few = {"label_fraction": SCARCE}
    lines += [
        _trained("train", cached, seeds),
        _trained("train --alpha 0", {"alpha": "0", **small}, seeds),
        _trained(f"train --label-fraction {SCARCE}", {**cached, **few}, seeds),
        _trained(f"train --label-fraction {SCARCE} --alpha 0", {"alpha": "0", **few, **small}, seeds),
    ]
    for T in ("1", "2", "8"):
        lines.append(_trained(f"train --label-fraction {SCARCE} --T {T}", {**cached, **few, "T": T}, seeds))
    for alpha in ("0.5", "1"):
        asked = {**cached, **few, "alpha": alpha}
        lines.append(_trained(f"train --label-fraction {SCARCE} --alpha {alpha}", asked, seeds))
    for views in (1, 2):
        asked = {**cached, **few, "views": views}
        lines.append(_trained(f"train --label-fraction {SCARCE} --views {views}", asked, seeds))
    asked = {**small, **few, "cache": ("eight",)}
    lines.append(_trained(f"train --label-fraction {SCARCE} --views 8", asked, seeds))
    return lines


def _trained(command: str, options: dict[str, Any], seeds: int) -> dict[str, Any]:
    top1, seconds = [], []
    for seed in range(seeds):
        began = time.perf_counter()
        done = train(**options, seed=seed, out="run")
        seconds.append(time.perf_counter() - began)
        assert done.test is not None
        top1.append(done.test.top1)
        shutil.rmtree("run")
    print(
        f"{command}: {', '.join(f'{100 * value:.2f}' for value in top1)} %, {statistics.median(seconds):.1f} s",
        flush=True,
    )
    return {"command": command, "seconds": statistics.median(seconds), "top1": top1}


def _page(table: str, record: dict[str, Any]) -> str:
    return f"""# What the defaults cost and reach

On the digits that come with softcache: 1,438 rows to train on, 359 to test on, so that one row is 0.28 %. The teacher
is a ResNet-50, the student a ResNet-18, everything else is a default but for what the command says. `--alpha 0`
trains on labels alone. Times are of the whole command, without the import of torch.

{table}
Measured by `python -m benchmarks.defaults` on {in_words(record)}.
"""


if __name__ == "__main__":
    main()
