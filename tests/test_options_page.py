"""docs/options.md is what the command line says now, and names every option that any command takes."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import click
import pytest

from softcache.cli._main import main
from softcache.config.dump import DumpConfig
from softcache.config.teach import TeachConfig
from softcache.config.train import TrainConfig

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "options.md").read_text(encoding="utf-8")


def test_the_page_is_what_the_command_line_says_now() -> None:
    """`python docs/write_options.py` writes it anew."""
    assert runpy.run_path(str(DOCS / "write_options.py"))["written"]() == PAGE


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_every_option_of_a_command_has_a_row(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    rows = [line for line in PAGE.splitlines() if line.startswith("| `-")]
    for option in command.params:
        if isinstance(option, click.Option):
            own = [row for row in rows if any(f"{opt} " in row or f"{opt}`" in row for opt in option.opts)]
            assert any(name in row.split(" | ")[1].split(", ") or row.split(" | ")[1] == "all" for row in own), option


@pytest.mark.parametrize("config", [TrainConfig, TeachConfig, DumpConfig])
def test_every_option_of_the_python_api_is_among_them(config: type) -> None:
    for own in dataclasses.fields(config):
        name = own.name if own.name == "T" else own.name.replace("_", "-")
        assert f"--{name}" in PAGE, own.name


def test_no_row_lacks_its_text() -> None:
    for line in PAGE.splitlines():
        if line.startswith("| `-"):
            cells = [cell.strip() for cell in line.strip("|").replace("\\|", "/").split("|")]
            assert len(cells) in (3, 4), line
            assert all(cells), line
            assert cells[-1][0].isupper() or cells[-1][0] in "`(" or cells[-1].split()[0].rstrip(",:").isascii(), line
