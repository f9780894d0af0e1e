"""How long a newcomer takes from a fresh clone and a folder of pictures to a file that runs anywhere.

    python -m benchmarks.newcomer                              # digits, 32 pixels
    python -m benchmarks.newcomer --pictures pets --size 224   # your own class folders
    python -m benchmarks.newcomer --installed                  # with the packages of this environment
    python -m benchmarks.newcomer --made-weights               # with random parameters, where there is no network

Clones this repository into a temporary folder, makes an environment there, runs the commands of README.md's section
"From your pictures to a file that runs anywhere" one after the other, and prints the seconds of each.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image

import softcache
from benchmarks.made import make_downloads
from benchmarks.measure import in_words, machine

ROOT = Path(__file__).resolve().parents[1]
SECTION = "## From your pictures to a file that runs anywhere"


def commands(text: str) -> list[str]:
    """Those of the README's section, in their order."""
    section = text.partition(SECTION)[2].partition("\n## ")[0]
    return [line.strip() for line in re.findall(r"^ {4}(\S.*)$", section, re.M)]


def sized(command: str, size: int) -> str:
    """The command for views of ``size`` pixels, where that isn't the default of 224."""
    if size == 224:
        return command
    if command.startswith("softcache teach"):
        return f"{command} --size {size}"
    return command.replace("(1, 224, 224, 3)", f"(1, {size}, {size}, 3)")


def write_digits(folder: Path, split: str = "train") -> None:
    """The digits as PNG files in a folder for each class."""
    samples = softcache.open_samples("digits", split)
    for row, label in enumerate(samples.labels):
        file = folder / f"digit-{label}" / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.asarray(samples.image(row))[..., 0])
        picture.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(file)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--pictures", type=click.Path(exists=True, file_okay=False), help="Class folders.  [default: digits]")
@click.option("--size", default=32, show_default=True, help="Side of what the networks see, in pixels.")
@click.option("--installed", is_flag=True, help="Use the packages of this environment; skip pip.")
@click.option(
    "--made-weights", is_flag=True, help="Random parameters where those of ImageNet are kept once downloaded."
)
def main(pictures: str | None, size: int, installed: bool, made_weights: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        clone, folder = Path(place) / "softcache", Path(place) / "softcache" / "pets"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        shutil.copytree(pictures, folder) if pictures else write_digits(folder)
        todo = commands((clone / "README.md").read_text(encoding="utf-8"))
        if installed:
            binaries = Path(sys.executable).parent
            todo = [command for command in todo if not command.startswith("pip ")]
        else:
            todo = [f"{sys.executable} -m venv .venv", *todo]
            binaries = clone / ".venv" / "bin"
        path = os.pathsep.join([str(binaries), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(clone)}
        if made_weights:
            environment = {
                name: value for name, value in environment.items() if name not in ("TORCH_HOME", "XDG_CACHE_HOME")
            }
            environment["HOME"] = str(Path(place) / "home")
            make_downloads(Path(place) / "home")
        whole = 0.0
        for command in todo:
            began = time.monotonic()
            done = subprocess.run(["bash", "-c", sized(command, size)], cwd=clone, env=environment)
            seconds = time.monotonic() - began
            whole += seconds
            print(f"{seconds:8.1f} s  {command}", flush=True)
            if done.returncode:
                sys.exit(f"stopped: status {done.returncode}")
        print(f"{whole:8.1f} s  in all")
        print(in_words(machine()))


if __name__ == "__main__":
    main()
