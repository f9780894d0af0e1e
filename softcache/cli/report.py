"""``softcache report``"""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from softcache.cli import _options
from softcache.cli._options import option, section
from softcache.cli._print import as_json, rows


@_options.command("report")
@click.argument("runs", metavar="RUN|SWEEP|COMPARISON...", nargs=-1, required=True)
@section(
    "Most used",
    option(
        "--out", "-o", type=click.Path(), help="The file; a report that is there is replaced.  [default: report.html]"
    ),
    option(
        "--cache",
        multiple=True,
        help="The cache that the students were trained from, where it isn't where they say, or a cache of the test "
        "split, for what the teacher says of it; repeatable.",
    ),
    option("--teacher", help="The teacher, where it isn't where its cache says."),
    option("--dataset", help="The dataset, where it isn't where the runs say."),
    option("--data-dir", help="Where torchvision's datasets are.  [default: $SOFTCACHE_DATA or datasets/]"),
    _options.json_,
)
@section("Device and speed", _options.device, _options.workers)
def command(runs: tuple[str, ...], json_: bool = False, **options: Any) -> None:
    """One HTML page about runs, sweeps and comparisons, to look at and to pass on.

    A table of all settings, curves, a map over T and alpha, calibration, classes, what the teacher takes for alike,
    samples on which student and teacher disagree, costs and provenance. The page loads nothing from anywhere. What
    can't be made is left out, and the page says how to have it.

    \b
      softcache report sweeps/cifar-resnet8-1 -o sweep.html
    """
    from softcache.console import duration, size
    from softcache.stages.report import report

    done = report(*runs, **options)
    if json_:
        as_json({**dataclasses.asdict(done), "path": str(done.path)})
        return
    facts = [("report", f"{done.path} ({size(done.bytes)}, {duration(done.seconds)})")]
    rows(
        [*facts, ("sections", ", ".join(done.sections)), *((f"without {name}", why) for name, why in done.left.items())]
    )
