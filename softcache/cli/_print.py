"""How results are printed: aligned rows, or JSON."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import click

from softcache.addresses import visible


def percent(share: float | None) -> str:
    """``98.61 %``, or a dash where there is nothing to say."""
    return "–" if share is None else f"{100 * share:.2f} %"


def lost(error: Mapping[str, float]) -> str:
    """``, mean KL 1.2e-09 at T=1, 8.1e-11 at T=4``: what a codec loses, after its name; nothing where that isn't
    known."""
    if {"kl_mean_T1", "kl_mean_T4"} <= error.keys():
        return f", mean KL {error['kl_mean_T1']:.1e} at T=1, {error['kl_mean_T4']:.1e} at T=4"
    return f", relative error {error['relative_error_mean']:.1e}" if "relative_error_mean" in error else ""


def rows(pairs: Sequence[tuple[str, object]]) -> None:
    """Names and values in two columns."""
    names = [_cell(name) for name, _ in pairs]
    width = max(map(len, names))
    for name, (_, value) in zip(names, pairs, strict=True):
        click.echo(f"{name.ljust(width)}  {_cell(value)}")


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; nothing is cut, whatever the terminal's width."""
    names, *cells = [[_cell(cell) for cell in line] for line in (header, *lines)]
    widths = [max(len(line[k]) for line in [names, *cells]) for k in range(len(names))]
    for line in [names, ["─" * width for width in widths], *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def fitted(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table; where the terminal is too narrow for it, an entry for each line, ``FIRST  name=value …``, in as many
    lines as it needs. Where the first cells are wide, they have lines of their own. Nothing is cut."""
    room = shutil.get_terminal_size().columns
    cells = [[_cell(cell) for cell in line] for line in (header, *lines)]
    if sum(max(map(len, column)) + 2 for column in zip(*cells, strict=True)) - 2 <= room:
        table(header, lines)
        return
    wide = max(len(line[0]) for line in cells[1:]) > room // 4
    width = 2 if wide else max(len(line[0]) for line in cells[1:]) + 2
    for first, *values in cells[1:]:
        told = " ".join(f"{name}={value}" for name, value in zip(cells[0][1:], values, strict=True) if value != "–")
        wrapped = textwrap.wrap(told, max(room - width, 20), break_long_words=False, break_on_hyphens=False) or ["–"]
        if wide:
            click.echo(first)
        for mark, text in zip(["" if wide else first, *[""] * len(wrapped)], wrapped, strict=False):
            click.echo(f"{mark.ljust(width)}{text}")


def _cell(text: object) -> str:
    """A text from anywhere in its one line."""
    return re.sub("[\t\r\n]", "\ufffd", visible(text))


def as_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))
