"""docs/many.md as a reader follows it: every command and the Python of the page, in their order, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "many.md"


def steps() -> list[str]:
    """Commands in lines of their own and within sentences, and blocks of Python; installing is not one of them."""
    page = re.sub(r"`softcache train`|`softcache sweep --help`|`softcache --threads[^`]*`", "", PAGE.read_text())
    found = re.findall(r"^```python\n(.*?)^```|^    (softcache [^\n]*)$|`(softcache [^`\n]*)`", page, re.M | re.S)
    return [python or command or within for python, command, within in found]


def test_the_page_has_commands_and_python() -> None:
    assert len(steps()) >= 12
    assert {step.split()[1] for step in steps() if step.startswith("softcache ")} == {
        "teach",
        "dump",
        "sweep",
        "compare",
    }


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_every_command_of_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    home, there = tmp_path / "home", tmp_path / "there"
    home.mkdir()
    there.mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    known = {name: value for name, value in os.environ.items() if not name.startswith(("SOFTCACHE_", "OMP_"))}
    for step in steps():
        command = ["bash", "-c", step] if step.startswith("softcache ") else [sys.executable, "-c", step]
        environment = {**known, "HOME": str(home), "PATH": path, "COLUMNS": "80"}
        done = subprocess.run(command, cwd=there, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip()
    for folder in [*there.glob("sweeps/*"), *there.glob("comparisons/*")]:
        assert json.loads((folder / "table.json").read_text())["version"] == 1
