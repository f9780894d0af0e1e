"""The examples in the docstrings of codecs, losses and views run, and every component has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest
import torch

from softcache import registry
from softcache.losses._describe import describe_losses

FOLDERS = ("codecs", "losses", "losses.hints", "views")
MODULES = ["softcache.console", "softcache.functional", "softcache.inputs", "softcache.fields", "softcache.ragged"] + [
    f"softcache.{folder}.{module.name}"
    for folder in FOLDERS
    for module in pkgutil.iter_modules(importlib.import_module(f"softcache.{folder}").__path__)
    if not module.ispkg
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_say(name: str) -> None:
    torch.manual_seed(0)
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_component_has_an_example(kind: str) -> None:
    for name in registry.names(kind):
        cls = registry.component(kind, name)
        assert doctest.DocTestParser().get_examples(cls.__doc__ or ""), f"{kind}/{name}.py has no example"


def test_an_example_with_a_wrong_value_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first test relies on."""
    (tmp_path / "wrong_example.py").write_text('"""\n>>> 1 + 1\n3\n"""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        module = importlib.import_module("wrong_example")
        runner = doctest.DocTestRunner(verbose=False)
        for example in doctest.DocTestFinder().find(module):
            runner.run(example, out=lambda text: None)
        assert runner.summarize(verbose=False).failed == 1
    finally:
        sys.modules.pop("wrong_example", None)


def test_every_loss_shows_a_command() -> None:
    for row in describe_losses():
        assert row.command.startswith(f"softcache train --{row.kind} {row.name}")
