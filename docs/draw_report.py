"""Draws report.png, the first screen of a report of a sweep of the digits: ``python docs/draw_report.py``.

Needs Chromium and the extra ``report``. ``python docs/draw_report.py REPORT`` draws that of a report which is there.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

COMMANDS = (
    "teach --model cifar:resnet20 --epochs 12",
    "dump --teacher cifar:resnet20",
    "sweep --student cifar:resnet8 --loss kl --T 1,2,4,8 --alpha 0,0.5,0.9 --seeds 3 --epochs 10 "
    "--label-fraction 0.05 --out sweeps/digits",
    "report sweeps/digits",
)
WIDTH, HEIGHT = 1280, 1000
COLOURS = 128  # of the picture's palette: the page has few


def main() -> None:
    out = Path(__file__).with_name("report.png")
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            report = Path(sys.argv[1]).resolve()
        else:
            for command in COMMANDS:
                subprocess.run([sys.executable, "-m", "softcache", *shlex.split(command)], cwd=folder, check=True)
            report = Path(folder) / "report.html"
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [
                shutil.which("chromium") or "google-chrome", "--headless=new", "--no-sandbox", "--disable-gpu",
                "--hide-scrollbars", f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}",
                f"--screenshot={shot}", report.as_uri(),
            ],
            check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        Image.open(shot).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
