"""The options of ``train`` for commands of many students: those that may have several values take lists."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from softcache.cli import train
from softcache.cli._options import Decorator, SectionedOption, option, together
from softcache.config.several import SETTLED

# A comma within a spec, as in hf:NAME,config=sst2, goes on with it.
_COMMA = re.compile(r",(?![A-Za-z_]\w*=)")
_RANGE = re.compile(r"[-+.\deE]*\d\.\.[-+.\d]")


def of_train(several: tuple[str, ...], helps: Mapping[str, str]) -> Decorator:
    """The options of ``train`` that aren't settled for each run by the command itself. ``several``: those that take
    lists with commas; ``helps``: other texts, by name."""
    own = [made for made in train.command.params if made.name not in {"from_file", "json_", *SETTLED}]
    made = [_several(one, helps) if one.name in several else _told(one, helps) for one in own]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        declared: list[click.Parameter] = function.__dict__.setdefault("__click_params__", [])
        declared += reversed(made)  # click reads them from the end
        return function

    return decorate


layout = together(
    option(
        "--processes",
        type=int,
        help="Processes that train beside each other.  [default: one a core, each with one CPU thread; on a GPU 1]",
    ),
    option("--at-once", type=int, help="Students that a process trains at once, from one stream.  [default: 8]"),
)


def _told(made: click.Parameter, helps: Mapping[str, str]) -> click.Parameter:
    assert isinstance(made, SectionedOption)
    if made.name not in helps:
        return made
    own = copy.copy(made)
    own.help = helps[str(made.name)]
    return own


def _several(made: click.Parameter, helps: Mapping[str, str]) -> click.Parameter:
    """The option with a list of values, or with one value each time where it could be given several times before."""
    own = copy.copy(_told(made, helps))
    assert isinstance(own, SectionedOption)
    if own.multiple:
        return own
    kind = made.type

    def parse(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        if value is None:
            return None
        # A range stays a text: only a command that draws from it knows what to do with it.
        parts = [part.strip() for part in _COMMA.split(value)]
        return tuple(part if _RANGE.match(part) else kind.convert(part, parameter, ctx) for part in parts)

    own.type, own.callback, own.metavar = click.STRING, parse, "V,V"
    return own
