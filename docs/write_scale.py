"""Writes the figures of docs/scale.md, which are those of `softcache plan`: `python docs/write_scale.py`.

What stands after `$ softcache plan …` is replaced by what that command prints. In a table, a row that has a cell
`` `plan …` `` gets the figures of that command in all columns whose headings are known here. A sentence before the
table may say that every command takes other options too.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from softcache.cli.plan import command
from softcache.console import decimal_size, duration

PAGE = Path(__file__).with_name("scale.md")
FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "bytes a key": lambda plan: f"{sum(column['key_bytes'] for column in plan['columns']):,}",
    "a view": lambda plan: decimal_size(plan["files"]["view_bytes"]),
    "the cache": lambda plan: decimal_size(plan["files"]["bytes"]),
    "shards a view": lambda plan: f"{plan['files']['shards'] // plan['views']:,}",
    "files": lambda plan: f"{plan['files']['files']:,}",
    "the dump": lambda plan: duration(plan["dumping"]["hours"] * 3600),
    "it writes": lambda plan: f"{plan['dumping']['written_mb_per_s']:,.1f} MB/s",
    "students read": lambda plan: f"{plan['students']['read_mb_per_s']:,.1f} MB/s",
}
_SHOWN = re.compile(r"^    \$ softcache plan (?P<options>.*)\n(?:    (?!\$).*\n)*", re.MULTILINE)
_COMMON = re.compile(r"every command takes `(--[^`]*)` too")
_CELL = re.compile(r"`plan (?P<options>[^`]*)`")


def printed(options: list[str]) -> str:
    """What the command prints."""
    done = CliRunner().invoke(command, options)
    assert done.exit_code == 0, (options, done.output, done.exception)
    return done.output


def written(page: str) -> str:
    """The page with the figures of its commands."""
    page = _SHOWN.sub(lambda found: _shown(found["options"]), page)
    lines, headings, common = [], list[str](), ""
    for line in page.split("\n"):
        common = "".join(_COMMON.findall(line)) or common
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        found = _CELL.search(line) if cells else None
        if not cells:
            headings = []
        elif not headings:
            headings = cells
        if found is not None:
            plan = json.loads(printed([*shlex.split(f"{found['options']} {common}"), "--json"]))
            cells = [
                FIGURES[heading](plan) if heading in FIGURES else cell
                for heading, cell in zip(headings, cells, strict=True)
            ]
            line = f"| {' | '.join(cells)} |"
        lines.append(line)
    return "\n".join(lines)


def _shown(options: str) -> str:
    output = "".join(f"    {line}\n" for line in printed(shlex.split(options)).splitlines())
    return f"    $ softcache plan {options}\n{output}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
