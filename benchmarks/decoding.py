"""Several views of an image from one decode: time of an epoch with ``--views-per-image m`` against m = 1.

JPEG files of 400 × 500 pixels, ``rrc+flip`` at 224², and a student so small that decoding is the bottleneck: the most
that can be won. FKD (arXiv 2112.01528) reports 0.84 at m = 4, with a student that takes its time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.made import make_jpegs
from benchmarks.measure import Result, arguments, paired, ratio
from softcache.console import show_messages
from softcache.stages.train import train

STUDENT = """
from torch import nn

def make(num_classes=10):
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3 * 14 * 14, num_classes))
"""


def main() -> Result:
    options = arguments(__doc__)
    show_messages(quiet=True)
    folder, start = Path(tempfile.mkdtemp(prefix="softcache-decoding-")), Path.cwd()
    files = 64 if options.tiny else 20_000 if options.full else 640
    try:
        os.chdir(folder)
        data = make_jpegs(folder / "jpegs", files)
        Path("light.py").write_text(STUDENT)

        def epoch(m: int) -> Callable[[], float]:
            def run() -> float:
                done = train(
                    "light.py:make",
                    dataset=data,
                    alpha="0",
                    epochs=2,
                    batch_size=32,
                    views_per_image=m,
                    device=options.device,
                    out="run",
                )
                shutil.rmtree(done.folder)
                return float(done.lines[-1]["epoch_s"])

            return run

        taken = paired({str(m): epoch(m) for m in (1, 2, 4)}, options.repetitions)
    finally:
        os.chdir(start)
        shutil.rmtree(folder)
    lines = [ratio(f"epoch of {files:,} keys, m = {m} / m = 1", taken[str(m)], taken["1"], target) for m, target in
             ((2, ""), (4, "≤ 0.84"))]  # fmt: skip
    return Result("decoding", "Several views from one decode, 224² JPEG", lines)


if __name__ == "__main__":
    main().show()
