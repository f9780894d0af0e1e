"""``softcache compare``"""

from __future__ import annotations

import contextlib
from typing import Any

import click

from softcache.cli import _many, _options
from softcache.cli._options import option, section
from softcache.cli._print import as_json, rows
from softcache.cli._print import table as print_table
from softcache.console import duration

HELPS = {
    "order_seed": "Seed of the order of rows and of --label-fraction, the same for all students.  [default: 0]",
    "seed": "The first seed.  [default: 0]",
    "val_fraction": "Share of the rows held out to choose the best epoch.  [default: 0; 0.1 with --generations]",
}


@_options.command("compare", file="--spec")
@_many.of_train((), HELPS)
@section(
    "Comparison",
    option("--seeds", type=int, help="Students of each kind, from --seed on.  [default: 5]"),
    option(
        "--generations",
        type=int,
        help="So many distilled students at most, each taught by the best of those before.  [default: 1]",
    ),
    option("--out", type=click.Path(), help="The comparison's folder.  [default: comparisons/STUDENT-<n>]"),
    option(
        "--resume",
        type=click.Path(),
        metavar="COMPARISON",
        help="Go on with an interrupted one, with its own options; --processes and where it runs may be others.",
    ),
    _many.layout,
    _options.json_,
)
def command(json_: bool = False, **options: Any) -> None:
    """Compare a student alone with the same student distilled, over several seeds.

    Takes all options of train. The student alone learns from labels, with the same options but those of a teacher; a
    learning rate that isn't given is each one's own. The difference is that of pairs of one seed, with a 95 %
    interval and the p of a paired t test.
    """
    from softcache.console import live_table
    from softcache.stages.compare import compare
    from softcache.sweeping.comparison import compared

    with contextlib.ExitStack() as shown:
        show = shown.enter_context(live_table())
        done = compare(lambda table: show(*compared(table, {}).lines()), **options)
    if json_:
        as_json(done.to_json())
        return
    print_table(*done.comparison.lines())
    click.echo("")
    rows([("comparison", f"{done.folder} ({duration(done.seconds)})")])
    click.echo("± is the standard deviation of a single student; students of all seeds saw one order of the rows")
