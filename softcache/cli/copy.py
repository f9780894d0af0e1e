"""``softcache copy``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._options import option, section
from softcache.cli._print import as_json, rows
from softcache.console import counted, duration, size


@_options.command("copy")
@click.argument("source")
@click.argument("target")
@section(
    "Most used",
    _options.expect,
    option("--threads", type=click.IntRange(1), help="Files sent at once.  [default: 4]"),
    _options.json_,
)
@section(
    "Publishing",
    option(
        "--card/--no-card",
        default=None,
        help="Write a README.md that says what the cache is, and leave out what is private.  [default: card for hf://]",
    ),
    option(
        "--include",
        multiple=True,
        metavar="WHAT",
        help="With a card, don't leave this out: command, paths, names (of files) or samples (kept inputs); "
        "repeatable.",
    ),
    option("--license", help="The dataset's licence, for the card."),
)
def command(source: str, target: str, expect: tuple[str, ...] = (), json_: bool = False, **options: Any) -> None:
    """Copy a cache as it is: SOURCE and TARGET are folders, or addresses such as s3://bucket/name.

    What TARGET has already isn't sent again, and every file is compared on arrival. Reads s3, gs, az, hf and https;
    writes s3, gs, az and hf.
    """
    from softcache.stages.copy import copy

    copied = copy(source, target, expect=expect, **options)
    if json_:
        as_json(copied.to_json())
        return
    rows(
        [
            ("copy", f"{copied.target} ({counted(copied.files, 'file')}, {size(copied.bytes)})"),
            ("sent", f"{counted(copied.sent, 'file')}, {size(copied.sent_bytes)} in {duration(copied.seconds)}"),
            ("pin", f"{copied.pin}  (--expect takes it)"),
        ]
    )
