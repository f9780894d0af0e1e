"""docs/scale.md: numbered jobs divide the whole of the work, and the figures are those of `softcache plan`."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import textwrap
from pathlib import Path

import pytest

from softcache.cli._main import main
from softcache.cli.dump import command

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "scale.md").read_text(encoding="utf-8")
PARTS = 16


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """In which ``softcache`` prints its arguments, a line each."""
    program = tmp_path / "softcache"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def given(arguments: list[str]) -> dict[str, object]:
    """The options of a ``softcache dump``, as the command line parses them."""
    assert arguments[0] == "dump"
    return dict(command.make_context("dump", arguments[1:], parent=main.make_context("softcache", ["dump"])).params)


def all_parts(run: list[str], environment: dict[str, str], names: dict[str, str], first: int) -> None:
    found = []
    for number in range(first, first + PARTS):
        own = {**environment, **{name: text.format(number=number) for name, text in names.items()}}
        printed = subprocess.run(run, env=own, capture_output=True, text=True, check=True).stdout.splitlines()
        found.append(given(printed)["part"])
    assert found == [(k, PARTS) for k in range(1, PARTS + 1)]


def test_the_slurm_array_computes_all_parts(environment):
    script = block("bash")
    assert f"#SBATCH --array=1-{PARTS}\n" in script
    names = {"SLURM_ARRAY_TASK_ID": "{number}", "SLURM_ARRAY_TASK_COUNT": str(PARTS)}
    all_parts(["bash", "-c", script], environment, names, first=1)


def test_the_kubernetes_job_computes_all_parts(environment):
    text = block("yaml")
    assert f"completions: {PARTS}\n" in text
    folded = re.search(r"- >-\n(.*?)\n +resources:", text, re.DOTALL)
    assert folded is not None
    script = " ".join(textwrap.dedent(folded[1]).split("\n"))
    all_parts(["sh", "-c", script], environment, {"JOB_COMPLETION_INDEX": "{number}"}, first=0)


def test_the_figures_are_those_that_plan_prints_now(here: Path) -> None:
    """`python docs/write_scale.py` writes them anew."""
    written = runpy.run_path(str(DOCS / "write_scale.py"))["written"]
    assert written(PAGE) == PAGE
    assert PAGE.count("`plan ") >= 11
    assert "    $ softcache plan " in PAGE
    assert not re.search(r"^\|.*\|\s*\|$", PAGE.split("### ImageNet")[1], re.MULTILINE), "a cell without a figure"
