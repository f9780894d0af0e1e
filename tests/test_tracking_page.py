"""docs/tracking.md: the command line takes every command of the page, those of TensorBoard run as they stand, and the
page names every tracker with its options."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from harness_train import command, lines

from softcache import registry
from softcache.cli._main import main

PAGE = (Path(__file__).parents[1] / "docs" / "tracking.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^    softcache (.*)$", PAGE, re.M)]


def test_the_page_names_every_tracker_and_option() -> None:
    rows = {row[0]: row for row in re.findall(r"^\| `(\w+)` \| (`\[\w+\]`) \| .* \| ([^|]*) \|$", PAGE, re.M)}
    assert sorted(rows) == list(registry.names("tracking"))
    for name, (_, extra, options) in rows.items():
        assert extra == f"`[{name}]`"
        fields = [own.name for own in dataclasses.fields(registry.component("tracking", name))]
        assert re.findall(r"`(\w+)[=\w/]*`", options) == fields


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_command_line_takes_what_the_page_says(arguments: list[str]) -> None:
    parent = main.make_context("softcache", [arguments[0]])
    found = main.get_command(parent, arguments[0])
    assert found is not None
    given = found.make_context(arguments[0], list(arguments[1:]), parent=parent).params
    for spec in given.get("log", ()):
        registry.create("tracking", spec)


def test_the_first_commands_run_as_they_stand(here: Path) -> None:
    """On smaller pictures."""
    pytest.importorskip("tensorboard")
    small = ["--size", "8", "--workers", "0"]
    for arguments in COMMANDS[:3]:
        assert command(*arguments, *([] if arguments[0] == "train" else small)) == 0
    (run,) = (here / "runs").iterdir()
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert lines(run, "steps.jsonl")
