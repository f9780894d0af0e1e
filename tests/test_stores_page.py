"""docs/stores.md: the command line takes every command of the page, and those that copy and describe run as they
stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from harness_store import Proxy, Server
from harness_train import command, make_cache, make_teacher
from test_store_systems import memory as memory

from softcache.cli._main import main
from softcache.stages.copy import copy

PAGE = (Path(__file__).parents[1] / "docs" / "stores.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^    softcache (.*)$", PAGE, re.M)]


def test_the_page_has_its_commands() -> None:
    assert {arguments[0] for arguments in COMMANDS} == {"copy", "info", "train", "dump"}


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_command_line_takes_what_the_page_says(arguments: list[str]) -> None:
    parent = main.make_context("softcache", [arguments[0]])
    found = main.get_command(parent, arguments[0])
    assert found is not None
    found.make_context(arguments[0], list(arguments[1:]), parent=parent)


def test_copy_and_info_run_as_they_stand(
    here: Path, server: Server, faults: Proxy, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_teacher(here / "teacher")
    make_cache(here / "caches" / "resnet50-digits-train", here / "teacher")
    bucket = server.bucket()
    for arguments in COMMANDS:
        if arguments[0] in ("copy", "info"):
            assert command(*(part.replace("s3://bucket/", f"s3://{bucket}/") for part in arguments)) == 0
    pin = copy(here / "caches" / "resnet50-digits-train", here / "copy").pin
    assert capsys.readouterr().out.count(pin) == 2


@pytest.mark.parametrize("word", ["--local-cache", "--local-size", "--expect", "--staging", "shards:N"])
def test_what_the_page_names_is_in_the_help(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    command("train", "--help")
    command("dump", "--help")
    shown = capsys.readouterr().out
    assert word in PAGE
    assert word in shown
