"""A training step with one and two CPU threads, on idle cores and beside busy ones, by how threads wait.

Each side is a process of its own, because OpenMP reads its variables once. All are warm and sleep until it is their
turn; other work is one or two processes that keep a core busy each. The way of waiting that `softcache` takes is
`2, short spin` on idle cores and `2, asleep` beside other work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.measure import Result, Row, arguments, paired, row
from softcache.threads import NUMBER, SPINS, WAITING

SIDES = {
    "1": {"OMP_NUM_THREADS": "1"},
    "2, as OpenMP has it": {"OMP_NUM_THREADS": "2"},
    "2, short spin": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": SPINS},
    "2, asleep": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}
BESIDE = ("idle cores", "one busy process", "two busy processes")
STEPS = 6


def main() -> Result:
    options = arguments(__doc__, repetitions=7)
    clean = {name: value for name, value in os.environ.items() if name not in (*NUMBER, *WAITING)}
    command = [sys.executable, "-c", "from benchmarks.threads import serve; serve()"]
    started = {
        name: subprocess.Popen(command, env={**clean, **more}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, more in SIDES.items()
    }
    lines: list[Row] = []
    try:
        for process in started.values():
            _answer(process)
        for count, beside in enumerate(BESIDE[: 2 if options.tiny else None]):
            sides = {name: _side(process, count) for name, process in started.items()}
            taken = paired(sides, 1 if options.tiny else options.repetitions)
            lines += [row(f"{beside}: {name}", [1e3 * s for s in seconds]) for name, seconds in taken.items()]
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    return Result("threads", "CPU threads: a step of cifar:resnet20, batch 64", lines, unit="ms")


def serve() -> None:
    """In a process of its own: for each line on standard input some steps, and their seconds each."""
    import torch

    from softcache.models._open import open_network

    network = open_network("cifar:resnet20", classes=10, statistics=((0.5,) * 3, (0.25,) * 3), seed=0).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    pixels, labels = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8), torch.arange(64) % 10

    def steps(count: int) -> None:
        for _ in range(count):
            torch.nn.functional.cross_entropy(network(pixels), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    steps(2)
    print(0.0, flush=True)
    for _ in sys.stdin:
        steps(1)
        began = time.perf_counter()
        steps(STEPS)
        print((time.perf_counter() - began) / STEPS, flush=True)


def _side(process: subprocess.Popen[str], busy: int) -> Callable[[], float]:
    def run() -> float:
        others = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(busy)]
        try:
            time.sleep(0.1)
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return _answer(process)
        finally:
            for other in others:
                other.kill()
                other.wait()

    return run


def _answer(process: subprocess.Popen[str]) -> float:
    assert process.stdout is not None
    return float(process.stdout.readline())


if __name__ == "__main__":
    main().show()
