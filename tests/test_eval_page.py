"""docs/eval.md as a reader follows it: the command line takes its commands, and they run in their order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from softcache.cli._main import main

PAGE = (Path(__file__).parents[1] / "docs" / "eval.md").read_text(encoding="utf-8")
STEPS = re.findall(r"^```python\n(.*?)^```|^    (softcache [^\n]*)$", PAGE, re.M | re.S)
COMMANDS = [shlex.split(line)[1:] for _, line in STEPS if line]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_command_line_takes_what_the_page_says(arguments: list[str]) -> None:
    parent = main.make_context("softcache", [arguments[0]])
    found = main.get_command(parent, arguments[0])
    assert found is not None
    found.make_context(arguments[0], list(arguments[1:]), parent=parent)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_every_command_of_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "there").mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    known = {name: value for name, value in os.environ.items() if not name.startswith("SOFTCACHE_")}
    environment = {**known, "HOME": str(tmp_path / "home"), "PATH": path, "COLUMNS": "80"}
    for python, command in STEPS:
        step = [sys.executable, "-c", python] if python else [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(step, cwd=tmp_path / "there", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{python or command}\n{done.stdout}\n{done.stderr}"
        assert "not compared" not in done.stdout
        assert done.stdout.strip() or "--csv" in command
