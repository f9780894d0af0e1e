"""Writes docs/options.md, the index of all options of all commands, from the command line itself:
`python docs/write_options.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from softcache.cli._main import LazyGroup, main

PAGE = Path(__file__).with_name("options.md")
BEFORE = """# All options

Every option of every command, from A to Z, written by `python docs/write_options.py` from what `softcache COMMAND
--help` shows. Where an option means something else in another command, it has a row for each meaning. "—" stands where
there is no default: nothing happens unless the option is given, or its own text says what is done. An option of
`train` that takes several values with commas in `softcache sweep` is marked with `V,V`.
"""
_DEFAULT = re.compile(r"\s*\[default: (?P<default>(?:[^\[\]]|\[[^\]]*\])*)\]\.?\s*")


@dataclass(frozen=True)
class Row:
    """An option as one command has it. ``names``: as help shows them, with the placeholder of the value."""

    names: str
    command: str
    default: str
    help: str


def written() -> str:
    """The page."""
    assert isinstance(main, LazyGroup)
    context = click.Context(main, info_name="softcache", **main.context_settings)
    commands = main.list_commands(context)
    lines = [BEFORE, "## Of softcache itself\n", "They stand before the command: `softcache --quiet train`.\n"]
    lines += ["| option | default | what it does |", "| --- | --- | --- |"]
    lines += [
        f"| `{_cell(row.names)}` | {row.default} | {row.help} |" for row in sorted(_rows(main, context), key=_order)
    ]
    found: list[Row] = []
    for name in commands:
        command = main.get_command(context, name)
        assert command is not None
        found += _rows(command, click.Context(command, context, info_name=name))
    lines += ["\n## Of the commands\n", "| option | commands | default | what it does |", "| --- | --- | --- | --- |"]
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for row in sorted(found, key=_order):
        grouped.setdefault((row.names, row.default, row.help), []).append(row.command)
    for (names, default, text), users in grouped.items():
        where = "all" if users == commands else ", ".join(users)
        lines.append(f"| `{_cell(names)}` | {where} | {default} | {text} |")
    lines += ["\n## Arguments\n", "| command | takes |", "| --- | --- |"]
    for name in commands:
        command = main.get_command(context, name)
        assert command is not None
        taken = [one.make_metavar(context) for one in command.params if isinstance(one, click.Argument)]
        if taken:
            lines.append(f"| `softcache {name}` | `{' '.join(taken)}` |")
    return "\n".join(lines) + "\n"


def _rows(command: click.Command, context: click.Context) -> Iterator[Row]:
    # Help's names are the context's: a command keeps the help option of its first use, which may have been without one.
    helps = ", ".join(sorted(context.help_option_names, key=len))
    yield Row(helps, str(context.info_name), "—", "Show this message and exit.")
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            shown = option.get_help_record(context)
            assert shown is not None
            text = option.help or ""
            found = _DEFAULT.search(text)
            default = found["default"] if found is not None else "—"
            yield Row(shown[0], str(context.info_name), _cell(default), _cell(_DEFAULT.sub(" ", text).strip()))


def _order(row: Row) -> str:
    """By the long name, whatever its case."""
    return next(part for part in row.names.split() if part.startswith("--")).lstrip("-").lower()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
