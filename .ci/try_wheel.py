"""Tries a wheel as somebody who installs it: `python .ci/try_wheel.py dist/softcache-0.1.0-py3-none-any.whl`.

The wheel goes into an environment of its own, alone. What it needs (torch is 5 GB) is read from the environment of this
Python, by a line in a .pth file: a softcache that is installed there for editing isn't found that way. No compiler is
on the path, and nothing of the checkout: the commands run in an empty folder with an empty home.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

QUICK = ("--epochs", "1", "--size", "8", "--workers", "0")


def main(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl"), f"{wheel.name} is for one Python or machine alone"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch).resolve()
        environment, work = root / "environment", root / "work"
        venv.create(environment, with_pip=False, symlinks=True)
        python = environment / "bin" / "python"
        install = ("-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel))
        subprocess.run([sys.executable, *install], check=True)
        (own,) = environment.glob("lib/python*/site-packages")
        (own / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        work.mkdir()
        variables = {"PATH": str(environment / "bin"), "HOME": str(work), "OMP_NUM_THREADS": "1"}

        def run(*arguments: str) -> str:
            began = time.perf_counter()
            command = [str(environment / "bin" / "softcache"), *arguments]
            done = subprocess.run(command, cwd=work, env=variables, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"softcache {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
            print(f"{time.perf_counter() - began:6.1f} s  softcache {' '.join(arguments)}", flush=True)
            return done.stdout

        print(run("--version").strip())
        code = "import softcache; print(softcache.__file__)"
        place = subprocess.run(
            [python, "-c", code], cwd=work, env=variables, capture_output=True, text=True, check=True
        )
        assert Path(place.stdout.strip()).is_relative_to(own), f"softcache is that of {place.stdout.strip()}"
        assert "softcache teach" in run("--help")
        run("presets")
        run("losses")
        run("teach", "--model", "cifar:resnet8", "--out", "teacher", *QUICK)
        run("dump", "--teacher", "teacher", "--views", "1", "--size", "8", "--workers", "0", "--out", "caches/digits")
        trained = json.loads(run("train", "--student", "cifar:resnet8", *QUICK, "--json"))
        assert trained["test_top1"] is not None
        assert (work / trained["run"] / "student.safetensors").exists()
        print(f"{wheel.name}: installed without a compiler, and its commands run outside of the checkout")


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]))
